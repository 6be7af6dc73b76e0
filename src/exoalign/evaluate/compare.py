"""Base against aligned model on held-out prompts: reward, KL and length, each with an interval clustered by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from exoalign.data.collate import collate
from exoalign.errors import DataError
from exoalign.estimators import cluster_bootstrap, paired_difference
from exoalign.groups import Group
from exoalign.logprobs.engine import compare_policies
from exoalign.logprobs.passes import budget_for, split_batch


def kl_of_samples(
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    groups: Sequence[Group],
    *,
    temperature: float,
    report: Callable[[int], None] | None = None,
) -> tuple[list[list[float]], list[list[float]]]:
    """Two estimates of KL(policy ‖ reference) for each completion, in nats a completion.

    Args:
        policy: the model that the groups were sampled from.
        reference: the model before alignment.
        groups: groups with token ids.
        temperature: the one of the samples.
        report: called with the number of groups done.

    Returns:
        log-ratios and summed exact per-step KL, a list for each group.
    """
    batch = collate(groups)
    ratios, exact = (torch.zeros(batch.shape, dtype=torch.float64) for _ in range(2))
    for passes in split_batch(policy, batch, budget_for(groups, None)):
        for part in passes:
            log_ratio, kl = compare_policies(policy, reference, part.of(batch), temperature=temperature)
            part.put(log_ratio, ratios)
            part.put(kl, exact)
        if report:
            report(len(passes[0].groups))
    return _lists(ratios, groups), _lists(exact, groups)


def summarise(
    base: Sequence[Group],
    aligned: Sequence[Group],
    log_ratios: Sequence[Sequence[float]],
    exact_kl: Sequence[Sequence[float]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of a run, as they stand in `metrics.json`.

    Args:
        base, aligned: rewarded samples of both models for the same prompts, in the same order.
        log_ratios, exact_kl: of the aligned model's samples, from `kl_of_samples`.
        seed: of the bootstrap.

    Returns:
        {"base": {"reward", "length"}, "aligned": {"reward", "kl", "kl_exact", "length"}, "difference": {"reward"},
        "prompts", "completions_per_prompt"}; each quantity is {"mean", "low", "high"}, a 95% bootstrap interval over
        prompts. `kl` is the log-ratio mean and `kl_exact` the summed per-step KL, both in nats a completion; `length` is
        in tokens that count.

    Raises:
        DataError: if the two sets of samples are not for the same prompts.
    """
    if [group.prompt for group in base] != [group.prompt for group in aligned]:
        raise DataError("base and aligned samples are not for the same prompts in the same order")

    def interval(values: Sequence[Sequence[float]]) -> dict[str, float]:
        return cluster_bootstrap(values, seed=seed).as_dict()

    before, after = [_rewards(group) for group in base], [_rewards(group) for group in aligned]
    return {
        "base": {"reward": interval(before), "length": interval([_lengths(g) for g in base])},
        "aligned": {
            "reward": interval(after),
            "kl": interval(log_ratios),
            "kl_exact": interval(exact_kl),
            "length": interval([_lengths(g) for g in aligned]),
        },
        "difference": {"reward": paired_difference(before, after, seed=seed).as_dict()},
        "prompts": len(base),
        "completions_per_prompt": base[0].k,
    }


def _rewards(group: Group) -> tuple[float, ...]:
    if group.rewards is None:
        raise DataError(f"{group.where}: has no rewards; score the samples first")
    return group.rewards


def _lists(values: torch.Tensor, groups: Sequence[Group]) -> list[list[float]]:
    """[B, K] -> the numbers of each group's completions."""
    return [row[: group.k] for row, group in zip(values.tolist(), groups, strict=True)]


def _lengths(group: Group) -> list[float]:
    return [float(n) for n in group.counted_tokens]
