"""Rows of a `datasets` folder and of the Hugging Face hub. `datasets` is imported when one is read.

No code of a data set is ever run: `datasets` from 4 on cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exoalign.data.strict_json import checked
from exoalign.errors import DataError

Rows = Iterator[tuple[str, dict[str, Any] | DataError]]


def read_saved(path: Path, split: str | None) -> Rows:
    """The rows of a folder that `save_to_disk` wrote, with "folder[split], row N"; in place of a malformed one its error.

    Raises:
        DataError: if the folder cannot be read, or the split is not there or must be named.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # it raises what the libraries below it raise
        raise DataError(f"{path}: cannot be read as a saved data set: {_first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        name, found = _one_split(path, found, split)
        label = f"{path}[{name}]"
    else:
        label = str(path)
        if split is not None and str(found.split) != split:
            raise DataError(f"{path}: holds one data set, of split {found.split}, not `{split}`; leave `split` out")
    yield from _dataset_rows(found.with_format(None), label)


def read_hub(name: str, *, split: str | None, subset: str | None, revision: str | None, folders: bool = False) -> Rows:
    """Stream the rows of a data set of the hub with "owner/name@revision[split], row N"; for a malformed one its error.

    `subset` is a configuration or, with `folders`, a folder of the data set.

    Raises:
        DataError: if the hub cannot be reached or refuses, or the split is not there or must be named.
    """
    import datasets

    label = name + (f"@{revision}" if revision else "")
    try:
        chosen = {"data_dir" if folders else "name": subset}
        found = datasets.load_dataset(name, **chosen, split=split, revision=revision, streaming=True)
    except Exception as error:  # network, hub and file errors of many libraries
        raise _hub_error(label, error) from error
    if isinstance(found, dict):
        split, found = _one_split(label, found, split)
    yield from _dataset_rows(found, f"{label}[{split}]")


def _one_split(label: str | Path, splits: Any, split: str | None) -> tuple[str, Any]:
    if split is None and len(splits) == 1:
        split = str(next(iter(splits)))
    if split is None or split not in splits:
        asked = "none was named" if split is None else f"`{split}` was asked for"
        raise DataError(f"{label}: has the splits {', '.join(splits) or 'none'} and {asked}; name one as `split`")
    return split, splits[split]


def _dataset_rows(dataset: Any, label: str) -> Rows:
    number = 0
    stream = iter(dataset)
    while True:
        try:
            row = next(stream, None)
        except Exception as error:  # what is read piece by piece can fail at each piece
            raise _hub_error(f"{label}, row {number + 1}", error) from error
        if row is None:
            break
        number += 1
        where = f"{label}, row {number}"
        yield where, checked(row, where)
    if not number:
        raise DataError(f"{label}: no rows; expected one or more")


def _hub_error(label: str, error: Exception) -> DataError:
    return DataError(
        f"{label}: cannot be read: {_first_line(error)}. If it is a path, no such file or folder is here. If it is a hub"
        " id, look at its name, split, subset and revision, at the network and at HF_HUB_OFFLINE; data that asks for"
        " consent needs `hf auth login`"
    )


def _first_line(error: Exception) -> str:
    """Type and first line, without the query of a signed address, which is as good as a key."""
    text = (str(error).strip().splitlines() or [""])[0]
    text = re.sub(r"[?]\S+", "?...", text)[:300]
    return f"{type(error).__name__}: {text}"
