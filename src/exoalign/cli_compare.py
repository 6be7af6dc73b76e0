"""`exoalign compare`: methods side by side."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from exoalign.cli_options import AsJson, Inexact, Quiet, Redo


def compare(
    recipe: Annotated[str, typer.Argument(help="A comparison, e.g. recipes/compare-sentiment.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value, e.g. betas=[0.1]")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="The comparison's small form, in a folder of its own.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no stage after so many minutes; run again to go on.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    redo: Redo = False,
    allow_inexact: Inexact = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on one task: the same prompts, samples and evaluation for all; a page with the frontier of each."""
    from exoalign.compare_recipe import load_comparison

    comparison, task = load_comparison(recipe, overrides or [], small=small)

    from exoalign.comparison import compare as run
    from exoalign.comparison import dry_run as planned
    from exoalign.models import quiet_libraries
    from exoalign.progress import plain, show_warnings

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    quiet_libraries()
    if dry_run:
        stages = planned(comparison, task, redo=redo)
        lines = [f"{each['stage']}: {each['state']}" for each in stages]
        sys.stdout.write(json.dumps(stages, indent=1) + "\n" if as_json else "\n".join(lines) + "\n")
        return
    show_warnings(enabled=not quiet)
    try:
        result = run(
            comparison,
            task,
            say=(lambda line: None) if quiet else say,
            show=not quiet,
            redo=redo,
            allow_inexact=allow_inexact,
            minutes=minutes,
        )
    except KeyboardInterrupt:
        say("\ninterrupted: what is finished is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    from exoalign.tables import comparison_table

    comparison_table(result)
    if result["left"]:
        say(
            f"{len(result['left'])} stages are left ({plain(result['left'][0])}, ...): run the same command again to go on"
        )
