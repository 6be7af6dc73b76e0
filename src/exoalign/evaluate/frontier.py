"""The reward that a method reaches at each KL: its frontier, the area under it, and differences between methods. NumPy only.

A point is a checkpoint (of any beta): its mean reward R and mean KL over P prompts. The frontier of one seed of a method is the
upper concave envelope of its points and of the reference at (0, base reward), flat behind its highest point:

- A line between two points is reached: by the policy that decides by chance, for each prompt, which of the two checkpoints
  answers. Its reward is the mixture of theirs, and its KL at most the mixture of theirs, because KL(. ‖ pi_ref) is convex.
- So is the flat part: whoever may go as far as a KL of k may stay below it. A method that does not reach the common KL is
  held to the best reward that it did reach.

The frontier of a method is the mean of its seeds' frontiers. Its area is

    A = 1 / K * integral from 0 to K of (frontier(k) - base reward) dk,

the mean gain in reward over the base at a KL of 0 to K, in units of the reward. K (`up_to`) is the same for all methods.

The best of many noisy points is too good on the prompts that chose it. So the prompts are cut into folds: which points are the
corners, and at which KL, is decided on the other folds, and their rewards are measured on the fold that had no say, as in
cross-validation. A method of many points then gains nothing by their number: without any effect its area is 0 on average.

Intervals are percentile bootstrap intervals over prompts, the same prompts redrawn for all methods, seeds, points and the base,
so that differences are paired; each prompt stays in its fold, and in each resample the envelopes are drawn anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.errors import DataError
from exoalign.estimators import Interval

Floats = NDArray[np.float64]

GRID = 100
"""Steps from 0 to the furthest point in which a frontier is drawn."""


@dataclass(frozen=True)
class Point:
    """One evaluated checkpoint.

    Attributes:
        rewards: [P], the mean reward of each prompt's completions.
        kls: [P], their mean KL in nats (the exact one: the log-ratio is noisy enough to move a point off its place); a mean
            below 0 counts as 0.
    """

    rewards: ArrayLike
    kls: ArrayLike


Methods = Mapping[str, Mapping[int, Sequence[Point]]]
"""Name of the method -> seed -> its points, of all betas and checkpoints."""


def corners(kls: ArrayLike, rewards: ArrayLike) -> list[int]:
    """Which points are the corners of the upper concave envelope, in the order of both their KLs and their rewards.

    The first is the best at the smallest KL, the last the highest.

    Args:
        kls, rewards: [n], of the points and of the reference.

    >>> corners([0.0, 1.0, 2.0, 3.0], [0.0, 0.1, 1.0, 0.5])  # the second lies below the line to the third, which is the highest
    [0, 2]
    """
    points = list(zip(np.asarray(kls).tolist(), np.asarray(rewards).tolist(), strict=True))
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if found and points[i][1] <= points[found[-1]][1]:
            continue  # no better than what costs less
        while len(found) > 1 and _below(points[found[-2]], points[found[-1]], points[i]):
            found.pop()
        found.append(i)
    return found


def area(kls: Floats, rewards: Floats, base: float, up_to: float) -> float:
    """Mean of the frontier with these corners over KLs from 0 to `up_to`, less the base reward.

    >>> area(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.0, 2.0)  # a half over the first nat, 1 over the second
    0.75
    """
    xs = np.append(kls[kls < up_to], up_to)
    ys = np.interp(xs, kls, rewards)  # flat behind the last corner
    return float((np.diff(xs) * (ys[1:] + ys[:-1])).sum() / 2 / up_to) - base


def frontiers(
    methods: Methods,
    base: ArrayLike,
    *,
    up_to: float | None = None,
    folds: int = 5,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The frontier of each method, the area under it, and the differences between them.

    Args:
        methods: their points, all of the same P prompts in the same order.
        base: [P], the mean reward of the reference's completions.
        up_to: the common KL; when None the furthest that all methods reach with one point at least.
        folds: parts of the prompts, as many as there are prompts at most; with 1 the same prompts choose and measure.
        confidence: of the intervals.
        resamples: how many times the prompts are redrawn.
        seed: of the bootstrap.

    Returns:
        {"frontiers": [{"method", "kl": [...], "reward": [...], "low": [...], "high": [...], "area": {"mean", "low", "high"},
        "area_seeds": [one a seed], "area_with_seeds": {...}, "up_to", "reached"}], "difference": [{"a", "b", "area": {...},
        "area_with_seeds": {...}}]}, ready for JSON. `area` has the interval over prompts; in `area_with_seeds` the seeds are
        redrawn as well, each method's for itself, so that it also holds how much a method's training varies (with few seeds
        it is too narrow). "kl" goes as far as the method's furthest point, "reached". A difference is a less b, for each
        pair in order.

    Raises:
        DataError: no method, a method or seed without points, another number of prompts, something that is not finite, or a
            common KL that is not above 0.
        ValueError: folds, confidence or resamples out of range.
    """
    if folds < 1:
        raise ValueError(f"folds: expected at least 1, found {folds!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), found {confidence!r}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, found {resamples!r}")
    measured = _measured(methods, base)
    reached = {
        name: max(float(points[1].mean(-1).max()) for points in seeds) for name, seeds in measured.methods.items()
    }
    up_to = min(reached.values()) if up_to is None else float(up_to)
    if not 0 < up_to < np.inf:
        least = min(reached, key=lambda name: reached[name])
        raise DataError(
            f"the frontiers' common KL is {up_to:g}; expected a number above 0 (method {least!r} reaches {reached[least]:g}:"
            " leave it out, or give up_to)"
        )
    generator = np.random.default_rng(seed)
    prompts = len(measured.base)
    # how often each prompt is drawn, over P; the first row is the data as they are
    draws = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts
    shares = np.vstack([np.full(prompts, 1 / prompts), draws])
    folds = min(folds, prompts)
    fold = generator.permutation(prompts) % folds
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    found, areas, redrawn = [], {}, {}
    for name, seeds in measured.methods.items():
        grid = np.linspace(0.0, reached[name], GRID + 1)
        rewards, areas[name] = _drawn(seeds, shares, fold, folds, grid, up_to)
        picked = generator.integers(len(seeds), size=(resamples, len(seeds)))
        redrawn[name] = np.append(
            areas[name][0].mean(), np.take_along_axis(areas[name][1:], picked, axis=1).mean(axis=1)
        )
        low, high = np.quantile(rewards[1:], ends, axis=0)
        found.append(
            {
                "method": name,
                "kl": grid.tolist(),
                "reward": rewards[0].tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
                "area": _interval(areas[name].mean(axis=1), ends),
                "area_seeds": areas[name][0].tolist(),
                "area_with_seeds": _interval(redrawn[name], ends),
                "up_to": up_to,
                "reached": reached[name],
            }
        )
    difference = [
        {
            "a": a,
            "b": b,
            "area": _interval(areas[a].mean(axis=1) - areas[b].mean(axis=1), ends),
            "area_with_seeds": _interval(redrawn[a] - redrawn[b], ends),
        }
        for a, b in itertools.combinations(measured.methods, 2)
    ]
    return {"frontiers": found, "difference": difference}


@dataclass(frozen=True)
class _Measured:
    """`base` [P]; of each method a list over seeds of [2, 1 + points, P]: rewards and KLs, the reference first."""

    base: Floats
    methods: dict[str, list[Floats]]


def _measured(methods: Methods, base: ArrayLike) -> _Measured:
    of_base = _numbers(base, None, "the base's rewards")
    if not methods:
        raise DataError("frontiers: no methods; expected at least one with its points")
    found: dict[str, list[Floats]] = {}
    for name, seeds in methods.items():
        if not seeds or not all(seeds.values()):
            raise DataError(f"method {name!r}: expected at least one point of each of its seeds")
        found[name] = []
        for seed, points in seeds.items():
            rows = [(of_base, np.zeros_like(of_base))]
            for i, point in enumerate(points):
                where = f"method {name!r}, seed {seed}, point {i + 1}"
                rewards = _numbers(point.rewards, len(of_base), f"{where}: rewards")
                rows.append((rewards, _numbers(point.kls, len(of_base), f"{where}: kls")))
            found[name].append(np.array(rows).swapaxes(0, 1))
    return _Measured(of_base, found)


def _numbers(values: ArrayLike, count: int | None, where: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0 or (count is not None and len(numbers) != count):
        expected = "one for each prompt" if count is None else f"{count}, one for each prompt of the base"
        raise DataError(f"{where} have the shape {list(numbers.shape)}; expected {expected}")
    if not np.isfinite(numbers).all():
        raise DataError(f"{where}: expected finite numbers, found {numbers[~np.isfinite(numbers)][0]}")
    return numbers


def _drawn(
    seeds: Sequence[Floats], shares: Floats, fold: NDArray[np.intp], folds: int, grid: Floats, up_to: float
) -> tuple[Floats, Floats]:
    """The mean of the seeds' frontiers on the grid [S, G], and their areas [S, seeds], for each row of shares [S, P]."""
    rewards, areas = np.zeros((len(shares), len(grid))), np.zeros((len(shares), len(seeds)))
    for number, part in itertools.product(range(len(seeds)), range(folds)):
        measuring = shares * (fold == part)  # sums to the fold's share, so that the folds add up
        choosing = shares - measuring if folds > 1 else shares
        total = choosing.sum(axis=1, keepdims=True)
        choosing = np.where(total > 0, choosing, shares) / np.where(
            total > 0, total, 1.0
        )  # few prompts: all in one fold
        chosen = np.einsum("qnp,sp->sqn", seeds[number], choosing, optimize=True)
        measured = seeds[number][0] @ measuring.T
        for row, (reward, kl) in enumerate(chosen):
            kl = np.maximum(kl, 0.0)  # an estimate may lie below
            corner = corners(kl, reward)
            xs, ys = kl[corner], measured[corner, row]
            rewards[row] += np.interp(grid, xs, ys) / len(seeds)
            areas[row, number] += area(xs, ys, measured[0, row], up_to)
    return rewards, areas


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def _interval(values: Floats, ends: tuple[float, float]) -> dict[str, float]:
    """The first value, and the quantiles of the others."""
    low, high = np.quantile(values[1:], ends)
    return Interval(mean=float(values[0]), low=float(low), high=float(high)).as_dict()
