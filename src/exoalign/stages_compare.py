"""The stages of a comparison: samples of the model before alignment, and trainings that are evaluated as they go.

Every model is evaluated alike: on the same prompts, at the same random numbers, by the same scorers, in float32.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, set_seed

from exoalign import stages, stages_sample, stages_score
from exoalign.config_reward import RewardSection
from exoalign.data.formats import PromptRow
from exoalign.data.table import read_table, write_table
from exoalign.errors import StoreError, TrainingError
from exoalign.evaluate.compare import kl_of_samples
from exoalign.evaluate.points import point_of
from exoalign.files import write_text
from exoalign.groups import Group
from exoalign.rewards.compose import Statistics
from exoalign.rewards.scorers import Scorer
from exoalign.sampling import TransformersSampler
from exoalign.stages import Context
from exoalign.train.at_steps import CLOCK, AtSteps
from exoalign.train.checkpoints import steps_of, train_resumably
from exoalign.train.progress_callback import StepProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POINTS, POOL, HELD_OUT = "points.json", "pool.parquet", "held_out"


@dataclass
class Yardstick:
    """What every model of a comparison is measured with, loaded once.

    Attributes:
        context: of the task; its policy is the model before alignment.
        rows: the prompts.
        section, scorers: the reward that is trained on.
        statistics: of the training data's scores.
        held_out: scorers that nothing was trained on.
    """

    context: Context
    rows: Sequence[PromptRow]
    section: RewardSection
    scorers: Sequence[Scorer]
    statistics: Statistics
    held_out: Sequence[Scorer] = ()
    _reference: list[PreTrainedModel] = field(default_factory=list)

    @property
    def reference(self) -> PreTrainedModel:
        """The model before alignment in float32."""
        if not self._reference:
            self._reference.append(self.context.load())
        return self._reference[0]

    def draw(
        self, model: PreTrainedModel, folder: Path, name: str, rows: Sequence[PromptRow], *, k: int | None = None
    ) -> list[Group]:
        """Rewarded completions of a model, `evaluate.k` of each prompt; what an earlier attempt drew and scored is used."""
        recipe, context = self.context.recipe, self.context
        settings = context.settings(k=k or recipe.evaluate.k, seed=recipe.seed + 1)
        settings = replace(settings, top_p=1.0, top_k=0)
        sampler = TransformersSampler(model, context.tokenizer, batch_size=recipe.sample.batch_size, name=name)
        with context.progress(f"sample {name}", len(rows) * settings.k) as progress:
            drawn = list(stages_sample.Drawn(sampler, rows, settings, folder, progress.advance))
        groups = stages_score.score_alike(
            drawn,
            self.section,
            self.scorers,
            folder,
            statistics=self.statistics,
            label=f"score {name}",
            show=context.show,
        )
        return self._with_held_out(groups, folder, name)

    def _with_held_out(self, groups: list[Group], folder: Path, name: str) -> list[Group]:
        if not self.held_out:
            return groups
        columns = stages_score.scored(
            groups, self.held_out, folder / stages_score.ROWS, label=f"held-out {name}", show=self.context.show
        )
        return [
            replace(group, scores={**(group.scores or {}), HELD_OUT: next(iter((other.scores or {}).values()))})
            for group, other in zip(groups, columns, strict=True)
        ]

    def measure(
        self, model: PreTrainedModel, folder: Path, rows: Sequence[PromptRow], *, step: int, seconds: float, tokens: int
    ) -> dict[str, Any]:
        """A point: the model's reward, its divergence from the reference and more -> step-N.parquet, and what is returned."""
        name = f"step {step}"
        groups = self.draw(model, folder, name, rows)
        temperature = self.context.recipe.sample.temperature
        with self.context.progress(f"KL {name}", len(rows)) as progress:
            kl = kl_of_samples(model, self.reference, groups, temperature=temperature, report=progress.advance)
        write_table(groups, folder / f"step-{step:05d}.parquet")
        return point_of(groups, *kl, step=step, seconds=seconds, tokens=tokens, seed=self.context.recipe.seed)


def base(yardstick: Yardstick, folder: Path, *, pool: int) -> str:
    """Samples of the model before alignment -> step-00000.parquet, points.json; `pool` of each prompt -> pool.parquet.

    Args:
        yardstick: prompts and reward.
        folder: to write to.
        pool: completions a prompt for the best of them; 0 draws none.
    """
    model = yardstick.reference
    point = yardstick.measure(model, folder, yardstick.rows, step=0, seconds=0.0, tokens=0)
    record: dict[str, Any] = {"points": [point], "failed": None}
    if pool:
        began = time.monotonic()
        drawn = yardstick.draw(model, folder, "pool", yardstick.rows, k=pool)
        tokens = sum(len(group.prompt_ids or ()) + sum(map(len, group.completion_ids or ())) for group in drawn)
        record |= {"pool_seconds": round(time.monotonic() - began, 1), "pool_tokens": tokens}
        write_table(drawn, folder / POOL)
    write_text(folder / POINTS, json.dumps(record, indent=1))
    return f"{len(yardstick.rows)} prompts, reward {point['reward']['mean']:.3f}"


def train(
    context: Context,
    yardstick: Yardstick,
    rows: Sequence[PromptRow],
    trainer_of: Callable[[Context, Path], Any],
    folder: Path,
    *,
    count: int,
) -> str:
    """Train, and measure the model `count` times on the way -> points.json, step-N.parquet, history.json.

    A training whose loss is not finite ends there; what it had reached, and why it ended, is in points.json.

    Args:
        context: with the recipe of this training.
        yardstick: what it is measured with.
        rows: the prompts that it is measured on.
        trainer_of: makes the trainer, given the context and its folder.
        folder: to write to.
        count: how many points.
    """
    set_seed(context.recipe.seed)
    trainer = trainer_of(context, folder)

    def measure(step: int, seconds: float) -> None:
        file = folder / f"step-{step:05d}.json"
        if file.is_file():
            return
        model, training = trainer.model, trainer.model.training
        model.eval()
        point = yardstick.measure(model, folder, rows, step=step, seconds=round(seconds, 1), tokens=tokens_of(trainer))
        model.train(training)
        write_text(file, json.dumps(point))

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepProgress(enabled=context.show))
    trainer.add_callback(AtSteps(count, measure, folder))
    failed = None
    try:
        minutes = context.recipe.align.checkpoint_minutes
        train_resumably(trainer, folder, made_from={}, minutes=minutes, allow_inexact=context.allow_inexact)
    except TrainingError as error:
        failed = str(error)
        context.say(f"  {failed}")
    points = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("step-*.json"))]
    write_text(folder / POINTS, json.dumps({"points": points, "failed": failed}, indent=1))
    history = {
        "steps": steps_of(trainer.state.log_history),
        "warnings": [f.sentence for f in getattr(trainer, "findings", ())],
    }
    write_text(folder / stages.HISTORY, json.dumps(history, indent=1))
    for file in [*folder.glob("step-*.json"), folder / CLOCK]:
        file.unlink(missing_ok=True)
    if failed or not points:
        return "failed"
    last = points[-1]
    return f"{last['step']} steps, reward {last['reward']['mean']:.3f} at KL {last['kl_exact']['mean']:.2f}"


def tokens_of(trainer: Any) -> int:
    """Tokens that went through the model in training, and in sampling it: ready groups were drawn once, too."""
    drawn = getattr(trainer, "sampled_tokens", None)
    return int(trainer.trained_tokens + (trainer.trained_tokens if drawn is None else drawn))


def free() -> None:
    """Give back the memory of a training that has ended: trainer and callbacks hold each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read_points(folder: Path) -> dict[str, Any]:
    """What a stage wrote of its points.

    Raises:
        StoreError: if the file is missing or damaged.
    """
    try:
        return dict(json.loads((folder / POINTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{folder / POINTS} is missing or damaged ({error}); delete {folder} to do it anew") from error


def gain(points: Sequence[Mapping[str, Any]], beta: float | None) -> float:
    """What a search looks at: reward - beta KL after the last step; -inf where there is none."""
    if not points:
        return -math.inf
    last = points[-1]
    return float(last["reward"]["mean"] - (beta or 0.0) * last["kl_exact"]["mean"])


def samples_of(folder: Path, step: int) -> list[Group]:
    """The samples of a point."""
    return read_table(folder / f"step-{step:05d}.parquet")
