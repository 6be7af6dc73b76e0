"""Whole files: checksums, text that is written completely or not at all, where what is kept across runs lies; and hub ids."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

HUB_ID = re.compile(r"\w[\w.-]*/(?!.*\.(jsonl?|gz|csv|parquet|arrow)$)\w[\w.-]*")
"""`owner/name` on the Hugging Face hub, without the ending of a data file."""


def cache_folder() -> Path:
    """Where converted models and reference log-probs lie: `$EXOALIGN_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("EXOALIGN_CACHE") or user_cache_path("exoalign"))


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to: renamed to it at the end, removed on an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text: whoever reads finds the old file or the new one, whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
