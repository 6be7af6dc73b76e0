"""Alignment that samples by itself, as a stage: `align` of a recipe with `align.online`, without `sample` and `reward`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from exoalign.data.formats import PromptRow
from exoalign.data.table import write_table
from exoalign.errors import ConfigError
from exoalign.files import write_text
from exoalign.rewards.rewarder import rewarder
from exoalign.stages import GROUPS, HISTORY, MODEL, Context, scorers_of, training_arguments
from exoalign.train.adapter import adapter_settings
from exoalign.train.checkpoints import steps_of, train_resumably
from exoalign.train.online import OnlineExoTrainer
from exoalign.train.ppo import PpoTrainer
from exoalign.train.progress_callback import StepProgress
from exoalign.train.rloo import RlooTrainer
from exoalign.train.rollout_config import RolloutConfig
from exoalign.train.rollouts import RolloutTrainer


def online_trainer(
    context: Context, rows: Sequence[PromptRow], folder: Path, *, trained: Path | None
) -> RolloutTrainer:
    """The trainer of a recipe on the policy's own samples; arguments as `align_online`."""
    arguments = training_arguments(context.recipe, bf16=context.bf16, output_dir=str(folder))
    assert isinstance(arguments, RolloutConfig)
    baselines: dict[str, type[RolloutTrainer]] = {"ppo": PpoTrainer, "rloo": RlooTrainer}
    build: Any = baselines.get(context.recipe.align.objective, OnlineExoTrainer)
    score = rewarder(*scorers_of(context, trained))
    model = context.load()
    set_seed(context.recipe.seed)  # an adapter's weights are drawn before the trainer sets its own
    try:
        return build(
            model,
            arguments,
            rows,
            score,
            processing_class=context.tokenizer,
            peft_config=adapter_settings(context.recipe),
        )
    except (TypeError, ValueError, RuntimeError, ImportError) as error:  # what only transformers can tell
        raise ConfigError(f"align.trainer: {error}") from error


def align_online(context: Context, rows: Sequence[PromptRow], folder: Path, *, trained: Path | None) -> str:
    """Train the policy on its own samples -> model/, history.json, groups.parquet with the last block; checkpoints/ meanwhile.

    Args:
        context: the recipe, what to show.
        rows: the prompts.
        folder: to write to.
        trained: the folder of the run's own reward model, where it has one.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved.
        ExoalignError: as the scorers, naming the row.
    """
    trainer = online_trainer(context, rows, folder, trained=trained)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepProgress(enabled=context.show))
    # the store has compared all that the stage is made from
    train_resumably(
        trainer,
        folder,
        made_from={},
        minutes=context.recipe.align.checkpoint_minutes,
        allow_inexact=context.allow_inexact,
    )
    trainer.save_model(str(folder / MODEL))
    write_table(trainer.block.groups if trainer.block else [], folder / GROUPS)
    findings = trainer.findings if isinstance(trainer, OnlineExoTrainer) else []  # the baselines have none
    record = {
        "steps": steps_of(trainer.state.log_history),
        "warnings": [finding.sentence for finding in findings],
    }
    write_text(folder / HISTORY, json.dumps(record, indent=1))
    return (
        f"{trainer.state.global_step} steps of {context.recipe.align.groups_per_step} prompts x {trainer.args.k} completions,"
        f" {trainer.schedule.blocks} samplings"
    )
