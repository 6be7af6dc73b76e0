"""Where rows come from: `attempts` streams them from a file, a folder or the Hugging Face hub, each with its place.

| `path` | read as |
|---|---|
| `.jsonl`, `.jsonl.gz` (or any other name) | one JSON object on each line |
| `.json`, `.json.gz` | an array of objects, or `{"data": [...]}` or `{"instances": [...]}` |
| `.csv`, `.csv.gz` | a header and rows; lists and messages as JSON |
| `.parquet` | any schema |
| a folder that `save_to_disk` wrote | a data set, or one `split` of it |
| another folder | all data files in it, or those whose name or folder begins with `split`; `subset` is a folder in it |
| `owner/name` | a data set of the hub, streamed, with `split`, `subset` and `revision` |

One row is held at a time (of Parquet a batch, of JSON the text). No code of a data set is ever run: `datasets` 4 and later
cannot.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exoalign.data.hosted import read_hub, read_saved
from exoalign.data.strict_json import check_values, read_document, read_lines
from exoalign.data.tabular import read_csv, read_parquet
from exoalign.errors import DataError
from exoalign.files import HUB_ID

Row = dict[str, Any]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
_NOT_READ = (
    ".tsv", ".arrow", ".feather", ".orc", ".avro", ".ndjson", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".xls", ".xlsx",
)  # fmt: skip
_SPLITS = (
    "train", "training", "test", "testing", "validation", "valid", "val", "dev", "development", "eval", "evaluation",
    "heldout", "held_out", "held-out", "holdout", "hold_out", "hold-out",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A place that rows come from.

    Attributes:
        path: a file, a folder or a hub id `owner/name`.
        adapter: a known data set's name (`exoalign.data.adapters`), whose raw rows are turned into the common formats; or None.
        split: which split, for a folder or the hub; may stay None where there is only one.
        subset: which configuration, for the hub, or which folder inside a folder.
        revision: commit, branch or tag, for the hub.
    """

    path: str
    adapter: str | None = None
    split: str | None = None
    subset: str | None = None
    revision: str | None = None


def as_source(source: Source | str | os.PathLike[str]) -> Source:
    """A path or hub id as a source."""
    return source if isinstance(source, Source) else Source(os.fspath(source))


def beside(source: Source, path: str, split: str | None) -> Source:
    """Held-out data that is read as `source` is: the same adapter, and where it is of the same kind (both on the hub, both
    folders) the same subset and revision.
    """
    alike = not os.path.exists(path) or (os.path.isdir(path) and os.path.isdir(source.path))
    return Source(path, source.adapter, split, source.subset if alike else None, source.revision if alike else None)


def attempts(source: Source | str, unread: Counter[str] | None = None) -> Iterator[tuple[str, Row | DataError]]:
    """Stream the rows with their places, "file:line" or "file, row N"; in place of a malformed row its error.

    Args:
        source: where the rows are.
        unread: counts the columns that have a value in a raw row and that the adapter makes nothing of.

    Raises:
        DataError: where nothing more can be read: a damaged file, a source without rows.
    """
    source = as_source(source)
    if source.adapter is None:
        yield from _raw(source)
        return
    from exoalign.data.adapters import adapt, find_adapter  # late: few need it

    adapter = find_adapter(source.adapter)
    used = set(adapter.schema).difference(adapter.unread)
    for where, row in _raw(source):
        if isinstance(row, DataError):
            yield where, row
            continue
        try:
            adapted = adapt(source.adapter, row, where)
            for new in adapted:
                check_values(new, where)
        except DataError as error:
            yield where, error
            continue
        if unread is not None:
            unread.update(column for column, value in row.items() if value is not None and column not in used)
        if not adapted:
            yield where, DataError(f"{where}: the adapter `{source.adapter}` makes nothing of this row")
        for new in adapted:
            yield where, new


def _raw(source: Source) -> Iterator[tuple[str, Row | DataError]]:
    path = Path(source.path)
    if os.path.isfile(path):  # unlike Path.is_file, no error for a name that is too long
        _unused(source, "split", "subset", "revision", kind="a file")
        yield from _file(path)
    elif os.path.isdir(path):
        _unused(source, "revision", kind="a folder")
        if source.subset is not None:
            path = path / source.subset
            if not path.is_dir():
                raise DataError(f"{path}: no such folder; expected the subset `{source.subset}` there")
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            yield from read_saved(path, source.split)
        else:
            for file in _data_files(path, source.split):
                yield from _file(file)
    elif HUB_ID.fullmatch(source.path):
        from exoalign.data.adapters import ADAPTERS

        yield from read_hub(
            source.path,
            split=source.split,
            subset=source.subset,
            revision=source.revision,
            folders=source.adapter is not None and ADAPTERS[source.adapter].folders,
        )
    else:
        raise DataError(
            f"{source.path}: no such file or folder, and no hub id; expected a path that exists, or `owner/name`"
        )


def _unused(source: Source, *names: str, kind: str) -> None:
    for name in names:
        if getattr(source, name) is not None:
            raise DataError(f"{source.path}: is {kind}, which has no `{name}`; leave `{name}` out")


def _file(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    readers = {".json": read_document, ".csv": read_csv, ".parquet": read_parquet}
    found = False
    for found_row in readers.get(plain.suffix, read_lines)(path):
        found = True
        yield found_row
    if not found:
        raise DataError(f"{path}: no rows; expected {_EXPECTED.get(plain.suffix, 'one JSON object on each line')}")


_EXPECTED = {
    ".json": "an array of objects",
    ".csv": "a header and a row on each line",
    ".parquet": "one row or more",
}


def _data_files(folder: Path, split: str | None) -> list[Path]:
    """The data files below a folder in order of name, of one split if asked; hidden ones are left out."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.lower().endswith((*_SUFFIXES, *_NOT_READ)) and path.is_file()
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(f"{folder}: no data files; expected {', '.join(_SUFFIXES)}")
    names = {path: _split_names(path.relative_to(folder)) for path in files}
    if split is None:
        chosen = files
        splits = {name for found in names.values() for name in found if _begins_with(name, *_SPLITS)}
    else:
        chosen = [path for path in files if split in names[path]]
        chosen = chosen or [path for path in files if any(_begins_with(name, split) for name in names[path])]
        splits = {name for path in chosen for name in names[path] if _begins_with(name, split)} - {split}
        if not chosen:
            listed = ", ".join(str(path.relative_to(folder)) for path in files[:8])
            raise DataError(f"{folder}: no file of the split `{split}`; found {listed}")
    if len(splits) > 1:
        raise DataError(f"{folder}: has files of the splits {', '.join(sorted(splits))}; name one as `split`")
    for path in chosen:
        if not path.name.endswith(_SUFFIXES):
            raise DataError(
                f"{path}: files of this ending are not read, and the folder would be read without it; expected"
                f" {', '.join(_SUFFIXES)}; convert it, or take it out of the folder"
            )
    return chosen


def _split_names(path: Path) -> set[str]:
    """What may name a split in a file's name or in that of a folder it is in: up to the shard's number or the ending."""
    return {re.sub(r"_?\d+$", "", re.split(r"-\d|\.", part)[0]) for part in path.parts}


def _begins_with(name: str, *splits: str) -> bool:
    """Whether a name begins with one of the splits as a word of its own."""
    return any(re.match(rf"{re.escape(split)}(?![^-_])", name) for split in splits)
