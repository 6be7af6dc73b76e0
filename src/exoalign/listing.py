"""What stands in the folders of runs: each run's stages with their state, time and size. Only reads, and never waits.

A stage that is whole has a folder of its name with a manifest; one that was interrupted, or is being done, `.NAME.partial`.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os.path import isdir, isfile  # which take what may not be looked at for missing
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from exoalign.errors import StoreError
from exoalign.store import MANIFEST, RUN

RUNS = "runs"
"""Where the runs of a working directory lie, as a rule."""
TIMING = "timing.json"
PARTIAL = ".partial"
NEVER = 1e10  # seconds that no stage takes

State = Literal["done", "running", "unfinished", "damaged"]


@dataclass(frozen=True)
class StageEntry:
    """A stage: what it did in how many seconds (None where that is not known), its bytes, and when it last wrote."""

    name: str
    state: State
    seconds: float | None
    size: int
    when: datetime.datetime
    what: str


@dataclass(frozen=True)
class RunEntry:
    """A run: done when all stages that were begun are; running while a process holds its folder; damaged when a stage is."""

    name: str
    folder: Path
    state: State
    size: int
    when: datetime.datetime
    stages: tuple[StageEntry, ...]

    @property
    def seconds(self) -> float | None:
        """The time of its stages together, as far as it is known."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return round(sum(known), 1) if known else None

    def as_dict(self) -> dict[str, Any]:
        """For programs: sizes in bytes, times in seconds, `when` in ISO 8601 with the zone."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "state": self.state,
            "seconds": self.seconds,
            "bytes": self.size,
            "when": self.when.isoformat(timespec="seconds"),
            "stages": [
                {
                    "name": stage.name,
                    "state": stage.state,
                    "seconds": stage.seconds,
                    "bytes": stage.size,
                    "when": stage.when.isoformat(timespec="seconds"),
                    "what": stage.what,
                }
                for stage in self.stages
            ],
        }


def list_runs(folders: Sequence[str | Path] = ()) -> list[RunEntry]:
    """The runs in folders: a folder that is a run itself, or the runs that lie directly in it, in the order of their names.

    Args:
        folders: where to look; without any in `runs`, which then may be missing.

    Raises:
        StoreError: if a folder is missing or cannot be read.
    """
    found: dict[Path, RunEntry] = {}
    for given in folders or ([RUNS] if Path(RUNS).is_dir() else []):
        folder = Path(given).expanduser()
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise StoreError(f"{folder} {what}; expected a run's folder, or one in which runs lie")
        try:
            inner = [folder] if isfile(folder / RUN) else sorted(folder.iterdir())
        except OSError as error:
            raise StoreError(f"{folder} cannot be read: {error.strerror or error}; give another folder") from error
        found |= {path.resolve(): _run(path) for path in inner if isfile(path / RUN)}
    return list(found.values())


def _run(folder: Path) -> RunEntry:
    name = (_object(folder / RUN) or {}).get("name")
    held = _held(folder / ".lock")
    stages = sorted(_stages(folder, held), key=lambda stage: (stage.when, stage.name))
    states = {stage.state for stage in stages}
    state: State = "running" if held else "done" if states and "unfinished" not in states else "unfinished"
    if not isinstance(name, str) or "damaged" in states:
        state = "damaged"
    size, when = _extent(folder)
    if stages:
        when = stages[-1].when.timestamp()  # the page may have been written again since
    return RunEntry(name if isinstance(name, str) else folder.name, folder, state, size, _time(when), tuple(stages))


def _held(lock: Path) -> bool:
    """Whether a process works in the folder. The lock is tried for a moment only, and not made where there is none."""
    if not isfile(lock):
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it is another user's, or on a disk that cannot be written to
        return False


def _stages(folder: Path, held: bool) -> Iterator[StageEntry]:
    for path in (folder / entry.name for entry in _entries(str(folder))):
        if not isdir(path):
            continue
        if path.name.startswith(".") and path.name.endswith(PARTIAL):
            size, when = _extent(path)
            name = path.name[1 : -len(PARTIAL)]
            yield StageEntry(name, "running" if held else "unfinished", None, size, _time(when), "")
        elif isfile(path / MANIFEST) and not path.name.startswith("."):
            yield _stage(path)


def _stage(path: Path) -> StageEntry:
    size, _ = _extent(path)
    when = _time(_modified(path / MANIFEST))
    manifest = _object(path / MANIFEST) or {}
    what, files = manifest.get("what"), manifest.get("files")
    if not isinstance(what, str) or not isinstance(files, dict):
        return StageEntry(path.name, "damaged", None, size, when, f"{MANIFEST} is damaged")
    missing = [name for name in files if not isfile(path / name)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return StageEntry(path.name, "damaged", None, size, when, f"{min(missing)}{more} missing")
    seconds = {**manifest, **(_object(path / TIMING) or {})}.get("seconds")
    if not isinstance(seconds, int | float) or not 0 <= seconds < NEVER:
        seconds = None
    return StageEntry(path.name, "done", seconds, size, when, what)


def _object(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _extent(folder: Path) -> tuple[int, float]:
    """The bytes of the files below a folder, and when the last of them was written; what cannot be read is left out."""
    size, last = 0, _modified(folder)
    waiting: list[str] = [str(folder)]
    while waiting:
        for entry in _entries(waiting.pop()):
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    size, last = size + found.st_size, max(last, found.st_mtime)
            except OSError:  # gone since, as files of a run that goes on are
                continue
    return size, last


def _entries(folder: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(max(0.0, min(seconds, NEVER)), datetime.timezone.utc).astimezone()
