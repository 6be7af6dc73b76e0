"""Groups in Parquet, one row each, and back without loss. Written to a temporary name first, so that no half file is left."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exoalign.errors import DataError
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    os.replace(temporary, path)


def read_table(path: Path) -> list[Group]:
    """Read groups from a Parquet file that `write_table` wrote.

    Raises:
        DataError: if the file cannot be read or lacks a column.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: columns {', '.join(missing)} are missing; expected a file of groups written by exoalign"
        )
    return [_group(row) for row in table.to_pylist()]


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
