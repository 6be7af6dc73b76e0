"""One evaluated checkpoint as a point of the comparison: reward, KL, length and diversity of its samples. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exoalign.errors import DataError
from exoalign.estimators import Interval, cluster_bootstrap
from exoalign.evaluate.diversity import distinct_n, diversity_of, length_against_reward, self_bleu
from exoalign.evaluate.samples import lengths_of, rewards_of
from exoalign.groups import Group
from exoalign.kl_estimators import kl_intervals


def point_of(
    groups: Sequence[Group],
    log_ratios: Sequence[Sequence[float]],
    exact_kl: Sequence[Sequence[float]],
    k3: Sequence[Sequence[float]],
    *,
    step: int,
    seconds: float,
    tokens: int,
    seed: int = 0,
) -> dict[str, Any]:
    """A checkpoint's evaluation, ready for JSON.

    Args:
        groups: rewarded samples of the checkpoint, one group a prompt.
        log_ratios, exact_kl, k3: of the samples, from `compare.kl_of_samples`.
        step: of the optimizer.
        seconds, tokens: what it took to come here: wall-clock, and tokens that went through the model in training and sampling.
        seed: of the bootstrap.

    Returns:
        {"step", "seconds", "tokens", "reward", "kl", "kl_exact", "kl_k3", "length", "distinct_2", "self_bleu", "length_reward",
        "prompts"}. Quantities are {"mean", "low", "high"} with a 95% bootstrap interval over prompts, or None where the samples
        say nothing (one completion a prompt has no self-BLEU). "prompts" is {"reward": [P], "kl": [P]}: the mean reward and the
        mean exact KL of each prompt's completions, which `frontier` resamples.

    Raises:
        DataError: no groups, one without rewards or token ids, or KL of other completions than the groups have.
    """
    if not groups:
        raise DataError("point_of: no groups; expected at least one prompt with its samples")
    for name, values in (("log-ratios", log_ratios), ("exact KL", exact_kl), ("k3", k3)):
        if [len(row) for row in values] != [group.k for group in groups]:
            raise DataError(f"point_of: the {name} are not of the groups' completions; take both from the same samples")
    rewards = [rewards_of(group) for group in groups]
    found = {
        "reward": cluster_bootstrap(rewards, seed=seed),
        **kl_intervals(log_ratios, exact_kl, k3, seed=seed),
        "length": cluster_bootstrap([lengths_of(group) for group in groups], seed=seed),
        "distinct_2": diversity_of(groups, distinct_n, seed=seed),
        "self_bleu": diversity_of(groups, self_bleu, seed=seed),
        "length_reward": length_against_reward(groups, seed=seed),
    }
    return {
        "step": step,
        "seconds": seconds,
        "tokens": tokens,
        **{name: as_json(interval) for name, interval in found.items()},
        "prompts": {"reward": _means(rewards), "kl": _means(exact_kl)},
    }


def as_json(interval: Interval | None) -> dict[str, float] | None:
    """The interval by names, None as it is."""
    return None if interval is None else interval.as_dict()


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    return [sum(row) / len(row) for row in values]
