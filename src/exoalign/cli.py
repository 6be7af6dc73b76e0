"""The command line. Imports are late, so that every `--help` comes at once; results go to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from exoalign import (
    cli_align,
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
from exoalign.cli_options import AsJson, Inexact, Overrides, Quiet, Redo
from exoalign.cli_run import run_recipe, say

if TYPE_CHECKING:
    from exoalign.config import Recipe

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
        run_recipe(found, as_json=as_json, quiet=quiet, redo=redo, allow_inexact=allow_inexact)


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


app.command()(cli_align.align)
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
        say(plain(str(error)))
        sys.exit(error.exit_code)
    except ExoalignError as error:
        say(f"error: {plain(str(error))}")
        sys.exit(2)
    except BrokenPipeError:  # whoever reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write goes nowhere
        sys.exit(1)
    except OSError as error:
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        say(
            f"error: {plain(': '.join(filter(None, [names, error.strerror or str(error)])))}; mend that and run it again"
        )
        sys.exit(2)
