"""`exoalign sft`: fine-tune a model on examples. Imports are late, so that `--help` comes at once."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exoalign.cli_options import AsJson, Inexact, Quiet, Redo

if TYPE_CHECKING:
    from exoalign.config_runs import SftRun


def sft(
    model: Annotated[str, typer.Option(help="The model to fine-tune: a folder, a hub id or `demo`.")],
    data: Annotated[
        str,
        typer.Option(
            help="Texts, conversations, prompts with replies, pairs or K-way groups: a file, folder or hub id."
        ),
    ],
    out: Annotated[str, typer.Option(help="The folder of the run; the model will be in OUT/sft/model.")],
    eval_data: Annotated[str | None, typer.Option(help="Held-out data to measure loss and perplexity on.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The schema of the rows of --data and --eval-data, e.g. hh or rt_polarity.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of --data, of a hub id or a folder.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="The split of --eval-data.")] = None,
    subset: Annotated[
        str | None, typer.Option(help="The subset (configuration) of --data, and of --eval-data from the hub too.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch, tag or commit of --data, and of --eval-data from the hub too.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many rows of --data.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Use the first so many rows of --eval-data.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as section.key=value, e.g. sft.learning_rate=1e-5 seed=1")
    ] = None,
    redo: Redo = False,
    allow_inexact: Inexact = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on examples (supervised): the model that is then sampled from and aligned."""
    from exoalign.config_runs import SftRun
    from exoalign.data.sources import Source, beside
    from exoalign.recipe import build_section

    if eval_split is not None and eval_data is None:
        raise typer.BadParameter("it is the split of --eval-data, which is missing", param_hint="--eval-split")
    train = Source(data, adapter, split, subset, revision)
    heldout = None if eval_data is None else vars(beside(train, eval_data, eval_split))
    files = {"train": vars(train), "limit": limit, "evaluation": heldout, "evaluation_limit": eval_limit}
    values = {
        "model": {"path": model},
        "sft": {"data": {key: value for key, value in files.items() if value is not None}},
    }
    options = {
        "model.path": "--model",
        "sft.data.train": "--data",
        "sft.data.evaluation": "--eval-data",
        "sft.data.limit": "--limit",
        "sft.data.evaluation_limit": "--eval-limit",
    }
    run = build_section(SftRun, values, overrides or [], lines=options)
    result = _run(run, out, redo=redo, allow_inexact=allow_inexact, quiet=quiet)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    sys.stdout.write(f"{result['what']}\nmodel: {result['model']}\n")


def _run(run: SftRun, out: str, *, redo: bool, allow_inexact: bool, quiet: bool) -> dict[str, Any]:
    """The stage in a run's folder; it is done once, as in a whole run."""
    from pathlib import Path

    from exoalign.models import computes_in_bfloat16, context_length, load_tokenizer, quiet_libraries
    from exoalign.progress import plain, show_warnings
    from exoalign.stages_sft import METRICS, MODEL, check_sft, made_from, read_sft_data, sft
    from exoalign.store import RunFolder

    def say(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{line}\n")

    quiet_libraries()
    show_warnings(enabled=not quiet)
    model, section, seed = run.model, run.sft, run.seed
    bf16 = computes_in_bfloat16(model.precision)
    check_sft(section, model, seed=seed, bf16=bf16)
    remote: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    tokenizer, context = load_tokenizer(model.path, **remote), context_length(model.path, **remote)
    data = read_sft_data(section, tokenizer, context=context, seed=seed)
    for line in (*data.lines, *(f"note: {note}" for note in data.notes)):
        say(plain(line))
    with RunFolder(out, Path(out).name, redo=redo) as folder:
        stage = folder.stage(
            "sft",
            made_from(section, data, model, seed=seed, bf16=bf16),
            lambda path: sft(
                section,
                data,
                path,
                model=model,
                tokenizer=tokenizer,
                seed=seed,
                bf16=bf16,
                show=not quiet,
                say=say,
                allow_inexact=allow_inexact,
            ),
        )
    metrics = stage.folder / METRICS
    return {
        "what": stage.what,
        "model": str(stage.folder / MODEL),
        "metrics": json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {},
    }
