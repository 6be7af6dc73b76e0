"""What a data set is made of, seen alike: groups, prompts alone, and texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from exoalign.data.doctor.findings import Tally
from exoalign.data.formats import PromptRow, TextRow
from exoalign.data.tokenize import tokenize
from exoalign.errors import DataError
from exoalign.groups import Completion, Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = Group | PromptRow | TextRow
"""One group, prompt or text."""

CHUNK = 1_000  # groups tokenised at a time


def parts_of(record: Record) -> tuple[Prompt | None, tuple[Completion, ...], str]:
    """(prompt, completions, where); a text is one completion without a prompt, a prompt has no completions."""
    if isinstance(record, Group):
        return record.prompt, record.completions, record.where
    if isinstance(record, PromptRow):
        return record.prompt, (), record.source
    return None, (record.text,), record.source


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the tokens that a tokenizer treats as control."""
    added = (str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *map(str, tokenizer.all_special_tokens)})


def tokenized(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase | None, refused: Tally) -> Iterator[Record]:
    """The records with token ids in the groups; a group that cannot have them is counted, and goes on without."""
    if tokenizer is None:
        yield from records
        return
    stream = iter(records)
    while chunk := list(islice(stream, CHUNK)):
        groups = iter(_with_ids([record for record in chunk if isinstance(record, Group)], tokenizer, refused))
        for record in chunk:
            yield next(groups) if isinstance(record, Group) else record


def _with_ids(groups: list[Group], tokenizer: PreTrainedTokenizerBase, refused: Tally) -> list[Group]:
    try:
        return tokenize(groups, tokenizer) if groups else []
    except DataError as error:
        if len(groups) == 1:
            refused.add(str(error))
            return [replace(groups[0], prompt_ids=None, completion_ids=None, completion_masks=None)]
    half = len(groups) // 2  # by halves: each call of `tokenize` costs time of its own
    return _with_ids(groups[:half], tokenizer, refused) + _with_ids(groups[half:], tokenizer, refused)


def contents_of(part: Prompt | Completion | None) -> list[str]:
    """The texts of a prompt or a completion, without roles."""
    if part is None:
        return []
    return [part] if isinstance(part, str) else [turn.content for turn in part]


def preferred_of(group: Group) -> int | None:
    """The better completion of a pair; None in a larger group or at a tie."""
    if group.winner is not None or group.rewards is None or group.k != 2 or group.rewards[0] == group.rewards[1]:
        return group.winner
    return int(group.rewards[1] > group.rewards[0])


def kind_of_record(record: Record) -> str:
    """pairs, kway, completions (neither winner nor rewards), prompts or text."""
    if isinstance(record, PromptRow):
        return "prompts"
    if not isinstance(record, Group):
        return "text"
    return "pairs" if record.winner is not None else "kway" if record.rewards is not None else "completions"
