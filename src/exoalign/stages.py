"""The work of each stage: plain functions that write what they made into a folder. `pipeline` puts them in order.

Models are loaded by the stage that needs them and freed with it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback

from exoalign import stages_sample
from exoalign.config import Recipe
from exoalign.data.formats import PromptRow
from exoalign.data.show import render_group
from exoalign.data.table import read_table, write_table
from exoalign.errors import ConfigError
from exoalign.estimators import cluster_bootstrap
from exoalign.evaluate.compare import kl_of_samples, summarise
from exoalign.evaluate.heldout import accuracy, log_ratios_of, losses_of, spread
from exoalign.files import write_text
from exoalign.groups import Group
from exoalign.models import context_length, load_model
from exoalign.progress import Progress
from exoalign.rewards.functions import resolve_reward, score
from exoalign.sampling import SamplingSettings, TransformersSampler
from exoalign.store import StageResult
from exoalign.train.adapter import adapter_settings, compute_type
from exoalign.train.align import ExoTrainer
from exoalign.train.arguments import ExoConfig, arguments_of
from exoalign.train.checkpoints import steps_of, train_resumably
from exoalign.train.preflight import say_estimate
from exoalign.train.progress_callback import StepProgress
from exoalign.train.reference import add_reference
from exoalign.train.reference_cache import ReferenceCache, default_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUPS, METRICS, HISTORY, MODEL = "groups.parquet", "metrics.json", "history.json", "model"
EVALUATED = 512
"""Training groups that are evaluated at most: both models in float32 over all of a large data set take longer than training."""


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


def training_arguments(recipe: Recipe, *, bf16: bool, output_dir: str = "trainer_output") -> ExoConfig:
    """The trainer's settings that a recipe asks for.

    Raises:
        ConfigError: naming the key of `align.trainer` that is unknown, or that the recipe has a setting of its own for.
    """
    align = recipe.align
    ours: dict[str, Any] = {
        "objective": align.objective,
        "beta_pi": align.beta_pi,
        "beta_r": align.beta_r,
        "epsilon": align.epsilon,
        "temperature": recipe.temperature,
        "learning_rate": align.learning_rate,
        "num_train_epochs": align.epochs,
        "per_device_train_batch_size": align.groups_per_step,
        "max_tokens_per_pass": None if align.max_tokens_per_pass == "auto" else align.max_tokens_per_pass,
        "bf16": bf16,
        "seed": recipe.seed,
        "output_dir": output_dir,
    }
    return arguments_of(ExoConfig, ours, align.trainer, section="align")


def sample(context: Context, rows: Sequence[PromptRow], folder: Path) -> str:
    """K completions of the model for each prompt -> groups.parquet, summary.json."""
    recipe, dtype = context.recipe, torch.bfloat16 if context.bf16 else torch.float32
    settings = context.settings(k=recipe.sample.k, seed=recipe.seed)
    sampler = stages_sample.open_sampler(
        recipe.sample, recipe.model, context.tokenizer, lambda: context.load(dtype=dtype), bf16=context.bf16
    )
    with context.progress("sample base", len(rows) * settings.k) as progress:
        return stages_sample.sample(sampler, rows, settings, folder, progress.advance)


def reward(context: Context, groups_file: Path, folder: Path) -> str:
    """A reward for each completion -> groups.parquet."""
    groups = _score(context, read_table(groups_file), "reward")
    write_table(groups, folder / GROUPS)
    values = [value for group in groups for value in group.rewards or ()]
    return f"{len(values)} rewards, mean {sum(values) / len(values):.3f}"


def align(context: Context, groups: Sequence[Group], folder: Path) -> str:
    """Train the policy -> model/, history.json, groups.parquet with the reference log-probs; checkpoints/ while it lasts.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved.
    """
    arguments = training_arguments(context.recipe, bf16=context.bf16, output_dir=str(folder))
    for line in render_group(groups[0], context.tokenizer).split("\n"):
        context.say(f"  {line}")
    with context.progress("reference", len(groups)) as progress:
        model = context.load()
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
            say_estimate(trainer.model, arguments, data, tokens=trainer.tokens_per_pass, show=context.show)
        trainer.prepare_reference()
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
    did = f"{trainer.state.global_step} steps of {context.recipe.align.groups_per_step} groups"
    return _told(did, trainer.reference_cache)


def evaluate_samples(context: Context, aligned: Path, rows: Sequence[PromptRow], folder: Path) -> str:
    """Fresh samples of both models at the same seeds -> base.parquet, aligned.parquet, metrics.json.

    Samples are drawn in float32 and without truncation: the log-ratio is an estimate of the KL only for samples of the very
    policy it is computed with. (With bfloat16 weights the demo's came out at -0.24 nats: see docs/log.md.)
    """
    recipe = context.recipe
    settings = replace(context.settings(k=recipe.evaluate.k, seed=recipe.seed + 1), top_p=1.0, top_k=0)
    models = {"base": context.load(), "aligned": context.load(aligned)}
    groups = {}
    for name, model in models.items():
        drawn = _draw(context, model, rows, settings, folder, name)
        groups[name] = _score(context, drawn, f"reward {name}")
        write_table(groups[name], folder / f"{name}.parquet")
    with context.progress("KL", len(rows)) as progress:
        log_ratios, exact = kl_of_samples(
            models["aligned"],
            models["base"],
            groups["aligned"],
            temperature=settings.temperature,
            report=progress.advance,
        )
    metrics = summarise(groups["base"], groups["aligned"], log_ratios, exact, seed=recipe.seed)
    write_text(folder / METRICS, json.dumps(metrics, indent=1))
    return f"{len(rows)} prompts x {settings.k} completions of both models"


def evaluate_heldout(
    context: Context, aligned: Path, train: Sequence[Group], heldout: Sequence[Group] | None, folder: Path
) -> str:
    """Loss before and after and accuracy, on (at most `EVALUATED`) training groups and on held-out ones -> metrics.json.

    In float32, reference too: after few steps at a small learning rate bfloat16's rounding is larger than what was learnt.
    """
    recipe = context.recipe
    precision: dict[str, Any] = {"bf16": False, "temperature": recipe.temperature}
    parts = {"train": spread(train, EVALUATED, seed=recipe.seed)}
    if heldout:
        parts["heldout"] = heldout
    reference, cache = context.load(), ReferenceCache(default_folder())
    for name, part in parts.items():
        with context.progress(f"reference, {name}", len(part)) as progress:
            parts[name] = add_reference(part, reference, report=progress.advance, cache=cache, **precision)
    del reference
    _free()
    policy = context.load(aligned)
    objective = training_arguments(recipe, bf16=False).loss
    metrics: dict[str, Any] = {}
    for name, part in parts.items():
        with context.progress(f"policy, {name}", len(part)) as progress:
            ratios = log_ratios_of(part, policy, report=progress.advance, **precision)
        after = losses_of(part, ratios, objective)
        before = losses_of(part, [[0.0] * group.k for group in part], objective)
        metrics[name] = {
            "loss_before": sum(before) / len(before),
            "loss_after": sum(after) / len(after),
            "loss": cluster_bootstrap([[loss] for loss in after], seed=recipe.seed).as_dict(),
            "pairs" if all(group.k == 2 for group in part) else "groups": len(part),
        }
        if hits := accuracy(part, ratios, seed=recipe.seed):
            metrics[name]["accuracy"] = hits
    metrics["train"]["of"] = len(train)
    write_text(folder / METRICS, json.dumps(metrics, indent=1))
    count = len(parts["train"])
    of = f"{count} of {len(train)}" if count < len(train) else f"{count}"
    return _told(f"{of} training and {len(heldout or [])} held-out groups", cache)


def _told(did: str, cache: ReferenceCache | None) -> str:
    """What a stage did, and what it found in the cache."""
    found = cache.summary() if cache else ""
    return f"{did}, {found}" if found else did


def _draw(
    context: Context,
    model: PreTrainedModel,
    rows: Sequence[PromptRow],
    settings: SamplingSettings,
    folder: Path,
    name: str,
) -> list[Group]:
    sampler = TransformersSampler(model, context.tokenizer, batch_size=context.recipe.sample.batch_size, name=name)
    with context.progress(f"sample {name}", len(rows) * settings.k) as progress:
        return list(stages_sample.Drawn(sampler, rows, settings, folder, progress.advance))


def _score(context: Context, groups: Sequence[Group], label: str) -> list[Group]:
    assert context.recipe.reward is not None
    name = context.recipe.reward.function
    with context.progress(label, len(groups)) as progress:
        return score(groups, resolve_reward(name), name=f"reward function {name}", report=progress.advance)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
