"""The stages of a recipe, in their order: what each is made from, and the work that `stages` does for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exoalign import stages, stages_evaluate, stages_judge, stages_online, stages_reward_model, stages_sft
from exoalign.data.formats import PromptRow
from exoalign.data.table import read_table
from exoalign.estimate.shapes import shape_of
from exoalign.forecast import Forecast
from exoalign.groups import Group
from exoalign.inputs import Data, Prompts
from exoalign.models import identity
from exoalign.plan import Done, Stage
from exoalign.rewards.compose import Statistics
from exoalign.rewards.judge_prompt import load_judge_prompt
from exoalign.stages_score import read_statistics


class Chain:
    """The stages of a recipe whose inputs are read and checked.

    Attributes:
        stages: in their order.
        inputs: prompts or groups.
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
        self._policy: tuple[str, ...] = () if self.recipe.sft is None else ("sft",)
        self._scored = () if self.recipe.reward_model is None else ("reward_model",)
        inputs = self.inputs = Prompts(context) if self.recipe.prompts is not None else Data(context)
        self.lines, self.notes = inputs.lines, inputs.notes
        before = [*self._sft(), *self._reward_model()]
        rest = self._of_prompts(inputs) if isinstance(inputs, Prompts) else self._of_data(inputs)
        self.stages = [*before, *rest, *self._judge()]

    def _sft(self) -> list[Stage]:
        """Fine-tuning, which the policy of all later stages comes from."""
        section, recipe, context = self.recipe.sft, self.recipe, self.context
        if section is None:
            return []
        stages_sft.check_sft(section, recipe.model, seed=recipe.seed, bf16=context.bf16)
        data = stages_sft.read_sft_data(section, context.tokenizer, context=context.tokens, seed=recipe.seed)
        self._tell("sft", data.lines, data.notes)
        shape = shape_of(data.train.groups)
        return [
            Stage(
                "sft",
                stages_sft.made_from(section, data, recipe.model, seed=recipe.seed, bf16=context.bf16),
                (),
                lambda path, done: stages_sft.sft(
                    section,
                    data,
                    path,
                    model=recipe.model,
                    tokenizer=context.tokenizer,
                    seed=recipe.seed,
                    bf16=context.bf16,
                    show=context.show,
                    say=context.say,
                    allow_inexact=context.allow_inexact,
                ),
                lambda: f"{shape.groups} examples, {self._forecast.training(section.epochs * shape.tokens)}",
            )
        ]

    def _reward_model(self) -> list[Stage]:
        """A reward model, begun with the policy unless the section names a model."""
        section, recipe, context = self.recipe.reward_model, self.recipe, self.context
        if section is None:
            return []
        stages_reward_model.reward_arguments(section, seed=recipe.seed, bf16=context.bf16, output_dir="")
        data = stages_reward_model.read_reward_data(section, seed=recipe.seed)
        self._tell("reward_model", [], data.notes)
        return [
            Stage(
                "reward_model",
                stages_reward_model.made_from(section, data, recipe.model, seed=recipe.seed, bf16=context.bf16),
                self._policy if section.model is None else (),
                lambda path, done: stages_reward_model.reward_model(
                    section,
                    data,
                    path,
                    model=context.after(done).before,
                    seed=recipe.seed,
                    bf16=context.bf16,
                    show=context.show,
                    allow_inexact=context.allow_inexact,
                ),
                lambda: f"{len(data.train.groups)} groups",
            )
        ]

    def _tell(self, stage: str, lines: Sequence[str], notes: Sequence[str]) -> None:
        self.lines += [f"{stage}: {line}" for line in lines]
        self.notes += [f"{stage}: {note}" for note in notes]

    def _of_prompts(self, inputs: Prompts) -> list[Stage]:
        """Completions are drawn and rewarded; both models are compared on fresh ones."""
        recipe, context, most = self.recipe, self.context, self.recipe.sample.max_new_tokens
        if recipe.align.online is not None:
            return self._online(inputs)
        count = len(inputs.train) * recipe.sample.k
        drawn = {**self._base, "sample": recipe.sample.model_dump()}
        return [
            Stage(
                "sample",
                {**drawn, **_asked(inputs.train)},
                self._policy,
                lambda path, done: stages.sample(context.after(done), inputs.train, path),
                lambda: (
                    f"{count} completions of at most {most} tokens, {self._forecast.sampling(count * most)} at most"
                ),
            ),
            Stage(
                "reward",
                {"reward": inputs.reward},
                ("sample", *self._scored),
                lambda path, done: stages.reward(
                    context.after(done), done["sample"].folder / stages.GROUPS, path, trained=_trained(done)
                ),
                lambda: f"{count} completions",
            ),
            self._align(
                {},
                ("reward",),
                lambda done: stages.chosen(context, read_table(done["reward"].folder / stages.GROUPS)),
                len(inputs.train),
                inputs.tokens + count * most,
            ),
            self._evaluate(inputs, ("reward",), lambda done: read_statistics(done["reward"].folder)),
        ]

    def _online(self, inputs: Prompts) -> list[Stage]:
        """Alignment draws and rewards its completions itself; both models are compared on fresh ones."""
        recipe, settings, most = self.recipe, self.recipe.align, self.recipe.sample.max_new_tokens
        assert settings.online is not None
        count = math.ceil(len(inputs.train) * settings.epochs)
        drawn = count * settings.online.k * most

        def forecast() -> str:
            passed = self._forecast.training(
                4 / 3 * (settings.epochs * inputs.tokens + drawn)
            )  # a third: the reference's
            sampled = self._forecast.sampling(drawn)
            return f"{count} prompts x {settings.online.k} completions: {sampled} and {passed} at most"  # type: ignore[union-attr]

        return [
            Stage(
                "align",
                {
                    **self._base,
                    "sample": recipe.sample.model_dump(),
                    "reward": inputs.reward,
                    "align": settings.model_dump(exclude={"checkpoint_minutes"}),
                    **_asked(inputs.train),
                },
                (*self._policy, *self._scored),
                lambda path, done: stages_online.align_online(
                    self.context.after(done), inputs.train, path, trained=_trained(done)
                ),
                forecast,
            ),
            self._evaluate(inputs, (), lambda done: {}),
        ]

    def _evaluate(self, inputs: Prompts, scored: tuple[str, ...], statistics: Callable[[Done], Statistics]) -> Stage:
        """Fresh completions of both models, on the scale of the training data's rewards."""
        recipe, context, most = self.recipe, self.context, self.recipe.sample.max_new_tokens
        held = len(inputs.heldout) * recipe.evaluate.k
        return Stage(
            "evaluate",
            {
                **self._base,
                "sample": recipe.sample.model_dump(),
                "evaluate": recipe.evaluate.model_dump(),
                "reward": inputs.reward,
                **_asked(inputs.heldout),
            },
            (*self._policy, *self._scored, *scored, "align"),
            lambda path, done: stages_evaluate.evaluate_samples(
                context.after(done),
                done["align"].folder / stages.MODEL,
                inputs.heldout,
                path,
                statistics=statistics(done),
                trained=_trained(done),
            ),
            lambda: f"{held} completions of both models, {self._forecast.sampling(2 * held * most)} at most",
        )

    def _judge(self) -> list[Stage]:
        """A judge's verdicts on the evaluation's samples: aligned against base, or a score for each aligned one."""
        section, context = self.recipe.judge, self.context
        if section is None:
            return []
        prompt = load_judge_prompt(section.prompt, section.kind)

        def judge(path: Path, done: Done) -> str:
            samples = [read_table(done["evaluate"].folder / f"{name}.parquet") for name in ("aligned", "base")]
            against = samples[1] if section.kind == "pairwise" else None
            work = stages_judge.judging(section, samples[0], against, seed=self.recipe.seed)
            return stages_judge.judge(work, path, show=context.show, say=context.say)

        made_from = {"judge": section.identity(), "question": prompt.text, "seed": self.recipe.seed}
        limit = "" if section.max_calls is None else f", {section.max_calls} calls at most"
        return [Stage("judge", made_from, ("evaluate",), judge, lambda: f"{section.kind} by {section.model}{limit}")]

    def _of_data(self, inputs: Data) -> list[Stage]:
        """Completions are there; loss and accuracy are told on held-out ones."""
        context, train, heldout = self.context, inputs.train, inputs.heldout
        tokens, more = shape_of(train.groups).tokens, len(heldout.groups) if heldout else 0
        return [
            self._align({"groups": train.made_from}, (), lambda done: train.groups, len(train.groups), tokens),
            Stage(
                "evaluate",
                {**self._base, "heldout": heldout.made_from if heldout else None},
                (*self._policy, "align"),
                lambda path, done: stages_evaluate.evaluate_heldout(
                    context.after(done),
                    done["align"].folder / stages.MODEL,
                    train.groups,
                    heldout.groups if heldout else None,
                    path,
                ),
                lambda: f"{min(len(train.groups), stages_evaluate.EVALUATED)} training and {more} held-out groups",
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
            {
                **self._base,
                **made_from,
                "align": settings.model_dump(exclude={"checkpoint_minutes"}),
                "temperature": self.recipe.temperature,
            },
            (*self._policy, *inputs),
            lambda path, done: stages.align(self.context.after(done), groups(done), path),
            forecast,
        )


def _asked(rows: Sequence[PromptRow]) -> dict[str, Any]:
    """Prompts with what else stands in their rows, which reward functions may read."""
    return {"prompts": [row.prompt for row in rows], "rows": [row.row for row in rows]}


def _trained(done: Done) -> Path | None:
    """The run's own reward model."""
    return done["reward_model"].folder / stages.MODEL if "reward_model" in done else None
