"""The win rate at equal length: how much of a lead is left when longer replies get no credit for being longer. NumPy only.

Shape legend: N pairs of replies, P prompts, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.errors import DataError
from exoalign.estimators import Interval

Floats = NDArray[np.float64]
RIDGE = (1e-2, 1e-4)
"""Half of these weigh the squared intercept and slope, in cases, and keep them finite. Where the length explains everything,
any intercept would do if the slope is steep enough: the intercept, being dearer, is then near 0, a rate of one half."""
_AT_ONCE = 1_000_000  # numbers held in memory, a few times 8 MB


def at_equal_length(
    won: ArrayLike, longer: ArrayLike, *, prompts: ArrayLike | None = None, resamples: int = 500, seed: int = 0
) -> Interval:
    """The win rate that is left when replies are as long as the other's, by a logistic regression.

    logit P(win) = a + b tanh(d / s), with d the difference in length and s its standard deviation; the rate is sigmoid(a).
    That is the length term of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475) without its term for how hard a prompt is,
    which takes many models on the same prompts. All prompts weigh the same, and prompts are redrawn for the interval.

    Args:
        won: [N] 1, 0, or what is between them, for each pair.
        longer: [N] how much longer ours is.
        prompts: [N] the number of each pair's prompt; None where each pair has one of its own.
        resamples: redrawn prompts of the percentile interval.
        seed: of the bootstrap.

    Raises:
        DataError: unequal numbers.
    """
    y, d = np.asarray(won, dtype=np.float64), np.asarray(longer, dtype=np.float64)
    of = np.arange(len(y)) if prompts is None else np.asarray(prompts)
    if not y.shape == d.shape == of.shape or y.ndim != 1 or not len(y):
        raise DataError(f"win rate at equal length: found {y.shape} shares and {d.shape} lengths; expected as many")
    scale = d.std()
    term = np.tanh(d / scale) if scale > 0 else np.zeros_like(d)
    _, number, count = np.unique(of, return_inverse=True, return_counts=True)
    generator = np.random.default_rng(seed)
    redrawn = np.empty(resamples)
    step = max(1, _AT_ONCE // len(y))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        times = generator.multinomial(len(count), np.full(len(count), 1 / len(count)), size=rows)
        redrawn[start : start + rows] = _sigmoid(_regressions(term, y, (times / count)[:, number])[:, 0])
    low, high = np.quantile(redrawn, [0.025, 0.975])
    mean = _sigmoid(_regressions(term, y, (1 / count)[None, number])[0, 0])
    return Interval(float(mean), float(low), float(high))


def logistic(x: Floats, y: Floats, *, ridge: tuple[float, float] = RIDGE) -> tuple[float, float]:
    """Intercept and slope by Newton's method: the least cross-entropy of y in [0, 1], plus ridge / 2 times their squares."""
    intercept, slope = _regressions(x, y, np.ones((1, len(x))), ridge=ridge)[0]
    return float(intercept), float(slope)


def _regressions(
    x: Floats, y: Floats, weights: Floats, *, ridge: tuple[float, float] = RIDGE, most: int = 50
) -> Floats:
    """`logistic` of R weightings [R, N] of the same cases, at once: [R, 2]."""
    found = np.zeros((len(weights), 2))
    for _ in range(most):
        p = _sigmoid(found[:, :1] + found[:, 1:] * x)
        wrong, curved = weights * (p - y), weights * p * (1 - p)
        gradient = np.stack([wrong.sum(1), wrong @ x], axis=1) + np.array(ridge) * found
        if np.abs(gradient).max() < 1e-10:
            break
        a, b, c = curved.sum(1) + ridge[0], curved @ x, curved @ (x * x) + ridge[1]
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], axis=1)
        step /= (a * c - b * b)[:, None]
        found -= step * np.minimum(
            1.0, 4.0 / np.abs(step).max(1, initial=1e-12, keepdims=True)
        )  # far out Newton overshoots
    return found


def _sigmoid(z: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(z)))
