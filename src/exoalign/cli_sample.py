"""`exoalign sample`: K completions for each prompt, as a run of one stage. Imports are late, as in `cli`."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exoalign.cli_options import AsJson, Quiet, Redo

if TYPE_CHECKING:
    from pathlib import Path

    from exoalign.config import ModelSection
    from exoalign.config_sample import SampleSection
    from exoalign.data.formats import PromptRow


def sample(
    model: Annotated[str, typer.Option(help="A folder, an adapter's folder, a hub id or `demo`.")],
    prompts: Annotated[
        str, typer.Option(help="A file, a folder or a hub id; of rows that have completions the prompt.")
    ],
    out: Annotated[str, typer.Option(help="The folder of the run; run again, it goes on where it was interrupted.")],
    k: Annotated[int, typer.Option(min=1, help="Completions for each prompt.")] = 8,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="The smallest set of tokens with this probability is kept.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="So many of the likeliest tokens are kept; 0: all.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text at which a completion ends; may be repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Completions end here at the latest.")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same completions.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions that are drawn at once.")] = 64,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    backend: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    adapter: Annotated[str | None, typer.Option(help="The schema of the rows of --prompts, e.g. hh.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of --prompts, of a hub id or a folder.")] = None,
    subset: Annotated[str | None, typer.Option(help="The subset (configuration) of --prompts on the hub.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch, tag or commit of --prompts on the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many prompts.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model's repository brings.")
    ] = False,
    redo: Redo = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw completions from a model, with token ids and log-probs. Run again, it goes on where it was interrupted."""
    for name, value, most in (("--temperature", temperature, math.inf), ("--top-p", top_p, 1.0)):
        if not 0 < value <= most or math.isinf(value):
            raise typer.BadParameter(f"it is {value:g}; expected more than 0, and at most {most:g}", param_hint=name)
    for name, word, words in (
        ("--precision", precision, ("auto", "float32", "bfloat16")),
        ("--backend", backend, ("transformers", "vllm")),
    ):
        if word not in words:
            raise typer.BadParameter(f"it is {word!r}; expected {', '.join(words)}", param_hint=name)
    texts = list(dict.fromkeys(stop or []))
    if "" in texts:
        raise typer.BadParameter("it is empty, so that every completion would end at once", param_hint="--stop")

    from pathlib import Path

    from exoalign.config import ModelSection
    from exoalign.config_sample import SampleSection
    from exoalign.data.formats import read_prompts
    from exoalign.data.sources import Source

    section: Any = SampleSection(
        temperature=temperature, top_p=top_p, top_k=top_k, stop=texts, max_new_tokens=max_new_tokens,
        batch_size=batch_size, backend=backend,  # type: ignore[arg-type]  # checked above
    )  # fmt: skip
    policy = ModelSection(path=model, precision=precision, trust_remote_code=trust_remote_code)  # type: ignore[arg-type]
    rows = read_prompts(Source(prompts, adapter, split, subset, revision), limit=limit)
    try:
        what, folder = _run(section, policy, rows, Path(out), k=k, seed=seed, redo=redo, show=not quiet)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: what is drawn is kept; run the same command again to go on\n")
        raise typer.Exit(130) from None
    if as_json:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        result = {"groups": str(folder / "groups.parquet"), "what": what, "numbers": summary["numbers"]}
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        sys.stdout.write(f"{what}\ngroups: {folder / 'groups.parquet'}\n")


def _run(
    section: SampleSection,
    model: ModelSection,
    rows: list[PromptRow],
    out: Path,
    *,
    k: int,
    seed: int,
    redo: bool,
    show: bool,
) -> tuple[str, Path]:
    """The run's only stage: a few words on it, and its folder."""
    import torch

    from exoalign import stages_sample
    from exoalign.models import (
        computes_in_bfloat16,
        context_length,
        identity,
        load_model,
        load_tokenizer,
        quiet_libraries,
    )
    from exoalign.progress import Progress
    from exoalign.sampling.encode import encode_prompts
    from exoalign.store import RunFolder

    quiet_libraries()
    own: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    tokenizer, context = load_tokenizer(model.path, **own), context_length(model.path, **own)
    prompts, sources = [row.prompt for row in rows], [row.source for row in rows]
    encode_prompts(tokenizer, prompts, sources, context=context, room=section.max_new_tokens)  # before any weight
    bf16 = computes_in_bfloat16(model.precision)
    settings = stages_sample.settings_of(section, k=k, seed=seed)
    dtype = torch.bfloat16 if bf16 else torch.float32

    def work(folder: Path) -> str:
        sampler = stages_sample.open_sampler(
            section, model, tokenizer, lambda: load_model(model.path, dtype=dtype, **own).eval(), bf16=bf16
        )
        with Progress("sample", len(rows) * k, enabled=show) as progress:
            return stages_sample.sample(sampler, rows, settings, folder, progress.advance)

    made_from = {
        "model": identity(model.path),
        "bf16": bf16,
        "backend": section.backend,
        "batch_size": section.batch_size,
        "sample": settings.as_dict(),
        "prompts": prompts,
        "rows": [row.row for row in rows],
    }
    with RunFolder(out, out.name, redo=redo) as folder:
        done = folder.stage("sample", made_from, work)
    return done.what, done.folder
