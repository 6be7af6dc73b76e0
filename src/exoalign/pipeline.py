"""Runs a recipe: its inputs are read and checked, its stages (see `chain`) are done, each in its own folder and once, and the
page is written. Everything that can be checked before the first stage is checked before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exoalign import adapters, stages
from exoalign.chain import Chain
from exoalign.config import Recipe
from exoalign.data.table import read_table
from exoalign.errors import ConfigError, DataError
from exoalign.estimate.preflight import Estimate, skeleton
from exoalign.estimate.shapes import DataShape, shape_of
from exoalign.files import write_text
from exoalign.groups import Group, completion_text, prompt_text
from exoalign.inputs import Data
from exoalign.models import computes_in_bfloat16, load_tokenizer
from exoalign.plan import Done, Say, carry_out, described, plan
from exoalign.progress import plain
from exoalign.report import write_page
from exoalign.store import RunFolder, versions
from exoalign.train.adapter import adapter_settings, check_adapter
from exoalign.train.preflight import estimate_training


def run(
    recipe: Recipe,
    *,
    say: Say = lambda line: None,
    show: bool = True,
    redo: bool = False,
    allow_inexact: bool = False,
) -> dict[str, Any]:
    """Run a recipe, going on after what is complete already.

    Args:
        recipe: a checked recipe.
        say: takes a line for the user.
        show: show progress on stderr.
        redo: do anew what stands there made from something else, which is refused otherwise.
        allow_inexact: go on with training although a file of the checkpoint's optimizer or random numbers is gone.

    Returns:
        {"metrics": ..., "warnings": [...], "stages": [...], "model": folder, "report": file, "out": folder}.

    Raises:
        ExoalignError: with a message for the user; finished stages stay.
    """
    chain = _chain(recipe, say, show, allow_inexact)
    with RunFolder(recipe.out, recipe.name, redo=redo) as folder:
        for line in chain.lines:
            say(plain(line))
        for note in chain.notes:
            say(f"note: {plain(note)}")
        return _report(recipe, folder.path, carry_out(folder, chain.stages, say), chain.notes)


def dry_run(recipe: Recipe, *, redo: bool = False) -> list[dict[str, Any]]:
    """What `run` would do, stage by stage, and about how long it would take; nothing is written.

    Returns:
        [{"stage", "state", "forecast", "changes"}, ...]; `changes` says what a stage that stands there was made from else.

    Raises:
        ExoalignError: for what `run` would refuse before its first stage, but for a stage that has changed.
    """
    chain = _chain(recipe, lambda line: None, show=False, allow_inexact=False)
    return described(plan(RunFolder(recipe.out, recipe.name, redo=redo), chain.stages), redo=redo)


def _chain(recipe: Recipe, say: Say, show: bool, allow_inexact: bool) -> Chain:
    """Everything that can be checked before the first stage is."""
    context = replace(_context(recipe, show), say=say, allow_inexact=allow_inexact)
    stages.training_arguments(recipe, bf16=context.bf16)  # refuses wrong settings before any work
    check_adapter(recipe)
    return Chain(context)


def estimate(recipe: Recipe, shape: DataShape | None = None) -> Estimate:
    """What alignment will take, from the model's configuration alone: no weights are loaded.

    Args:
        recipe: a checked recipe with `data`.
        shape: of the data, which is then not read, and nothing is written; when None the data is tokenised for it, which the
            cache of tokenised groups keeps for the run.

    Raises:
        ExoalignError: if the model, the data or a setting is wrong, or the model's architecture allows no estimate.
    """
    section, lora = recipe.model, recipe.align.lora
    if lora is not None and lora.quantize is not None:
        raise ConfigError(
            f"align.lora.quantize={lora.quantize}: an estimate counts weights of 32 bits, not of 4; leave it out to have that"
        )
    arguments = stages.training_arguments(recipe, bf16=computes_in_bfloat16(recipe.model.precision))
    model: Any = skeleton(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    if (adapter := adapter_settings(recipe)) is not None:
        model = adapters.wrap(model, adapter)
    if shape is None:
        shape = shape_of(Data(_context(recipe, show=False)).train.groups)
    return estimate_training(model, arguments, shape)


def _context(recipe: Recipe, show: bool) -> stages.Context:
    section = recipe.model
    tokenizer = load_tokenizer(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    return stages.Context(recipe, tokenizer, computes_in_bfloat16(recipe.model.precision), show)


def _report(recipe: Recipe, folder: Path, done: Done, notes: Sequence[str]) -> dict[str, Any]:
    """Write metrics.json and the page, and return the run's results."""
    aligned, evaluated = done["align"], done["evaluate"]
    metrics = json.loads((evaluated.folder / stages.METRICS).read_text())
    history = json.loads((aligned.folder / stages.HISTORY).read_text())
    warnings = [*history["warnings"], *notes]
    write_text(folder / "recipe.json", recipe.model_dump_json(indent=1))
    write_text(folder / stages.METRICS, json.dumps(metrics, indent=1))
    steps = [
        {
            "name": result.name,
            "seconds": result.seconds,
            "state": "reused" if result.reused else "done",
            "what": result.what,
            "summary": _summary(result.folder),
        }
        for result in done.values()
    ]
    (folder / "report").mkdir(exist_ok=True)
    page = write_page(
        folder / "report" / "index.html",
        title=recipe.name,
        recipe=recipe.model_dump(exclude_none=True, exclude=None if recipe.prompts else {"sample", "evaluate"}),
        metrics=metrics,
        history=history["steps"],
        warnings=warnings,
        samples=_samples(evaluated.folder),
        stages=steps,
        versions=versions(),
    )
    return {
        "metrics": metrics,
        "warnings": warnings,
        "stages": [{key: value for key, value in step.items() if key != "summary"} for step in steps],
        "model": str(aligned.folder / stages.MODEL),
        "report": str(page),
        "out": str(folder),
    }


def _summary(folder: Path) -> dict[str, Any]:
    """What a stage tells the page of itself, if it does."""
    file = folder / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _samples(folder: Path) -> list[dict[str, Any]]:
    """Both models' samples for the same prompts, where the evaluation drew any."""
    if not (folder / "base.parquet").is_file():
        return []
    base, aligned = (read_table(folder / f"{name}.parquet") for name in ("base", "aligned"))
    if [group.prompt for group in base] != [group.prompt for group in aligned]:
        raise DataError(f"{folder}: base.parquet and aligned.parquet are not for the same prompts")

    def shown(group: Group) -> list[dict[str, Any]]:
        return [
            {"text": completion_text(t), "reward": r}
            for t, r in zip(group.completions, group.rewards or (), strict=True)
        ]

    return [
        {"prompt": prompt_text(b.prompt), "base": shown(b), "aligned": shown(a)}
        for b, a in zip(base, aligned, strict=True)
    ]
