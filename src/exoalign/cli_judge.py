"""`exoalign judge`: verdicts of a language model behind a server, and what comes of them. Imports are late, as in `cli`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from exoalign.cli_options import AsJson, Quiet, Redo

if TYPE_CHECKING:
    from exoalign.groups import Group


def judge(
    data: Annotated[str, typer.Option(help="Completions: a file, a folder, a hub id or a run's groups.parquet.")],
    url: Annotated[str, typer.Option(help="The server's address, e.g. http://localhost:8000/v1")],
    judge_model: Annotated[str, typer.Option(help="The model that judges, as the server calls it.")],
    out: Annotated[str, typer.Option(help="The folder to write to.")],
    against: Annotated[
        str | None,
        typer.Option(help="Completions of another model for the same prompts: the win rate is that over these."),
    ] = None,
    kind: Annotated[str, typer.Option(help="pairwise or pointwise.")] = "pairwise",
    prompt: Annotated[str, typer.Option(help="dialogue, summarisation, instruction, or a file.")] = "instruction",
    pairs: Annotated[str | None, typer.Option(help="Of each prompt: all pairs, or the first with the others.")] = None,
    write: Annotated[str | None, typer.Option(help="Write pairs or rewards for training.")] = None,
    control: Annotated[int, typer.Option(help="Prompts judged with a reply that says nothing; 0 for none.")] = 20,
    max_calls: Annotated[int | None, typer.Option(help="Ask at most so many questions now.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 16,
    concurrency: Annotated[int, typer.Option(help="Questions under way at once.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 120.0,
    retries: Annotated[int, typer.Option(help="Tries after the first, of a question that fails.")] = 4,
    api_key_env: Annotated[
        str, typer.Option(help="The environment variable that holds the key; a local server needs none.")
    ] = "OPENAI_API_KEY",
    adapter: Annotated[str | None, typer.Option(help="The adapter of --data and --against, e.g. hh.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of --data and --against.")] = None,
    subset: Annotated[str | None, typer.Option(help="The subset of --data and --against.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first so many prompts.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the delimiters and the intervals.")] = 0,
    redo: Redo = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Have completions judged: pairs in both orders, or a score for each. Run again, it goes on after the answers it has."""
    from exoalign.config_judge import JudgeSection
    from exoalign.data.formats import read_groups
    from exoalign.data.sources import Source
    from exoalign.progress import plain
    from exoalign.recipe import build_section
    from exoalign.stages_judge import METRICS, VERDICTS, judging
    from exoalign.stages_judge import judge as judge_stage
    from exoalign.store import RunFolder

    values = {
        "url": url,
        "model": judge_model,
        "kind": kind,
        "prompt": prompt,
        "pairs": pairs,
        "write": write,
        "control": control,
        "max_calls": max_calls,
        "max_tokens": max_tokens,
        "concurrency": concurrency,
        "timeout": timeout,
        "retries": retries,
        "api_key_env": api_key_env,
    }
    given = {name: value for name, value in values.items() if value is not None}
    options = {name: f"--{name.replace('_', '-')}" for name in given} | {"model": "--judge-model"}
    section = build_section(JudgeSection, given, lines=options)

    def say(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{plain(line)}\n")
            sys.stderr.flush()

    def groups_of(path: str, most: int | None) -> list[Group]:
        groups, aside = read_groups(Source(path, adapter, split, subset), limit=most)
        for line in aside.lines():
            say(f"note: {line}")
        return groups

    work = judging(section, groups_of(data, limit), None if against is None else groups_of(against, None), seed=seed)
    try:
        with RunFolder(out, "judge", redo=redo) as folder:
            done = folder.stage(
                "judge", work.made_from(), lambda path: judge_stage(work, path, show=not quiet, say=say)
            )
    except KeyboardInterrupt:
        say("\ninterrupted: what was answered is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    metrics = json.loads((done.folder / METRICS).read_text(encoding="utf-8"))
    if as_json:
        sys.stdout.write(json.dumps({**metrics, "out": str(done.folder)}, indent=1) + "\n")
        return
    from exoalign.tables import judge_tables

    judge_tables(metrics)
    sys.stdout.write(f"verdicts: {plain(str(done.folder / VERDICTS))}\n")
