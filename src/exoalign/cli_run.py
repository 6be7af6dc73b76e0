"""How commands that do a whole run do it: progress and notes on stderr, results on stdout. Imports are late."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from exoalign.config import Recipe


def run_recipe(recipe: Recipe, *, as_json: bool, quiet: bool, redo: bool, allow_inexact: bool) -> None:
    """Run a recipe and print its results: as tables or as JSON on stdout, all else on stderr."""
    try:
        from exoalign.models import quiet_libraries
        from exoalign.pipeline import run
        from exoalign.progress import show_warnings

        quiet_libraries()
        show_warnings(enabled=not quiet)
        result = run(
            recipe,
            say=(lambda line: None) if quiet else say,
            show=not quiet,
            redo=redo,
            allow_inexact=allow_inexact,
        )
    except KeyboardInterrupt:
        say("\ninterrupted: what is finished is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    from exoalign.tables import result_tables

    result_tables(result)


def say(line: str) -> None:
    """A line on stderr, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
