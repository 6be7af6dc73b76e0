"""Rows of CSV and Parquet files, held to the same values as JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exoalign.data.strict_json import checked, lines, opened, parse_text, text_of_line
from exoalign.errors import DataError

BATCH_ROWS = 256
"""Rows of a Parquet file that are held at a time."""

_JSON_COLUMNS = {"completions", "rewards", "ranks", "messages"}
_TURN_COLUMNS = {"prompt", "chosen", "rejected", "completion"}
_BROKEN_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")  # Python's own repr, or cut
_NUMBER_COLUMNS = {"score_chosen", "score_rejected", "chosen_score", "rejected_score", "margin", "rating", "label"}
_LONGEST_FIELD = 1 << 24  # csv's own limit of 131,072 characters is less than some prompts have


def read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """The rows of a CSV file with "file:line" of their first line; in place of a malformed one its error.

    The first row names the columns. `completions`, `rewards`, `ranks` and `messages` hold JSON; scores, ratings and labels
    become numbers; `prompt`, `chosen`, `rejected` and `completion` may hold messages as JSON; all else is text.

    Raises:
        DataError: where what follows cannot be told apart any more: a quote that is not closed, bytes that are no UTF-8.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    reader = csv.reader((text_of_line(content, f"{path}:{number}") for number, content in lines(path)), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) < len(header) or not all(name.strip() for name in header):
                    raise DataError(f"{where}: the header is {header}; expected a name for each column, none twice")
                continue
            try:
                if len(fields) != len(header):
                    raise DataError(
                        f"{where}: found {len(fields)} fields, expected {len(header)} as the header says; quote"
                        " what holds commas, or mend the line"
                    )
                row = {name: _cell(name, text, where) for name, text in zip(header, fields, strict=True)}
            except DataError as error:
                yield where, error
            else:
                yield where, checked(row, where)
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not CSV: {error}; the row that begins here is cut or badly quoted") from error


def _cell(column: str, text: str, where: str) -> Any:
    """CSV knows only text: columns that are numbers, lists or conversations by their names are turned into them."""
    if column in _JSON_COLUMNS:
        return parse_text(text, f"{where}: `{column}`") if text.strip() else None
    if column in _TURN_COLUMNS:
        return _turns_or_text(column, text, where)
    if column not in _NUMBER_COLUMNS:
        return text
    if text.strip().lower() in ("", "true", "false"):
        return {"": None, "true": True, "false": False}[text.strip().lower()]
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: `{column}` is {text[:60]!r}; expected a number") from None


def reads_as_turns(column: str, text: str) -> bool:
    """Whether `read_csv` takes this text of a column for messages, or for broken ones."""
    try:
        return column in _TURN_COLUMNS and not isinstance(_turns_or_text(column, text, ""), str)
    except DataError:
        return True


def _turns_or_text(column: str, text: str, where: str) -> Any:
    """The messages where a cell holds a JSON list of objects with `role`, else the text as it stands."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _BROKEN_TURNS.match(text):
            raise DataError(
                f"{where}: `{column}` begins like a list of messages and is not JSON; write the list with json.dumps (or as"
                " .jsonl), or leave the row out"
            ) from None
        return text
    if value and all(isinstance(turn, dict) for turn in value) and any("role" in turn for turn in value):
        return parse_text(text, f"{where}: `{column}`")  # strictly: no key twice, no NaN
    return text


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """The rows of a Parquet file of any schema with "file, row N", read in batches; in place of a malformed one its error.

    Raises:
        DataError: if the file, or a part of it, cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with opened(path) as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{path}: a column name stands twice among {', '.join(names)}; rename one")
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for row in _python_rows(batch):
                    number += 1
                    where = f"{path}, row {number}"
                    if row is None:
                        yield where, DataError(f"{where}: holds text that is not UTF-8; write the file again")
                    else:
                        yield where, checked(row, where)
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}; get the file again") from error


def _python_rows(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a batch, None for one whose text is no text."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        return [row for i in range(batch.num_rows) for row in _python_rows(batch.slice(i, 1))]
