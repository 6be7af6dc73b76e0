"""Which format a row has, by its columns, and that all rows of a source have the same.

| kind | columns | becomes |
|---|---|---|
| `pairs` | `prompt, chosen, rejected`, or `chosen, rejected` that begin alike | K = 2, `winner` 0; rewards from scores |
| `kway` | `prompt, completions, rewards` | K completions with rewards |
| `rankings` | `prompt, completions, ranks`, 1 the best | rewards (K - rank) / (K - 1) |
| `ratings` | `prompt, completion, rating`, or TRL's `label` | one completion of its prompt's group |
| `prompts` | `prompt` | a prompt |
| `text` | `messages`, or `text`, or TRL's `prompt, completion` | text for SFT |

`shapes` says what the values must be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from exoalign.errors import DataError

GROUPS = (
    "expected `prompt, chosen, rejected`, or `prompt, completions, rewards` (or `ranks`), or `prompt, completion, rating`,"
    " or transcripts `chosen, rejected`"
)
_COLUMNS = {
    "pairs": ("prompt", "chosen", "rejected"),
    "kway": ("prompt", "completions", "rewards"),
    "rankings": ("prompt", "completions", "ranks"),
    "prompts": ("prompt",),
    "text": ("prompt", "completion"),
}
_SCORES = {"score_chosen", "score_rejected", "chosen_score", "rejected_score", "margin"}
_NOT_RENDERED = ("tools", "images", "image", "chat_template_kwargs")


def kind_of(row: Mapping[str, Any], where: str = "row") -> str:
    """The format of a row by its columns: pairs, kway, ratings, rankings, prompts or text.

    Raises:
        DataError: if it has the columns of none, or tools, images or settings of the template, which are not rendered.
    """
    for column in _NOT_RENDERED:
        if row.get(column) not in (None, "", [], {}):
            raise DataError(
                f"{where}: `{column}` cannot be rendered faithfully: only what the messages say reaches the model; write it"
                f" into the messages, or take the column `{column}` out to train without it"
            )
    if "completions" in row:
        return "rankings" if "ranks" in row and "rewards" not in row else "kway"
    if "chosen" in row or "rejected" in row:
        return "pairs"
    if "completion" in row:
        return "ratings" if "rating" in row or "label" in row else "text"
    if "text" in row or "messages" in row:
        return "text"
    if "prompt" in row:
        return "prompts"
    raise DataError(f"{where}: columns {columns_of(row)}; {GROUPS}, or `prompt`, or `text`, or `messages`")


def columns_of(row: Mapping[str, Any]) -> str:
    """The row's columns, for a message."""
    return ", ".join(sorted(row)) or "none"


def unread(row: Mapping[str, Any], kind: str) -> list[str]:
    """The columns that have a value in a row of some kind and are not read."""
    read = {*_read_columns(row, kind), *(_SCORES if kind == "pairs" else ())}
    return [column for column, value in row.items() if column not in read and value is not None]


def others(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The columns that are not read, as far as JSON can hold them: Parquet has dates and bytes too."""
    return {column: row[column] for column in unread(row, kind) if _is_json(row[column])}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def need(row: Mapping[str, Any], where: str, *columns: str) -> None:
    """Refuse a row that lacks one of the columns.

    Raises:
        DataError: naming the column and those that are there.
    """
    for column in columns:
        if column not in row:
            raise DataError(f"{where}: no `{column}`; found columns {columns_of(row)}; add it, or leave the row out")


class OneKind:
    """Holds the rows of a source to the kind and the columns of the first usable one. Text and conversations may mix."""

    def __init__(self) -> None:
        self._place, self._kind, self._columns = "", "", list[str]()

    def check(self, row: Mapping[str, Any], where: str) -> str:
        """Compare a row with the first one, or make it the first; returns its kind.

        Raises:
            DataError: if it lacks a column or is of another kind.
        """
        kind = kind_of(row, where)
        if not self._place:
            self._place, self._kind, self._columns = where, kind, _read_columns(row, kind)
            return kind
        found = f"found columns {columns_of(row)}"
        for column in self._columns:
            if column not in row:
                raise DataError(
                    f"{where}: no `{column}`; {found}; expected a row of {self._kind} as at {self._place}: keep one kind in"
                    " a file"
                )
        if kind != self._kind or (kind == "pairs" and _read_columns(row, kind) != self._columns):
            raise DataError(
                f"{where}: {found}, a row of {kind}; expected {self._kind} with {', '.join(self._columns)} as at"
                f" {self._place}: keep one kind in a file"
            )
        return kind

    def forget(self, where: str) -> None:
        """Look for another first row, because the one at this place turned out to be malformed."""
        if self._place == where:
            self._place = ""


def _read_columns(row: Mapping[str, Any], kind: str) -> list[str]:
    """The columns of a row that its kind reads and must have."""
    if kind == "text" and ("messages" in row or "text" in row):
        return ["messages"] if "messages" in row else ["text"]
    if kind == "ratings":
        return ["prompt", "completion", "rating" if "rating" in row else "label"]
    return [column for column in _COLUMNS[kind] if column in row]
