"""Which of two models' replies to the same prompts are better: win rates, also at equal length, and a paired test. NumPy only.

Replies are compared by a number for each: a reward, or a judge's score. Shape legend: P prompts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.errors import DataError
from exoalign.estimators import Interval, cluster_bootstrap

Floats = NDArray[np.float64]
RIDGE = 1e-2
"""Weight of the squared coefficients, in cases: what keeps them finite where the length explains everything."""
EXACT = 14
"""Prompts up to which all 2^P signs are tried."""


def wilson(wins: float, cases: int, *, z: float = 1.959964) -> Interval:
    """The share wins / cases with the Wilson score interval (JASA 22, 1927), for independent cases; a tie is half a win.

    >>> found = wilson(8, 10)
    >>> print(f"{found.low:.3f} {found.high:.3f}")
    0.490 0.943

    Raises:
        DataError: no cases, or more wins than cases.
    """
    if cases < 1 or not 0 <= wins <= cases:
        raise DataError(f"wilson: found {wins} wins of {cases} cases; expected at least one case, and no more wins")
    share, square = wins / cases, z * z
    middle = (share + square / (2 * cases)) / (1 + square / cases)
    half = z / (1 + square / cases) * math.sqrt(share * (1 - share) / cases + square / (4 * cases**2))
    return Interval(mean=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


def shares(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Floats:
    """Of each prompt's pairs of replies the share that ours win, a tie counting half: [P].

    Raises:
        DataError: other numbers of prompts, or a prompt without replies.

    >>> shares([[1.0, 3.0]], [[2.0, 3.0]]).tolist()  # 1 < 2, 1 < 3, 3 > 2, 3 = 3
    [0.375]
    """
    if len(ours) != len(theirs) or not ours:
        raise DataError(f"win rate: found {len(ours)} and {len(theirs)} prompts; expected the same, one at least")
    found = []
    for i, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        if not len(mine) or not len(yours):
            raise DataError(f"win rate: prompt {i + 1} has no reply of one side; leave it out of both")
        ahead = np.subtract.outer(np.asarray(mine, dtype=np.float64), np.asarray(yours, dtype=np.float64))
        found.append(((ahead > 0) + 0.5 * (ahead == 0)).mean())
    return np.array(found)


def win_rate(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    lengths: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """How often ours win.

    Args:
        ours, theirs: for each prompt the rewards of the replies.
        lengths: for each prompt the lengths of ours and theirs, for the rate at equal length.
        seed: of the bootstrap.

    Returns:
        {"rate": with its 95% interval over prompts, "ties": pairs of equal reward, "pairs", "p_value": of `sign_flip_test` of
        the mean rewards, "length_controlled": `at_equal_length` or None}.

    Raises:
        DataError: as `shares`.
    """
    found = shares(ours, theirs)
    equal = [np.equal.outer(mine, yours).sum() for mine, yours in zip(ours, theirs, strict=True)]
    mean = [float(np.mean(a) - np.mean(b)) for a, b in zip(ours, theirs, strict=True)]
    controlled = None
    if lengths is not None:
        longer = [float(np.mean(a) - np.mean(b)) for a, b in zip(*lengths, strict=True)]
        controlled = at_equal_length(found, longer, seed=seed).as_dict()
    return {
        "rate": cluster_bootstrap([[share] for share in found], seed=seed).as_dict(),
        "ties": int(sum(equal)),
        "pairs": sum(len(a) * len(b) for a, b in zip(ours, theirs, strict=True)),
        "p_value": sign_flip_test(mean, seed=seed),
        "length_controlled": controlled,
    }


def at_equal_length(won: ArrayLike, longer: ArrayLike, *, resamples: int = 500, seed: int = 0) -> Interval:
    """The win rate that is left when replies are as long as the other's, by a logistic regression.

    logit P(win) = a + b tanh(d / s), with d the difference in length and s its standard deviation; the rate is sigmoid(a).
    That is the length term of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475) without its term for how hard a prompt is.

    Args:
        won: [P] shares of wins.
        longer: [P] how much longer ours are.
        resamples: redrawn prompts of the percentile interval.
        seed: of the bootstrap.

    Raises:
        DataError: unequal numbers.
    """
    y, d = np.asarray(won, dtype=np.float64), np.asarray(longer, dtype=np.float64)
    if y.shape != d.shape or y.ndim != 1 or not len(y):
        raise DataError(f"win rate at equal length: found {y.shape} shares and {d.shape} lengths; expected as many")
    scale = d.std()
    term = np.tanh(d / scale) if scale > 0 else np.zeros_like(d)
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(y), size=(resamples, len(y)))
    redrawn = [_sigmoid(logistic(term[r], y[r])[0]) for r in rows]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return Interval(float(_sigmoid(logistic(term, y)[0])), float(low), float(high))


def logistic(x: Floats, y: Floats, *, ridge: float = RIDGE, most: int = 50) -> tuple[float, float]:
    """Intercept and slope that minimise the cross-entropy of y in [0, 1] plus ridge / 2 of both squares, by Newton's method."""
    columns = np.stack([np.ones_like(x), x], axis=1)
    weights = np.zeros(2)
    for _ in range(most):
        p = _sigmoid(columns @ weights)
        gradient = columns.T @ (p - y) + ridge * weights
        hessian = (columns * (p * (1 - p))[:, None]).T @ columns + ridge * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step * min(1.0, 4.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(gradient).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def sign_flip_test(differences: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value of a mean difference of 0 between two models on the same prompts (Fisher 1935).

    If neither is better, each prompt's difference could as well have the other sign: p is the share of signs with a mean at
    least as far from 0. Of up to 14 prompts all signs are tried; of more `resamples`, and p is (1 + hits) / (1 + resamples).

    Raises:
        DataError: no differences.

    >>> sign_flip_test([1.0, 1.0, 1.0])  # of 8 signs +++ and ---
    0.25
    """
    d = np.asarray(differences, dtype=np.float64)
    if not d.size:
        raise DataError("sign-flip test: no prompts; expected at least one difference")
    observed = abs(d.sum()) * (1 - 1e-12)
    if d.size <= EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=d.size)))
        return float((np.abs(signs @ d) >= observed).mean())
    generator = np.random.default_rng(seed)
    signs = generator.choice(np.array([1.0, -1.0]), size=(resamples, d.size))
    return float((1 + (np.abs(signs @ d) >= observed).sum()) / (1 + resamples))


def matrix(
    names: Sequence[str], rewards: Callable[[str], Sequence[Sequence[float]]], *, seed: int = 0
) -> list[list[dict[str, float] | None]]:
    """The win rate of each model (row) against each other one (column), None against itself."""
    numbers = {name: rewards(name) for name in names}
    found: list[list[dict[str, float] | None]] = []
    for a in names:
        row: list[dict[str, float] | None] = []
        for b in names:
            won = None if a == b else shares(numbers[a], numbers[b])
            row.append(
                None if won is None else cluster_bootstrap([[x] for x in won], resamples=2000, seed=seed).as_dict()
            )
        found.append(row)
    return found


def _sigmoid(z: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(z)))
