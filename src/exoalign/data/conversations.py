"""Text and turns of a row: which values can be a prompt, a completion or a whole conversation.

The order of turns is: the system's only first, then the user's, then the assistant's, and after the assistant the user or a
tool; a tool may be followed by another tool or the assistant. A prompt ends where the assistant is to speak. What a message
holds besides `role` and `content` is refused: not every template can render it.
"""

from __future__ import annotations

from typing import Any

from exoalign.errors import DataError
from exoalign.groups import Completion, Message, Prompt

_FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
ROLES = ("system", "user", "assistant", "tool")
_TURN = '{"role": "...", "content": "..."}'


def prompt_of(value: Any, where: str, column: str = "prompt") -> Prompt:
    """A prompt: text, or turns that end with the user or a tool.

    Raises:
        DataError: if it is neither, empty, or its turns are not as they should be.
    """
    if value == [] or not isinstance(value, str | list):
        found = "an empty list" if value == [] else type_name(value)
        raise DataError(f"{where}: `{column}` is {found}; expected text or a list of messages {_TURN}")
    prompt = value if isinstance(value, str) else conversation_of(value, where, column, assistant=False)
    if isinstance(prompt, tuple) and prompt[-1].role not in ("user", "tool"):
        raise DataError(
            f"{where}: `{column}` ends with the {prompt[-1].role}; expected the user or a tool last, whom the completion"
            " answers; move what follows into the completions"
        )
    if not any(text.strip() for text in ([prompt] if isinstance(prompt, str) else [turn.content for turn in prompt])):
        raise DataError(
            f"{where}: `{column}` is empty; give the text that the completion answers, or leave the row out"
        )
    return prompt


def completion_of(value: Any, prompt: Prompt, where: str, column: str) -> Completion:
    """A completion: text, or after a conversation the turns that follow it. A single turn of the assistant becomes text.

    Raises:
        DataError: if it is neither, no turn is the assistant's, or turns are not as they should be.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"{where}: `{column}` is {type_name(value)}; expected text or a list of messages")
    if isinstance(prompt, str):
        raise DataError(f"{where}: `{column}` is list and the prompt is text; give both as text or both as messages")
    return as_completion(conversation_of(value, where, column, after="user"))


def as_completion(turns: tuple[Message, ...]) -> Completion:
    """Turns after a prompt as a completion: a single one, which is the assistant's, as its text."""
    return turns[0].content if len(turns) == 1 else turns


def conversation_of(
    value: list[Any], where: str, column: str, *, after: str = "", assistant: bool = True
) -> tuple[Message, ...]:
    """Turns in an order that can be.

    Args:
        value: the messages as the row has them.
        where: "file:line", for errors.
        column: what they are called, for errors.
        after: the role of the turn before them, "" at the beginning of a conversation.
        assistant: whether one of them must be the assistant's.

    Raises:
        DataError: naming the turn, counted from 1.
    """
    turns = tuple(_message(turn, where, f"turn {number} of `{column}`") for number, turn in enumerate(value, 1))
    if assistant and not any(turn.role == "assistant" for turn in turns):
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise DataError(f"{where}: `{column}` has no turn of the assistant (found {roles}); expected one or more")
    for number, turn in enumerate(turns, 1):
        if turn.role not in _FOLLOWS[after]:
            before = f"after the {after}" if after else "at the beginning"
            raise DataError(
                f"{where}: turn {number} of `{column}` is the {turn.role}'s {before}; expected"
                f" {' or '.join(_FOLLOWS[after])}; mend the order, or join turns of one speaker"
            )
        after = turn.role
    return turns


def _message(turn: Any, where: str, what: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: {what} is {type_name(turn)}; expected {_TURN}")
    if isinstance(turn.get("role"), str):  # tool calls often have no content: they are named first
        # Parquet gives each message the keys of all: a key without a value says nothing
        more = sorted(key for key, value in turn.items() if key not in ("role", "content") and value is not None)
        if more:
            raise DataError(
                f"{where}: {what} holds `{more[0]}` too; expected only role and content, as not every template renders the"
                " rest; write it into the content or leave the row out"
            )
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            found = f"is {type_name(turn[key])}" if key in turn else "is missing"
            raise DataError(f"{where}: {what}: `{key}` {found}; expected text, as in {_TURN}")
    if turn["role"] not in ROLES:
        raise DataError(
            f"{where}: {what} has the unknown role {turn['role'][:40]!r}; expected {', '.join(ROLES)}; rename it"
        )
    return Message(turn["role"], turn["content"])


def fault_of(completions: tuple[Completion, ...]) -> str | None:
    """Why well-formed completions of one prompt cannot be used, or None: one is empty or ends with another's turn."""
    for completion in completions:
        if isinstance(completion, str):
            if not completion.strip():
                return "a reply is empty"
            continue
        if completion[-1].role != "assistant":
            return "a reply does not end with the assistant"
        if not all(turn.content.strip() for turn in completion if turn.role == "assistant"):
            return "a reply is empty"
    return None


def shared_turns(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], Completion, Completion] | None:
    """Split two conversations after the last turn that they share and the assistant answers in both.

    Returns:
        (prompt, chosen, rejected), or None where they share no such beginning.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and not chosen[shared].role == rejected[shared].role == "assistant":
        shared -= 1
    if not any(turn.content.strip() for turn in chosen[:shared]):
        return None
    return chosen[:shared], as_completion(chosen[shared:]), as_completion(rejected[shared:])


def shared_text(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Split two texts where they begin to differ; a space before that place begins the replies, as TRL splits them.

    Returns:
        (prompt, chosen, rejected), or None where they share no beginning.

    Example:
        >>> shared_text("The sky is blue.", "The sky is green.")
        ('The sky is', ' blue.', ' green.')
    """
    cut = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    cut = min(len(chosen), len(rejected)) if cut is None else cut
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    if not chosen[:cut].strip():
        return None
    return chosen[:cut], chosen[cut:], rejected[cut:]


def type_name(value: Any) -> str:
    """How a message calls the type of a value from JSON."""
    return "null" if value is None else type(value).__name__
