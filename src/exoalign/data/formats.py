"""Reads prompts, groups and texts. A row is either right, or set aside and counted, or refused with its file and line.

`sources` has the files, folders and hub ids that rows stand in, `kinds` their formats, `shapes` makes groups of them. The
Parquet files of a run are read as the groups that they hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from exoalign.data.conversations import completion_of, conversation_of, fault_of, prompt_of, type_name
from exoalign.data.kinds import OneKind, columns_of, kind_of, need, unread
from exoalign.data.set_aside import SetAside
from exoalign.data.shapes import format_row, rated, unusable
from exoalign.data.sources import Row, Source, as_source, attempts
from exoalign.data.table import is_group_table, iter_table
from exoalign.errors import DataError
from exoalign.groups import Completion, Group, Message, Prompt

__all__ = [
    "PromptRow",
    "SetAside",
    "TextRow",
    "format_row",
    "kind_of",
    "read_groups",
    "read_prompts",
    "read_texts",
    "stream_groups",
    "stream_prompts",
    "stream_texts",
    "text_of",
]

Place = Source | str | os.PathLike[str]


class PromptRow(NamedTuple):
    """A prompt and the row that it stands in."""

    prompt: Prompt
    source: str


class TextRow(NamedTuple):
    """A text or a whole conversation for SFT, and the row that it stands in."""

    text: str | tuple[Message, ...]
    source: str


def stream_groups(source: Place, aside: SetAside, *, tolerate: bool = False) -> Iterator[Group]:
    """Read groups one at a time. Rated completions are held back to the end, as those of one prompt may stand anywhere.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        aside: counts the rows read, those set aside, and with `tolerate` those in error: read = rows of groups + rows set
            aside + rows in error, once the stream is at its end. A group of several rows names all as `rows` in its
            provenance. Columns that are not read are counted too.
        tolerate: record malformed rows in `aside` and go on, in place of raising at the first.

    Raises:
        DataError: with the place, for a malformed row (without `tolerate`), a source without rows or a damaged file.
    """
    source = as_source(source)
    if source.adapter is None and is_group_table(Path(source.path)):
        yield from _table(source, aside)
        return
    one_kind, ratings = OneKind(), _Ratings()
    for where, row in attempts(source, aside.unread):
        aside.read += 1
        row_group = None
        try:
            if isinstance(row, DataError):
                raise row
            if source.adapter is None:  # an adapter's rows may differ
                one_kind.check(row, where)
            kind = kind_of(row, where)
            if kind == "ratings":
                ratings.add(row, where, aside)
            elif kind == "kway" and source.adapter is not None and len(row["completions"]) < 2:
                aside.add("fewer than two completions", where)  # raw rows may be so; who writes K-way rows is told
            else:
                row_group = format_row(row, where, aside)
            aside.unread.update(unread(row, kind))
        except DataError as error:
            if not tolerate:
                raise
            aside.errors.append(str(error))
            one_kind.forget(where)
        if row_group is not None:
            yield row_group
    yield from ratings.groups(aside)


class _Ratings:
    """Rated completions by prompt, in order of their first appearance."""

    def __init__(self) -> None:
        self._by_prompt: dict[Prompt, list[tuple[Completion, float, str]]] = {}

    def add(self, row: Row, where: str, aside: SetAside) -> None:
        prompt, completion, rating = rated(row, where)
        fault = fault_of((completion,))
        if fault is not None:
            aside.add(fault, where)
        else:
            self._by_prompt.setdefault(prompt, []).append((completion, rating, where))

    def groups(self, aside: SetAside) -> Iterator[Group]:
        while self._by_prompt:
            prompt = next(iter(self._by_prompt))
            completions, ratings, places = zip(*self._by_prompt.pop(prompt), strict=True)
            fault = unusable(completions)
            if fault is None:
                provenance = {"source": places[0], "rows": list(places)}
                yield Group(prompt, completions, rewards=ratings, provenance=provenance)
            for where in places if fault is not None else ():
                aside.add(str(fault), where)


def read_groups(source: Place, *, limit: int | None = None) -> tuple[list[Group], SetAside]:
    """Read groups, the first `limit` usable ones.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        limit: how many groups at most, 1 or more; what stands after them is not looked at.

    Returns:
        The groups, and the account of the rows that were set aside.

    Raises:
        DataError: with file and line and what was expected; also where no row can be used.
    """
    source, aside = as_source(source), SetAside()
    groups = list(islice(stream_groups(source, aside), limit))
    if not groups:
        raise DataError("\n".join([f"{source.path}: all {aside.read} rows were set aside", *aside.lines()]))
    return groups, aside


def read_prompts(source: Place, *, limit: int | None = None) -> list[PromptRow]:
    """Read prompts, the first `limit` of them, as `stream_prompts` does.

    Raises:
        DataError: as `stream_prompts`.
    """
    return list(islice(stream_prompts(source, SetAside()), limit))


def stream_prompts(source: Place, aside: SetAside) -> Iterator[PromptRow]:
    """Read prompts one at a time, from what `stream_groups` reads if it has a `prompt`, or from prompts alone.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        aside: counts the rows read and the columns that are not.

    Raises:
        DataError: with the place, for a row that has no prompt, and for a source without rows.
    """
    source = as_source(source)
    if source.adapter is None and is_group_table(Path(source.path)):
        yield from (PromptRow(group.prompt, group.where) for group in _table(source, aside))
        return
    one_kind = OneKind()
    for where, row in _counted(source, aside):
        need(row, where, "prompt")
        if source.adapter is None:
            one_kind.check(row, where)
        prompt = prompt_of(row["prompt"], where)
        aside.unread.update(unread(row, "prompts"))
        yield PromptRow(prompt, where)


def read_texts(source: Place, *, limit: int | None = None) -> list[TextRow]:
    """Read text for SFT, the first `limit` rows, as `stream_texts` does.

    Raises:
        DataError: as `stream_texts`.
    """
    return list(islice(stream_texts(source, SetAside()), limit))


def stream_texts(source: Place, aside: SetAside) -> Iterator[TextRow]:
    """Read text for SFT one row at a time: `text`, or `messages`, or a `prompt` with its `completion` behind it.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        aside: counts the rows read and the columns that are not.

    Raises:
        DataError: with the place, for a row that has none of them or whose text is empty, and for a source without rows.
    """
    source = as_source(source)
    one_kind = OneKind()
    for where, row in _counted(source, aside):
        if source.adapter is None:
            one_kind.check(row, where)
        text = text_of(row, where)
        aside.unread.update(unread(row, "text"))
        yield TextRow(text, where)


def _counted(source: Source, aside: SetAside) -> Iterator[tuple[str, Row]]:
    for where, row in attempts(source, aside.unread):
        aside.read += 1
        if isinstance(row, DataError):
            raise row
        yield where, row


def text_of(row: Row, where: str) -> str | tuple[Message, ...]:
    """The text of one row for SFT; see `stream_texts`."""
    if kind_of(row, where) != "text":
        raise DataError(
            f"{where}: columns {columns_of(row)}; expected `text`, or `messages`, or `prompt, completion` for SFT"
        )
    if "messages" in row:
        if not isinstance(row["messages"], list):
            raise DataError(f"{where}: `messages` is {type_name(row['messages'])}; expected a list of messages")
        return conversation_of(row["messages"], where, "messages")
    if "text" in row:
        if not isinstance(row["text"], str) or not row["text"].strip():
            found = "empty" if isinstance(row["text"], str) else type_name(row["text"])
            raise DataError(f"{where}: `text` is {found}; expected text; leave the row out")
        return row["text"]
    need(row, where, "prompt", "completion")
    prompt = prompt_of(row["prompt"], where)
    completion = completion_of(row["completion"], prompt, where, "completion")
    if fault_of((completion,)) is not None:
        raise DataError(
            f"{where}: {fault_of((completion,))}; expected a `completion` by the assistant; leave the row out"
        )
    if isinstance(prompt, str):
        return f"{prompt}{completion}"
    return prompt + (completion if isinstance(completion, tuple) else (Message("assistant", completion),))


def _table(source: Source, aside: SetAside) -> Iterator[Group]:
    empty = True
    for group in iter_table(Path(source.path)):
        empty = False
        aside.read += 1
        yield group
    if empty:
        raise DataError(f"{source.path}: no rows; expected one group in each")
