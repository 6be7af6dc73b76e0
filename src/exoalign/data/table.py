"""Groups in Parquet, one row each, and back without loss. Written to a temporary name first, so that no half file is left."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exoalign.errors import DataError
from exoalign.files import replacing
from exoalign.groups import Group, Message

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("prompt_messages", _TURNS),
        ("completions", pa.list_(pa.string())),
        ("completion_messages", pa.list_(_TURNS)),
        ("rewards", pa.list_(pa.float64())),
        ("winner", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.list_(pa.int32()))),
        ("completion_masks", pa.list_(pa.list_(pa.bool_()))),
        ("sampler_logprobs", pa.list_(pa.float64())),
        ("reference_logprobs", pa.list_(pa.float64())),
        ("scores", pa.map_(pa.string(), pa.list_(pa.float64()))),
        ("provenance", pa.string()),
    ]
)


ROW_GROUP = 4096
"""Groups that are written together."""
ADDED = {"scores"}
"""Columns that files of earlier versions lack."""
BATCH_ROWS = 64
"""Groups that are read together; one of 64 completions may have some 10,000 tokens."""


def write_table(groups: Iterable[Group], path: Path) -> None:
    """Write groups to a Parquet file, atomically and some at a time: they may come from a generator."""
    stream = iter(groups)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        while rows := [row_of(group) for group in itertools.islice(stream, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def is_group_table(path: Path) -> bool:
    """Whether it is a Parquet file of groups, rather than one of rows in some other schema; False where it cannot be read."""
    if path.suffix != ".parquet":
        return False
    try:
        with path.open("rb") as file:
            return {"completion_ids", "provenance"} <= set(pq.read_schema(file).names)
    except (OSError, ValueError, pa.ArrowException):
        return False


def read_table(path: Path) -> list[Group]:
    """All groups of a Parquet file that `write_table` wrote.

    Raises:
        DataError: as `iter_table`.
    """
    return list(iter_table(path))


def iter_table(path: Path) -> Iterator[Group]:
    """The groups of a Parquet file that `write_table` wrote, of which a batch is held at a time.

    Raises:
        DataError: if the file cannot be read, lacks a column or has one of another type, or a row is no group.
    """
    number = 0
    try:
        with path.open("rb") as file:  # a folder would be read as a data set of many files
            table = pq.ParquetFile(file)
            _check_columns(path, table.schema_arrow)
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield _checked_group(row, f"{path}, row {number}")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _check_columns(path: Path, schema: pa.Schema) -> None:
    for field in SCHEMA:
        if field.name in ADDED and field.name not in schema.names:
            continue
        index = schema.get_field_index(field.name)  # less than 0 where there is none, or more than one
        found = schema.field(index).type if index >= 0 else "missing"
        if found != field.type:
            raise DataError(
                f"{path}: column {field.name} is {found}, expected {field.type}: a file of groups written by exoalign"
            )


def _checked_group(row: dict[str, Any], where: str) -> Group:
    try:
        return group_of(row)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: is no group: {error}") from error


def row_of(group: Group) -> dict[str, Any]:
    """A group as a row of `SCHEMA`."""
    text = isinstance(group.prompt, str)
    return {
        "prompt": group.prompt if text else None,
        "prompt_messages": None if text else _turns(group.prompt),
        "completions": [c if isinstance(c, str) else None for c in group.completions],
        "completion_messages": (
            None
            if all(isinstance(c, str) for c in group.completions)
            else [None if isinstance(c, str) else _turns(c) for c in group.completions]
        ),
        "rewards": group.rewards,
        "winner": group.winner,
        "prompt_ids": group.prompt_ids,
        "completion_ids": group.completion_ids,
        "completion_masks": group.completion_masks,
        "sampler_logprobs": group.sampler_logprobs,
        "reference_logprobs": group.reference_logprobs,
        "scores": None if group.scores is None else list(group.scores.items()),
        "provenance": json.dumps(dict(group.provenance), sort_keys=True),
    }


def _turns(turns: Any) -> list[dict[str, str]]:
    return [Message(*turn)._asdict() for turn in turns]


def _messages(turns: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def group_of(row: dict[str, Any]) -> Group:
    """The group of a row of `SCHEMA`."""
    messages, trajectories = row.pop("prompt_messages"), row.pop("completion_messages")
    if messages is not None:
        row["prompt"] = _messages(messages)
    if trajectories is not None:
        pairs = zip(row["completions"], trajectories, strict=True)
        row["completions"] = tuple(text if turns is None else _messages(turns) for text, turns in pairs)
    scores = row.get("scores")  # pairs of a name and its values
    values = {"scores": None if scores is None else dict(scores), "provenance": json.loads(row["provenance"])}
    return Group(**{**row, **values})
