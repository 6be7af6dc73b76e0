"""`GroupTable`: groups in Arrow files that stay on the disk: memory-mapped, and made one at a time when they are asked for.

The columns are those of `exoalign.data.table`, one row each group. A table is pickled by its paths, so that the worker
processes of a data loader share the pages of the files. A table may be a choice of rows out of several files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from exoalign.data.table import SCHEMA, group_of, row_of
from exoalign.data.tokenize import stream_tokenized, tokenize
from exoalign.errors import DataError
from exoalign.files import replacing
from exoalign.groups import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 512
"""Groups that are written together."""
TOGETHER = 32
"""Groups that are made together when a table is gone through: what is held in Python beside the files."""


class GroupTable(Sequence[Group]):
    """Groups of one or more Arrow files, read when they are asked for.

    Args:
        paths: files that `build` wrote.
        rows: numbers of the rows to show, counted through all files, [N] int64; all when None.

    Raises:
        DataError: if a file cannot be read, or is none of groups.
    """

    def __init__(self, paths: Sequence[Path], rows: np.ndarray | None = None) -> None:
        self.paths = tuple(paths)
        self._batches = [batch for path in self.paths for batch in _batches(path)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        self._rows = rows

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> GroupTable: ...
    def __getitem__(self, index: int | slice) -> Group | GroupTable:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        number = range(len(self))[index]
        batch, row = self._place(number if self._rows is None else int(self._rows[number]))
        return group_of(batch.slice(row, 1).to_pylist()[0])

    def _place(self, row: int) -> tuple[Any, int]:
        """The batch that holds a row, and the row's number in it."""
        which = int(np.searchsorted(self._ends, row, side="right"))
        return self._batches[which], row - int(self._ends[which]) + self._batches[which].num_rows

    def __iter__(self) -> Iterator[Group]:
        if self._rows is not None:
            yield from (self[i] for i in range(len(self)))
            return
        for batch in self._batches:
            for start in range(0, batch.num_rows, TOGETHER):
                yield from map(group_of, batch.slice(start, TOGETHER).to_pylist())

    @property
    def has_ids(self) -> bool:
        """Whether the groups in the files have their token ids, all of them."""
        return not any(
            batch.column(name).null_count for batch in self._batches for name in ("prompt_ids", "completion_ids")
        )

    def take(self, rows: Sequence[int]) -> GroupTable:
        """A table of some of the rows, in the order given; nothing is read or copied."""
        chosen = np.asarray(rows, dtype=np.int64)
        return GroupTable(self.paths, chosen if self._rows is None else self._rows[chosen])

    def __reduce__(self) -> tuple[Any, ...]:
        return (GroupTable, (self.paths, self._rows))


def join(tables: Sequence[GroupTable]) -> GroupTable:
    """One table of all rows of several, in order."""
    paths = [path for table in tables for path in table.paths]
    if all(table._rows is None for table in tables):
        return GroupTable(paths)
    rows, start = [], 0
    for table in tables:
        whole = GroupTable(table.paths)
        rows.append(start + (np.arange(len(whole)) if table._rows is None else table._rows))
        start += len(whole)
    return GroupTable(paths, np.concatenate(rows))


def build(groups: Iterable[Group], path: Path) -> GroupTable:
    """Write groups to an Arrow file, a batch at a time; the file is there whole or not at all.

    Args:
        groups: any number, from a generator too: only one batch of them is held.
        path: of the file; an old one is replaced.

    Raises:
        OSError, pyarrow.ArrowException: if the file cannot be written.
    """
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        stream = iter(groups)
        while rows := [row_of(group) for group in itertools.islice(stream, BATCH)]:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return GroupTable([path])


def with_ids(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, *, context: int | None = None
) -> Sequence[Group]:
    """As `tokenize`; a table whose groups have their ids is checked as a list is, and stays on the disk.

    Raises:
        DataError, ModelError: as `tokenize`.
    """
    if not isinstance(groups, GroupTable) or not groups.has_ids:
        return tokenize(groups, tokenizer, context=context)
    for _ in stream_tokenized(groups, tokenizer, context=context):
        pass
    return groups


def _batches(path: Path) -> list[Any]:
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if file.schema != SCHEMA:
            raise DataError(f"{path}: its columns are not those of groups; expected a file that exoalign wrote")
        return [file.get_batch(i) for i in range(file.num_record_batches)]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as an Arrow file: {error}; delete it, and it is made anew") from error
