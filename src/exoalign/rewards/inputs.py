"""What a reward model reads of a group: ids of prompt and reply together, by the reward model's own tokenizer and template.

A conversation is rendered by the chat template, whole and without a generation prompt; the ids are those that
`apply_chat_template` gives, unless a special token was typed into a turn: then each turn is tokenised apart, where it stays
text. A text prompt and its completion are one text, tokenised as `tokenizer(text)` does. The policy's ids are never looked at.

What the K texts of a group begin with is its prompt, whatever is in it; what follows is a completion, with a placeholder
behind it (see `logprobs.readout`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from exoalign.data.template import chat_template, frame
from exoalign.data.tokenize import content_ids, vocabulary
from exoalign.data.turns import roles
from exoalign.errors import DataError, ModelError
from exoalign.groups import Completion, Group, Message, Prompt, completion_text, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Reads = Literal["whole", "completion"]
"""What a reward model is given of a text prompt: prompt and completion, or the completion alone."""

Ids = tuple[int, ...]


class RewardInputs:
    """Makes the inputs of one reward model.

    Args:
        tokenizer: the reward model's own.
        max_tokens: the longest input, 2 or more; longer ones are cut at the left, and counted. None cuts nothing.
        reads: `whole`, or `completion` to leave prompts out.
        pad_id: where the model reads the last token that is not this one, what stands behind that token is left out here.

    Attributes:
        texts: how many inputs were made.
        cut: how many of them were cut from the left, the prompt's beginning.
        into_reply: how many of those had replies so long that their beginnings were cut too.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int | None = None,
        reads: Reads = "whole",
        pad_id: int | None = None,
    ) -> None:
        self.tokenizer, self.max_tokens, self.reads, self.pad_id = tokenizer, max_tokens, reads, pad_id
        self.texts = self.cut = self.into_reply = 0
        self._said = False
        special = sorted(
            (t.content for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True
        )
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def of(self, group: Group) -> list[Ids]:
        """The ids of each completion's input, each made and cut for itself.

        Raises:
            DataError, ModelError: naming the group: the template does not take its turns, or an input has no token.
        """
        return [self._cut(ids, text) for ids, text in zip(self._whole(group), group.completions, strict=True)]

    def alike(self, group: Group) -> list[Ids]:
        """As `of`, but with a common first token: where that reached over the end of the prompt, the prompt is tokenised apart.

        Raises:
            DataError, ModelError: as `of`.
        """
        texts = self._whole(group)
        if not _shared(texts):
            begin = tuple(content_ids(self.tokenizer, prompt_text(group.prompt)))
            texts = [begin + tuple(content_ids(self.tokenizer, completion_text(c))) for c in group.completions]
        if not _shared(texts):
            raise DataError(f"{group.where}: its prompt gives the reward model no token to read; expected a prompt")
        return [self._cut(ids, text) for ids, text in zip(texts, group.completions, strict=True)]

    def _whole(self, group: Group) -> list[Ids]:
        made = []
        for completion in group.completions:
            try:
                ids = self._ids(group.prompt, completion)
            except (DataError, ModelError) as error:
                raise type(error)(f"{group.where}: {error}") from error
            if not ids:
                raise DataError(f"{group.where}: a completion gives the reward model no token to read; leave it out")
            while self.pad_id is not None and len(ids) > 1 and ids[-1] == self.pad_id:
                ids = ids[:-1]
            made.append(ids)
        return made

    def _ids(self, prompt: Prompt, completion: Completion) -> Ids:
        if self.reads == "completion":
            return self._text(completion_text(completion))
        if isinstance(prompt, str):
            return self._text(prompt + completion_text(completion))
        if not self.tokenizer.chat_template:
            if not self._said:
                logger.warning(
                    "the reward model has no chat template and the prompts are conversations: it is given their turns as"
                    " plain text"
                )
                self._said = True
            return self._text(f"{prompt_text(prompt)}\n\n{completion_text(completion)}")
        turns = (Message("assistant", completion),) if isinstance(completion, str) else completion
        return self._conversation((*prompt, *turns))

    def _text(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, split_special_tokens=True)["input_ids"])

    def _conversation(self, turns: Sequence[Message]) -> Ids:
        around = frame(chat_template(self.tokenizer), roles(turns), False)
        contents = [around.content(i, turn.content) for i, turn in enumerate(turns)]
        rendered = around.parts[0] + "".join(c + part for c, part in zip(contents, around.parts[1:], strict=True))
        if self._count(rendered) == sum(map(self._count, around.parts)):
            return tuple(self._rendered(rendered))
        ids = list(self._rendered(around.parts[0]))
        for content, part in zip(contents, around.parts[1:], strict=True):
            ids += content_ids(self.tokenizer, content)
            ids += self._rendered(part)
        return tuple(ids)

    def _rendered(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _count(self, text: str) -> int:
        """How many special tokens stand in a text."""
        return len(self._special.findall(text)) if self._special else 0

    def _cut(self, ids: Ids, completion: Completion) -> Ids:
        """An input that fits: of a longer one the first token, which begins all texts or turns, and the last ones."""
        self.texts += 1
        if self.max_tokens is None or len(ids) <= self.max_tokens:
            return ids
        self.cut += 1
        self.into_reply += len(content_ids(self.tokenizer, completion_text(completion))) >= self.max_tokens
        return ids[:1] + ids[len(ids) - self.max_tokens + 1 :]

    def lines(self) -> list[str]:
        """What was cut, for the user; nothing where nothing was."""
        if not self.cut:
            return []
        told = f"{self.cut} of {self.texts} inputs are longer than the reward model's {self.max_tokens} tokens: cut at the left"
        return [f"{told}, {self.into_reply} of them into the reply" if self.into_reply else told]


def laid_out(group: Group, inputs: RewardInputs, placeholder: int) -> Group:
    """The group with the ids that a reward model is trained on, in place of those it has.

    Raises:
        DataError, ModelError: as `RewardInputs.alike`.
    """
    made = with_places(inputs.alike(group), placeholder)
    return replace(
        group,
        prompt_ids=made.prompt_ids,
        completion_ids=made.completion_ids,
        completion_masks=made.completion_masks,
        sampler_logprobs=None,
        reference_logprobs=None,
        provenance={**group.provenance, "tokenizer": vocabulary(inputs.tokenizer)},
    )


def with_places(texts: Sequence[Ids], placeholder: int) -> Group:
    """Texts with a common beginning as a group of ids without words: each has a placeholder where its reward is read.

    Raises:
        DataError: if they have no common first token.
    """
    shared = _shared(texts)
    rests = [(*text[shared:], placeholder) for text in texts]
    masks = tuple((False,) * (len(rest) - 1) + (True,) for rest in rests)
    return Group(
        "", ("",) * len(texts), prompt_ids=texts[0][:shared], completion_ids=tuple(rests), completion_masks=masks
    )


def together(texts: Sequence[Ids], placeholder: int) -> list[tuple[list[int], Group]]:
    """Texts of one group as groups of ids, with the numbers of the texts in each: one group, or one for each text where they
    begin differently.
    """
    if _shared(texts):
        return [(list(range(len(texts))), with_places(texts, placeholder))]
    return [([k], with_places([text], placeholder)) for k, text in enumerate(texts)]


def _shared(texts: Sequence[Ids]) -> int:
    """How many tokens all texts begin with."""
    first, last = min(texts), max(texts)  # of sorted sequences the outer ones differ first
    both = zip(first, last, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), len(first))


def longest_input(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The tokens that the model takes at once, None where neither it nor its tokenizer says."""
    position = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    known = [n for n in (position, tokenizer.model_max_length) if n is not None and 0 < n < 10**9]
    return min(known) if known else None
