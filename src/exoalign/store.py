"""A run's folder: one folder a stage, each with a manifest that is written last and says what the stage was made from.

A stage works in `.NAME.partial`, which is renamed when it is complete; so what stands under its own name is whole. A
complete stage made from the same inputs is used again; made from others it is refused, never overwritten.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from exoalign.differences import differences
from exoalign.errors import StoreError
from exoalign.files import checksum, write_text

MANIFEST, RUN = "manifest.json", "run.json"


@dataclass(frozen=True)
class StageResult:
    """What a stage left: its folder, and whether it was done now or before, in how many seconds."""

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


class RunFolder:
    """The folder of one run, held by one process at a time. Use it as a context manager.

    Args:
        path: the folder; made if it is missing.
        name: the run's name, which the folder then belongs to.

    Raises:
        StoreError: if the folder holds something else, or another process works in it.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path, self.name = Path(path).expanduser(), name
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
            self._lock.acquire(timeout=0)
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

    def check(self, name: str, made_from: Mapping[str, Any]) -> bool:
        """Whether a stage is complete and made from this; see `stage`."""
        manifest = self._manifest(name)
        if manifest is None:
            if (self.path / name).exists():
                raise StoreError(f"{self.path / name} has no manifest, so it is not a stage's; move it away")
            return False
        changes = differences(manifest["made_from"], json.loads(json.dumps(made_from)))
        if changes:
            raise StoreError(
                f"{self.path / name} was made from something else:\n  "
                + "\n  ".join([*changes[:10], *([f"and {len(changes) - 10} more"] if len(changes) > 10 else [])])
                + f"\nNothing was overwritten. Choose another folder with out=..., or delete {self.path / name} and what was"
                " made from it (the stages after it) to redo them."
            )
        for file, expected in manifest["files"].items():
            path = self.path / name / file
            if not path.is_file() or checksum(path) != expected:
                raise StoreError(
                    f"{path} is missing or has changed since the stage ended; delete {self.path / name} to redo it"
                )
        return True

    def stage(
        self,
        name: str,
        made_from: Mapping[str, Any],
        work: Callable[[Path], str],
        *,
        later: Sequence[str] = (),
        begin: Callable[[], None] = lambda: None,
    ) -> StageResult:
        """Do a stage, unless it is complete and was made from the same.

        Args:
            name: the stage's folder.
            made_from: settings and identities of inputs, as JSON values.
            work: called with the folder to write to; returns a few words on what was done.
            later: stages made from this one; while one of them stands, this one is not done anew.
            begin: called before the work, where there is any.

        Raises:
            StoreError: if the stage stands there, made from something else (with the differences), or a file of it changed.
        """
        if not self.check(name, made_from):
            stale = [str(self.path / stage) for stage in later if (self.path / stage).exists()]
            if stale:
                raise StoreError(
                    f"{', '.join(stale)} was made from an older {name}; delete it too, or choose another out=..."
                )
            begin()
            partial = self.path / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            began = time.monotonic()
            what = work(partial)
            files = {str(p.relative_to(partial)): checksum(p) for p in sorted(partial.rglob("*")) if p.is_file()}
            manifest: dict[str, Any] = {
                "stage": name,
                "what": what,
                "seconds": round(time.monotonic() - began, 1),
                "made_from": made_from,
                "versions": versions(),
                "files": files,
            }
            write_text(partial / MANIFEST, json.dumps(manifest, indent=1))
            os.replace(partial, self.path / name)
            return StageResult(name, self.path / name, manifest["seconds"], False, what, files)
        done = self._manifest(name) or {}
        return StageResult(name, self.path / name, done["seconds"], True, done["what"], done["files"])

    def _manifest(self, name: str) -> dict[str, Any] | None:
        path = self.path / name / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            kinds = {"what": str, "seconds": float, "made_from": dict, "files": dict}
            wrong = [key for key, kind in kinds.items() if not isinstance(manifest[key], kind)]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); delete {path.parent} to redo the stage") from error
        if wrong:
            raise StoreError(f"{path} is damaged ({', '.join(wrong)}); delete {path.parent} to redo the stage")
        return dict(manifest)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("exoalign", "torch", "transformers", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
