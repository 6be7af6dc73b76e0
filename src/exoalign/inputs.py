"""What goes into a run: prompts to sample completions for, or groups that have theirs. Both are read and checked whole before
the first stage.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from exoalign import stages
from exoalign.config_data import SourceSection, as_list
from exoalign.data import token_cache
from exoalign.data.contents import Commits
from exoalign.data.doctor.examine import examine_fast
from exoalign.data.doctor.records import special_tokens
from exoalign.data.formats import PromptRow, read_prompts
from exoalign.data.mix import Side
from exoalign.data.prepare import Prepared, prepare, source_of
from exoalign.errors import DataError
from exoalign.groups import Prompt, check_groups, prompt_text
from exoalign.objectives import OBJECTIVES
from exoalign.rewards.scorers import record_of
from exoalign.sampling.encode import encode_prompts

SAID_IN_TRAINING = ("no_spread", "sharp", "flat", "still")
"""Findings that the trainer tells with the recipe's betas."""


class Prompts:
    """Inputs of a run that samples its completions.

    Attributes:
        train, heldout: prompts to train and to evaluate on.
        tokens: of all prompts to train on together.
        reward: what the rewards depend on.
        lines, notes: what was done, and what the user should mind.
    """

    def __init__(self, context: stages.Context) -> None:
        recipe = context.recipe
        assert recipe.prompts is not None
        assert recipe.reward is not None
        self.context, self.recipe, self.notes, self.lines = context, recipe, list[str](), list[str]()
        self.train, self.tokens = self._fitting("train", _prompts(recipe.prompts.train, recipe.prompts.limit))
        self.heldout, _ = self._fitting(
            "evaluation", _prompts(recipe.prompts.evaluation, recipe.prompts.evaluation_limit)
        )
        self.notes += _shared_note((row.prompt for row in self.train), (row.prompt for row in self.heldout))
        self.reward = record_of(recipe.reward)
        if recipe.sample.top_p < 1 or recipe.sample.top_k:
            self.notes.append(
                f"sample.top_p is {recipe.sample.top_p:g} and sample.top_k {recipe.sample.top_k}: what is learnt holds for"
                " completions that can be drawn so; with 1 and 0 it holds for all"
            )

    def _fitting(self, name: str, rows: list[PromptRow]) -> tuple[list[PromptRow], int]:
        """The prompts that may be sampled after, and their tokens; what is too long is refused, or left out and counted.

        Raises:
            DataError: naming the first prompt that is too long, if `truncation` is error, and if none is left.
        """
        section, room, context = self.recipe.prompts, self.recipe.sample.max_new_tokens, self.context.tokens
        assert section is not None
        drop, most = section.truncation == "drop", section.max_prompt_tokens
        ids = encode_prompts(
            self.context.tokenizer,
            [row.prompt for row in rows],
            [row.source for row in rows],
            context=None if drop else context,
            room=room,
        )
        budget = min(most or sys.maxsize, context - room if drop and context else sys.maxsize)
        kept = [(row, len(tokens)) for row, tokens in zip(rows, ids, strict=True) if len(tokens) <= budget]
        if len(kept) < len(rows):
            longest = max(range(len(rows)), key=lambda i: len(ids[i]))
            said = (
                f"prompts.{name}: {len(rows) - len(kept)} of {len(rows)} prompts have more than {budget} tokens (the longest,"
                f" {rows[longest].source}, has {len(ids[longest])})"
            )
            if not drop or not kept:
                raise DataError(
                    f"{said}; raise prompts.max_prompt_tokens, or set prompts.truncation=drop to leave them out"
                )
            self.notes.append(f"{said} and are left out")
        return [row for row, _ in kept], sum(count for _, count in kept)


class Data:
    """Inputs of a run on completions that exist already.

    Attributes:
        train: the groups to train on.
        heldout: those to evaluate on besides, or None.
        lines, notes: what was done, and what the user should mind.
    """

    def __init__(self, context: stages.Context) -> None:
        self.context, self.recipe, self.notes, self.lines = context, context.recipe, list[str](), list[str]()
        self._commits = Commits(token_cache.default_folder())
        train, self.heldout = self._prepared("train"), self._prepared("heldout")
        assert train is not None
        self.train = train
        self._examine(train)
        heldout, data = self.heldout, self.recipe.data
        assert data is not None
        if heldout is not None and data.holdout is None:  # a split by prompt shares none
            asked = (group.prompt for group in heldout.groups)
            self.notes += _shared_note((group.prompt for group in train.groups), asked)

    def _examine(self, train: Prepared) -> None:
        """The doctor's fast part: its warnings become notes.

        Raises:
            DataError: with what makes training wrong or impossible.
        """
        examined = examine_fast(train.groups, special=special_tokens(self.context.tokenizer))
        findings = [f for f in examined.findings if f.kind not in SAID_IN_TRAINING]
        errors = [
            f"{f.sentence} ({', '.join(f.where)})" if f.where else f.sentence for f in findings if f.grade == "error"
        ]
        if errors:
            raise DataError("\n".join(["the training data cannot be used; `exoalign doctor` says more:", *errors]))
        self.notes += [finding.sentence for finding in findings if finding.grade == "warning"]

    def _prepared(self, side: Side) -> Prepared | None:
        recipe = self.recipe
        assert recipe.data is not None
        prepared = prepare(
            recipe.data,
            side,
            self.context.tokenizer,
            context=self.context.tokens,
            seed=recipe.seed,
            cache=token_cache.default_folder(),
            commits=self._commits,
        )
        if prepared is None:
            return None
        self.lines += [f"{side}: {line}" for line in prepared.lines]
        self.notes += prepared.notes
        check_groups(prepared.groups, needs=OBJECTIVES[recipe.align.objective].needs)
        if prepared.temperatures - {recipe.temperature}:
            self.notes.append(
                f"{side}: completions were sampled at temperature {', '.join(f'{t:g}' for t in sorted(prepared.temperatures))}"
                f" and log-probs are taken at {recipe.temperature:g}; set align.temperature"
            )
        return prepared


def _prompts(source: str | SourceSection, limit: int | None) -> list[PromptRow]:
    (one,) = as_list(source, limit)
    return read_prompts(source_of(one), limit=one.limit)


def _shared_note(train: Iterable[Prompt], heldout: Iterable[Prompt]) -> list[str]:
    """What to mind where held-out prompts are training prompts too. Of each only Python's hash is kept: 64 bits tell millions
    apart.
    """
    known = {hash(prompt_text(prompt)) for prompt in train}
    shared, example = set[int](), ""
    for prompt in heldout:
        text = prompt_text(prompt)
        if hash(text) in known:
            example = example or text[:60]
            shared.add(hash(text))
    if not shared:
        return []
    return [
        f"{len(shared)} held-out prompts are training prompts too ({example!r}, ...): the evaluation is not of unseen prompts"
    ]
