"""The stages that measure what was learnt: on fresh samples of both models, or on completions that exist already."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exoalign import stages_sample, stages_score
from exoalign.data.formats import PromptRow
from exoalign.data.table import write_table
from exoalign.estimators import cluster_bootstrap
from exoalign.evaluate.compare import kl_of_samples, summarise
from exoalign.evaluate.heldout import accuracy, log_ratios_of, losses_of, spread
from exoalign.files import write_text
from exoalign.groups import Group
from exoalign.objectives import OBJECTIVES
from exoalign.rewards.compose import Statistics
from exoalign.sampling import SamplingSettings, TransformersSampler
from exoalign.stages import METRICS, Context, scorers_of, training_arguments
from exoalign.train.arguments import ExoConfig
from exoalign.train.correction import correction_for
from exoalign.train.reference import add_reference
from exoalign.train.reference_cache import ReferenceCache, default_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATED = 512
"""Training groups that are evaluated at most: both models in float32 over all of a large data set take longer than training."""


def evaluate_samples(
    context: Context,
    aligned: Path,
    rows: Sequence[PromptRow],
    folder: Path,
    *,
    statistics: Statistics,
    trained: Path | None,
) -> str:
    """Fresh samples of both models at the same seeds -> base.parquet, aligned.parquet, metrics.json.

    `statistics` are those of the scores on the training data, by which these are scaled too; `trained` as for `reward`.

    Samples are drawn in float32 and without truncation: the log-ratio is an estimate of the KL only for samples of the very
    policy it is computed with. (With bfloat16 weights the demo's came out at -0.24 nats: see docs/log.md.)
    """
    recipe = context.recipe
    settings = replace(context.settings(k=recipe.evaluate.k, seed=recipe.seed + 1), top_p=1.0, top_k=0)
    models = {"base": context.load(), "aligned": context.load(aligned)}
    section, scorers = scorers_of(context, trained)
    groups = {}
    for name, model in models.items():
        drawn = _draw(context, model, rows, settings, folder, name)
        groups[name] = stages_score.score_alike(
            drawn, section, scorers, folder, statistics=statistics, label=f"score {name}", show=context.show
        )
        write_table(groups[name], folder / f"{name}.parquet")
    with context.progress("KL", len(rows)) as progress:
        kl = kl_of_samples(
            models["aligned"],
            models["base"],
            groups["aligned"],
            temperature=settings.temperature,
            report=progress.advance,
        )
    metrics = summarise(groups["base"], groups["aligned"], *kl, seed=recipe.seed)
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
    correction = None
    if OBJECTIVES[recipe.align.objective].needs == "rewards":
        everything = itertools.chain(*parts.values())
        correction = correction_for(everything, reference, mode=recipe.align.correction, temperature=recipe.temperature)
    del reference
    _free()
    policy = context.load(aligned)
    arguments = training_arguments(recipe, bf16=False)
    assert isinstance(arguments, ExoConfig)
    objective = arguments.loss
    metrics: dict[str, Any] = {}
    for name, part in parts.items():
        with context.progress(f"policy, {name}", len(part)) as progress:
            ratios = log_ratios_of(part, policy, report=progress.advance, **precision)
        after = losses_of(part, ratios, objective, correction=correction)
        before = losses_of(part, [[0.0] * group.k for group in part], objective, correction=correction)
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
    context.told(cache)
    return f"{of} training and {len(heldout or [])} held-out groups"


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


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
