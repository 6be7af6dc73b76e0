"""Rows as the bytes of a file of each kind, and read back."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from exoalign.data.sources import attempts
from exoalign.errors import DataError


def jsonl(*rows):
    """Bytes stand for a line as it is."""
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)


def parquet(rows, schema=None):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    return file.getvalue()


def comma_separated(rows):
    """Lists as JSON, which the reader takes in the columns that are known to be lists or may be conversations."""
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows([{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows])
    return file.getvalue().encode("utf-8", "surrogatepass")


def rows(source):
    """The rows of a source; a malformed one is raised."""
    for where, row in attempts(source):
        if isinstance(row, DataError):
            raise row
        yield where, row
