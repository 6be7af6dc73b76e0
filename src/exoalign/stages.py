"""The work of each stage: plain functions that write what they made into a folder. `pipeline` puts them in order.

Models are loaded by the stage that needs them and freed with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, set_seed

from exoalign import stages_sample, stages_score
from exoalign.config import ModelSection, Recipe
from exoalign.config_reward import RewardSection
from exoalign.config_train import POLICY_GRADIENTS
from exoalign.data.formats import PromptRow
from exoalign.data.mix import subsample
from exoalign.data.show import render_group
from exoalign.data.table import read_table, write_table
from exoalign.errors import ConfigError, DataError
from exoalign.files import write_text
from exoalign.groups import Group
from exoalign.models import context_length, load_model
from exoalign.objectives import OBJECTIVES
from exoalign.progress import Progress
from exoalign.rewards.scorers import Scorer, build_scorers
from exoalign.sampling import SamplingSettings
from exoalign.store import StageResult
from exoalign.train.adapter import adapter_settings, compute_type
from exoalign.train.align import ExoTrainer
from exoalign.train.arguments import ExoConfig, GroupConfig, arguments_of
from exoalign.train.checkpoints import steps_of, train_resumably
from exoalign.train.online import OnlineConfig
from exoalign.train.preflight import say_estimate
from exoalign.train.progress_callback import StepProgress
from exoalign.train.reference_cache import ReferenceCache, default_folder
from exoalign.train.rl_arguments import policy_gradient_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUPS, METRICS, HISTORY, MODEL = "groups.parquet", "metrics.json", "history.json", "model"


@dataclass(frozen=True)
class Context:
    """What every stage needs.

    Attributes:
        recipe: the whole recipe.
        tokenizer: the model's.
        bf16: whether to compute in bfloat16.
        show: whether to show progress.
        say: takes a line for the user.
        allow_inexact: whether training may go on without a file of its checkpoint.
        policy: the model before alignment where it is not the recipe's own: what SFT left.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    bf16: bool
    show: bool = True
    say: Callable[[str], None] = lambda line: None
    allow_inexact: bool = False
    policy: Path | None = None

    def after(self, done: Mapping[str, StageResult]) -> Context:
        """The same once these stages are done."""
        return replace(self, policy=done["sft"].folder / MODEL) if "sft" in done else self

    @property
    def before(self) -> ModelSection:
        """The model before alignment."""
        return self.recipe.model if self.policy is None else ModelSection(path=str(self.policy))

    def told(self, cache: ReferenceCache | None) -> None:
        """Say what was found in the cache: it is no part of a stage, whose files are the same with and without it."""
        if cache is not None and (found := cache.summary()):
            self.say(f"  {found}")

    def progress(self, label: str, total: int) -> Progress:
        """A progress line."""
        return Progress(label, total, enabled=self.show)

    def load(self, path: str | Path | None = None, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A model, the one before alignment when `path` is None."""
        section, path = self.recipe.model, path or self.policy
        return load_model(
            str(path or section.path),
            dtype=dtype,
            revision=None if path else section.revision,
            trust_remote_code=section.trust_remote_code,
            quantize=compute_type(self.recipe, bf16=self.bf16),
        ).eval()

    @cached_property
    def tokens(self) -> int | None:
        """The context of the recipe's model in tokens, None where its configuration names none."""
        section = self.recipe.model
        return context_length(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)

    def settings(self, *, k: int, seed: int) -> SamplingSettings:
        """The recipe's sampling settings."""
        return stages_sample.settings_of(self.recipe.sample, k=k, seed=seed)


def training_arguments(recipe: Recipe, *, bf16: bool, output_dir: str = "trainer_output") -> GroupConfig:
    """The trainer's settings that a recipe asks for.

    Raises:
        ConfigError: naming the key of `align.trainer` that is unknown, or that the recipe has a setting of its own for.
    """
    align = recipe.align
    kind: type[GroupConfig] = ExoConfig
    ours: dict[str, Any] = {
        "temperature": recipe.temperature,
        "learning_rate": align.learning_rate,
        "num_train_epochs": align.epochs,
        "per_device_train_batch_size": align.groups_per_step,
        "max_tokens_per_pass": None if align.max_tokens_per_pass == "auto" else align.max_tokens_per_pass,
        "bf16": bf16,
        "seed": recipe.seed,
        "output_dir": output_dir,
    }
    if align.online is not None:
        sampled, kind = recipe.sample, OnlineConfig
        ours |= {
            "k": align.online.k,
            "resample_every": align.online.resample_every,
            "top_p": sampled.top_p,
            "top_k": sampled.top_k,
            "stop": tuple(sampled.stop),
            "max_new_tokens": sampled.max_new_tokens,
            "sampling_batch_size": sampled.batch_size,
        }
    if align.objective in POLICY_GRADIENTS:
        kind, more = policy_gradient_arguments(align)
        return arguments_of(kind, ours | more, align.trainer, section="align")
    names = ("objective", "beta_pi", "beta_r", "epsilon", "nll_weight", "correction")
    ours |= {name: getattr(align, name) for name in names}
    return arguments_of(kind, ours, align.trainer, section="align")


def sample(context: Context, rows: Sequence[PromptRow], folder: Path) -> str:
    """K completions of the model for each prompt -> groups.parquet, summary.json."""
    recipe, dtype = context.recipe, torch.bfloat16 if context.bf16 else torch.float32
    settings = context.settings(k=recipe.sample.k, seed=recipe.seed)
    sampler = stages_sample.open_sampler(
        recipe.sample, recipe.model, context.tokenizer, lambda: context.load(dtype=dtype), bf16=context.bf16
    )
    with context.progress("sample base", len(rows) * settings.k) as progress:
        return stages_sample.sample(sampler, rows, settings, folder, progress.advance)


def reward(context: Context, groups_file: Path, folder: Path, *, trained: Path | None) -> str:
    """Scores and a reward for each completion -> groups.parquet, statistics.json, summary.json.

    Args:
        context: the recipe, what to show.
        groups_file: the completions.
        folder: to write to.
        trained: the folder of the run's own reward model, where it has one.
    """
    groups = read_table(groups_file)
    return stages_score.score(groups, *scorers_of(context, trained), folder, show=context.show)


def scorers_of(context: Context, trained: Path | None) -> tuple[RewardSection, list[Scorer]]:
    """The recipe's section, and its scorers, ready to be called."""
    section = context.recipe.reward
    assert section is not None
    return section, build_scorers(section, trained=trained, bf16=context.bf16)


def chosen(context: Context, groups: Iterable[Group]) -> list[Group]:
    """Of each group the completions that are trained on; for objectives that learn from pairs the better one as the winner.

    Raises:
        DataError: if no group is left, since the completions of all have equal rewards.
    """
    section, recipe = context.recipe.align.completions, context.recipe
    found = [subsample(group, how=section.choose, k=section.k, seed=recipe.seed) for group in groups]
    if OBJECTIVES[recipe.align.objective].needs == "rewards":
        return found
    pairs = [
        replace(group, winner=max(range(group.k), key=group.rewards.__getitem__), rewards=None)
        for group in found
        if group.rewards is not None and len(set(group.rewards)) > 1
    ]
    if len(pairs) < len(found):
        context.say(f"  {len(found) - len(pairs)} of {len(found)} pairs are left out: both have the same reward")
    if not pairs:
        raise DataError("no pair to train on: the rewards of all are equal; use another reward, or sample more")
    return pairs


def offline_trainer(context: Context, groups: Sequence[Group], folder: Path) -> ExoTrainer:
    """The trainer of a recipe on ready groups, with the reference's log-probs.

    Args:
        context: the recipe, what to show.
        groups: to train on.
        folder: of the stage.
    """
    arguments = training_arguments(context.recipe, bf16=context.bf16, output_dir=str(folder))
    assert isinstance(arguments, ExoConfig)
    with context.progress("reference", len(groups)) as progress:
        model = context.load()
        set_seed(context.recipe.seed)  # an adapter's weights are drawn before the trainer sets its own
        try:
            trainer = ExoTrainer(
                model,
                arguments,
                groups,
                processing_class=context.tokenizer,
                report=progress.advance,
                reference_cache=default_folder(),
                peft_config=adapter_settings(context.recipe),
            )
        except (TypeError, ValueError, RuntimeError, ImportError) as error:  # what only transformers can tell
            raise ConfigError(f"align.trainer: {error}") from error
        if trainer.is_world_process_zero():
            data = trainer.train_dataset
            for line in render_group(data[0], context.tokenizer).split("\n"):
                context.say(f"  {line}")
            say_estimate(trainer.model, arguments, data, tokens=trainer.tokens_per_pass, show=context.show)
        trainer.prepare_reference()
    return trainer


def align(context: Context, groups: Sequence[Group], folder: Path) -> str:
    """Train the policy -> model/, history.json, groups.parquet with the reference log-probs; checkpoints/ while it lasts.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved.
    """
    trainer = offline_trainer(context, groups, folder)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepProgress(enabled=context.show))
    minutes = context.recipe.align.checkpoint_minutes
    # the store has compared all that the stage is made from
    train_resumably(trainer, folder, made_from={}, minutes=minutes, allow_inexact=context.allow_inexact)
    trainer.save_model(str(folder / MODEL))
    write_table(trainer.train_dataset, folder / GROUPS)
    record = {
        "steps": steps_of(trainer.state.log_history),
        "warnings": [finding.sentence for finding in trainer.findings],
    }
    write_text(folder / HISTORY, json.dumps(record, indent=1))
    if trainer.corrected:
        context.say(
            f"  the reference did not draw the completions of {trainer.corrected} of {len(trainer.train_dataset)} groups: they"
            " are corrected by log pi_ref - log mu"
        )
    did = f"{trainer.state.global_step} steps of {context.recipe.align.groups_per_step} groups"
    context.told(trainer.reference_cache)
    return did
