"""Reference log-probs kept across runs: one SQLite file for each reference, in it one number for each completion.

A file's name is the SHA-256 of what its numbers depend on besides the tokens: weights, precision, temperature, kind of device
and `VERSION`. A number's key is the SHA-256 over the token ids of prompt and completion and which of them count, so that other
groupings, another K, another objective, beta or learning rate find it again. No text is kept.

Every number has a checksum over itself, its key and its file's name: one that was altered or copied from another file is not
used but computed anew. Each pass is written by a transaction of its own, so that a killed run loses one pass; processes may
share a file. The journal is SQLite's default one and not WAL, which must not lie on a network file system, where home folders
often are. A file that cannot be used costs a warning and the time to compute, and never the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from exoalign.errors import DataError
from exoalign.files import cache_folder
from exoalign.groups import Group
from exoalign.progress import plain

logger = logging.getLogger(__name__)

VERSION = 1
"""Raise it when the kernels change by more than rounding, or the format: older files are then left alone."""
WAIT = 60.0
"""Seconds to wait for another process that is writing."""
FAULTS = (OSError, sqlite3.Error, UnicodeDecodeError)
"""What a file or a folder may raise; SQLite's messages on a damaged schema quote it, whatever bytes it holds."""
SCHEMA = "CREATE TABLE logprobs (completion BLOB PRIMARY KEY, value REAL NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID"


def default_folder() -> Path:
    """Where `exoalign run` and `exoalign align` keep reference log-probs: `$EXOALIGN_CACHE/reference`, or the user's cache."""
    return cache_folder() / "reference"


class ReferenceCache:
    """A folder of reference log-probs, and how much of what was asked for came from it.

    Attributes:
        folder: where the files lie; made when it is first used.
        asked: groups that needed reference log-probs.
        reused: those among them that were in the cache with all their completions.
        used: whether any completion came from the cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.asked = self.reused = 0

    def summary(self) -> str:
        """`"72 of 72 reference groups from the cache"`, or nothing where none was."""
        return f"{self.reused} of {self.asked} reference groups from the cache" if self.reused else ""


class CacheFile:
    """The log-probs of one reference. Use it as a context manager.

    Args:
        folder: the cache's folder, or None for a cache that holds nothing and keeps nothing.
        record: what the log-probs depend on besides the tokens, as JSON values.
    """

    def __init__(self, folder: Path | None, record: Mapping[str, Any]) -> None:
        exact = {**record, "temperature": float(record["temperature"]), "version": VERSION}
        self._record = json.dumps(exact, sort_keys=True)
        self._seal = hashlib.sha256(self._record.encode()).digest()
        self._connection: sqlite3.Connection | None = None
        self.path: Path | None = None
        if folder is None:
            return
        self.path = folder / f"{self._seal.hex()[:32]}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connect(self.path)
        except FAULTS as error:
            self._do_without(error)

    def _connect(self, path: Path) -> None:
        # isolation_level None: no transaction but ours; BEGIN IMMEDIATE waits its turn instead of failing half-way
        connection = self._connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        connection.text_factory = bytes  # a damaged file may hold text that is no UTF-8
        # no fsync: a killed process loses nothing by it; what a power cut may leave, the checksums find
        connection.execute("PRAGMA synchronous=OFF")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()  # 0.14 s for a million numbers
        if verdict != b"ok":
            raise sqlite3.DatabaseError(verdict.decode(errors="replace"))
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'logprobs'").fetchone():
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'logprobs'").fetchone():
                connection.execute("CREATE TABLE made_from (record TEXT)")  # for people: nothing reads it
                connection.execute("INSERT INTO made_from VALUES (?)", [self._record])
                connection.execute(SCHEMA)
            connection.execute("COMMIT")

    def look_up(self, groups: Iterable[Group]) -> list[list[float | None]]:
        """The log-prob of each group's completions in nats, None where it is not known."""
        if self._connection is None:
            return [[None] * group.k for group in groups]
        damaged = 0
        found: list[list[float | None]] = []
        for group in groups:
            row: list[float | None] = []
            for key in completion_keys(group):
                value, intact = self._read(key)
                damaged += not intact
                row.append(value)
            found.append(row)
        if damaged:
            logger.warning(
                "reference cache: %d log-probs in %s are damaged; they are not used but computed anew",
                damaged,
                self.path,
            )
        return found

    def _read(self, key: bytes) -> tuple[float | None, bool]:
        """A value that is as it was written, or None; and whether what stands there is intact."""
        if self._connection is None:
            return None, True
        try:
            row = self._connection.execute("SELECT value, seal FROM logprobs WHERE completion = ?", [key]).fetchone()
        except FAULTS as error:
            self._do_without(error)
            return None, True
        if row is None:
            return None, True
        value, seal = row
        if isinstance(value, float) and math.isfinite(value) and seal == self._sealed(key, value):
            return value, True
        return None, False

    def store(self, groups: Sequence[Group], rows: Sequence[Sequence[float]]) -> None:
        """Keep the log-probs of each group's completions; all of them are in the file when this returns, or none.

        Args:
            groups: groups with token ids.
            rows: finite log-probs in nats, one for each completion.
        """
        if self._connection is None:
            return
        entries = [
            (key, value + 0.0, self._sealed(key, value + 0.0))  # SQLite keeps no -0.0
            for group, row in zip(groups, rows, strict=True)
            for key, value in zip(completion_keys(group), row, strict=True)
        ]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?, ?)", entries)
            self._connection.execute("COMMIT")
        except FAULTS as error:
            self._do_without(error)

    def _sealed(self, key: bytes, value: float) -> bytes:
        return hashlib.sha256(self._seal + key + struct.pack("<d", value)).digest()[:16]

    def _do_without(self, error: Exception) -> None:
        self._close()
        outside = isinstance(error, OSError | sqlite3.OperationalError)
        logger.warning(
            "reference cache: %s %s (%s); what is missing is computed and not kept. %s",
            self.path,
            "cannot be used" if outside else "is damaged",
            plain(str(error)),
            "Expected a folder that can be written, with room on the disk; EXOALIGN_CACHE names another. Where the file is the"
            " cause, delete it"
            if outside
            else "Delete the file, and it is made anew",
        )

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> CacheFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def completion_keys(group: Group) -> list[bytes]:
    """SHA-256 over the prompt's length, its token ids and the completion's, as int64: for each completion.

    A token i that does not count goes in as ~i, so that the same tokens under another mask have another key.

    Raises:
        DataError: if the group has no token ids.
    """
    if group.prompt_ids is None or group.completion_ids is None:
        raise DataError(f"{group.where}: has no token ids; call exoalign.tokenize first")
    prompt = hashlib.sha256(struct.pack("<q", len(group.prompt_ids)))
    prompt.update(np.asarray(group.prompt_ids, dtype="<i8").tobytes())
    keys = []
    for ids in group.marked_ids:
        digest = prompt.copy()
        digest.update(np.asarray(ids, dtype="<i8").tobytes())
        keys.append(digest.digest())
    return keys
