"""Reads prompts, groups and texts. A row is either right, or set aside and counted, or refused with its file and line.

`sources` has the files, folders and hub ids that rows stand in, `kinds` their formats, `shapes` makes groups of them. The
Parquet files of a run are read as the groups that they hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from exoalign.data.conversations import fault_of, prompt_of
from exoalign.data.kinds import OneKind, columns_of, kind_of, need, others, unread
from exoalign.data.set_aside import SetAside
from exoalign.data.shapes import format_row, rated, unusable
from exoalign.data.sources import Row, Source, as_source, attempts
from exoalign.data.table import is_group_table, iter_table
from exoalign.data.texts import text_of
from exoalign.errors import DataError
from exoalign.groups import Completion, Group, Message, Prompt

__all__ = [
    "PromptRow",
    "Record",
    "SetAside",
    "TextRow",
    "format_row",
    "kind_of",
    "open_records",
    "read_groups",
    "read_prompts",
    "read_texts",
    "stream_groups",
]

Place = Source | str | os.PathLike[str]


class PromptRow(NamedTuple):
    """A prompt and the row that it stands in, with that row's other columns for reward functions that want them."""

    prompt: Prompt
    source: str
    row: Mapping[str, Any] | None = None


class TextRow(NamedTuple):
    """A text or a whole conversation for SFT, and the row that it stands in."""

    text: str | tuple[Message, ...]
    source: str


Record = Group | PromptRow | TextRow
"""One group, prompt or text."""

_Attempts = Iterable[tuple[str, Row | DataError]]
_Make = Callable[[Row, str, SetAside], Group | None]
_Item = TypeVar("_Item")


def open_records(
    source: Place, aside: SetAside, *, tolerate: bool = True, limit: int | None = None
) -> tuple[str | None, Iterator[Record]]:
    """The kind of the data (None if no row tells it) and its records: groups, prompts or texts, as its first usable row says.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        aside: counts as in `stream_groups`.
        tolerate: record malformed rows in `aside` and go on, in place of raising at the first.
        limit: how many records at most.

    Raises:
        DataError: for a source without rows or one that cannot be read, and without `tolerate` for a malformed row.
    """
    source = as_source(source)
    if _is_table(source):
        return None, islice(_table(source, aside), limit)
    rows = attempts(source, aside.unread)
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            kind = kind_of(row, where)
        except DataError as error:
            aside.read += 1
            aside.refuse(error, tolerate=tolerate)
            continue
        found = chain([(where, row)], rows)
        if kind == "prompts":
            return kind, islice(_items(source, found, _prompt, aside, tolerate, prompts=True), limit)
        if kind == "text":
            return kind, islice(_items(source, found, _text, aside, tolerate), limit)
        return kind, _groups(source, found, aside, tolerate, limit)
    return None, iter(())


def stream_groups(
    source: Place,
    aside: SetAside,
    *,
    tolerate: bool = False,
    limit: int | None = None,
    make: _Make = format_row,
) -> Iterator[Group]:
    """Read groups one at a time. Rated completions are held back to the end, as those of one prompt may stand anywhere.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        aside: counts the rows read, those set aside, and with `tolerate` those in error: read = rows of groups + rows set
            aside + rows in error, once the stream is at its end. A group of several rows names all as `rows` in its
            provenance. Columns that are not read are counted too.
        tolerate: record malformed rows in `aside` and go on, in place of raising at the first.
        limit: how many usable groups at most. Ratings are all read for it, and set aside beyond it; what stands after
            other groups is not looked at.
        make: makes a group of a row and its place, or sets it aside; of any kind but ratings.

    Raises:
        DataError: with the place, for a malformed row (without `tolerate`), a source without rows or a damaged file.
    """
    source = as_source(source)
    if _is_table(source):
        return islice(_table(source, aside), limit)
    return _groups(source, attempts(source, aside.unread), aside, tolerate, limit, make)


def _groups(
    source: Source, rows: _Attempts, aside: SetAside, tolerate: bool, limit: int | None, make: _Make = format_row
) -> Iterator[Group]:
    ratings = _Ratings(aside)

    def group(row: Row, where: str, kind: str) -> Group | None:
        if kind == "ratings":
            ratings.add(row, where)
        elif kind == "kway" and source.adapter is not None and len(row["completions"]) < 2:
            aside.add("fewer than two completions", where)  # raw rows may be so; who writes K-way rows is told
        else:
            return make(row, where, aside)
        return None

    yield from islice(chain(_items(source, rows, group, aside, tolerate), ratings.groups()), limit)
    ratings.leave(f"beyond the limit of {limit}")


def _items(
    source: Source,
    rows: _Attempts,
    make: Callable[[Row, str, str], _Item | None],
    aside: SetAside,
    tolerate: bool,
    *,
    prompts: bool = False,
) -> Iterator[_Item]:
    """What `make` makes of each (row, where, kind), all counted; with `prompts` of rows of any kind that has one."""
    one_kind = OneKind()
    for where, row in rows:
        aside.read += 1
        try:
            if isinstance(row, DataError):
                raise row
            if prompts:
                need(row, where, "prompt")
            # an adapter's rows may differ
            kind = one_kind.check(row, where) if source.adapter is None else kind_of(row, where)
            item = make(row, where, kind)
            aside.unread.update(unread(row, "prompts" if prompts else kind))
        except DataError as error:
            one_kind.forget(where)
            aside.refuse(error, tolerate=tolerate)
            continue
        if item is not None:
            yield item


class _Ratings:
    """Rated completions by prompt, in order of their first appearance."""

    def __init__(self, aside: SetAside) -> None:
        self._aside = aside
        self._by_prompt: dict[Prompt, list[tuple[Completion, float, str]]] = {}

    def add(self, row: Row, where: str) -> None:
        prompt, completion, rating = rated(row, where)
        fault = fault_of((completion,))
        if fault is not None:
            self._aside.add(fault, where)
        else:
            self._by_prompt.setdefault(prompt, []).append((completion, rating, where))

    def groups(self) -> Iterator[Group]:
        while self._by_prompt:
            prompt = next(iter(self._by_prompt))
            completions, ratings, places = zip(*self._by_prompt.pop(prompt), strict=True)
            fault = unusable(completions)
            if fault is None:
                provenance = {"source": places[0], "rows": list(places)}
                yield Group(prompt, completions, rewards=ratings, provenance=provenance)
            for where in places if fault is not None else ():
                self._aside.add(str(fault), where)

    def leave(self, reason: str) -> None:
        """Set aside what no group was made of."""
        for rows in self._by_prompt.values():
            for _, _, where in rows:
                self._aside.add(reason, where)


def read_groups(source: Place, *, limit: int | None = None) -> tuple[list[Group], SetAside]:
    """Read groups, the first `limit` usable ones.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        limit: how many groups at most, 1 or more; see `stream_groups`.

    Returns:
        The groups, and the account of the rows that were set aside.

    Raises:
        DataError: with file and line and what was expected; also where no row can be used.
    """
    source, aside = as_source(source), SetAside()
    groups = list(stream_groups(source, aside, limit=limit))
    if not groups:
        raise DataError("\n".join([f"{source.path}: all {aside.read} rows were set aside", *aside.lines()]))
    return groups, aside


def read_prompts(source: Place, *, limit: int | None = None) -> list[PromptRow]:
    """Read prompts, the first `limit` of them, from what `stream_groups` reads if it has a `prompt`, or from prompts alone.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        limit: how many at most.

    Raises:
        DataError: with the place, for a row that has no prompt, and for a source without rows.
    """
    source, aside = as_source(source), SetAside()
    if _is_table(source):
        return [
            PromptRow(group.prompt, group.where, group.provenance.get("row"))
            for group in islice(_table(source, aside), limit)
        ]
    return list(islice(_items(source, attempts(source), _prompt, aside, False, prompts=True), limit))


def read_texts(source: Place, *, limit: int | None = None) -> list[TextRow]:
    """Read text for SFT, the first `limit` rows: `text`, or `messages`, or a `prompt` with its `completion` behind it.

    Args:
        source: a file, a folder or a hub id; see `Source`.
        limit: how many at most.

    Raises:
        DataError: with the place, for a row that has none of them or whose text is empty, and for a source without rows.
    """
    source = as_source(source)
    return list(islice(_items(source, attempts(source), _text, SetAside(), False), limit))


def _prompt(row: Row, where: str, kind: str) -> PromptRow:
    return PromptRow(prompt_of(row["prompt"], where), where, others(row, kind) or None)


def _text(row: Row, where: str, kind: str) -> TextRow:
    if kind != "text":
        raise DataError(
            f"{where}: columns {columns_of(row)}; expected `text`, or `messages`, or `prompt, completion` for SFT"
        )
    return TextRow(text_of(row, where), where)


def _is_table(source: Source) -> bool:
    return source.adapter is None and is_group_table(Path(source.path))


def _table(source: Source, aside: SetAside) -> Iterator[Group]:
    empty = True
    for group in iter_table(Path(source.path)):
        empty = False
        aside.read += 1
        yield group
    if empty:
        raise DataError(f"{source.path}: no rows; expected one group in each")
