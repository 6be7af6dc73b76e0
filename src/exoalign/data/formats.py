"""Reads files of prompts and of groups. A row is either right, or set aside and counted, or refused with its file and line.

| row | becomes |
|---|---|
| `prompt` (text, or messages `[{"role", "content"}]`) | a prompt |
| `prompt, chosen, rejected` | a pair: chosen first, `winner` 0 |
| `chosen, rejected` as Anthropic-HH transcripts | a pair, the shared beginning as prompt |
| `prompt, completions, rewards` | a group of K with rewards |

JSONL, gzipped JSONL and the Parquet files of a run are read.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from exoalign.data.hh import split_transcripts
from exoalign.data.table import read_table
from exoalign.errors import DataError
from exoalign.groups import Group, Message, Prompt


@dataclass
class SetAside:
    """Rows that are well-formed but cannot be used, by reason; rows that are malformed, where the reader tolerates them."""

    reasons: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, reason: str, where: str) -> None:
        """Count one row."""
        self.reasons.setdefault(reason, []).append(where)

    def lines(self) -> list[str]:
        """A sentence for each reason."""
        return [
            f"{len(rows)} row{'s' if len(rows) > 1 else ''} set aside: {reason} ({', '.join(rows[:3])}"
            + (", ..." if len(rows) > 3 else "")
            + ")"
            for reason, rows in self.reasons.items()
        ]


class PromptRow(NamedTuple):
    """A prompt and the row that it stands in."""

    prompt: Prompt
    source: str


class TextRow(NamedTuple):
    """A text for SFT, or a conversation, and the row that it stands in."""

    text: str | tuple[Message, ...]
    source: str


def read_prompts(path: str | Path, *, limit: int | None = None) -> list[PromptRow]:
    """Read prompts, the first `limit` of them, from the files that `read_groups` reads.

    Raises:
        DataError: with file and line, for a row that is no JSON object or has no prompt, and for an empty file.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return [PromptRow(group.prompt, group.where) for group in _table(path)[:limit]]
    prompts: list[PromptRow] = []
    for where, row in _rows(path):
        prompts.append(PromptRow(_prompt(row, where), where))
        if len(prompts) == limit:
            break
    if not prompts:
        raise DataError(f"{path}: no rows; expected one JSON object with `prompt` on each line")
    return prompts


def read_groups(path: str | Path, *, limit: int | None = None) -> tuple[list[Group], SetAside]:
    """Read groups, the first `limit` usable ones.

    Args:
        path: `.jsonl`, `.jsonl.gz` or `.parquet`.
        limit: how many groups at most, 1 or more; what stands after them is not looked at.

    Returns:
        The groups, and the rows that were set aside (empty or identical replies, transcripts without a shared beginning).

    Raises:
        DataError: with file and line and what was expected.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _table(path)[:limit], SetAside()
    groups: list[Group] = []
    aside = SetAside()
    for where, row in _rows(path):
        group = _group(row, where, aside)
        if group is not None:
            groups.append(group)
        if len(groups) == limit:
            break
    if not groups:
        found = f"all {sum(map(len, aside.reasons.values()))} rows were set aside" if aside.reasons else "no rows"
        raise DataError("\n".join([f"{path}: {found}; expected one JSON object on each line", *aside.lines()]))
    return groups, aside


def _group(row: dict[str, Any], where: str, aside: SetAside) -> Group | None:
    if "completions" in row:
        return _rewarded(row, where, aside)
    if "chosen" not in row or "rejected" not in row:
        raise DataError(
            f"{where}: columns {', '.join(sorted(row)) or 'none'}; expected `prompt, chosen, rejected`, or"
            " `prompt, completions, rewards`, or transcripts `chosen, rejected`"
        )
    chosen, rejected = _text(row, "chosen", where), _text(row, "rejected", where)
    prompt: Prompt
    if "prompt" in row:
        prompt = _prompt(row, where)
    else:
        parts = split_transcripts(chosen, rejected)
        if parts is None:
            if "\n\nAssistant:" not in chosen or "\n\nAssistant:" not in rejected:
                raise DataError(
                    f"{where}: no `prompt`, and `chosen` and `rejected` are no transcripts"
                    ' ("\\n\\nHuman: ... \\n\\nAssistant: ..."); add a `prompt` column'
                )
            aside.add("chosen and rejected do not share everything before their last reply", where)
            return None
        prompt, chosen, rejected = parts
    if not chosen.strip() or not rejected.strip():
        aside.add("a reply is empty", where)
        return None
    if chosen == rejected:
        aside.add("chosen and rejected are the same text", where)
        return None
    return Group(prompt, (chosen, rejected), winner=0, provenance={"source": where})


def _rewarded(row: dict[str, Any], where: str, aside: SetAside) -> Group | None:
    prompt, completions, rewards = _prompt(row, where), row["completions"], row.get("rewards")
    if not isinstance(completions, list) or not all(isinstance(c, str) for c in completions):
        raise DataError(f'{where}: `completions` is no list of texts; expected ["...", "..."]')
    if len(completions) < 2:
        raise DataError(f"{where}: found {len(completions)} completion(s), expected at least 2")
    if not isinstance(rewards, list) or not all(
        isinstance(r, (int, float)) and not isinstance(r, bool) for r in rewards
    ):
        raise DataError(
            f"{where}: `rewards` is {type(rewards).__name__}; expected a list with a number for each completion"
        )
    group = Group(prompt, tuple(completions), rewards=tuple(rewards), provenance={"source": where})
    if not all(text.strip() for text in completions):
        aside.add("a completion is empty", where)
        return None
    if len(set(completions)) == 1:
        aside.add("all completions are the same text", where)
        return None
    return group


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{where}: `prompt` is empty")
        return prompt
    if isinstance(prompt, list) and prompt:
        if not all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in prompt
        ):
            raise DataError(f'{where}: a turn of `prompt` is no {{"role": "...", "content": "..."}}')
        return tuple(Message(turn["role"], turn["content"]) for turn in prompt)
    if "prompt" not in row:
        raise DataError(f"{where}: no `prompt`; found columns {', '.join(sorted(row)) or 'none'}")
    raise DataError(f"{where}: `prompt` is {type(prompt).__name__}; expected text or a list of messages")


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f"{where}: `{key}` is {type(row[key]).__name__}; expected text")
    return str(row[key])


def _table(path: Path) -> list[Group]:
    groups = read_table(path)
    if not groups:
        raise DataError(f"{path}: no rows; expected one group in each")
    return groups


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL file with `name:line` for each; blank lines are passed over."""
    if not os.path.isfile(path):  # unlike Path.is_file, no error for a name that is too long
        raise DataError(f"{path}: {'is a folder, expected a file' if os.path.isdir(path) else 'no such file'}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield f"{path}:{number}", _row(line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start + 1} of the line") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: holds a lone surrogate, which is no character; mend the text") from error
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON at column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected a JSON object")
    return row


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key `{next(key for key in keys if keys.count(key) > 1)}` stands twice")
    return row


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number; expected finite values")
