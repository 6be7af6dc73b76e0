"""What an adapter is, and the check of a raw row against the columns that it reads.

A specification is written as the row looks: `str`, `int`, `float` (any number) and `None` for null; a tuple for one of several;
a frozenset for one of these values; a dict for an object with at least these keys; `[specification]` for a list of such items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

TURNS = [{"role": str, "content": str}]
"""The messages of a conversation."""

FIRST_OR_SECOND = frozenset({0, 1})
"""A choice between two."""

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", None: "null"}


@dataclass(frozen=True)
class Adapter:
    """A known data set.

    Attributes:
        name: what a recipe or `--adapter` calls it.
        hub_id: where it lies on the Hugging Face hub.
        what: one sentence: what its rows become.
        schema: the columns that `convert` reads, as a specification; a row may hold others besides.
        convert: (raw row of the schema, "file:line") -> rows of the common formats, as a JSONL file would hold them.
        folders: whether the subsets on the hub are folders of files (`data_dir`) and not configurations.
        unread: the columns of the schema that only tell the data set from others: `convert` makes nothing of them.
    """

    name: str
    hub_id: str
    what: str
    schema: Mapping[str, Any]
    convert: Callable[[Row, str], list[Row]]
    folders: bool = False
    unread: tuple[str, ...] = ()


def describe(specification: Any) -> str:
    """The specification in words, e.g. "{answer: text, rank: a number}"."""
    if isinstance(specification, Mapping):
        return "{" + ", ".join(f"{name}: {describe(inner)}" for name, inner in specification.items()) + "}"
    if isinstance(specification, list):
        return f"[{describe(specification[0])}, ...]"
    if isinstance(specification, tuple):
        return " or ".join(describe(option) for option in specification)
    if isinstance(specification, frozenset):
        return " or ".join(str(value) for value in sorted(specification))
    return _WORDS[specification]


def mismatch(value: Any, specification: Any, name: str = "") -> str | None:
    """What is wrong with a value, e.g. "`answers[2].rank` is text, expected a number"; None where it fits."""
    if isinstance(specification, Mapping) and isinstance(value, Mapping):
        for key, inner in specification.items():
            place = f"{name}.{key}" if name else key
            found = mismatch(value[key], inner, place) if key in value else f"no `{place}`"
            if found is not None:
                return found
        return None
    if isinstance(specification, list) and isinstance(value, list):
        faults = (mismatch(item, specification[0], f"{name}[{i}]") for i, item in enumerate(value))
        return next((fault for fault in faults if fault is not None), None)
    options = specification if isinstance(specification, tuple) else (specification,)
    if any(_is(value, option) for option in options):
        return None
    found = str(value) if isinstance(specification, frozenset) and isinstance(value, int) else _kind(value)
    return f"`{name}` is {found}, expected {describe(specification)}"


def _is(value: Any, specification: Any) -> bool:
    if isinstance(specification, Mapping | list):
        return isinstance(value, type(specification)) and mismatch(value, specification) is None
    if specification is None:
        return value is None
    if isinstance(value, bool):
        return specification is bool
    if isinstance(specification, frozenset):
        return isinstance(value, int | float) and value in specification
    if specification is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())  # 1.0, as CSV is read
    if specification is float:
        return isinstance(value, int | float)
    return isinstance(specification, type) and isinstance(value, specification)


def _kind(value: Any) -> str:
    if value is None or type(value) in _WORDS:
        return _WORDS[None if value is None else type(value)]
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else type(value).__name__


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one turn, the user's."""
    return [{"role": "user", "content": text}]
