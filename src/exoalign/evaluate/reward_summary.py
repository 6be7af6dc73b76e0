"""A reward model on the report page: its numbers, curves, and where it is most sure and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exoalign.evaluate.reward_model import comparisons
from exoalign.groups import Group, completion_text, prompt_text

SHOWN, CHARACTERS = 3, 600
"""Mistakes that the summary shows, and of how many characters each."""
THINNED = 2000
"""Values of a histogram at most."""


def reward_summary(
    groups: Sequence[Group],
    rewards: Sequence[Sequence[float]],
    found: dict[str, Any],
    history: Sequence[dict[str, Any]],
    *,
    ranking: bool,
    on: str,
) -> dict[str, Any]:
    """What the page shows of a reward model.

    Args:
        groups: on which it was measured.
        rewards: the model's, a row for each group.
        found: its metrics.
        history: of the steps of training.
        ranking: whether it is a ranking, or a classifier.
        on: what the groups are called.
    """
    bins = [entry for entry in found["calibration"]["bins"] if entry["count"]]
    baseline = (
        {"label": "accuracy of preferring the longer one", "value": _three(found["longer_wins"])}
        if ranking
        else {
            "label": "accuracy of saying the same always",
            "value": found["majority"],
        }
    )
    numbers = [
        {"label": f"accuracy on {on} data", "value": _three(found["accuracy"])},
        baseline,
        {"label": "expected calibration error", "value": found["calibration"]["error"]},
        *(
            {
                "label": f"accuracy: {name}",
                "value": _three(part),
                "note": f"{part.get('pairs', part.get('texts'))} cases",
            }
            for name, part in found["by_length"].items()
            if "mean" in part
        ),
    ]
    steps = [step["step"] for step in history]
    curves = [
        {
            "title": "Training",
            "x_label": "step",
            "y_label": "loss, accuracy",
            "series": [
                {"name": name, "x": steps, "y": [step.get(name) for step in history]} for name in ("loss", "accuracy")
            ],
        },
        {
            "title": "Calibration",
            "x_label": "predicted probability",
            "y_label": "share that came true",
            "series": [
                {"name": on, "x": [b["predicted"] for b in bins], "y": [b["observed"] for b in bins]},
                {"name": "perfect", "x": [bins[0]["low"], bins[-1]["high"]], "y": [bins[0]["low"], bins[-1]["high"]]},
            ],
        },
    ]
    return {
        "numbers": numbers,
        "curves": curves,
        "histograms": [_histogram(groups, rewards, ranking=ranking)],
        "texts": [{"title": "Largest mistakes", "rows": _mistakes(groups, rewards, ranking=ranking)}],
    }


def _histogram(groups: Sequence[Group], rewards: Sequence[Sequence[float]], *, ranking: bool) -> dict[str, Any]:
    both = list(zip(groups, rewards, strict=True))
    if ranking:
        ahead = [pair.ahead for group, row in both for pair in comparisons(group, row)]
        return {
            "title": "Reward of the better one minus that of the other",
            "x_label": "difference in reward",
            "series": [{"name": "pairs", "values": _thinned(ahead)}],
        }
    labelled = [(label, value) for group, row in both for label, value in zip(group.rewards or (), row, strict=True)]
    return {
        "title": "Log-odds of label 1",
        "x_label": "log-odds",
        "series": [
            {"name": f"label {label}", "values": _thinned([value for known, value in labelled if known == label])}
            for label in (0, 1)
        ],
    }


def _mistakes(groups: Sequence[Group], rewards: Sequence[Sequence[float]], *, ranking: bool) -> list[dict[str, str]]:
    """Where the model is most sure and wrong."""
    found: list[tuple[float, str, str]] = []
    for group, row in zip(groups, rewards, strict=True):
        if not ranking:
            for completion, label, value in zip(group.completions, group.rewards or (), row, strict=True):
                wrong = value if label < 0.5 else -value
                found.append((wrong, f"label {label:g}, log-odds {value:.2f}", completion_text(completion)))
        elif pairs := list(comparisons(group, row)):
            worst = min(pair.ahead for pair in pairs)
            text = "\n\n".join(
                f"[{value:.2f}] {completion_text(c)[: CHARACTERS // 2]}"
                for value, c in zip(row, group.completions, strict=True)
            )
            found.append((-worst, f"{prompt_text(group.prompt)[-CHARACTERS // 2 :]}", text))
    found.sort(key=lambda item: -item[0])
    return [{"label": label, "text": text[:CHARACTERS]} for wrong, label, text in found[:SHOWN] if wrong > 0]


def _three(interval: dict[str, float]) -> dict[str, float]:
    return {name: interval[name] for name in ("mean", "low", "high")}


def _thinned(values: Sequence[float]) -> list[float]:
    step = max(1, -(-len(values) // THINNED))
    return list(values[::step])
