"""Rows into a file, JSONL, gzipped JSONL, Parquet or CSV by its name: streamed, and complete or not there at all."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any

from exoalign.data.tabular import reads_as_turns
from exoalign.errors import DataError
from exoalign.files import replacing

Row = dict[str, Any]


ROWS_AT_ONCE = 1000
"""The rows of a row group of Parquet: as many as are kept in memory."""


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a file name that cannot be written to, before any row is read.

    Raises:
        DataError: for an ending that is not known, a folder, and a file that exists (unless `force`).
    """
    if not path.name.endswith(tuple(WRITERS)):
        raise DataError(f"{path}: its ending is not known; expected one of {', '.join(WRITERS)}")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected the name of a file")
    if path.exists() and not force:
        raise DataError(f"{path}: exists already; choose another name, or overwrite it with --force")


def write_rows(rows: Iterable[Row], path: Path) -> int:
    """Write rows to a file whose ending says the form, atomically.

    Returns:
        How many rows were written, 1 or more.

    Raises:
        DataError: if there is no row (no file is written then), or a row does not fit into a table of fixed columns.
    """
    writer = next(write for ending, write in WRITERS.items() if path.name.endswith(ending))
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            writer(counted(), temporary, path)
            if not count:
                raise DataError(f"{path}: no row to write")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
    return count


def _lines(rows: Iterator[Row], file: BufferedIOBase) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


def _jsonl(rows: Iterator[Row], temporary: Path, path: Path) -> None:
    with temporary.open("wb") as file:
        _lines(rows, file)


def _gzipped(rows: Iterator[Row], temporary: Path, path: Path) -> None:
    # neither name nor time: the same rows give the same bytes
    with temporary.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
        _lines(rows, zipped)


def _csv(rows: Iterator[Row], temporary: Path, path: Path) -> None:
    with temporary.open("w", encoding="utf-8", newline="") as file:
        # text is quoted and numbers are not: readers that ask can tell "1" from 1
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        for number, row in _same_columns(rows, path):
            nested = [name for name, value in row.items() if isinstance(value, list)]
            if nested:
                raise DataError(
                    f"{path}, row {number}: `{nested[0]}` is a list, and .csv holds only text and numbers;"
                    " write .jsonl or .parquet"
                )
            turns = [name for name, value in row.items() if isinstance(value, str) and reads_as_turns(name, value)]
            if turns:
                raise DataError(
                    f"{path}, row {number}: `{turns[0]}` is text that .csv would give back as messages;"
                    " write .jsonl or .parquet"
                )
            if number == 1:
                writer.writerow(row)
            writer.writerow(row.values())


def _parquet(rows: Iterator[Row], temporary: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbered = _same_columns(rows, path)
    batch = list(islice(numbered, ROWS_AT_ONCE))
    if not batch:
        temporary.touch()
        return
    schema = pa.schema([(name, _type(value)) for name, value in batch[0][1].items()])
    with pq.ParquetWriter(temporary, schema) as writer:
        while batch:
            try:
                writer.write_batch(pa.RecordBatch.from_pylist([row for _, row in batch], schema=schema))
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, row {batch[0][0]} or one of the {ROWS_AT_ONCE} from there: {error}; .parquet needs one type in"
                    " a column (text or conversations, not both): write .jsonl"
                ) from error
            batch = list(islice(numbered, ROWS_AT_ONCE))


def _type(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(_type(value[0]))
    if isinstance(value, dict):
        return pa.struct([(name, _type(inner)) for name, inner in value.items()])
    return {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}[type(value)]


def _same_columns(rows: Iterator[Row], path: Path) -> Iterator[tuple[int, Row]]:
    columns: list[str] = []
    for number, row in enumerate(rows, 1):
        columns = columns or list(row)
        if list(row) != columns:
            raise DataError(
                f"{path}, row {number}: has columns {', '.join(row)}, the rows before {', '.join(columns)};"
                f" {path.suffix} needs the same in every row: write .jsonl"
            )
        yield number, row


WRITERS = {".jsonl": _jsonl, ".jsonl.gz": _gzipped, ".parquet": _parquet, ".csv": _csv}
