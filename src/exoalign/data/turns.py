"""A conversation as pieces of text: what the chat template says, where special tokens are special, and what people and models
wrote, where they are plain characters. `tokenize` makes ids of the pieces; nothing here does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from exoalign.data.template import ChatTemplate, Frame, chat_template, frame
from exoalign.errors import ModelError
from exoalign.groups import Completion, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Piece(NamedTuple):
    """Some text of a conversation.

    Attributes:
        text: the text.
        template: the template says it, so that its special tokens are special.
        counts: the assistant wrote it; of the template's text after such a piece only the end-of-turn token counts.
    """

    text: str
    template: bool
    counts: bool


class Turns:
    """The turns of conversations as one tokenizer's chat template puts them.

    Raises:
        ModelError: if the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template: ChatTemplate = chat_template(tokenizer)
        self.eos = int(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else None
        self._tokenizer = tokenizer
        self._ends: dict[tuple[str, ...], int | None] = {}

    def prompt(self, turns: Sequence[Message]) -> list[Piece]:
        """The prompt, up to where the assistant's reply begins.

        Raises:
            DataError, ModelError: as `template.frame`.
        """
        around = frame(self.template, roles(turns), True)
        pieces = [Piece(around.parts[0], True, False)]
        for i, turn in enumerate(turns):
            pieces.append(Piece(around.content(i, turn.content), False, False))
            pieces.append(Piece(around.parts[i + 1], True, False))
        return pieces

    def completion(self, prompt: Sequence[Message], completion: Completion) -> list[Piece]:
        """A reply or a trajectory after the prompt, without the last end-of-turn token.

        Raises:
            DataError, ModelError: as `template.frame`; a reply as text needs no frame of its own.
        """
        if isinstance(completion, str):
            whole = self.whole((*roles(prompt), "assistant"))
            return [Piece(whole.content(len(prompt), completion) if whole else completion, False, True)]
        around = frame(self.template, (*roles(prompt), *roles(completion)), False)
        pieces: list[Piece] = []
        for i, turn in enumerate(completion, len(prompt)):
            if pieces:
                pieces.append(Piece(around.parts[i], True, False))
            pieces.append(Piece(around.content(i, turn.content), False, turn.role == "assistant"))
        return pieces

    def whole(self, names: tuple[str, ...]) -> Frame | None:
        """The frame of prompt and completion, or None where the template refuses it (it may want other turns)."""
        try:
            return frame(self.template, names, False)
        except ModelError:
            return None

    def end(self, names: tuple[str, ...]) -> int | None:
        """The id of the token that ends the last of these turns: what the template puts there, else end-of-sequence."""
        if names not in self._ends:
            whole = self.whole(names) or self.whole(("user", "assistant"))
            after = self._tokenizer(whole.parts[-1], add_special_tokens=False)["input_ids"][:1] if whole else []
            self._ends[names] = (
                int(after[0]) if after and after[0] in self._tokenizer.added_tokens_decoder else self.eos
            )
        return self._ends[names]


def roles(turns: Sequence[Message]) -> tuple[str, ...]:
    """The roles of some turns."""
    return tuple(turn.role for turn in turns)
