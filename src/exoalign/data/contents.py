"""What the rows of a source depend on: checksums of the files that are read, or the commit of a hub data set."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from exoalign.data.sources import Source, _data_files
from exoalign.errors import DataError
from exoalign.files import checksum, write_text
from exoalign.groups import Group

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Content(NamedTuple):
    """What is read of a source.

    Attributes:
        record: JSON values that change with the rows, or None where the hub does not say which commit its data set is at.
        revision: to read it at: of the hub the commit, where it is known.
        notes: what the user should mind.
    """

    record: dict[str, Any] | None
    revision: str | None
    notes: list[str]


class Commits:
    """The commits of hub data sets, each asked for once: all that a run reads of a revision is of one commit.

    Args:
        folder: remembers the commits seen last, for runs without network; made when it is first used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "commits"
        self._known: dict[tuple[str, str | None], str | None] = {}

    def find(self, path: str, revision: str | None) -> tuple[str | None, list[str]]:
        """The commit of a revision (None: the main branch), or None where it cannot be known; and what to tell, once."""
        if revision is not None and _COMMIT.fullmatch(revision):
            return revision, []
        notes: list[str] = []
        if (path, revision) not in self._known:
            self._known[path, revision], notes = self._ask(path, revision)
        return self._known[path, revision], notes

    def _ask(self, path: str, revision: str | None) -> tuple[str | None, list[str]]:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        name = hashlib.sha256(json.dumps([path, revision]).encode()).hexdigest()[:32]
        seen = self._folder / f"{name}.json"
        try:
            commit = HfApi().dataset_info(path, revision=revision).sha
        except (RepositoryNotFoundError, RevisionNotFoundError):  # an answer: what was there before is gone
            return None, []
        except Exception as error:  # offline, unreachable: the libraries underneath raise what they like
            commit = _remembered(seen)
            note = (
                f"{path}: the hub cannot be asked ({type(error).__name__}); the commit of {revision or 'main'} that was seen"
                f" last is used: {commit}"
            )
            return commit, [note] if commit else []
        if commit:
            with contextlib.suppress(OSError):
                seen.parent.mkdir(parents=True, exist_ok=True)
                write_text(seen, json.dumps({"path": path, "revision": revision, "commit": commit}))
        return commit, []


def _remembered(seen: Path) -> str | None:
    try:
        commit = json.loads(seen.read_text(encoding="utf-8"))["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None


def content_of(source: Source, commits: Commits) -> Content:
    """What is read of a source: a file, those files of a folder that its reader takes, or the commit of a hub data set.

    Raises:
        DataError: naming the file that cannot be read, or the folder that has no data files.
    """
    place = Path(source.path)
    try:
        if os.path.isfile(place):  # unlike Path.is_file, no error for a name that is too long
            return Content({"file": checksum(place)}, source.revision, [])
        if os.path.isdir(place):
            files = [[str(file.relative_to(place)), checksum(file)] for file in _files(place, source)]
            return Content({"files": files}, source.revision, [])
    except OSError as error:
        raise DataError(
            f"{error.filename or place}: cannot be read: {error.strerror or error}; look at its permissions and its disk"
        ) from error
    commit, notes = commits.find(source.path, source.revision)
    if commit is None:
        notes = [
            f"{source.path}: the hub does not say at which commit it is, so its tokens are not kept for other runs"
        ]
    return Content({"commit": commit} if commit else None, commit or source.revision, notes)


def _files(folder: Path, source: Source) -> list[Path]:
    """What `sources.attempts` reads of a folder."""
    if source.subset is not None:
        folder = folder / source.subset
    if not folder.is_dir():
        return []  # the reader says so
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():  # of `save_to_disk`
        return sorted(file for file in folder.rglob("*") if file.is_file())
    return _data_files(folder, source.split)


def tokens_record(groups: Iterable[Group]) -> dict[str, Any]:
    """What groups with token ids are known by, where nothing is known of their source: a hash over all that is trained on."""
    digest = hashlib.sha256()
    for group in groups:
        known = [group.prompt_ids, group.marked_ids, group.rewards, group.winner]
        digest.update(json.dumps(known).encode())
    return {"tokens": digest.hexdigest()}
