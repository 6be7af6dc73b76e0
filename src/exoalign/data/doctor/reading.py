"""Data of every kind as records, one at a time: groups, prompts or texts, whichever its first usable row is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exoalign.data.conversations import prompt_of
from exoalign.data.doctor.records import Record
from exoalign.data.formats import PromptRow, TextRow, stream_groups, text_of
from exoalign.data.kinds import OneKind, kind_of
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Source, attempts
from exoalign.data.table import is_group_table
from exoalign.errors import DataError


def open_records(source: Source, aside: SetAside, *, tolerate: bool = True) -> tuple[str | None, Iterator[Record]]:
    """The kind of the data (None if no row tells it) and its records.

    Args:
        source: a file, a folder or a hub id.
        aside: counts the rows read, those set aside, and with `tolerate` those in error, as in `stream_groups`.
        tolerate: record malformed rows in `aside` and go on, in place of raising at the first.

    Raises:
        DataError: for a source without rows or one that cannot be read, and without `tolerate` for a malformed row.
    """
    kind = _kind(source)
    if kind in ("prompts", "text"):
        return kind, _without_completions(source, kind, aside, tolerate)
    return kind, stream_groups(source, aside, tolerate=tolerate)


def _kind(source: Source) -> str | None:
    if source.adapter is None and is_group_table(Path(source.path)):
        return None
    for where, row in attempts(source):
        if not isinstance(row, DataError):
            try:
                return kind_of(row, where)
            except DataError:
                continue
    return None


def _without_completions(source: Source, kind: str, aside: SetAside, tolerate: bool) -> Iterator[Record]:
    one_kind = OneKind()
    for where, row in attempts(source):
        aside.read += 1
        try:
            if isinstance(row, DataError):
                raise row
            if source.adapter is None:  # an adapter's rows may differ
                one_kind.check(row, where)
            record: Record
            if kind == "text":
                record = TextRow(text_of(row, where), where)
            else:
                record = PromptRow(prompt_of(row["prompt"], where), where)
        except DataError as error:
            if not tolerate:
                raise
            aside.errors.append(str(error))
            one_kind.forget(where)
            continue
        yield record
