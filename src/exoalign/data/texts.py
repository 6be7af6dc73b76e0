"""Rows to learn by heart: plain text, conversations, and prompts with the reply that is wanted.

An example is a group of one completion. Of `messages` the prompt is what stands before the assistant's first turn and the
completion what follows, up to the assistant's last. A plain text is all completion, and its prompt is empty: `examples` says
what stands there as tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exoalign.data.conversations import (
    as_completion,
    completion_of,
    conversation_of,
    fault_of,
    prompt_of,
    type_name,
)
from exoalign.data.kinds import columns_of, kind_of, need
from exoalign.data.set_aside import SetAside
from exoalign.data.shapes import format_row
from exoalign.errors import DataError
from exoalign.groups import Completion, Group, Message, Prompt

PLAIN = "plain_text"
"""In the provenance of an example that is plain text."""


def text_of(row: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
    """A row of text as it reads: `text`, or `messages`, or a `prompt` with its `completion` behind it.

    Raises:
        DataError: naming the place, if the row has none of them, or its text or reply is empty.
    """
    if "messages" in row:
        return _messages(row, where)
    if "text" in row:
        if not isinstance(row["text"], str) or not row["text"].strip():
            found = "empty" if isinstance(row["text"], str) else type_name(row["text"])
            raise DataError(f"{where}: `text` is {found}; expected text; leave the row out")
        return row["text"]
    prompt, completion = _reply(row, where, "completion")
    if fault_of((completion,)) is not None:
        raise DataError(
            f"{where}: {fault_of((completion,))}; expected a `completion` by the assistant; leave the row out"
        )
    if isinstance(prompt, str):
        return f"{prompt}{completion}"
    return prompt + (completion if isinstance(completion, tuple) else (Message("assistant", completion),))


def example_row(row: Mapping[str, Any], where: str, aside: SetAside) -> Group | None:
    """Turn a row into an example, or a row of pairs, kway or rankings into its group.

    Args:
        row: a row of any kind but ratings and prompts; pairs need no `rejected`.
        where: "file:line", kept as the group's source.
        aside: takes the row if it is well-formed and cannot be used: an empty text, an empty reply.

    Raises:
        DataError: naming the place, if the row is malformed or holds nothing to learn.
    """
    kind = kind_of(row, where)
    if kind == "prompts":
        raise DataError(
            f"{where}: columns {columns_of(row)}: a prompt alone holds nothing to learn; expected `prompt, completion`, or"
            " `prompt, chosen`, or `messages`, or `text`"
        )
    alone = kind == "pairs" and row.get("chosen") is not None and row.get("rejected") is None
    if kind != "text" and not alone:
        return format_row(row, where, aside)
    provenance: dict[str, Any] = {"source": where}
    prompt: Prompt
    completion: Completion
    if "messages" in row and not alone:
        turns = _messages(row, where)
        speaks = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        prompt, completion = turns[: speaks[0]], as_completion(turns[speaks[0] : speaks[-1] + 1])
    elif "text" in row and not alone:
        if not isinstance(row["text"], str):
            raise DataError(f"{where}: `text` is {type_name(row['text'])}; expected text; leave the row out")
        prompt, completion = "", row["text"]
        provenance[PLAIN] = True
    else:
        prompt, completion = _reply(row, where, "chosen" if alone else "completion")
    fault = fault_of((completion,))
    if fault is not None:
        aside.add("a text is empty" if PLAIN in provenance else fault, where)
        return None
    return Group(prompt, (completion,), provenance=provenance)


def _messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    if not isinstance(row["messages"], list):
        raise DataError(f"{where}: `messages` is {type_name(row['messages'])}; expected a list of messages")
    return conversation_of(row["messages"], where, "messages")


def _reply(row: Mapping[str, Any], where: str, column: str) -> tuple[Prompt, Completion]:
    need(row, where, "prompt", column)
    prompt = prompt_of(row["prompt"], where)
    return prompt, completion_of(row[column], prompt, where, column)
