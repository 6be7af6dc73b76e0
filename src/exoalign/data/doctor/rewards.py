"""What the rewards of a data set are like, and whether they or the choices follow the length of a completion.

Groups are kept by their number of completions K, as arrays [n, K]: a ragged data set needs no padding.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exoalign.data.doctor.findings import Finding, counted, finding
from exoalign.data.set_aside import Tally
from exoalign.estimators import Interval, cluster_bootstrap

Matrix = NDArray[np.float64]
STRONG = 0.3
"""A rank correlation with length beyond this is a warning (for pairs: the longer reply wins more than 65%), ..."""
WEAK = 0.1
"""... and beyond this a note, when its interval excludes 0."""
UNEVEN = 1_000.0
"""No one beta_r suits all groups when the spreads of the middle 90% differ by more than this factor."""
RESAMPLES = 1_000  # of 100,000 groups in about a second; the ends then move by a few percent of the width
_PAIRS_AT_ONCE = 10_000_000  # comparisons held in memory


class Rewards:
    """Fed with every group, then asked for numbers and findings."""

    def __init__(self) -> None:
        self._rewards: dict[int, array[float]] = {}
        self._compared: dict[int, tuple[array[float], array[float]]] = {}
        self.all_equal, self.against, self.unlike = Tally(), Tally(), Tally()
        self.groups = 0

    def add(
        self,
        where: str,
        completions: Sequence[object],
        lengths: Sequence[int],
        rewards: Sequence[float] | None,
        winner: int | None,
    ) -> None:
        """Count one group of K completions; without rewards and winner it is passed over."""
        k = len(completions)
        values = rewards
        if winner is not None:
            values = [float(i == winner) for i in range(k)]
        if values is None:
            return
        compared = self._compared.setdefault(k, (array("d"), array("d")))
        compared[0].extend(values)
        compared[1].extend(lengths)
        if rewards is None:
            return
        self.groups += 1
        self._rewards.setdefault(k, array("d")).extend(rewards)
        if min(rewards) == max(rewards) and k > 1:
            self.all_equal.add(where)
        elif winner is not None and rewards[winner] < max(rewards):
            self.against.add(where)
        if len(set(completions)) < k and len(set(zip(completions, rewards, strict=True))) > len(set(completions)):
            self.unlike.add(where)

    def by_k(self) -> dict[int, Matrix]:
        """The rewards as [n, K] for each K."""
        return {k: np.array(values).reshape(-1, k) for k, values in sorted(self._rewards.items())}

    def summary(self) -> dict[str, Any] | None:
        """Median, min, max, and the median and 5th and 95th percentile of the spread within groups; None without rewards."""
        if not self.groups:
            return None
        matrices = self.by_k().values()
        values = np.concatenate([matrix.ravel() for matrix in matrices])
        low, median, high = np.percentile(spreads(matrices), [5, 50, 95])
        return {
            "median": float(np.median(values)),
            "min": float(values.min()),
            "max": float(values.max()),
            "spread": {"p05": float(low), "median": float(median), "p95": float(high)},
            "all_equal": self.all_equal.count,
        }

    def length_correlation(self) -> tuple[Interval, int] | None:
        """Spearman's rank correlation of reward (of a pair: choice) with length in each group, averaged over groups.

        With its 95% bootstrap interval over groups, and the number of groups. Groups in which the rewards or the lengths are
        all equal have none and are left out; None where no group is left.
        """
        parts = [
            rank_correlation(*(np.array(values).reshape(-1, k) for values in compared))
            for k, compared in sorted(self._compared.items())
        ]
        found = np.concatenate([np.zeros(0), *parts])
        found = found[~np.isnan(found)]
        if not found.size:
            return None
        return cluster_bootstrap(found[:, None].tolist(), resamples=RESAMPLES), found.size

    def findings(self, correlation: tuple[Interval, int] | None) -> list[Finding]:
        """What is wrong with the rewards; `correlation` is `length_correlation()`."""
        found = finding(
            "all_equal_rewards",
            self.all_equal,
            f"all rewards are equal in {self.all_equal.count} of {counted(self.groups, 'group')}",
            "they teach nothing: remove them, or use a reward that tells these completions apart",
        )
        found += finding(
            "score_against_choice",
            self.against,
            f"the rejected reply has the higher score in {counted(self.against.count, 'pair')}",
            "decide which of the two labels is right; exo_pref follows the choice, exo_rw the scores",
        )
        found += finding(
            "unlike_rewards",
            self.unlike,
            f"the same completion has different rewards in {counted(self.unlike.count, 'group')}",
            "the reward is noisy there: average it, or keep one of them",
        )
        found += self._uneven()
        return found if correlation is None else found + _length_finding(*correlation, pairs=set(self._compared) == {2})

    def _uneven(self) -> list[Finding]:
        spread = spreads(self.by_k().values())
        spread = spread[spread > 0]
        low, high = np.percentile(spread, [5, 95]) if spread.size else (1.0, 1.0)
        if high / UNEVEN <= low:
            return []
        text = f"the spread of rewards within groups differs widely: 90% lie between {low:.3g} and {high:.3g}"
        remedy = "no one beta_r suits them all: take log-odds of probabilities, or scale the rewards of each group"
        return [Finding("uneven_spread", text, remedy, "note")]


def _length_finding(found: Interval, groups: int, *, pairs: bool) -> list[Finding]:
    if found.low <= 0 <= found.high or abs(found.mean) < WEAK:
        return []
    wins = f": the longer one wins in {(1 + found.mean) / 2:.0%} of the pairs" if pairs else ""
    text = (
        f"{'longer' if found.mean > 0 else 'shorter'} completions are preferred: rank correlation with length"
        f" {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}] within {counted(groups, 'group')}{wins}"
    )
    remedy = "expect the policy's replies to change in length: watch it, or subtract a length penalty from the reward"
    return [Finding("length_bias", text, remedy, "warning" if abs(found.mean) > STRONG else "note")]


def spreads(matrices: Iterable[Matrix]) -> Matrix:
    """Largest minus smallest reward of every group, finite even where that overflows: [G]."""
    with np.errstate(over="ignore"):
        found = np.concatenate([np.zeros(0), *[np.ptp(matrix, axis=1) for matrix in matrices]])
    return np.minimum(found, np.finfo(np.float64).max)


def rank_correlation(a: Matrix, b: Matrix) -> Matrix:
    """Spearman's rank correlation of each row, ties having their mean rank; NaN where a row of either is constant: [n].

    Args:
        a, b: [n, K].
    """
    ranks = [_ranks(values) - (values.shape[1] + 1) / 2 for values in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
        return np.asarray((ranks[0] * ranks[1]).sum(1) / scale)


def _ranks(values: Matrix) -> Matrix:
    n, k = values.shape
    result = np.empty((n, k))
    step = max(1, _PAIRS_AT_ONCE // (k * k))
    for start in range(0, n, step):
        part = values[start : start + step]
        left, right = part[:, :, None], part[:, None, :]
        result[start : start + step] = (left > right).sum(-1) + ((left == right).sum(-1) + 1) / 2
    return result
