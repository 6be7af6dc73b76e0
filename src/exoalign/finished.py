"""Finished rows of a stage that works row by row (sampling, scoring, judging): kept on the disk from the moment they are done.

SQLite in WAL mode: a transaction that has ended outlives a kill at any moment, one that has not leaves nothing. Rows are keyed
by what they were made with (a fingerprint), the number of the prompt and the number of the completion; values are JSON.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from exoalign.errors import StoreError

Key = tuple[int, int]
"""The number of a prompt and of a completion, from 0."""


class Finished:
    """Rows that are done. Use it as a context manager, in one process and thread.

    Args:
        path: the file; made where it is missing.
        made_with: what the rows are made with, as JSON values: rows of anything else stay unseen.

    Raises:
        StoreError: if the file is damaged, or there is no space left.
    """

    def __init__(self, path: Path, made_with: Any) -> None:
        self.path = path
        self.fingerprint = fingerprint_of(made_with)

    def __enter__(self) -> Finished:
        self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        with self._told():
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")  # a kill loses nothing; a power cut the last rows
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS finished (fingerprint TEXT, prompt INTEGER, k INTEGER, value TEXT NOT NULL,"
                " PRIMARY KEY (fingerprint, prompt, k)) WITHOUT ROWID"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def beside(self, made_with: Any) -> Finished:
        """The rows of the same open file that are made with something else: for rows that are known by their content."""
        other = Finished(self.path, made_with)
        other._connection = self._connection
        return other

    def keys(self) -> set[Key]:
        """The keys of all rows that are done."""
        with self._told():
            return set(
                self._connection.execute("SELECT prompt, k FROM finished WHERE fingerprint = ?", (self.fingerprint,))
            )

    def get(self, key: Key) -> Any:
        """The value of a row, None where it is not done."""
        with self._told():
            found = self._connection.execute(
                "SELECT value FROM finished WHERE fingerprint = ? AND prompt = ? AND k = ?", (self.fingerprint, *key)
            ).fetchone()
        return None if found is None else json.loads(found[0])

    def add(self, rows: Iterable[tuple[Key, Any]]) -> None:
        """Keep rows, all of them or (if it is interrupted) none; a row that is there already stays as it is."""
        written = [(self.fingerprint, *key, json.dumps(value)) for key, value in rows]
        with self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR IGNORE INTO finished VALUES (?, ?, ?, ?)", written)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        """Keys and values, by prompt and completion."""
        with self._told():
            found = self._connection.execute(
                "SELECT prompt, k, value FROM finished WHERE fingerprint = ? ORDER BY prompt, k", (self.fingerprint,)
            )
            for prompt, k, value in found:
                yield (prompt, k), json.loads(value)

    def _told(self) -> _Told:
        return _Told(self.path)


class _Told:
    """Errors of SQLite in the user's words."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.DatabaseError):
            raise StoreError(
                f"{self.path}: {error}; what was finished before is kept: make space or mend the disk and run it again, or"
                " delete the file to do its rows anew"
            ) from error


def fingerprint_of(value: Any) -> str:
    """SHA-256 of JSON values, in hex, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
