"""The stages of a comparison: what comes before alignment, once for all; the model before it; each training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exoalign import stages, stages_compare, stages_online, stages_reward_model
from exoalign.cells import Cell, cells_of
from exoalign.chain import Chain
from exoalign.config import Recipe
from exoalign.config_compare import Comparison
from exoalign.config_reward import RewardSection
from exoalign.data.table import read_table
from exoalign.errors import ConfigError
from exoalign.inputs import Prompts
from exoalign.models import computes_in_bfloat16, identity, load_tokenizer
from exoalign.plan import Done, Say, Stage
from exoalign.rewards.scorers import build_scorers, record_of
from exoalign.stages_score import read_statistics

BEFORE = ("sft", "reward_model", "sample", "reward")
BASE, HELD_OUT_MODEL = "base", "held_out_model"


class CompareChain:
    """A comparison whose inputs are read and checked.

    Args:
        comparison: what is compared.
        task: its task.
        show: show progress on stderr.
        say: takes a line for the user.
        allow_inexact: whether training may go on without a file of its checkpoint.

    Attributes:
        cells: the trainings.
        stages: all stages in their order.

    Raises:
        ExoalignError: for anything wrong that can be told before the first stage.
    """

    def __init__(
        self,
        comparison: Comparison,
        task: Recipe,
        *,
        show: bool = True,
        say: Say = lambda line: None,
        allow_inexact: bool = False,
    ) -> None:
        if task.prompts is None:
            raise ConfigError(
                f"the task {comparison.task} has `data` and no `prompts`: its methods could not be evaluated"
            )
        section = task.model
        tokenizer = load_tokenizer(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
        bf16 = computes_in_bfloat16(section.precision)
        self.comparison, self.task = comparison, task
        self.context = stages.Context(task, tokenizer, bf16, show, say=say, allow_inexact=allow_inexact)
        self.cells = cells_of(comparison, task)
        for cell in self.cells:
            stages.training_arguments(cell.recipe, bf16=bf16)
        self.chain = Chain(self.context)
        assert isinstance(self.chain.inputs, Prompts)
        self.inputs = self.chain.inputs
        search = comparison.search
        reserved = 0 if search is None else search.prompts
        if len(self.inputs.heldout) <= reserved:
            raise ConfigError(
                f"`search.prompts` is {reserved} and the evaluation has {len(self.inputs.heldout)} prompts; none would be left"
            )
        self.tuning, self.rows = self.inputs.heldout[:reserved], self.inputs.heldout[reserved:]
        self._yardsticks = list[stages_compare.Yardstick]()
        self.stages = [
            *(stage for stage in self.chain.stages if stage.name in BEFORE),
            *self._held_out_model(),
            self._base(),
            *(self._cell(cell) for cell in self.cells),
        ]

    @property
    def pool(self) -> int:
        """Samples a prompt that Best-of-N needs, 0 without it."""
        return max((m.best_of or 0 for m in self.comparison.methods.values()), default=0)

    @property
    def _before(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.chain.stages if stage.name in BEFORE)

    def _held_out_model(self) -> list[Stage]:
        """A reward model that nothing is trained on."""
        section, context = self.comparison.held_out_model, self.context
        if section is None:
            return []
        data = stages_reward_model.read_reward_data(section, seed=self.task.seed)
        return [
            Stage(
                HELD_OUT_MODEL,
                stages_reward_model.made_from(section, data, self.task.model, seed=self.task.seed, bf16=context.bf16),
                ("sft",) if self.task.sft is not None and section.model is None else (),
                lambda path, done: stages_reward_model.reward_model(
                    section,
                    data,
                    path,
                    model=context.after(done).before,
                    seed=self.task.seed,
                    bf16=context.bf16,
                    show=context.show,
                    allow_inexact=context.allow_inexact,
                ),
                lambda: f"{len(data.train.groups)} groups",
            )
        ]

    def yardstick(self, done: Done) -> stages_compare.Yardstick:
        """What all models are measured with, made once."""
        if not self._yardsticks:
            context = self.context.after(done)
            section, scorers = stages.scorers_of(context, _model_of(done, "reward_model"))
            held_out = self.comparison.held_out
            others = (
                []
                if held_out is None
                else build_scorers(
                    RewardSection(scorers=[held_out]), trained=_model_of(done, HELD_OUT_MODEL), bf16=context.bf16
                )
            )
            statistics = read_statistics(done["reward"].folder)
            self._yardsticks.append(stages_compare.Yardstick(context, self.rows, section, scorers, statistics, others))
        return self._yardsticks[0]

    def _measured(self) -> dict[str, Any]:
        """What every measurement is made from."""
        task, held_out = self.task, self.comparison.held_out
        return {
            "model": identity(task.model.path, task.model.revision),
            "bf16": self.context.bf16,
            "reward": self.inputs.reward,
            "held_out": None if held_out is None else record_of(RewardSection(scorers=[held_out])),
            "sample": task.sample.model_dump(),
            "evaluate": task.evaluate.model_dump(),
            "task_seed": task.seed,
        }

    def _base(self) -> Stage:
        count = len(self.rows) * (self.task.evaluate.k + self.pool)
        return Stage(
            BASE,
            {**self._measured(), "prompts": [row.prompt for row in self.rows], "pool": self.pool},
            (*self._before, *self._inputs_held_out),
            lambda path, done: stages_compare.base(self.yardstick(done), path, pool=self.pool),
            lambda: f"{count} completions of the model before alignment",
        )

    @property
    def _inputs_held_out(self) -> tuple[str, ...]:
        return () if self.comparison.held_out_model is None else (HELD_OUT_MODEL,)

    def trials(self, cell: Cell) -> list[Cell]:
        """The trials whose best learning rate a training takes; none for a trial itself."""
        if cell.trial is not None:
            return []
        return [c for c in self.cells if c.trial is not None and (c.method, c.beta) == (cell.method, cell.beta)]

    def _cell(self, cell: Cell) -> Stage:
        rows, trials = self.rows if cell.trial is None else self.tuning, self.trials(cell)
        align = cell.recipe.align.model_dump(exclude={"checkpoint_minutes"})
        count = self.comparison.checkpoints if cell.trial is None else 1
        return Stage(
            cell.name,
            {
                **self._measured(),
                "align": align,
                "seed": cell.seed,
                "temperature": cell.recipe.temperature,
                "prompts": [row.prompt for row in rows],
                "points": count,
            },
            (*self._before, *self._inputs_held_out, BASE, *(trial.name for trial in trials)),
            lambda path, done: stages_compare.train(
                self._context_of(cell, done),
                self.yardstick(done),
                rows,
                lambda context, folder: self._trainer(context, done, folder),
                path,
                count=count,
            ),
            lambda: f"{cell.method}, beta {cell.beta}, seed {cell.seed}",
        )

    def _context_of(self, cell: Cell, done: Done) -> stages.Context:
        recipe = cell.recipe
        if trials := self.trials(cell):
            rate = best_rate(trials, done)
            recipe = recipe.model_copy(update={"align": recipe.align.model_copy(update={"learning_rate": rate})})
        return replace(self.context.after(done), recipe=recipe)

    def _trainer(self, context: stages.Context, done: Done, folder: Path) -> Any:
        if context.recipe.align.online is not None:
            return stages_online.online_trainer(
                context, self.inputs.train, folder, trained=_model_of(done, "reward_model")
            )
        groups = stages.chosen(context, read_table(done["reward"].folder / stages.GROUPS))
        return stages.offline_trainer(context, groups, folder)


def best_rate(trials: Sequence[Cell], done: Done) -> float:
    """The learning rate of the trial that gained most; the smallest of equals.

    Raises:
        ConfigError: if all trials failed.
    """
    gains = {}
    for trial in trials:
        found = stages_compare.read_points(done[trial.name].folder)
        if not found["failed"]:
            gains[trial.trial or 0.0] = stages_compare.gain(found["points"], trial.beta)
    if not gains:
        rates = ", ".join(f"{trial.trial:g}" for trial in trials)
        raise ConfigError(
            f"all trials of {trials[0].method} failed (learning rates {rates}); set smaller ones in `search.learning_rate`"
        )
    return min(gains, key=lambda rate: (-gains[rate], rate))


def _model_of(done: Done, name: str) -> Path | None:
    return done[name].folder / stages.MODEL if name in done else None
