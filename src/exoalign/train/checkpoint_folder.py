"""A folder of training checkpoints: which of them are whole, which one to go on from, which to keep.

A checkpoint counts from the moment that its manifest stands in it: the manifest is written last and in one move, and says
what the training was made from and the SHA-256 of every other file. Nothing here looks into those files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from exoalign.differences import differences
from exoalign.errors import TrainingError, first_line
from exoalign.files import checksum, write_text
from exoalign.progress import plain

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEPT = 2
"""Checkpoints that are kept: the last, and one to fall back to."""
STATE = re.compile(r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth")
"""Files that transformers does without in silence, and then trains on with other numbers."""
SHARDED = re.compile(r"(.*/)?(\.metadata|[^/]*\.distcp|[^/]*_states\.pt)")
"""Files of sharded checkpoints (FSDP, DeepSpeed), which their libraries read with pickle."""
MOST_LINES = 10


class CheckpointFolder:
    """Checkpoints `checkpoint-N` (after N steps) of one training.

    Args:
        path: the folder; made when the first checkpoint is saved.
        made_from: what the training is made from, as a JSON value: settings, data, model.
        main: whether this process keeps the folder; of several processes one does.
        wait: returns when all processes have called it.

    Attributes:
        whole: the steps of the checkpoints known to be whole.
    """

    def __init__(
        self, path: Path, made_from: Mapping[str, Any], *, main: bool = True, wait: Callable[[], None] = lambda: None
    ) -> None:
        self.path, self.main, self.wait = path, main, wait
        self.made_from = json.loads(json.dumps(made_from))
        self.whole: list[int] = []

    def of_step(self, step: int) -> Path:
        """Where the checkpoint after a step lies."""
        return self.path / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """The steps of all checkpoints in the folder, whole or not."""
        names = [re.fullmatch(r"checkpoint-(\d+)", p.name) for p in self.path.glob("checkpoint-*")]
        return sorted(int(name[1]) for name in names if name)

    def last(self, *, allow_inexact: bool) -> Path | None:
        """The last whole checkpoint, None where there is none; what is passed over is warned of.

        Args:
            allow_inexact: take one whose optimizer, schedule or random state was deleted, too.

        Raises:
            TrainingError: if it was made from something else (with the differences); if such a file was deleted; if reading it
                would execute a pickle.
        """
        found = self.steps()
        for step in reversed(found):
            folder = self.of_step(step)
            files = self._manifest(folder)
            if files is None:
                continue
            if damage := self._damage(folder, files):
                logger.warning("checkpoint passed over: %s", plain("; ".join(damage)))
                continue
            self._check_readable(folder, files, allow_inexact=allow_inexact)
            self.whole = [step]
            return folder
        if found:
            logger.warning("no checkpoint in %s can be used; training begins anew", plain(str(self.path)))
        return None

    def _manifest(self, folder: Path) -> dict[str, str] | None:
        """The files of a whole checkpoint and their checksums."""
        path = folder / MANIFEST
        if not path.is_file():
            logger.warning(
                "checkpoint passed over: %s has no %s, so it was not saved to its end", plain(str(folder)), MANIFEST
            )
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            made_from, files = record["made_from"], {str(name): str(sum_) for name, sum_ in record["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("checkpoint passed over: %s is damaged (%s)", plain(str(path)), plain(first_line(error)))
            return None
        if changes := differences(made_from, self.made_from):
            more = [f"and {len(changes) - MOST_LINES} more"] if len(changes) > MOST_LINES else []
            raise TrainingError(
                f"{folder} was made from something else:\n  "
                + "\n  ".join([*changes[:MOST_LINES], *more])
                + f"\nTraining goes on only with the same settings, data and model. Set them back, or delete {self.path} to"
                " train from the beginning."
            )
        return files

    def _damage(self, folder: Path, files: Mapping[str, str]) -> list[str]:
        """What is wrong with a checkpoint's files; one of `STATE` that is missing is another matter."""
        there = _files(folder)
        missing = [name for name in files if name not in there and not STATE.fullmatch(name)]
        changed = [name for name, expected in files.items() if name in there and checksum(there[name]) != expected]
        return [
            *(f"{folder / name} is missing" for name in missing),
            *(f"{folder / name}: checksum mismatch, the file is not as it was saved" for name in changed),
            *(
                f"{path} was not there when the checkpoint was saved"
                for name, path in there.items()
                if name not in files
            ),
        ]

    def _check_readable(self, folder: Path, files: Mapping[str, str], *, allow_inexact: bool) -> None:
        for name in files:
            if SHARDED.fullmatch(name):
                raise TrainingError(
                    f"{folder / name}: a checkpoint of sharded training (FSDP with sharded state, DeepSpeed) is read with"
                    " pickle, which executes what stands in it; going on from one is not supported. Delete"
                    f" {self.path} to train from the beginning"
                )
        missing = [name for name in files if not (folder / name).is_file()]
        if not missing:
            return
        if not allow_inexact:
            raise TrainingError(
                f"{folder}: {', '.join(missing)} is missing; without it training goes on with other numbers than without the"
                f" interruption. Put the file back; or delete {folder} to go on from the checkpoint before; or allow an inexact"
                " resume (--allow-inexact)"
            )
        logger.warning(
            "%s is missing in %s: training goes on, but not to the same numbers (without optimizer.pt or scheduler.pt both"
            " begin anew)",
            plain(", ".join(missing)),
            plain(str(folder)),
        )

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """Save a checkpoint inside this context: it counts when the context ends, and leaves nothing if that fails.

        Raises:
            TrainingError: if it cannot be written, with what still stands.
        """
        folder = self.of_step(step)
        try:
            if self.main:
                self._remove(folder)
                self.whole = [other for other in self.whole if other != step]
                folder.mkdir(parents=True)
            self.wait()  # before any other process writes to it
            yield folder
            self.wait()  # until every process has written
            if self.main:
                sums = {name: checksum(path) for name, path in sorted(_files(folder).items())}
                record = {"made_from": self.made_from, "step": step, "files": sums}
                write_text(folder / MANIFEST, json.dumps(record, indent=1))
        except (
            Exception
        ) as error:  # OSError of a file, RuntimeError of torch, SafetensorError: each has its own for a full disk
            if isinstance(error, TrainingError):
                raise
            with contextlib.suppress(OSError):
                self._remove(folder)
            kept = f"{self.of_step(self.whole[-1])} still stands" if self.whole else "no other was saved before"
            raise TrainingError(
                f"{folder} cannot be saved ({first_line(error)}); {kept}. Is the disk full? Make room and run the same command"
                " again"
            ) from error
        self.whole.append(step)

    def prune(self, best: str | None) -> None:
        """Remove all but the last `KEPT` whole checkpoints, and `best`."""
        kept = {self.of_step(step) for step in self.whole[-KEPT:]} | ({Path(best)} if best else set())
        for step in self.steps() if self.main else []:
            if self.of_step(step) not in kept:
                self._remove(self.of_step(step))
        self.whole = self.whole[-KEPT:]

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint; its manifest first, so that what is left of it when that is interrupted does not count."""
        (folder / MANIFEST).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)


def _files(folder: Path) -> dict[str, Path]:
    """All files of a checkpoint but its manifest, by their path inside it."""
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if not p.is_dir()}
    return {name: path for name, path in paths.items() if not name.startswith((MANIFEST, f".{MANIFEST}."))}
