"""What a data set is made of, seen alike: groups, prompts alone, and texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from exoalign.data.formats import PromptRow, Record
from exoalign.data.set_aside import Tally
from exoalign.data.template import RolesError
from exoalign.data.tokenize import tokenize
from exoalign.data.turns import roles
from exoalign.errors import DataError
from exoalign.groups import Completion, Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    return sorted({*added, *map(str, tokenizer.all_special_tokens)} - {""})


def tokenized(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase | None, refused: Tally) -> Iterator[Record]:
    """The records with token ids in the groups; a group that cannot have them is counted, and goes on without.

    Raises:
        ModelError: where no group could have them: the tokenizer has no end-of-sequence token or no usable chat template.
    """
    if tokenizer is None:
        yield from records
        return
    stream, tokenizing = iter(records), _Tokenizing(tokenizer)
    while chunk := list(islice(stream, CHUNK)):
        done = iter(tokenizing.with_ids([record for record in chunk if isinstance(record, Group)]))
        for record in chunk:
            if not isinstance(record, Group):
                yield record
                continue
            made = next(done)
            if isinstance(made, str):
                refused.add(f"{record.where}: {made}")
                made = replace(record, prompt_ids=None, completion_ids=None, completion_masks=None)
            yield made


class _Tokenizing:
    """Gives groups their ids as far as they can have them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._faults: dict[tuple[tuple[str, ...], ...], str] = {}  # what a template refuses in one row it does in all

    def with_ids(self, groups: list[Group]) -> list[Group | str]:
        """Each group with its ids, or why it has none."""
        known = [self._faults.get(_roles(group)) for group in groups]
        if any(known):
            rest = iter(self.with_ids([group for group, fault in zip(groups, known, strict=True) if fault is None]))
            return [next(rest) if fault is None else fault for fault in known]
        try:
            return [*tokenize(groups, self._tokenizer)] if groups else []
        except (DataError, RolesError) as error:
            if len(groups) == 1:
                fault = str(error).removeprefix(f"{groups[0].where}: ")
                if isinstance(error, RolesError):
                    self._faults[_roles(groups[0])] = fault
                return [fault]
        half = len(groups) // 2  # by halves: each call of `tokenize` costs time of its own
        return self.with_ids(groups[:half]) + self.with_ids(groups[half:])


def _roles(group: Group) -> tuple[tuple[str, ...], ...]:
    return tuple(roles(part) for part in (group.prompt, *group.completions) if not isinstance(part, str))


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
