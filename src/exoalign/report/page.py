"""One run as one HTML file: what was found, the warnings, plots, samples side by side, and what was run.

How the file stays self-contained and what came as data stays data: `html`.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exoalign.errors import DataError
from exoalign.report.curves import training_figures
from exoalign.report.figures import reward_figures, rewards_of
from exoalign.report.finding import Estimate, cards, decimals, finding, finite, number
from exoalign.report.html import write_template
from exoalign.report.stage_views import stage_view

PREVIEW = 160  # characters of a prompt in the list of samples


def write_page(
    path: Path,
    *,
    title: str,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    warnings: Sequence[str],
    samples: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
) -> Path:
    """Write the report of a run as one self-contained HTML file, and return its path.

    Everything may be empty; the page shows what is there. Lengths are in tokens, KL in nats a completion.

    Args:
        path: the file to write; its folder must exist. It is replaced in one step.
        title: the heading.
        recipe: the resolved configuration, nested.
        metrics: {"base", "aligned", "difference", "prompts", "completions_per_prompt"} of a reward run, or
            {"train", "heldout"} of a run on groups, "train" with the number that they were drawn "of"; an estimate is
            {"mean", "low", "high"}.
        history: one mapping for each optimizer step.
        warnings: sentences with a number and the setting to change.
        samples: {"prompt", "base", "aligned"}, with {"text", "reward"} for each completion.
        stages: {"name", "seconds", "state", "what"} in the order they ran, with a "summary" where the stage wrote one: the
            contents of its summary.json (`summary.Summary`).
        versions: what was installed.

    Raises:
        DataError: if a sample or a stage's summary is malformed, with its place and key.
    """
    return write_template(
        path,
        "template.html",
        title=title,
        finding=finding(metrics),
        cards=cards(metrics),
        warnings=list(warnings),
        reward_figures=reward_figures(metrics, samples),
        training_figures=training_figures(history, _completions(recipe)),
        samples=(views := _samples(samples)),
        picks=_picks(views),
        recipe=sections(recipe),
        stages=(chain := [stage_view(index, stage) for index, stage in enumerate(stages)]),
        told=any(stage["numbers"] or stage["figures"] or stage["texts"] for stage in chain),
        stage_figures=[figure for stage in chain for figure in stage["figures"]],
        versions=dict(versions),
        numbers=list(_rows(metrics)),
    )


def _completions(recipe: Mapping[str, Any]) -> int | None:
    section = recipe.get("sample")
    k = section.get("k") if isinstance(section, Mapping) else None
    return k if isinstance(k, int) and k > 0 else None


def _samples(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The samples as the template shows them, with at least two decimals and enough to tell the rewards apart."""
    everything = [reward for model in ("base", "aligned") for reward in rewards_of(samples, model)]
    extent = Estimate(0.0, min(everything), max(everything)) if everything else None
    places = min(max(decimals(extent) + 1, 2), 6)
    return [_sample(index, sample, places) for index, sample in enumerate(samples)]


def _sample(index: int, sample: Mapping[str, Any], places: int) -> dict[str, Any]:
    """A prompt with both models' completions, their mean rewards and the change between them."""
    where = f"samples[{index}]"
    prompt = sample.get("prompt")
    if not isinstance(prompt, str):
        raise DataError(
            f"{where}: found keys {sorted(sample)}, expected a text at 'prompt' and lists at 'base', 'aligned'."
        )
    view: dict[str, Any] = {"id": index + 1, "prompt": prompt, "preview": " ".join(prompt.split())[:PREVIEW]}
    for model in ("base", "aligned"):
        completions, rewards = [], []
        for place, completion in enumerate(sample.get(model) or ()):
            if not isinstance(completion.get("text"), str):
                found = sorted(completion)
                raise DataError(
                    f"{where}.{model}[{place}]: found keys {found}, expected a text at 'text' and 'reward'."
                )
            reward = finite(completion.get("reward"))
            text = completion["text"].removeprefix(" ")  # the space that parts it from the prompt
            completions.append({"text": text, "reward": "–" if reward is None else number(reward, places)})
            rewards += [] if reward is None else [reward]
        mean = statistics.fmean(rewards) if rewards else None
        view[model] = completions
        view[f"{model}_mean"] = mean
        view[f"{model}_reward"] = "–" if mean is None else number(mean, places)
    both = view["base_mean"] is not None and view["aligned_mean"] is not None
    view["change"] = view["aligned_mean"] - view["base_mean"] if both else None
    view["change_text"] = number(view["change"], places, sign=True) if both else ""
    return view


def _picks(views: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Three prompts to read first: the largest gain, the one nearest the median change, and the largest loss."""
    changed = [view for view in views if view["change"] is not None]
    if len(changed) < 3:
        return []
    median = statistics.median(view["change"] for view in changed)
    best, worst = (pick(changed, key=lambda view: view["change"]) for pick in (max, min))
    middle = min(changed, key=lambda view: abs(view["change"] - median))
    return [
        ("largest gain" if best["change"] > 0 else "smallest loss", best),
        ("median change", middle),
        ("largest loss" if worst["change"] < 0 else "smallest gain", worst),
    ]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def sections(recipe: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The recipe as tables: the plain values first, then one table for each section."""
    plain = [(str(key), _plain(value)) for key, value in recipe.items() if not isinstance(value, Mapping)]
    nested = [(str(key), list(_flat(value))) for key, value in recipe.items() if isinstance(value, Mapping)]
    return [(name, rows) for name, rows in [("run", plain), *nested] if rows]


def _rows(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Every number of the metrics: its dotted name, then mean, low and high to six figures."""
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "mean" not in value:
            yield from _rows(value, f"{name}.")
            continue
        cells = (
            [value.get(end) for end in ("mean", "low", "high")] if isinstance(value, Mapping) else [value, None, None]
        )
        yield (
            name,
            ["" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else _plain(cell) for cell in cells],
        )
