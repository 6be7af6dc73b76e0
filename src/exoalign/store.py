"""A run's folder: one folder a stage, each with a manifest that is written last and says what the stage was made from.

A stage works in `.NAME.partial`, which is renamed when it is complete; so what stands under its own name is whole. What an
interrupted stage left there (finished rows, checkpoints) is found by the next attempt, if it is made from the same. A complete
stage made from the same inputs is used again; made from others it is refused with the differences, or (`redo`) done anew, and
the old one stays until the new one is complete.

The manifest's files are the same bytes however often a stage was interrupted: times stand apart, in `timing.json`.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout

from exoalign.differences import differences
from exoalign.errors import StoreError
from exoalign.files import checksum, write_text
from exoalign.partial import CHECKPOINTS, begin_anew, finish, take_up

MANIFEST, RUN, TIMING = "manifest.json", "run.json", "timing.json"
State = Literal["done", "unfinished", "to do", "changed"]


@dataclass(frozen=True)
class StageResult:
    """What a stage left: its folder, and whether it was done now or before, in how many seconds (of its last attempt)."""

    name: str
    folder: Path
    seconds: float
    reused: bool
    what: str
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, str]:
        """Checksums of the stage's files: what a later stage names as its input."""
        return dict(self.files)


@dataclass(frozen=True)
class Standing:
    """What stands in the place of a stage: its state, and where that is `changed`, a line for each difference."""

    state: State
    changes: tuple[str, ...] = ()


class RunFolder:
    """The folder of one run, held by one process at a time. Use it as a context manager.

    Args:
        path: the folder; made if it is missing.
        name: the run's name, which the folder then belongs to.
        redo: do stages anew that stand there made from something else; else they are refused.

    Raises:
        StoreError: if the folder holds something else, or another process works in it.
    """

    def __init__(self, path: str | Path, name: str, *, redo: bool = False) -> None:
        self.path, self.name, self.redo = Path(path).expanduser(), name, redo
        self._verified = set[str]()
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> RunFolder:
        try:
            if self.path.exists() and not self.path.is_dir():
                raise StoreError(f"{self.path} is a file; choose another folder with out=...")
            contents = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
            others = [name for name in contents if name != ".lock" and not name.startswith(f".{RUN}.")]
            if others and RUN not in contents:
                raise StoreError(
                    f"{self.path} is not empty and holds no run ({min(others)}, ...); choose another with out=..."
                )
            if RUN in contents and (owner := self._owner()) != self.name:
                raise StoreError(f"{self.path} holds the run {owner!r}, not {self.name!r}; choose another with out=...")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=1)  # `exoalign runs` tries it for an instant
            if RUN not in contents:
                write_text(self.path / RUN, json.dumps({"name": self.name}))
        except Timeout:
            raise StoreError(
                f"{self.path} is in use by another process; wait for it, or choose another with out=..."
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path} cannot be used: {error}; choose another folder with out=...") from error
        return self

    def _owner(self) -> str:
        try:
            return str(json.loads((self.path / RUN).read_text(encoding="utf-8"))["name"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path / RUN} is damaged ({error}); choose another folder with out=...") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def standing(self, name: str, made_from: Mapping[str, Any], pending: Collection[str] = ()) -> Standing:
        """What stands there of a stage that is made from this.

        Args:
            name: the stage's folder.
            made_from: settings and identities of inputs, as JSON values.
            pending: the stages whose files it is made from that are not done yet: their identities are not compared.

        Raises:
            StoreError: if what stands there is no stage's.
        """
        manifest = self._manifest(name)
        if manifest is None:
            if (self.path / name).exists():
                raise StoreError(f"{self.path / name} has no manifest, so it is not a stage's; move it away")
            return self._unfinished(name, made_from, pending)
        changes = _changes(manifest["made_from"], made_from, pending)
        if not changes and name not in self._verified:
            for file, expected in manifest["files"].items():
                path = self.path / name / file
                if not path.is_file() or checksum(path) != expected:
                    changes.append(f"{path} is missing or has changed since the stage ended")
        if changes:
            return Standing("changed", tuple(changes))
        self._verified.add(name)
        return Standing("done")

    def _unfinished(self, name: str, made_from: Mapping[str, Any], pending: Collection[str] = ()) -> Standing:
        """What an interrupted attempt left. Finished rows of other settings are put aside; checkpoints would be lost."""
        begun = _read(self._begun(name))
        if begun is None or not self._partial(name).is_dir():
            return Standing("to do")
        changes = _changes(begun, made_from, pending)
        if not changes:
            return Standing("unfinished")
        return (
            Standing("changed", tuple(changes)) if (self._partial(name) / CHECKPOINTS).is_dir() else Standing("to do")
        )

    def _partial(self, name: str) -> Path:
        """The folder that a stage works in."""
        return self.path / f".{name}.partial"

    def _begun(self, name: str) -> Path:
        """What the unfinished stage is made from."""
        return self.path / f".{name}.made_from.json"

    def refuse(self, name: str, standing: Standing) -> None:
        """Raise StoreError if the stage stands there made from something else and may not be done anew."""
        if standing.state != "changed" or self.redo:
            return
        changes, more = standing.changes[:10], len(standing.changes) - 10
        what = "stands" if (self.path / name).exists() else "was begun"
        raise StoreError(
            f"{self.path / name} {what} and does not fit:\n  "
            + "\n  ".join([*changes, *([f"and {more} more"] if more > 0 else [])])
            + "\nNothing was overwritten. Choose another folder with out=..., or add --redo to do anew what changed."
        )

    def stage(
        self,
        name: str,
        made_from: Mapping[str, Any],
        work: Callable[[Path], str],
        *,
        begin: Callable[[], None] = lambda: None,
    ) -> StageResult:
        """Do a stage, unless it is complete and was made from the same.

        Args:
            name: the stage's folder.
            made_from: settings and identities of inputs, as JSON values.
            work: called with the folder to write to, in which an interrupted attempt may have left something; returns a few
                words on what was done.
            begin: called before the work, where there is any.

        Raises:
            StoreError: if the stage stands there or was begun, made from something else (with the differences), or a file of
                it changed, and this is no `redo`.
        """
        standing = self.standing(name, made_from)
        self.refuse(name, standing)
        if standing.state == "done":
            return self._result(name, reused=True)
        begin()
        partial = self._partial(name)
        if self._unfinished(name, made_from).state != "unfinished":
            begun = _read(self._begun(name))
            self._begun(name).unlink(missing_ok=True)
            begin_anew(partial, begun, made_from)
            write_text(self._begun(name), json.dumps(made_from, indent=1))
        elif not (partial / MANIFEST).is_file():
            take_up(partial)
        if not (partial / MANIFEST).is_file():  # it would be there after a kill just before the renaming
            began = time.monotonic()
            what = work(partial)
            finish(partial)
            self._complete(name, partial, made_from, what, round(time.monotonic() - began, 1))
        self._put(name)
        self._verified.add(name)
        return self._result(name, reused=False)

    def _complete(self, name: str, partial: Path, made_from: Mapping[str, Any], what: str, seconds: float) -> None:
        """Write the times and, last, the manifest."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        write_text(partial / TIMING, json.dumps({"seconds": seconds, "ended": now}))
        files = {
            str(path.relative_to(partial)): checksum(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file() and path != partial / TIMING
        }
        manifest = {"stage": name, "what": what, "made_from": made_from, "versions": versions(), "files": files}
        write_text(partial / MANIFEST, json.dumps(manifest, indent=1))

    def _put(self, name: str) -> None:
        """Rename a complete stage to its place; the one it replaces goes only then."""
        place, old = self.path / name, self.path / f".{name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            os.replace(place, old)
        os.replace(self._partial(name), place)
        shutil.rmtree(old, ignore_errors=True)
        self._begun(name).unlink(missing_ok=True)

    def _result(self, name: str, *, reused: bool) -> StageResult:
        done = self._manifest(name) or {}
        timing = _read(self.path / name / TIMING) or {}
        return StageResult(
            name, self.path / name, float(timing.get("seconds", 0.0)), reused, done["what"], done["files"]
        )

    def result(self, name: str) -> StageResult:
        """What a stage left that `standing` found done."""
        return self._result(name, reused=True)

    def _manifest(self, name: str) -> dict[str, Any] | None:
        path = self.path / name / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            kinds = {"what": str, "made_from": dict, "files": dict}
            wrong = [key for key, kind in kinds.items() if not isinstance(manifest[key], kind)]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); delete {path.parent} to redo the stage") from error
        if wrong:
            raise StoreError(f"{path} is damaged ({', '.join(wrong)}); delete {path.parent} to redo the stage")
        return dict(manifest)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], pending: Collection[str]) -> list[str]:
    """The differences, but for the stages that are not done yet."""

    def known(made_from: Mapping[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(made_from))
        if isinstance(stages := plain.get("stages"), dict):
            plain["stages"] = {name: files for name, files in stages.items() if name not in pending}
        return plain

    return differences(known(before), known(now))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("exoalign", "torch", "transformers", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
