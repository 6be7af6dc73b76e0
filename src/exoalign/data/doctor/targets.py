"""How sharp the target p = softmax(r / beta_r) is on a data set, for which beta_r it is neither flat nor one-hot.

Shapes: rewards of the groups with K completions are [n, K]. ESS = 1 / sum_k p_k^2 lies between 1 and K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exoalign.data.doctor.findings import Finding
from exoalign.data.doctor.rewards import Matrix, spreads
from exoalign.estimators import effective_sample_size, entropy
from exoalign.groups import Group

FLAT = 0.98
"""The target is too flat to learn from when its mean effective sample size is above this share of K."""
NO_SPREAD = 0.5
"""The reward does not discriminate when more than this share of groups has equal rewards."""
STILL = 0.1
"""Nothing moves when the log-ratios of the optimum have a standard deviation below this many nats."""
RULE = "half of the groups with different rewards have (ESS - 1) / (K - 1) below 1/2"
EPSILON_RULE = "the paper's value: the loser keeps a mass that is not zero, and the winner nearly all"
EPSILON = 1e-3
PAPER = (0.1, 0.5)
"""beta_r of the paper's experiments."""


def beta_r_table(rewards: Mapping[int, Matrix]) -> dict[str, Any] | None:
    """ESS and entropy of softmax(r / beta_r) for several beta_r around a suggested one; None if no rewards differ.

    Args:
        rewards: K -> [n, K].

    Returns:
        `suggested` (None where ties keep every beta_r above the rule), `rule`, and `values`: for each beta_r the medians over
        the groups whose rewards differ of `ess`, `ess_share` = (ESS - 1) / (K - 1) and `entropy` in nats.
    """
    spread = with_spread(rewards)
    if not spread:
        return None
    suggested = suggest_beta_r(spread)
    scale = [] if suggested is None else [_two_figures(suggested * factor) for factor in (0.1, 0.3, 1, 3, 10)]
    values = []
    for beta_r in sorted({*PAPER, *scale}):
        scaled = [_scaled(matrix, beta_r) for matrix in spread.values()]
        values.append(
            {
                "beta_r": beta_r,
                "ess": float(np.median(np.concatenate([effective_sample_size(part) for part in scaled]))),
                "ess_share": _median_share(spread, beta_r),
                "entropy": float(np.median(np.concatenate([entropy(part) for part in scaled]))),
            }
        )
    return {"suggested": None if suggested is None else _two_figures(suggested), "rule": RULE, "values": values}


def epsilon_table() -> dict[str, Any]:
    """ESS and entropy of the target (1 - epsilon, epsilon) of a pair, which no data change."""
    values = []
    for epsilon in (1e-3, 1e-2, 1e-1):
        log_p = np.log([1 - epsilon, epsilon])
        values.append(
            {
                "epsilon": epsilon,
                "ess": float(effective_sample_size(log_p)),
                "ess_share": float(effective_sample_size(log_p)) - 1,
                "entropy": float(entropy(log_p)),
            }
        )
    return {"suggested": EPSILON, "rule": EPSILON_RULE, "values": values}


def suggest_beta_r(spread: Mapping[int, Matrix]) -> float | None:
    """The beta_r at which the median over groups of (ESS - 1) / (K - 1) is 1/2: half way between one-hot and flat.

    The share grows with beta_r in every group, so it is found by bisection. None where it is above 1/2 at every beta_r, as when
    many groups have several best completions, and for rewards near the largest or smallest numbers.

    Args:
        spread: K -> [n, K], rewards that differ within each group.
    """
    scale = float(np.median(spreads(spread.values())))
    if not 1e-290 < scale < 1e290:  # the search goes a factor of a million to either side
        return None
    low, high = np.log(scale) - 14, np.log(scale) + 14
    if _median_share(spread, float(np.exp(low))) > 0.5:
        return None
    for _ in range(24):
        middle = (low + high) / 2
        if _median_share(spread, float(np.exp(middle))) > 0.5:
            high = middle
        else:
            low = middle
    return float(np.exp(high))


def ess_of(rewards: Mapping[int, Matrix], beta_r: float) -> Matrix:
    """ESS of every group whose rewards differ: [G]."""
    spread = with_spread(rewards).values()
    return np.concatenate([np.zeros(0), *[effective_sample_size(_scaled(matrix, beta_r)) for matrix in spread]])


def with_spread(rewards: Mapping[int, Matrix]) -> dict[int, Matrix]:
    """The groups whose rewards differ, by K."""
    kept = {k: matrix[matrix.max(axis=1) > matrix.min(axis=1)] for k, matrix in rewards.items() if k > 1}
    return {k: matrix for k, matrix in kept.items() if len(matrix)}


def target_findings(groups: Sequence[Group], *, beta_pi: float, beta_r: float) -> list[Finding]:
    """`reward_findings` of groups with rewards."""
    by_k: dict[int, list[tuple[float, ...]]] = {}
    for group in groups:
        if group.rewards is not None:
            by_k.setdefault(group.k, []).append(group.rewards)
    return reward_findings({k: np.array(rows) for k, rows in by_k.items()}, beta_pi=beta_pi, beta_r=beta_r)


def reward_findings(rewards: Mapping[int, Matrix], *, beta_pi: float, beta_r: float) -> list[Finding]:
    """What the rewards and the betas say before the first step: the ways in which this target cannot be learnt from.

    Args:
        rewards: K -> [n, K].
        beta_pi, beta_r: as in the objective.

    Returns:
        At most one finding of each kind: `no_spread`, `sharp`, `flat`, `still`.
    """
    spread = with_spread(rewards)
    total, varied = (sum(map(len, part.values())) for part in (rewards, spread))
    findings = []
    share = 1 - varied / total if total else 0.0
    if share > NO_SPREAD:
        findings.append(
            Finding(
                "no_spread",
                f"the reward does not discriminate: in {share:.0%} of the groups all completions have the same reward, so they"
                " teach nothing",
                "use a reward that tells completions apart, sample more of them (sample.k) or raise sample.temperature",
            )
        )
    if not spread:
        return findings
    k = sum(k * len(matrix) for k, matrix in spread.items()) / varied
    ess = float(ess_of(spread, beta_r).mean())
    if ess < min(2.0, 1 + (k - 1) / 4):
        findings.append(
            Finding(
                "sharp",
                f"the target is too sharp: its effective sample size is {ess:.2f} of K = {k:.3g}, so nearly all its mass is on"
                " one completion",
                f"raise align.beta_r (now {beta_r:g}) or sample more completions",
            )
        )
    if ess > FLAT * k:
        findings.append(
            Finding(
                "flat",
                f"the target is too flat: its effective sample size is {ess:.2f} of K = {k:.3g}, so good and bad completions"
                " count almost alike",
                f"lower align.beta_r (now {beta_r:g})",
            )
        )
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = float(np.concatenate([matrix.std(axis=1) for matrix in spread.values()]).mean())
    movement = deviation / (beta_pi * beta_r)
    if movement < STILL:
        findings.append(
            Finding(
                "still",
                f"nothing will move: at the optimum the log-ratios of a prompt's completions differ by {movement:.3f} nats only"
                " (standard deviation of the reward / (beta_pi * beta_r))",
                f"lower align.beta_pi (now {beta_pi:g}) or align.beta_r (now {beta_r:g})",
            )
        )
    return findings


def _scaled(matrix: Matrix, beta_r: float) -> Matrix:
    """r / beta_r less the largest of the group, which changes no softmax and cannot overflow to +inf."""
    with np.errstate(over="ignore"):
        return np.asarray((matrix - matrix.max(axis=1, keepdims=True)) / beta_r)


def _median_share(spread: Mapping[int, Matrix], beta_r: float) -> float:
    shares = [(effective_sample_size(_scaled(matrix, beta_r)) - 1) / (k - 1) for k, matrix in spread.items()]
    return float(np.median(np.concatenate(shares)))


def _two_figures(value: float) -> float:
    return float(f"{value:.2g}")
