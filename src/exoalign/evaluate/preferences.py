"""Which of two models' replies to the same prompts are better: win rates, also at equal length, and a paired test. NumPy only.

Replies are compared by a number for each (a reward, a judge's score) or by a judge's verdicts on pairs; a tie is half a win. A
win rate has Wilson's interval where each prompt has one pair, so that the cases are independent, and else the bootstrap's over
prompts. Shape legend: P prompts, N pairs of replies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exoalign.errors import DataError
from exoalign.estimators import Interval, cluster_bootstrap
from exoalign.evaluate.length_control import at_equal_length

Floats = NDArray[np.float64]
EXACT = 14
"""Prompts up to which all 2^P signs are tried."""
_AT_ONCE = 1_000_000  # signs held in memory: 8 MB


@dataclass(frozen=True)
class Pairs:
    """Pairs of replies to the same prompts, and which is better.

    Attributes:
        prompts: [N] the number of each pair's prompt.
        won: [N] 1 where ours is better, 0 where theirs is, 1/2 for a tie.
        longer: [N] how much longer ours is, or None.
        ties: of these N.
        invalid: pairs that nobody could decide, which are not among the N.
    """

    prompts: NDArray[np.int64]
    won: Floats
    longer: Floats | None
    ties: int
    invalid: int = 0

    def by_prompt(self) -> Floats:
        """The share that ours win of each prompt that has pairs: [P]."""
        _, number, count = np.unique(self.prompts, return_inverse=True, return_counts=True)
        return np.bincount(number, self.won) / count

    @property
    def independent(self) -> bool:
        """Whether no prompt has two pairs."""
        return len(np.unique(self.prompts)) == len(self.prompts)


def rate_of(pairs: Pairs, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """How often ours win, the mean over prompts, with its 95% interval: Wilson's, or of the bootstrap over prompts.

    Raises:
        DataError: no pairs.
    """
    found = pairs.by_prompt()
    if not len(found):
        raise DataError("win rate: no pairs; expected one at least that somebody could decide")
    if pairs.independent:
        return wilson(float(found.sum()), len(found))
    return cluster_bootstrap([[share] for share in found], resamples=resamples, seed=seed)


def summary_of(pairs: Pairs, *, seed: int = 0) -> dict[str, Any]:
    """What a comparison of two models tells of their pairs.

    Returns:
        {"rate": with its interval, "interval": "Wilson" or "bootstrap over prompts", "pairs", "prompts", "ties", "invalid",
        "length_controlled": `at_equal_length`, or None where no lengths are known}.

    Raises:
        DataError: no pairs.
    """
    controlled = None
    if pairs.longer is not None and len(pairs.won):
        controlled = at_equal_length(pairs.won, pairs.longer, prompts=pairs.prompts, seed=seed).as_dict()
    return {
        "rate": rate_of(pairs, seed=seed).as_dict(),
        "interval": "Wilson" if pairs.independent else "bootstrap over prompts",
        "pairs": len(pairs.won),
        "prompts": len(np.unique(pairs.prompts)),
        "ties": pairs.ties,
        "invalid": pairs.invalid,
        "length_controlled": controlled,
    }


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


def pairs_of(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    lengths: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]] | None = None,
) -> Pairs:
    """Each reply of ours with each of theirs to the same prompt, the one with the larger number the better.

    Args:
        ours, theirs: for each prompt the numbers of the replies.
        lengths: for each prompt the lengths of ours and theirs.

    Raises:
        DataError: other numbers of prompts, or a prompt without replies; lengths of other replies.
    """
    if len(ours) != len(theirs) or not ours:
        raise DataError(f"win rate: found {len(ours)} and {len(theirs)} prompts; expected the same, one at least")
    prompts, won, longer = list[NDArray[np.int64]](), list[Floats](), list[Floats]()
    for i, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        if not len(mine) or not len(yours):
            raise DataError(f"win rate: prompt {i + 1} has no reply of one side; leave it out of both")
        ahead = np.subtract.outer(np.asarray(mine, dtype=np.float64), np.asarray(yours, dtype=np.float64)).ravel()
        prompts.append(np.full(len(ahead), i))
        won.append((ahead > 0) + 0.5 * (ahead == 0))
        if lengths is not None:
            a, b = (np.asarray(side[i], dtype=np.float64) for side in lengths)
            if (len(a), len(b)) != (len(mine), len(yours)):
                raise DataError(
                    f"win rate: prompt {i + 1} has {len(mine)} and {len(yours)} replies and lengths of {len(a)} and {len(b)}"
                )
            longer.append(np.subtract.outer(a, b).ravel())
    decided = np.concatenate(won)
    return Pairs(
        np.concatenate(prompts), decided, np.concatenate(longer) if longer else None, int((decided == 0.5).sum())
    )


def shares(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Floats:
    """Of each prompt's pairs of replies the share that ours win, a tie counting half: [P].

    Raises:
        DataError: as `pairs_of`.

    >>> shares([[1.0, 3.0]], [[2.0, 3.0]]).tolist()  # 1 < 2, 1 < 3, 3 > 2, 3 = 3
    [0.375]
    """
    return pairs_of(ours, theirs).by_prompt()


def win_rate(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    lengths: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """How often ours win by their rewards.

    Args:
        ours, theirs: for each prompt the rewards of the replies.
        lengths: for each prompt the lengths of ours and theirs, for the rate at equal length.
        seed: of the bootstrap.

    Returns:
        `summary_of` the pairs, and "p_value": `sign_flip_test` of the prompts' differences of mean rewards.

    Raises:
        DataError: as `pairs_of`.
    """
    pairs = pairs_of(ours, theirs, lengths)
    mean = [float(np.mean(a) - np.mean(b)) for a, b in zip(ours, theirs, strict=True)]
    return {**summary_of(pairs, seed=seed), "p_value": sign_flip_test(mean, seed=seed)}


def sign_flip_test(differences: Sequence[float] | Floats, *, resamples: int = 10_000, seed: int = 0) -> float:
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
    observed = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # sums that are equal but for rounding are as far from 0
    if d.size <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=d.size)))
        return float((np.abs(signs @ d) >= observed).mean())
    generator, hits = np.random.default_rng(seed), 0
    step = max(1, _AT_ONCE // d.size)
    for start in range(0, resamples, step):
        signs = generator.choice(np.array([1.0, -1.0]), size=(min(step, resamples - start), d.size))
        hits += int((np.abs(signs @ d) >= observed).sum())
    return (1 + hits) / (1 + resamples)


def shares_between(numbers: Sequence[Sequence[Sequence[float]]]) -> Floats:
    """`shares` of each of M models (row) against each other one (column), NaN against itself: [P, M, M], for `ratings`.

    Raises:
        DataError: as `pairs_of`.
    """
    found = np.full((len(numbers[0]), len(numbers), len(numbers)), np.nan)
    for i, j in itertools.permutations(range(len(numbers)), 2):
        found[:, i, j] = shares(numbers[i], numbers[j])
    return found


def matrix(
    names: Sequence[str], rewards: Callable[[str], Sequence[Sequence[float]]], *, seed: int = 0
) -> list[list[dict[str, float] | None]]:
    """The win rate of each model (row) against each other one (column), None against itself."""
    numbers = {name: rewards(name) for name in names}
    found: list[list[dict[str, float] | None]] = []
    for a in names:
        row: list[dict[str, float] | None] = []
        for b in names:
            pairs = None if a == b else pairs_of(numbers[a], numbers[b])
            row.append(None if pairs is None else rate_of(pairs, resamples=2000, seed=seed).as_dict())
        found.append(row)
    return found
