"""What an interrupted stage left in its folder, and what of it the next attempt takes up: finished rows and checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exoalign.finished import fingerprint_of

CHECKPOINTS = "checkpoints"
"""With `rows.sqlite` what a stage that goes on after an interruption keeps in its folder until it is complete."""


def take_up(partial: Path) -> None:
    """Make the folder ready to go on in: what may be half goes, rows and checkpoints stay."""
    _clear(partial, but=("rows.", CHECKPOINTS))


def begin_anew(partial: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Make the folder ready for other settings: rows made with those of `before` are put aside, rows of `now` taken up."""
    partial.mkdir(exist_ok=True)
    _clear(partial, but=("rows.",))
    if before is not None:
        _rename_rows(partial, "rows", f"rows.{fingerprint_of(before)}")
    _rename_rows(partial, f"rows.{fingerprint_of(now)}", "rows")


def finish(partial: Path) -> None:
    """Delete what only an interruption would have needed."""
    for rows in partial.glob("rows.*sqlite*"):
        rows.unlink()
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)


def _rename_rows(partial: Path, before: str, after: str) -> None:
    """Put finished rows of other settings aside, or take them up again, with the log that SQLite keeps beside them."""
    for ending in (".sqlite-wal", ".sqlite"):
        if (rows := partial / f"{before}{ending}").is_file():
            os.replace(rows, partial / f"{after}{ending}")


def _clear(partial: Path, *, but: tuple[str, ...]) -> None:
    """Delete what an interrupted attempt left, which may be half, but for what begins with these names."""
    for path in partial.iterdir():
        if path.name.startswith(but):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
