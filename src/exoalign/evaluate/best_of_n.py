"""Best-of-N without training: draw N completions from the reference, keep the one with the highest reward. NumPy only.

From n samples of each prompt, in closed form for every N up to n:

- reward (and length) of Best-of-N, without bias: the mean over all subsets of N of the n samples. With the samples sorted, the
  i-th is the best of C(i - 1, N - 1) of the C(n, N) subsets (order statistics without replacement; the same estimator is
  written out for pass@k in Chen et al., arXiv 2107.03374). Samples of equal reward share their subsets.
- its KL from the reference. Best-of-N (ties broken by chance) reweighs each completion by a function of its reward alone, so
  with P_N(v) = F(v)^N - F(v-)^N and p(v) = F(v) - F(v-), F the reference's distribution of rewards,

      KL = sum_v P_N(v) log(P_N(v) / p(v))    over values v that have a probability (ties, or a completion drawn often), plus
           the integral of N u^(N-1) log(N u^(N-1)) du over the rest of the ranks u in (0, 1), where no two rewards are equal.

  Where no value has a probability this is log N - (N - 1) / N, which therefore is an upper bound (Beirami et al., Theoretical
  guarantees on the best-of-n alignment policy, arXiv 2401.01879); where one value does, and is the highest, it is the
  estimator of their section 4. Here F is that of the n samples: values that several of them share are taken to have their share
  as probability, a value of one sample to have none. From few samples that is too low (a rare best value is often not among
  them), so the jackknife takes off the bias of order 1 / n: n T - (n - 1) mean_i T_-i, with T_-i of all samples but i (as for
  entropies: Zahl, Ecology 58, 1977). It is kept between 0 and the bound, and tends to the truth as n grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.errors import DataError
from exoalign.estimators import cluster_bootstrap
from exoalign.evaluate.samples import lengths_of, rewards_of
from exoalign.groups import Group

Floats = NDArray[np.float64]


def selection_weights(rewards: ArrayLike, size: int) -> Floats:
    """The share of the subsets of `size` samples in which each sample is the best, ties broken by chance.

    Args:
        rewards: [n] of one prompt's samples.
        size: N, from 1 to n.

    Returns:
        [n], sums to 1: its product with any quantity of the samples estimates that quantity of Best-of-N without bias.

    Raises:
        ValueError: size out of range.

    >>> selection_weights([3.0, 1.0, 2.0], 2).round(4).tolist()  # of 3 pairs: two have 3 as their best, one has 2
    [0.6667, 0.0, 0.3333]
    """
    place, counts = _levels(rewards, size)
    n = len(place)
    by_rank = np.empty(n)
    weight = size / n  # C(n - 1, N - 1) / C(n, N)
    for i in range(n, 0, -1):
        by_rank[i - 1] = weight
        weight *= (i - size) / (i - 1) if i > 1 else 0.0  # C(i - 2, N - 1) / C(i - 1, N - 1)
    first = np.cumsum(counts) - counts
    return (np.add.reduceat(by_rank, first) / counts)[place]


def kl_bound(size: int) -> float:
    """log N - (N - 1) / N: no Best-of-N is further from its reference (Beirami et al., arXiv 2401.01879).

    >>> round(kl_bound(4), 4)
    0.6363
    """
    return math.log(size) - (size - 1) / size


def kl_of_selection(rewards: ArrayLike, size: int) -> float:
    """KL(Best-of-N ‖ reference) in nats, estimated from the rewards of n samples: see the head of this file.

    Args:
        rewards: [n] of one prompt's samples.
        size: N, from 1 to n.

    Raises:
        ValueError: size out of range.

    >>> round(kl_of_selection([0.0, 0.0, 1.0, 1.0] * 250, 2), 3)  # p = (1/2, 1/2), P_2 = (1/4, 3/4)
    0.131
    """
    _, counts = _levels(rewards, size)
    n, bound = int(counts.sum()), kl_bound(size)
    if size == 1:
        return 0.0
    without = counts - np.eye(len(counts), dtype=counts.dtype)  # a sample of each value left out
    mean = float(counts @ _from_shares(without, size)) / n
    return min(max(n * float(_from_shares(counts, size)) - (n - 1) * mean, 0.0), bound)


def best_of_n(
    groups: Sequence[Group], *, seconds: float, tokens: int, sizes: Sequence[int] | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Best-of-N as points of the comparison.

    Args:
        groups: rewarded samples of the reference, n >= 2 or more a prompt, drawn without top-k and top-p.
        seconds, tokens: what drawing all of them took; a point has its share N / n of it. A trained policy spends its seconds
            once, Best-of-N spends these for every reply.
        sizes: the N; 1, 2, 4, ... and n when None, n being that of the prompt with the fewest samples.
        seed: of the bootstrap.

    Returns:
        For each N a point as `points.point_of` makes it, "step" being N. "kl" is the estimate of `kl_of_selection`, "kl_bound"
        the bound. "kl_k3", "kl_exact", "length_reward" and diversity are None: of each prompt one reply is left, and no step
        drew it.

    Raises:
        DataError: no groups, or one without rewards or token ids.
        ValueError: a size out of range.
    """
    if not groups:
        raise DataError("best_of_n: no groups; expected at least one prompt with its samples")
    rewards = [np.array(rewards_of(group)) for group in groups]
    lengths = [np.array(lengths_of(group)) for group in groups]
    most = min(map(len, rewards))
    points = []
    for size in sizes_up_to(most) if sizes is None else sizes:
        weights = [selection_weights(of_prompt, size) for of_prompt in rewards]
        reward, length = ([float(w @ x) for w, x in zip(weights, values, strict=True)] for values in (rewards, lengths))
        kl = [kl_of_selection(of_prompt, size) for of_prompt in rewards]
        share = size / (sum(map(len, rewards)) / len(rewards))

        def interval(values: list[float]) -> dict[str, float]:
            return cluster_bootstrap([[value] for value in values], seed=seed).as_dict()

        points.append(
            {
                "step": size,
                "seconds": seconds * share,
                "tokens": round(tokens * share),
                "reward": interval(reward),
                "kl": interval(kl),
                "kl_bound": kl_bound(size),
                "kl_k3": None,
                "kl_exact": None,
                "length": interval(length),
                "distinct_2": None,
                "self_bleu": None,
                "length_reward": None,
                "prompts": {"reward": reward, "kl": kl},
            }
        )
    return points


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself.

    >>> sizes_up_to(6)
    [1, 2, 4, 6]
    """
    return [*(2**i for i in range((most - 1).bit_length())), most]


def _levels(rewards: ArrayLike, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The place of each sample's reward among the different ones in ascending order, and how many samples each of these has."""
    values = np.asarray(rewards, dtype=np.float64)
    if not 1 <= size <= len(values):
        raise ValueError(f"best of {size}: expected a number from 1 to the {len(values)} samples of the prompt")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return place, counts


def _from_shares(counts: NDArray[np.intp], size: int) -> Floats:
    """KL of Best-of-N where these counts, [..., V] in ascending order of value, are the values' true shares: [...]."""
    n = counts.sum(axis=-1, keepdims=True)
    upper = np.cumsum(counts, axis=-1) / n
    lower = (np.cumsum(counts, axis=-1) - counts) / n
    chosen = upper**size - lower**size  # P_N(v)
    log = np.log(np.divide(chosen * n, counts, out=np.ones_like(chosen), where=chosen > 0))  # log(P_N(v) / p(v))
    return np.where(counts > 1, chosen * log, _integral(upper, size) - _integral(lower, size)).sum(axis=-1)


def _integral(u: Floats, size: int) -> Floats:
    """The integral from 0 to u of N t^(N-1) log(N t^(N-1)) dt = u^N (log N + (N - 1) log u - (N - 1) / N)."""
    log = np.log(u, out=np.zeros_like(u), where=u > 0)
    return u**size * (math.log(size) + (size - 1) * log - (size - 1) / size)
