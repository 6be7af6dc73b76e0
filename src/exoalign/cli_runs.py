"""`exoalign runs`: which runs there are, and how far each has come."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def runs(
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="[FOLDER]...", help="Runs, or folders in which runs lie. [runs]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON on stdout, sizes in bytes.")
    ] = False,
) -> None:
    """List runs and their stages: state, time, size, when, and what was done. Changes nothing."""
    from exoalign.listing import RUNS, list_runs

    found = list_runs(folders or ())
    if as_json:
        sys.stdout.write(json.dumps([run.as_dict() for run in found], indent=1, allow_nan=False) + "\n")
        return
    if not found:
        from exoalign.progress import plain

        sys.stderr.write(f"no runs in {plain(', '.join(folders or [RUNS]))}\n")
        return
    from exoalign.tables import runs_table

    runs_table(found)
