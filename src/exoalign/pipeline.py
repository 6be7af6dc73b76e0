"""A recipe as ordered stages: sample -> reward -> align -> evaluate -> report, each in its own folder and done once.

With `data` instead of `prompts` the first two fall away, and the evaluation is on held-out completions. Everything that can
be checked before the first stage is checked before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exoalign import adapters, stages
from exoalign.config import Recipe
from exoalign.data.show import render_group
from exoalign.data.table import read_table
from exoalign.errors import ConfigError, DataError
from exoalign.estimate.preflight import Estimate, skeleton
from exoalign.estimate.shapes import DataShape, shape_of
from exoalign.files import write_text
from exoalign.groups import Group, completion_text, prompt_text
from exoalign.inputs import Data, Prompts
from exoalign.models import identity, load_tokenizer, native_bfloat16
from exoalign.progress import duration, plain
from exoalign.report import write_page
from exoalign.store import RunFolder, StageResult, versions
from exoalign.train.adapter import adapter_settings, check_adapter
from exoalign.train.preflight import estimate_training

Say = Callable[[str], None]
ORDER = ["sample", "reward", "align", "evaluate"]


def run(recipe: Recipe, *, say: Say = lambda line: None, show: bool = True) -> dict[str, Any]:
    """Run a recipe, going on after the stages that are complete already.

    Args:
        recipe: a checked recipe.
        say: takes a line for the user.
        show: show progress on stderr.

    Returns:
        {"metrics": ..., "warnings": [...], "stages": [...], "model": folder, "report": file, "out": folder}.

    Raises:
        ExoalignError: with a message for the user; finished stages stay.
    """
    section = recipe.model
    context = _context(recipe, show)
    bf16 = context.bf16
    stages.training_arguments(recipe, bf16=bf16)  # refuses wrong settings before any work
    check_adapter(recipe)
    inputs = Prompts(context) if recipe.prompts is not None else Data(context)
    with RunFolder(recipe.out, recipe.name) as folder:
        for line in inputs.lines:
            say(plain(line))
        for note in inputs.notes:
            say(f"note: {plain(note)}")
        done = _Stages(folder, say)
        base = {"model": identity(section.path, section.revision), "bf16": bf16, "seed": recipe.seed}
        groups, source = inputs.training_groups(done, base)
        aligned = done(
            "align",
            {**base, "align": recipe.align.model_dump(), "temperature": recipe.temperature, "groups": source},
            lambda path: _align(context, groups(), path, say),
        )
        evaluated = inputs.evaluate(done, base, aligned)
        return _report(recipe, folder.path, done.results, aligned, evaluated, inputs.notes)


def _align(context: stages.Context, groups: Sequence[Group], folder: Path, say: Say) -> str:
    """Show one group as the model sees it, and train."""
    for line in render_group(groups[0], context.tokenizer).split("\n"):
        say(f"  {line}")
    return stages.align(context, groups, folder)


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
    arguments = stages.training_arguments(recipe, bf16=_bf16(recipe))
    model: Any = skeleton(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    if (adapter := adapter_settings(recipe)) is not None:
        model = adapters.wrap(model, adapter)
    if shape is None:
        shape = shape_of(Data(_context(recipe, show=False)).train.groups)
    return estimate_training(model, arguments, shape)


def _context(recipe: Recipe, show: bool) -> stages.Context:
    section = recipe.model
    tokenizer = load_tokenizer(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    return stages.Context(recipe, tokenizer, _bf16(recipe), show)


def _bf16(recipe: Recipe) -> bool:
    precision = recipe.model.precision
    return precision == "bfloat16" or (precision == "auto" and native_bfloat16())


class _Stages:
    """Runs stages in a folder and says what happens."""

    def __init__(self, folder: RunFolder, say: Say) -> None:
        self.folder, self.say = folder, say
        self.results: list[StageResult] = []

    def __call__(self, name: str, made_from: dict[str, Any], work: Callable[[Path], str]) -> StageResult:
        later = ORDER[ORDER.index(name) + 1 :]
        result = self.folder.stage(name, made_from, work, later=later, begin=lambda: self.say(f"{name} ..."))
        self.say(f"{name}: {result.what} ({'done before' if result.reused else duration(result.seconds)})")
        self.results.append(result)
        return result


def _report(
    recipe: Recipe,
    folder: Path,
    results: Sequence[StageResult],
    aligned: StageResult,
    evaluated: StageResult,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Write metrics.json and the page, and return the run's results."""
    metrics = json.loads((evaluated.folder / stages.METRICS).read_text())
    history = json.loads((aligned.folder / stages.HISTORY).read_text())
    warnings = [*history["warnings"], *notes]
    write_text(folder / "recipe.json", recipe.model_dump_json(indent=1))
    write_text(folder / stages.METRICS, json.dumps(metrics, indent=1))
    steps = [
        {"name": r.name, "seconds": r.seconds, "state": "reused" if r.reused else "done", "what": r.what}
        for r in results
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
        "stages": steps,
        "model": str(aligned.folder / stages.MODEL),
        "report": str(page),
        "out": str(folder),
    }


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
