"""Groups in Parquet, one row each, and back without loss. Written to a temporary name first, so that no half file is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exoalign.errors import DataError
from exoalign.files import replacing
from exoalign.groups import Group, Message

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("prompt_messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("completions", pa.list_(pa.string())),
        ("rewards", pa.list_(pa.float64())),
        ("winner", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.list_(pa.int32()))),
        ("sampler_logprobs", pa.list_(pa.float64())),
        ("reference_logprobs", pa.list_(pa.float64())),
        ("provenance", pa.string()),
    ]
)


def write_table(groups: Sequence[Group], path: Path) -> None:
    """Write groups to a Parquet file, atomically."""
    rows = [_row(group) for group in groups]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def read_table(path: Path) -> list[Group]:
    """Read groups from a Parquet file that `write_table` wrote.

    Raises:
        DataError: if the file cannot be read, lacks a column or has one of another type, or a row is no group.
    """
    try:
        with path.open("rb") as file:  # a folder would be read as a data set of many files
            table = pq.read_table(file)
        rows = table.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    for field in SCHEMA:
        found = table.schema.field(field.name).type if field.name in table.column_names else "missing"
        if found != field.type:
            raise DataError(
                f"{path}: column {field.name} is {found}, expected {field.type}: a file of groups written by exoalign"
            )
    groups = []
    for number, row in enumerate(rows, 1):
        try:
            groups.append(_group(row))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, row {number}: is no group: {error}") from error
    return groups


def _row(group: Group) -> dict[str, Any]:
    text = isinstance(group.prompt, str)
    return {
        "prompt": group.prompt if text else None,
        "prompt_messages": None if text else [Message(*turn)._asdict() for turn in group.prompt],
        "completions": group.completions,
        "rewards": group.rewards,
        "winner": group.winner,
        "prompt_ids": group.prompt_ids,
        "completion_ids": group.completion_ids,
        "sampler_logprobs": group.sampler_logprobs,
        "reference_logprobs": group.reference_logprobs,
        "provenance": json.dumps(dict(group.provenance), sort_keys=True),
    }


def _group(row: dict[str, Any]) -> Group:
    messages = row.pop("prompt_messages")
    if messages is not None:
        row["prompt"] = tuple(Message(turn["role"], turn["content"]) for turn in messages)
    return Group(**{**row, "provenance": json.loads(row["provenance"])})
