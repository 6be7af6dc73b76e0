"""What goes into a run: prompts to sample completions for, or groups that have theirs. Both are read and checked whole before
the first stage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from exoalign import stages
from exoalign.config_data import SourceSection, as_list
from exoalign.data import token_cache
from exoalign.data.contents import Commits
from exoalign.data.doctor.examine import examine_fast
from exoalign.data.doctor.records import special_tokens
from exoalign.data.formats import PromptRow, read_prompts
from exoalign.data.mix import Side
from exoalign.data.prepare import Prepared, prepare, source_of
from exoalign.data.table import read_table
from exoalign.errors import DataError
from exoalign.files import checksum
from exoalign.groups import Group, Prompt, check_groups, prompt_text
from exoalign.losses import OBJECTIVES
from exoalign.rewards.functions import resolve_reward
from exoalign.sampling.generate import encode_prompts
from exoalign.store import StageResult

SAID_IN_TRAINING = ("no_spread", "sharp", "flat", "still")
"""Findings that the trainer tells with the recipe's betas."""


class Done(Protocol):
    """Does a stage, unless it is done: its name, what it is made from, and its work in a folder."""

    def __call__(self, name: str, made_from: dict[str, Any], work: Callable[[Path], str]) -> StageResult:
        """What the stage left."""


class Prompts:
    """Inputs of a run that samples its completions."""

    def __init__(self, context: stages.Context) -> None:
        recipe = context.recipe
        assert recipe.prompts is not None
        assert recipe.reward is not None
        self.context, self.recipe, self.notes, self.lines = context, recipe, list[str](), list[str]()
        self.train = _prompts(recipe.prompts.train, recipe.prompts.limit)
        self.heldout = _prompts(recipe.prompts.evaluation, recipe.prompts.evaluation_limit)
        self.notes += _shared_note((row.prompt for row in self.train), (row.prompt for row in self.heldout))
        rows: Sequence[PromptRow] = [*self.train, *self.heldout]
        encode_prompts(
            context.tokenizer,
            [row.prompt for row in rows],
            [row.source for row in rows],
            context=context.tokens,
            room=recipe.sample.max_new_tokens,
        )
        name = recipe.reward.function
        resolve_reward(name)
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None) if ":" in name else None
        self.reward = {"function": name, "code": checksum(Path(file)) if file else None}  # one's own code may change
        if recipe.sample.top_p < 1:
            self.notes.append(
                f"sample.top_p is {recipe.sample.top_p:g}: the optimum that is learnt is that of the truncated model; with"
                " sample.top_p=1 it is the one of the formula"
            )

    def training_groups(self, done: Done, base: dict[str, Any]) -> tuple[Callable[[], Sequence[Group]], Any]:
        """Sampled and rewarded groups, and what they are known by."""
        prompts = [row.prompt for row in self.train]
        settings = self.recipe.sample.model_dump()
        sampled = done(
            "sample",
            {**base, "sample": settings, "prompts": prompts},
            lambda path: stages.sample(self.context, self.train, path),
        )
        rewarded = done(
            "reward",
            {"groups": sampled.identity, "reward": self.reward},
            lambda path: stages.reward(self.context, sampled.folder / stages.GROUPS, path),
        )
        return lambda: read_table(rewarded.folder / stages.GROUPS), rewarded.identity

    def evaluate(self, done: Done, base: dict[str, Any], aligned: StageResult) -> StageResult:
        """Fresh samples of both models."""
        made_from = {
            **base,
            "aligned": aligned.identity,
            "sample": self.recipe.sample.model_dump(),
            "evaluate": self.recipe.evaluate.model_dump(),
            "reward": self.reward,
            "prompts": [row.prompt for row in self.heldout],
        }
        model = aligned.folder / stages.MODEL
        return done(
            "evaluate", made_from, lambda path: stages.evaluate_samples(self.context, model, self.heldout, path)
        )


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

    def training_groups(self, done: Done, base: dict[str, Any]) -> tuple[Callable[[], Sequence[Group]], Any]:
        """The groups as read, and what they are known by."""
        return lambda: self.train.groups, self.train.made_from

    def evaluate(self, done: Done, base: dict[str, Any], aligned: StageResult) -> StageResult:
        """Loss and accuracy on training and held-out groups."""
        heldout = self.heldout
        return done(
            "evaluate",
            {**base, "aligned": aligned.identity, "heldout": heldout.made_from if heldout else None},
            lambda path: stages.evaluate_heldout(
                self.context,
                aligned.folder / stages.MODEL,
                self.train.groups,
                heldout.groups if heldout else None,
                path,
            ),
        )


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
