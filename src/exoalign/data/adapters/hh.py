"""Anthropic/hh-rlhf: `chosen` and `rejected` are whole transcripts "\\n\\nHuman: ... \\n\\nAssistant: ...".

`hh` keeps the text as it is. `hh_chat` makes conversations of it: the white space around a turn belongs to the layout and goes,
and turns of one speaker that follow each other are one turn, joined by an empty line. Both keep the prompt implicit: the reader
splits it off, and sets rows aside whose transcripts do not share it.
"""

from __future__ import annotations

import re

from exoalign.data.adapters.schema import Adapter, Row
from exoalign.errors import DataError

_SCHEMA = {"chosen": str, "rejected": str}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def _text(row: Row, where: str) -> list[Row]:
    for column in _SCHEMA:
        _turns(row[column], f"{where}: `{column}`")
    return [{column: row[column] for column in _SCHEMA}]


def _chat(row: Row, where: str) -> list[Row]:
    return [{column: _turns(row[column], f"{where}: `{column}`") for column in _SCHEMA}]


def _turns(transcript: str, what: str) -> list[dict[str, str]]:
    before, *parts = _SPEAKER.split(transcript)
    if before.strip() or "Assistant" not in parts[::2]:
        raise DataError(f'{what} is no transcript; expected "\\n\\nHuman: ... \\n\\nAssistant: ..."')
    turns: list[dict[str, str]] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        if turns and turns[-1]["role"] == _ROLES[speaker]:
            turns[-1]["content"] += "\n\n" + text.strip()
        else:
            turns.append({"role": _ROLES[speaker], "content": text.strip()})
    return turns


_WHERE = "subsets harmless-base, helpful-base, helpful-online and helpful-rejection-sampled"
ADAPTERS = [
    Adapter("hh", "Anthropic/hh-rlhf", f"pairs of text ({_WHERE})", _SCHEMA, _text, folders=True),
    Adapter("hh_chat", "Anthropic/hh-rlhf", f"pairs of conversations ({_WHERE})", _SCHEMA, _chat, folders=True),
]
