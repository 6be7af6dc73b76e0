"""The stages of a recipe, in their order: what each is made from, and the work that `stages` does for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from exoalign import stages
from exoalign.data.table import read_table
from exoalign.estimate.shapes import shape_of
from exoalign.forecast import Forecast
from exoalign.groups import Group
from exoalign.inputs import Data, Prompts
from exoalign.models import identity
from exoalign.plan import Done, Stage


class Chain:
    """The stages of a recipe whose inputs are read and checked.

    Attributes:
        stages: in their order.
        lines, notes: what was done to read the inputs, and what the user should mind.

    Raises:
        ExoalignError: for anything wrong that can be told before the first stage.
    """

    def __init__(self, context: stages.Context) -> None:
        self.context, self.recipe = context, context.recipe
        section = self.recipe.model
        self._base = {
            "model": identity(section.path, section.revision),
            "bf16": context.bf16,
            "seed": self.recipe.seed,
        }
        self._forecast = Forecast(
            section.path,
            bf16=context.bf16,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )
        self.inputs = Prompts(context) if self.recipe.prompts is not None else Data(context)
        self.lines, self.notes = self.inputs.lines, self.inputs.notes
        ends = self._of_prompts(self.inputs) if isinstance(self.inputs, Prompts) else self._of_data(self.inputs)
        self.stages = ends

    def _of_prompts(self, inputs: Prompts) -> list[Stage]:
        """Completions are drawn and rewarded; both models are compared on fresh ones."""
        recipe, context, most = self.recipe, self.context, self.recipe.sample.max_new_tokens
        count, held = len(inputs.train) * recipe.sample.k, len(inputs.heldout) * recipe.evaluate.k
        drawn = {**self._base, "sample": recipe.sample.model_dump()}
        return [
            Stage(
                "sample",
                {**drawn, "prompts": [row.prompt for row in inputs.train]},
                (),
                lambda path, done: stages.sample(context.after(done), inputs.train, path),
                lambda: (
                    f"{count} completions of at most {most} tokens, {self._forecast.sampling(count * most)} at most"
                ),
            ),
            Stage(
                "reward",
                {"reward": inputs.reward},
                ("sample",),
                lambda path, done: stages.reward(context.after(done), done["sample"].folder / stages.GROUPS, path),
                lambda: f"{count} completions",
            ),
            self._align(
                {},
                ("reward",),
                lambda done: read_table(done["reward"].folder / stages.GROUPS),
                len(inputs.train),
                inputs.tokens + count * most,
            ),
            Stage(
                "evaluate",
                {
                    **drawn,
                    "evaluate": recipe.evaluate.model_dump(),
                    "reward": inputs.reward,
                    "prompts": [row.prompt for row in inputs.heldout],
                },
                ("align",),
                lambda path, done: stages.evaluate_samples(
                    context.after(done), done["align"].folder / stages.MODEL, inputs.heldout, path
                ),
                lambda: f"{held} completions of both models, {self._forecast.sampling(2 * held * most)} at most",
            ),
        ]

    def _of_data(self, inputs: Data) -> list[Stage]:
        """Completions are there; loss and accuracy are told on held-out ones."""
        context, train, heldout = self.context, inputs.train, inputs.heldout
        tokens, more = shape_of(train.groups).tokens, len(heldout.groups) if heldout else 0
        return [
            self._align({"groups": train.made_from}, (), lambda done: train.groups, len(train.groups), tokens),
            Stage(
                "evaluate",
                {**self._base, "heldout": heldout.made_from if heldout else None},
                ("align",),
                lambda path, done: stages.evaluate_heldout(
                    context.after(done),
                    done["align"].folder / stages.MODEL,
                    train.groups,
                    heldout.groups if heldout else None,
                    path,
                ),
                lambda: f"{min(len(train.groups), stages.EVALUATED)} training and {more} held-out groups",
            ),
        ]

    def _align(
        self,
        made_from: dict[str, Any],
        inputs: tuple[str, ...],
        groups: Callable[[Done], Sequence[Group]],
        count: int,
        tokens: int,
    ) -> Stage:
        """Training on `count` groups of `tokens` tokens at most."""
        settings = self.recipe.align

        def forecast() -> str:
            steps = math.ceil(count / settings.groups_per_step) * settings.epochs
            passed = self._forecast.training((settings.epochs + 1 / 3) * tokens)  # a third: the reference's forward
            return f"{steps:g} steps of {settings.groups_per_step} groups, {passed} at most"

        return Stage(
            "align",
            {**self._base, **made_from, "align": settings.model_dump(), "temperature": self.recipe.temperature},
            inputs,
            lambda path, done: stages.align(self.context.after(done), groups(done), path),
            forecast,
        )
