"""The one place where the doctor opens data: malformed rows are recorded, not raised."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator

from exoalign.data.doctor.records import Record
from exoalign.data.formats import PromptRow, SetAside, TextRow, _group, _prompt, _row, _table
from exoalign.errors import DataError


def open_records(path: str, aside: SetAside | None, **place: str | None) -> tuple[str | None, Iterator[Record]]:
    """STAND-IN until data/sources.py is there."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    return None, _stream(path, aside)


def _stream(path: str, aside: SetAside | None) -> Iterator[Record]:
    tolerate, aside = aside is not None, aside or SetAside()
    if path.endswith(".parquet"):
        from pathlib import Path

        for group in _table(Path(path)):
            aside.read += 1
            yield group
        return
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            aside.read += 1
            where = f"{path}:{number}"
            try:
                row = _row(line, where)
                record: Record | None
                if "text" in row:
                    record = TextRow(str(row["text"]), where)
                elif set(row) == {"prompt"}:
                    record = PromptRow(_prompt(row, where), where)
                else:
                    record = _group(row, where, aside)
            except DataError as error:
                if not tolerate:
                    raise
                aside.errors.append(str(error))
                continue
            if record is not None:
                yield record
