"""Tokenised groups kept across runs: an Arrow file for everything that they are made from, and a manifest beside it.

A file's name is the SHA-256 of its record: checksums of the source, adapter, tokenizer, budgets, split, and the versions that
make the tokens. The manifest is written last, and holds the record, the file's checksum and what there was to tell when it
was made, so that a second run tells the same. A file that has no manifest, or is not as its manifest says, is made anew.

The folder holds at most `MOST_BYTES`: when a table is added, those that have not been used for longest go, but none that was
used within a day. Any file in it may be deleted by hand while no run uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from exoalign._version import __version__
from exoalign.data.group_table import GroupTable, build
from exoalign.files import cache_folder, checksum, write_text
from exoalign.groups import Group
from exoalign.progress import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

VERSION = 3
"""Raise it when the same data are read otherwise, when the tokens of the same text change, or the format of the files."""
MOST_BYTES = 20 * 1000**3
DAY = 24 * 3600.0

Make = Callable[[dict[str, Any]], Iterable[Group]]


class Kept(NamedTuple):
    """Groups with token ids, what there was to tell when they were made, and where they lie (None: in memory only)."""

    groups: Sequence[Group]
    told: dict[str, Any]
    path: Path | None
    reused: bool


def default_folder() -> Path:
    """Where tokenised groups are kept: `$EXOALIGN_CACHE/tokens`, or the user's cache."""
    return cache_folder() / "tokens"


def tokenizer_record(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the tokens depend on: vocabulary and rules, chat template, special tokens and the libraries' versions.

    Of a template that writes the date, the day too.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)  # state of the last call, not of the tokenizer
        rules.pop("truncation", None)
    else:
        begin = list(tokenizer("")["input_ids"])  # `add_bos_token` is not among what is saved
        rules = [sorted(tokenizer.get_vocab().items()), _saved_files(tokenizer), begin]
    return {
        "class": type(tokenizer).__name__,
        "rules": hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest(),
        "template": tokenizer.chat_template,
        "day": time.strftime("%Y-%m-%d") if "strftime_now" in str(tokenizer.chat_template) else None,
        "special": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "versions": {name: version(name) for name in ("tokenizers", "transformers")},
    }


def _saved_files(tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """Checksums of a slow tokenizer's own files: merges, lower-casing and other rules stand in them alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        return [[str(file.relative_to(folder)), checksum(file)] for file in sorted(folder.rglob("*")) if file.is_file()]


def keep(folder: Path, record: Mapping[str, Any] | None, make: Make, *, name: str) -> Kept:
    """Groups out of the cache, or made and put there.

    Args:
        folder: of the cache; made when it is first used.
        record: all that the groups depend on, as JSON values; versions are added here. None where that is not known: then the
            groups are made and held in memory, as nothing would find them again.
        make: makes the groups, and writes into the dict that it is given what there is to tell (JSON values).
        name: of the data, for warnings.

    Raises:
        ExoalignError: what `make` raises; the cache itself costs a warning at most.
    """
    if record is None:
        return _in_memory(make)
    exact = json.loads(json.dumps({**record, "exoalign": __version__, "version": VERSION}))
    key = hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()[:32]
    path, manifest = folder / f"{key}.arrow", folder / f"{key}.json"
    told = _intact(path, manifest, exact, name)
    if told is not None:
        with contextlib.suppress(OSError):  # a cache that may only be read is used all the same
            manifest.touch()
        return Kept(GroupTable([path]), told, path, True)
    told = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.unlink(missing_ok=True)  # it would vouch for a file that is being replaced
        table = build(make(told), path)
        size, digest = path.stat().st_size, checksum(path)
        write_text(manifest, json.dumps({"record": exact, "bytes": size, "sha256": digest, "told": told}, indent=1))
    except (OSError, pa.ArrowException) as error:
        logger.warning(
            "%s: the tokenised groups cannot be kept in %s (%s), so they are held in memory; expected a folder that can be"
            " written, with room on the disk; EXOALIGN_CACHE names another",
            name,
            folder,
            plain(str(error)),
        )
        return _in_memory(make)
    with contextlib.suppress(OSError):  # the table is there, whatever else the folder holds
        _clean(folder)
    return Kept(table, told, path, False)


def _in_memory(make: Make) -> Kept:
    told: dict[str, Any] = {}
    return Kept(list(make(told)), told, None, False)


def _intact(path: Path, manifest: Path, record: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What there was to tell of a file that is as its manifest says; None where it has to be made."""
    try:
        if not manifest.is_file():
            return None
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if found["record"] == record and found["bytes"] == path.stat().st_size and found["sha256"] == checksum(path):
            return dict(found["told"])
        problem = f"is not as {manifest.name} says"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be used ({plain(str(error))})"
    logger.warning("%s: its tokenised groups in %s are damaged: the file %s; they are made anew", name, path, problem)
    return None


def _clean(folder: Path) -> None:
    """Delete what is left of killed runs, and the tables that have not been used for longest until the others have room."""
    now = time.time()
    for left in folder.glob(".*"):
        if now - left.stat().st_mtime > DAY:
            left.unlink(missing_ok=True)
    orphans = [
        table
        for table in folder.glob("*.arrow")
        if not table.with_suffix(".json").is_file() and now - table.stat().st_mtime > DAY
    ]
    for table in orphans:
        table.unlink(missing_ok=True)
    if orphans:
        logger.info("files of tokenised groups without a manifest that are deleted in %s: %d", folder, len(orphans))
    used = sorted((manifest.stat().st_mtime, manifest) for manifest in folder.glob("*.json"))
    size = sum(file.stat().st_size for file in folder.glob("*.arrow"))
    for when, manifest in used:
        if size <= MOST_BYTES or now - when < DAY:
            break
        table = manifest.with_suffix(".arrow")
        size -= table.stat().st_size if table.is_file() else 0
        manifest.unlink(missing_ok=True)
        table.unlink(missing_ok=True)
        logger.info("tokenised groups that were last used on %s are deleted: %s", time.ctime(when), table)
