"""A recipe as ordered stages: sample -> reward -> align -> evaluate -> report, each in its own folder and done once.

With `data` instead of `prompts` the first two fall away, and the evaluation is on held-out completions. Everything that can
be checked before the first stage is checked before it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exoalign import adapters, stages
from exoalign.config import Recipe
from exoalign.data.formats import PromptRow, read_groups, read_prompts
from exoalign.data.table import read_table
from exoalign.data.tokenize import tokenize
from exoalign.errors import DataError
from exoalign.estimate.preflight import Estimate, skeleton
from exoalign.estimate.shapes import DataShape, shape_of
from exoalign.files import checksum, write_text
from exoalign.groups import Group, check_groups, completion_text, prompt_text
from exoalign.losses import OBJECTIVES
from exoalign.models import context_length, identity, load_tokenizer, native_bfloat16
from exoalign.progress import duration, plain
from exoalign.report import write_page
from exoalign.rewards.functions import resolve_reward
from exoalign.sampling.generate import encode_prompts
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
    inputs = _Prompts(context) if recipe.prompts is not None else _Data(context)
    for note in inputs.notes:
        say(f"note: {plain(note)}")
    with RunFolder(recipe.out, recipe.name) as folder:
        done = _Stages(folder, say)
        base = {"model": identity(section.path, section.revision), "bf16": bf16, "seed": recipe.seed}
        groups, source = inputs.training_groups(done, base)
        aligned = done(
            "align",
            {**base, "align": recipe.align.model_dump(), "temperature": recipe.temperature, "groups": source},
            lambda path: stages.align(context, groups(), path),
        )
        evaluated = inputs.evaluate(done, base, aligned)
        return _report(recipe, folder.path, done.results, aligned, evaluated, inputs.notes)


def estimate(recipe: Recipe, shape: DataShape | None = None) -> Estimate:
    """What alignment will take, from the model's configuration alone: nothing is loaded or written.

    Args:
        recipe: a checked recipe with `data`.
        shape: of the data, which is then not read; the data is tokenised for it when None.

    Raises:
        ExoalignError: if the model, the data or a setting is wrong, or the model's architecture allows no estimate.
    """
    section = recipe.model
    arguments = stages.training_arguments(recipe, bf16=_bf16(recipe))
    model: Any = skeleton(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    if (adapter := adapter_settings(recipe)) is not None:
        model = adapters.wrap(model, adapter)
    if shape is None:
        shape = shape_of(_Data(_context(recipe, show=False)).train)
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


class _Prompts:
    """Inputs of a run that samples its completions."""

    def __init__(self, context: stages.Context) -> None:
        recipe = context.recipe
        assert recipe.prompts is not None
        assert recipe.reward is not None
        self.context, self.recipe, self.notes = context, recipe, list[str]()
        self.train = read_prompts(recipe.prompts.train, limit=recipe.prompts.limit)
        self.heldout = read_prompts(recipe.prompts.evaluation, limit=recipe.prompts.evaluation_limit)
        shared = {prompt_text(row.prompt) for row in self.train} & {prompt_text(row.prompt) for row in self.heldout}
        if shared:
            self.notes.append(
                f"{len(shared)} held-out prompts are training prompts too ({min(shared)[:60]!r}, ...): the evaluation is not"
                " of unseen prompts"
            )
        section = recipe.model
        limit = context_length(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
        rows: Sequence[PromptRow] = [*self.train, *self.heldout]
        encode_prompts(
            context.tokenizer,
            [row.prompt for row in rows],
            [row.source for row in rows],
            context=limit,
            room=recipe.sample.max_new_tokens,
        )
        name = recipe.reward.function
        resolve_reward(name)
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None) if ":" in name else None
        self.reward = {"function": name, "code": checksum(Path(file)) if file else None}  # one's own code may change
        if recipe.sample.top_p < 1:
            self.notes.append(
                f"sample.top_p is {recipe.sample.top_p:g}: the optimum that is learnt is that of the truncated model; with"
                " sample.top_p=1 it is the one of the formula"
            )

    def training_groups(self, done: _Stages, base: dict[str, Any]) -> tuple[Callable[[], list[Group]], Any]:
        """Sampled and rewarded groups, and what they are known by."""
        prompts = [row.prompt for row in self.train]
        settings = self.recipe.sample.model_dump()
        sampled = done(
            "sample",
            {**base, "sample": settings, "prompts": prompts},
            lambda path: stages.sample(self.context, self.train, path),
        )
        rewarded = done(
            "reward",
            {"groups": sampled.identity, "reward": self.reward},
            lambda path: stages.reward(self.context, sampled.folder / stages.GROUPS, path),
        )
        return lambda: read_table(rewarded.folder / stages.GROUPS), rewarded.identity

    def evaluate(self, done: _Stages, base: dict[str, Any], aligned: StageResult) -> StageResult:
        """Fresh samples of both models."""
        made_from = {
            **base,
            "aligned": aligned.identity,
            "sample": self.recipe.sample.model_dump(),
            "evaluate": self.recipe.evaluate.model_dump(),
            "reward": self.reward,
            "prompts": [row.prompt for row in self.heldout],
        }
        model = aligned.folder / stages.MODEL
        return done(
            "evaluate", made_from, lambda path: stages.evaluate_samples(self.context, model, self.heldout, path)
        )


class _Data:
    """Inputs of a run on completions that exist already."""

    def __init__(self, context: stages.Context) -> None:
        recipe = context.recipe
        assert recipe.data is not None
        self.context, self.recipe, self.notes = context, recipe, list[str]()
        section = recipe.model
        limit = context_length(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
        self.train = self._read(recipe.data.train, recipe.data.limit, limit)
        self.heldout = (
            self._read(recipe.data.evaluation, recipe.data.evaluation_limit, limit) if recipe.data.evaluation else None
        )
        shared = {(g.prompt, g.completions) for g in self.train} & {
            (g.prompt, g.completions) for g in self.heldout or []
        }
        if shared:
            self.notes.append(
                f"{len(shared)} held-out groups are training groups too: the accuracy is not of unseen ones"
            )

    def _read(self, path: str, count: int | None, context: int | None) -> list[Group]:
        groups, aside = read_groups(path, limit=count)
        self.notes += aside.lines()
        if count is not None and len(groups) < count:
            self.notes.append(f"{path}: {len(groups)} usable groups, {count} were asked for")
        check_groups(groups, needs=OBJECTIVES[self.recipe.align.objective].needs)
        drawn_at = {group.provenance.get("sampler", {}).get("temperature") for group in groups} - {None}
        if drawn_at - {self.recipe.temperature}:
            self.notes.append(
                f"{path}: completions were sampled at temperature {', '.join(f'{t:g}' for t in sorted(drawn_at))} and"
                f" log-probs are taken at {self.recipe.temperature:g}; set align.temperature"
            )
        fresh = [replace(group, reference_logprobs=None) for group in groups]  # they may be another model's
        return tokenize(fresh, self.context.tokenizer, context=context)

    def training_groups(self, done: _Stages, base: dict[str, Any]) -> tuple[Callable[[], list[Group]], Any]:
        """The groups as read, and what they are known by."""
        assert self.recipe.data is not None
        return lambda: self.train, {"file": checksum(Path(self.recipe.data.train)), "count": len(self.train)}

    def evaluate(self, done: _Stages, base: dict[str, Any], aligned: StageResult) -> StageResult:
        """Loss and accuracy on training and held-out groups."""
        assert self.recipe.data is not None
        file = self.recipe.data.evaluation
        heldout = {"file": checksum(Path(file)), "count": len(self.heldout or [])} if file else None
        model, trained_on = aligned.folder / stages.MODEL, aligned.folder / stages.GROUPS
        return done(
            "evaluate",
            {**base, "aligned": aligned.identity, "heldout": heldout},
            lambda path: stages.evaluate_heldout(self.context, model, trained_on, self.heldout, path),
        )


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
