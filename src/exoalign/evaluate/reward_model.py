"""How good a reward model is on groups that it has not learnt from: accuracy, calibration, and whether it only likes length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from exoalign.estimators import cluster_bootstrap
from exoalign.groups import Group, completion_text

BINS = {"ranking": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "classifier": tuple(i / 10 for i in range(11))}
"""Edges of the bins of calibration: of the confidence in the better one of a pair, and of the probability of label 1."""
LENGTHS = (
    ("winner less than half as long", 0.0, 0.5),
    ("winner shorter", 0.5, 0.9),
    ("about as long (within 10%)", 0.9, 1 / 0.9),
    ("winner longer", 1 / 0.9, 2.0),
    ("winner more than twice as long", 2.0, math.inf),
)
"""Bins of the winner's length over the loser's, in characters; each is [low, high)."""
Rewards = Sequence[Sequence[float]]


class Comparison(NamedTuple):
    """One pair that the data orders: by how much the better one is ahead, and how long both are in characters."""

    ahead: float
    winner_length: int
    loser_length: int


def comparisons(group: Group, rewards: Sequence[float]) -> Iterator[Comparison]:
    """All pairs of completions that the group's winner or rewards tell apart."""
    order = [float(k == group.winner) for k in range(group.k)] if group.winner is not None else group.rewards or ()
    lengths = [len(completion_text(completion)) for completion in group.completions]
    for i in range(group.k):
        for j in range(group.k):
            if order[i] > order[j]:
                yield Comparison(rewards[i] - rewards[j], lengths[i], lengths[j])


def ranking_metrics(groups: Sequence[Group], rewards: Rewards, *, seed: int = 0) -> dict[str, Any]:
    """Accuracy, calibration and accuracy by length of a ranking.

    Args:
        groups: held-out groups with a winner or rewards.
        rewards: the model's, a row for each group.
        seed: of the bootstrap.

    Returns:
        `accuracy` (the share of pairs ordered as the data does, mean over groups, with a 95% interval), `calibration` (of
        sigmoid of the difference in reward), `by_length` (for the bins of `LENGTHS`), `longer_wins` (the accuracy of preferring
        the longer one), and the numbers of `groups` and `pairs`. Ties count half.
    """
    found = [list(comparisons(group, row)) for group, row in zip(groups, rewards, strict=True)]
    found = [pairs for pairs in found if pairs]
    every = [pair for pairs in found for pair in pairs]
    by_length: dict[str, Any] = {}
    for name, low, high in LENGTHS:
        inside = [[_half(p.ahead) for p in pairs if low <= _ratio(p) < high] for pairs in found]
        inside = [row for row in inside if row]
        count = sum(map(len, inside))
        by_length[name] = {"pairs": count, **(_interval(inside, seed) if inside else {})}
    points = [(_sigmoid(abs(pair.ahead)), _half(pair.ahead)) for pair in every]
    return {
        "groups": len(found),
        "pairs": len(every),
        "accuracy": _interval([[_half(pair.ahead) for pair in pairs] for pairs in found], seed),
        "calibration": calibration(points, BINS["ranking"]),
        "by_length": by_length,
        "longer_wins": _interval([[_half(p.winner_length - p.loser_length) for p in pairs] for pairs in found], seed),
    }


def classifier_metrics(groups: Sequence[Group], rewards: Rewards, *, seed: int = 0) -> dict[str, Any]:
    """Accuracy, calibration and accuracy by length of a classifier; arguments and result as for `ranking_metrics`.

    `by_length` are thirds of the texts by their length in characters, and `majority` is the accuracy of saying the same always.
    """
    rows = [
        (len(completion_text(completion)), value, label)
        for group, values in zip(groups, rewards, strict=True)
        for completion, value, label in zip(group.completions, values, group.rewards or (), strict=True)
    ]
    rows.sort(key=lambda row: row[0])
    right = [[_half(value if label > 0.5 else -value)] for _, value, label in rows]
    thirds: dict[str, Any] = {}
    for third in range(3):
        part = slice(len(rows) * third // 3, len(rows) * (third + 1) // 3)
        if rows[part]:
            name = f"{rows[part][0][0]} to {rows[part][-1][0]} characters"
            thirds[name] = {"texts": len(rows[part]), **_interval(right[part], seed)}
    good = sum(label > 0.5 for _, _, label in rows) / len(rows)
    return {
        "texts": len(rows),
        "accuracy": _interval(right, seed),
        "calibration": calibration([(_sigmoid(value), label) for _, value, label in rows], BINS["classifier"]),
        "by_length": thirds,
        "majority": max(good, 1 - good),
    }


def calibration(points: Sequence[tuple[float, float]], edges: Sequence[float]) -> dict[str, Any]:
    """Predicted probabilities against what came true, in bins.

    Args:
        points: (probability, what came true from 0 to 1) of each case.
        edges: of the bins, rising; a bin is [low, high), the last one with its end.

    Returns:
        `bins` with `low`, `high`, `count`, and, unless empty, the means `predicted` and `observed`; and `error`, the expected
        calibration error: the mean over cases of |predicted - observed| of their bin (Guo et al. 2017, arXiv 1706.04599).
    """
    bins: list[dict[str, Any]] = []
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [point for point in points if low <= point[0] < high or point[0] == high == edges[-1]]
        entry: dict[str, Any] = {"low": low, "high": high, "count": len(inside)}
        if inside:
            entry["predicted"] = sum(p for p, _ in inside) / len(inside)
            entry["observed"] = sum(true for _, true in inside) / len(inside)
            error += len(inside) / len(points) * abs(entry["predicted"] - entry["observed"])
        bins.append(entry)
    return {"bins": bins, "error": error}


def _interval(clusters: Sequence[Sequence[float]], seed: int) -> dict[str, float]:
    return cluster_bootstrap(clusters, seed=seed).as_dict()


def _half(difference: float) -> float:
    """1 above 0, 0 below it, and half for a tie."""
    return 0.5 if difference == 0 else float(difference > 0)


def _ratio(pair: Comparison) -> float:
    """The winner's length over the loser's."""
    return pair.winner_length / pair.loser_length if pair.loser_length else math.inf


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
