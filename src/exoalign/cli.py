"""The command line. Imports are late, so that every `--help` comes at once; results go to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exoalign import (
    cli_compare,
    cli_data,
    cli_doctor,
    cli_evaluate,
    cli_judge,
    cli_reward,
    cli_runs,
    cli_sample,
    cli_score,
    cli_sft,
)
from exoalign._version import __version__
from exoalign.cli_options import AsJson, Inexact, Quiet, Redo

if TYPE_CHECKING:
    from exoalign.config import Recipe
    from exoalign.data.sources import Source

app = typer.Typer(
    help="Align language models with preferences by Efficient Exact Optimization (EXO).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_evaluate.app, name="evaluate")
app.add_typer(cli_reward.app, name="reward")

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as section.key=value, e.g. align.beta_r=0.5")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe, e.g. recipes/demo.yaml")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done, and how long it takes.")
    ] = False,
    redo: Redo = False,
    allow_inexact: Inexact = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a whole recipe, stage by stage, to a report. Run again, it goes on where it was stopped."""
    from exoalign.recipe import load_recipe

    found = load_recipe(recipe, overrides or [])
    if dry_run:
        _plan(found, redo=redo, as_json=as_json)
    else:
        _run(found, as_json=as_json, quiet=quiet, redo=redo, allow_inexact=allow_inexact)


@app.command()
def align(
    model: Annotated[str, typer.Option(help="The policy to align: a folder, a hub id or `demo`.")],
    data: Annotated[
        str | None, typer.Option(help="Pairs or K-way groups: a file, a folder, a hub id or a run's Parquet.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The folder of the run.")] = None,
    objective: Annotated[str, typer.Option(help="exo_rw, exo_pref, dpo_rw or dpo_pref.")] = "exo_pref",
    eval_data: Annotated[str | None, typer.Option(help="Held-out groups to report accuracy and loss on.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The schema of the rows of --data and --eval-data, e.g. hh or ultrafeedback.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of --data, of a hub id or a folder.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="The split of --eval-data.")] = None,
    subset: Annotated[
        str | None, typer.Option(help="The subset (configuration) of --data, and of --eval-data from the hub too.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch, tag or commit of --data, and of --eval-data from the hub too.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many groups of --data.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Use the first so many groups of --eval-data.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only tell what memory and time it will take.")] = False,
    shape: Annotated[
        str | None, typer.Option(help="For --estimate without --data: groups=1000,prompt=512,k=8,completion=256")
    ] = None,
    overrides: Overrides = None,
    redo: Redo = False,
    allow_inexact: Inexact = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Align a model on completions that exist already: preference pairs, transcripts, or K completions with rewards."""
    from pathlib import Path

    from exoalign.data import sources
    from exoalign.recipe import build_recipe

    needed = {} if estimate else {"--data": data, "--out": out}
    for name, value in needed.items():
        if value is None:
            raise typer.BadParameter("it is missing; only --estimate does without it", param_hint=name)
    if shape is not None and (data is not None or not estimate):
        raise typer.BadParameter("it is read with --estimate, in place of --data", param_hint="--shape")
    for name, value in {"--split": split, "--subset": subset, "--revision": revision}.items():
        if value is not None and data is None:
            raise typer.BadParameter("it says which part of --data is read, which is missing", param_hint=name)
    if eval_split is not None and eval_data is None:
        raise typer.BadParameter("it is the split of --eval-data, which is missing", param_hint="--eval-split")

    train = sources.Source(data or "none", adapter, split, subset, revision)
    heldout = None if eval_data is None else sources.beside(train, eval_data, eval_split)
    files: dict[str, Any] = {
        "train": _section(train),
        "limit": limit,
        "evaluation": None if heldout is None else _section(heldout),
        "evaluation_limit": eval_limit,
    }
    values: dict[str, Any] = {
        "name": Path(out or "").name or "align",
        "out": out or "runs/align",
        "model": {"path": model},
        "data": {key: value for key, value in files.items() if value is not None},
        "align": {"objective": objective},
    }
    options = {
        "model.path": "--model",
        "data.train": "--data",
        "data.evaluation": "--eval-data",
        "data.train.adapter": "--adapter",
        "data.evaluation.adapter": "--adapter",
        "data.train.split": "--split",
        "data.evaluation.split": "--eval-split",
        "data.train.subset": "--subset",
        "data.evaluation.subset": "--subset",
        "data.train.revision": "--revision",
        "data.evaluation.revision": "--revision",
        "data.limit": "--limit",
        "data.evaluation_limit": "--eval-limit",
        "align.objective": "--objective",
    }
    recipe = build_recipe(values, overrides or [], lines=options, files=data is not None)
    if estimate:
        _estimate(recipe, None if data else shape or "", as_json=as_json)
    else:
        _run(recipe, as_json=as_json, quiet=quiet, redo=redo, allow_inexact=allow_inexact)


def _section(source: Source) -> str | dict[str, Any]:
    """A data set as a recipe names it: its path, or a section where there is more to say."""
    values = {name: value for name, value in vars(source).items() if value is not None}
    return source.path if len(values) == 1 else values


def _estimate(recipe: Recipe, shape: str | None, *, as_json: bool) -> None:
    from exoalign.estimate.lines import lines, warning
    from exoalign.estimate.shapes import parse_shape
    from exoalign.models import quiet_libraries
    from exoalign.pipeline import estimate

    quiet_libraries()
    if shape == "":
        _say("note: these lengths are assumed; give --data, or --shape with your own")
    found = estimate(recipe, None if shape is None else parse_shape(shape))
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=1) + "\n")
        return
    over = warning(found)
    for line in [*lines(found), *([f"warning: {over}"] if over else [])]:
        sys.stdout.write(f"{line}\n")


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="The folder of an adapter, e.g. runs/lora/align/model")],
    out: Annotated[str, typer.Option(help="The folder to write the merged model to.")],
    dtype: Annotated[str, typer.Option(help="The type of the weights: float32 or bfloat16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base model, and check that the log-probs stay the same."""
    from exoalign.merging import merge as merge_adapter
    from exoalign.models import quiet_libraries

    quiet_libraries()
    result = merge_adapter(adapter, out, dtype=dtype)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    sys.stdout.write(
        f"model: {result['model']}\n"
        f"log-probs of {result['completions']} completions: merged and unmerged differ by at most"
        f" {result['largest_difference']:.2g} nats (the adapter itself moves them by up to {result['adapter_moves']:.2g})\n"
    )


app.command()(cli_compare.compare)
app.command()(cli_doctor.doctor)
app.command()(cli_judge.judge)
app.command()(cli_sample.sample)
app.command()(cli_score.score)
app.command()(cli_sft.sft)
app.command()(cli_runs.runs)


def _plan(recipe: Recipe, *, redo: bool, as_json: bool) -> None:
    from exoalign.models import quiet_libraries
    from exoalign.pipeline import dry_run
    from exoalign.progress import plain

    quiet_libraries()
    stages = dry_run(recipe, redo=redo)
    if as_json:
        sys.stdout.write(json.dumps(stages, indent=1) + "\n")
        return
    for each in stages:
        forecast = f" ({each['forecast']})" if each["forecast"] else ""
        sys.stdout.write(f"{each['stage']}: {each['state']}{forecast}\n")
        for change in each["changes"][:10]:
            sys.stdout.write(f"  {plain(change)}\n")


def _run(recipe: Recipe, *, as_json: bool, quiet: bool, redo: bool, allow_inexact: bool) -> None:
    try:
        from exoalign.models import quiet_libraries
        from exoalign.pipeline import run as run_recipe
        from exoalign.progress import show_warnings

        quiet_libraries()
        show_warnings(enabled=not quiet)
        result = run_recipe(
            recipe,
            say=(lambda line: None) if quiet else _say,
            show=not quiet,
            redo=redo,
            allow_inexact=allow_inexact,
        )
    except KeyboardInterrupt:
        _say("\ninterrupted: what is finished is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    from exoalign.tables import result_tables

    result_tables(result)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"exoalign {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors that the user can mend end with one message and exit code 2."""
    from exoalign.errors import ExoalignError, Interrupted
    from exoalign.progress import plain

    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(sys.stdout or nowhere):
            try:  # `nowhere` where stdout was closed before we began, as by `>&-`
                app()
            finally:
                sys.stdout.flush()  # here, where a reader that has gone can still be told from a mistake
    except Interrupted as error:
        _say(plain(str(error)))
        sys.exit(error.exit_code)
    except ExoalignError as error:
        _say(f"error: {plain(str(error))}")
        sys.exit(2)
    except BrokenPipeError:  # whoever reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write goes nowhere
        sys.exit(1)
    except OSError as error:
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        _say(
            f"error: {plain(': '.join(filter(None, [names, error.strerror or str(error)])))}; mend that and run it again"
        )
        sys.exit(2)
