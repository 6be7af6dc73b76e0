"""All that is counted while the records of a data set go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from exoalign.data.doctor.content import Content
from exoalign.data.doctor.duplicates import Duplicates
from exoalign.data.doctor.findings import Finding, counted, finding
from exoalign.data.doctor.lengths import Lengths, Limits
from exoalign.data.doctor.records import contents_of, kind_of_record, parts_of, preferred_of, special_tokens
from exoalign.data.doctor.rewards import Rewards
from exoalign.data.formats import PromptRow, Record
from exoalign.data.set_aside import Tally
from exoalign.data.template import RolesError
from exoalign.data.tokenize import content_ids, prompt_ids
from exoalign.errors import DataError
from exoalign.groups import Group, completion_text, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Parts:
    """All that is counted while the records go by."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        near: bool,
        special: Sequence[str] | None,
        limits: Limits,
    ) -> None:
        self.tokenizer, self.limits = tokenizer, limits
        self.groups, self.kinds, self.k = 0, set[str](), Counter[int]()
        self.words, self.characters, self.tokens = Lengths(), Lengths(), None if tokenizer is None else Lengths()
        self.content = Content(special if tokenizer is None else special_tokens(tokenizer))
        self.duplicates, self.rewards = Duplicates(near=near), Rewards()
        self.single, self.empty, self.same, self.repeated, self.refused = (Tally() for _ in range(5))
        self.over_context, self.over_budget = Tally(), Tally()

    def add(self, record: Record) -> None:
        """Count one record."""
        prompt, completions, where = parts_of(record)
        texts = [completion_text(completion) for completion in completions]
        asked = None if prompt is None else prompt_text(prompt)
        self.groups += 1
        self.content.add(where, (text for part in (prompt, *completions) for text in contents_of(part)))
        characters = [len(text) for text in texts]
        self.characters.add(None if asked is None else len(asked), characters)
        tokens = self._token_lengths(record)
        if tokens is None:
            self.words.add(None if asked is None else len(asked.split()), [len(text.split()) for text in texts])
        elif self.tokens is not None:
            self.tokens.add(*tokens)
            self._hold_against_limits(where, *tokens)
        if asked is None:
            self.duplicates.noun = "text"
            self.duplicates.add(where, texts[0])
        else:
            preferred = preferred_of(record) if isinstance(record, Group) else None
            self.duplicates.add(where, asked, texts, preferred)
        self.kinds.add(kind_of_record(record))
        if not isinstance(record, Group):
            return
        self.k[record.k] += 1
        different = len(set(texts))
        if record.k == 1:
            self.single.add(where)
        elif different == 1:
            self.same.add(where)
        elif different < record.k:
            self.repeated.add(where)
        if not all(text.strip() for text in texts):
            self.empty.add(where)
        self.rewards.add(where, texts, tokens[1] if tokens else characters, record.rewards, record.winner)

    def _token_lengths(self, record: Record) -> tuple[int | None, list[int]] | None:
        if isinstance(record, Group):
            if record.prompt_ids is None or record.completion_ids is None:
                return None
            if self.tokens is None:
                self.tokens = Lengths()
            return len(record.prompt_ids), [len(ids) for ids in record.completion_ids]
        if self.tokenizer is None:
            return None
        if isinstance(record, PromptRow):
            try:
                return len(prompt_ids(self.tokenizer, record.prompt)), []
            except (DataError, RolesError) as error:
                self.refused.add(f"{record.source}: {error}")
                return None
        return None, [sum(len(content_ids(self.tokenizer, text)) for text in contents_of(record.text))]

    def _hold_against_limits(self, where: str, prompt: int | None, completions: list[int]) -> None:
        asked, limits = prompt or 0, self.limits
        longest = max(completions, default=1)  # a prompt alone wants one token more
        if limits.context is not None and asked + longest > limits.context:
            self.over_context.add(where)
        over_prompt = limits.prompt is not None and asked > limits.prompt
        if over_prompt or (limits.completion is not None and longest > limits.completion):
            self.over_budget.add(where)

    def findings(self, test: Duplicates | None) -> list[Finding]:
        """What is wrong with single groups, with repetitions (also of the prompts of `test`) and with the texts."""
        found = finding(
            "cannot_be_tokenized",
            self.refused,
            f"{counted(self.refused.count, 'row')} that cannot be tokenised for this model",
            "mend or remove them: training would stop at the first",
            "error",
        )
        found += finding(
            "over_context",
            self.over_context,
            f"{counted(self.over_context.count, 'row')} longer than the model's context of {self.limits.context} tokens,"
            " prompt and longest completion together",
            "set budgets (data.max_prompt_tokens, data.max_completion_tokens) and data.truncation, or take a model with a"
            " longer context: training stops at the first",
            "error",
        )
        found += finding(
            "single_completion",
            self.single,
            f"{counted(self.single.count, 'group')} with one completion only, which holds no preference",
            "give each prompt at least two, or take these rows for SFT; training on preferences stops at the first",
            "error",
        )
        found += finding(
            "empty_completions",
            self.empty,
            f"{counted(self.empty.count, 'group')} with a completion that has no text",
            "remove it, unless saying nothing is an answer",
        )
        found += finding(
            "identical_completions",
            self.same,
            f"all completions are the same in {counted(self.same.count, 'group')}",
            "remove them: they teach nothing",
        )
        found += finding(
            "repeated_completions",
            self.repeated,
            f"a completion stands more than once in {counted(self.repeated.count, 'group')}",
            "it then counts more than once in the target: keep one of each, or sample at a higher temperature",
            "note",
        )
        return found + self.duplicates.findings(test) + self.content.findings()
