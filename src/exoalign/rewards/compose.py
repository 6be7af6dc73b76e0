"""Rewards out of columns of scores: the sum of weight * clip(normalise(column)). Pure functions, plain numbers.

What a `global` normalisation is made with is fitted apart from its use, so that other samples (an evaluation's) are scaled by
the same numbers.

Shape legend: N groups, K completions (of each its own number).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from exoalign.config_reward import RewardSection

Scores = Mapping[str, Sequence[float]]
"""The columns of one group: a name, and K numbers."""


class Moments(TypedDict):
    """Mean and standard deviation of a column, over all completions; the deviation is 0 where all are equal."""

    mean: float
    std: float


Statistics = Mapping[str, Moments]
"""The moments of each column."""


def fit(scores: Sequence[Scores]) -> dict[str, Moments]:
    """The moments of each column over the completions of all groups.

    Args:
        scores: [N], all with the same columns.

    >>> fit([{"a": (1.0, 3.0)}, {"a": (5.0,)}])["a"]["mean"]
    3.0
    """
    columns = scores[0] if scores else {}
    return {name: _moments(np.concatenate([group[name] for group in scores])) for name in columns}


def compose(scores: Scores, section: RewardSection, statistics: Statistics) -> tuple[float, ...]:
    """The rewards of one group, [K].

    Args:
        scores: its columns.
        section: weights, bounds and the normalisation.
        statistics: what `fit` found over the training data; read where the normalisation is `global`.

    >>> section = RewardSection.model_validate(
    ...     {"scorers": [{"function": "length", "weight": 0.5, "clip": [0.0, 10.0]}, {"function": "sentiment"}]}
    ... )
    >>> compose({"length": (4.0, 30.0), "sentiment": (0.25, -1.0)}, section, {})
    (2.25, 4.0)
    """
    columns = {scorer.column: np.asarray(scores[scorer.column], dtype=np.float64) for scorer in section.all}
    total = np.zeros(len(next(iter(columns.values()))))
    for scorer in section.all:
        values = columns[scorer.column]
        if section.normalise == "group":
            values = _normalised(values, _moments(values))
        elif section.normalise == "global":
            values = _normalised(values, statistics[scorer.column])
        if scorer.clip is not None:
            values = values.clip(scorer.clip[0], scorer.clip[1])
        total += scorer.weight * values
    return tuple(total.tolist())


def _moments(values: np.ndarray) -> Moments:
    """Population moments, of values divided by the largest: no square overflows, equal values have no spread by rounding."""
    scale = float(np.abs(values).max()) or 1.0
    shares = values / scale
    return {"mean": float(shares.mean() * scale), "std": float(shares.std() * scale)}


def _normalised(values: np.ndarray, moments: Moments) -> np.ndarray:
    if moments["std"] == 0:
        return np.zeros_like(values)
    return (values - moments["mean"]) / moments["std"]
