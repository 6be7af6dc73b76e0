"""Reads texts with a label, for a classifier: rows `text, label` with 0 or 1, as groups of one completion without a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exoalign.data.conversations import type_name
from exoalign.data.kinds import columns_of
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Row, Source, attempts
from exoalign.errors import DataError
from exoalign.groups import Group


def stream_labelled(source: Source, aside: SetAside, *, limit: int | None = None) -> Iterator[Group]:
    """Read labelled texts one at a time: the text is the completion, the label (0.0 or 1.0) its reward.

    Args:
        source: a file, a folder or a hub id.
        aside: counts the rows read, and those whose text is empty.
        limit: how many texts at most.

    Raises:
        DataError: with the place, for a malformed row, one without text or label, or a source without rows.
    """
    found = 0
    for where, row in attempts(source, aside.unread):
        if limit is not None and found == limit:
            return
        aside.read += 1
        if isinstance(row, DataError):
            raise row
        label, text = _label(row, where), row["text"]
        aside.unread.update(name for name, value in row.items() if name not in ("text", "label") and value is not None)
        if not text.strip():
            aside.add("a text is empty", where)
            continue
        found += 1
        yield Group("", (text,), rewards=(label,), provenance={"source": where})


def _label(row: Row, where: str) -> float:
    """The label of a row that is as it should be."""
    for column in ("text", "label"):
        if column not in row or row[column] is None:
            raise DataError(
                f"{where}: no `{column}`; found columns {columns_of(row)}; a classifier learns from `text, label` with"
                " the label 0 or 1: add it, or train a reward model of the kind `ranking` on pairs"
            )
    if not isinstance(row["text"], str):
        raise DataError(f"{where}: `text` is {type_name(row['text'])}; expected text; leave the row out")
    label: Any = row["label"]
    if not isinstance(label, int | float) or label not in (0, 1):
        raise DataError(
            f"{where}: `label` is {str(label)[:60]!r}; expected 0 or 1, 1 for what is wanted; leave the row out"
        )
    return float(label)
