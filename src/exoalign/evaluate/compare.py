"""Base against aligned model on held-out prompts: reward, KL and length, each with an interval clustered by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from exoalign.data.collate import collate
from exoalign.errors import DataError
from exoalign.estimators import cluster_bootstrap, paired_difference
from exoalign.evaluate.samples import lengths_of, rewards_of
from exoalign.groups import Group
from exoalign.kl_estimators import kl_intervals
from exoalign.logprobs.engine import compare_policies
from exoalign.logprobs.passes import budget_for, split_batch


class SampleKl(NamedTuple):
    """Three estimates of KL(policy ‖ reference) for each completion, a list for each group, in nats a completion.

    Attributes:
        log_ratios: log pi_theta(y|x) - log pi_ref(y|x).
        exact: summed exact per-step KL.
        k3: summed (r - 1) - log r.
    """

    log_ratios: list[list[float]]
    exact: list[list[float]]
    k3: list[list[float]]


def kl_of_samples(
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    groups: Sequence[Group],
    *,
    temperature: float,
    report: Callable[[int], None] | None = None,
) -> SampleKl:
    """Three estimates of KL(policy ‖ reference) for each completion: `kl_estimators` says what they are and what they need.

    Args:
        policy: the model that the groups were sampled from.
        reference: the model before alignment.
        groups: groups with token ids.
        temperature: the one of the samples.
        report: called with the number of groups done.
    """
    batch = collate(groups)
    found = [torch.zeros(batch.shape, dtype=torch.float64) for _ in SampleKl._fields]
    for passes in split_batch(policy, batch, budget_for(groups, None)):
        for part in passes:
            of_part = compare_policies(policy, reference, part.of(batch), temperature=temperature)
            for values, whole in zip(of_part, found, strict=True):
                part.put(values, whole)
        if report:
            report(len(passes[0].groups))
    return SampleKl(*(_lists(values, groups) for values in found))


def summarise(
    base: Sequence[Group],
    aligned: Sequence[Group],
    log_ratios: Sequence[Sequence[float]],
    exact_kl: Sequence[Sequence[float]],
    k3: Sequence[Sequence[float]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of a run, as they stand in `metrics.json`.

    Args:
        base, aligned: rewarded samples of both models for the same prompts, in the same order.
        log_ratios, exact_kl, k3: of the aligned model's samples, from `kl_of_samples`.
        seed: of the bootstrap.

    Returns:
        {"base": {"reward", "length"}, "aligned": {"reward", "kl", "kl_exact", "kl_k3", "length"}, "difference":
        {"reward"}, "prompts", "completions_per_prompt"}; each quantity is {"mean", "low", "high"}, a 95% bootstrap
        interval over prompts. `kl` is the log-ratio mean, `kl_exact` the summed per-step KL and `kl_k3` the summed k3, all
        in nats a completion; `length` is in tokens that count.

    Raises:
        DataError: if the two sets of samples are not for the same prompts.
    """
    if [group.prompt for group in base] != [group.prompt for group in aligned]:
        raise DataError("base and aligned samples are not for the same prompts in the same order")

    def interval(values: Sequence[Sequence[float]]) -> dict[str, float]:
        return cluster_bootstrap(values, seed=seed).as_dict()

    before, after = [rewards_of(group) for group in base], [rewards_of(group) for group in aligned]
    return {
        "base": {"reward": interval(before), "length": interval([lengths_of(g) for g in base])},
        "aligned": {
            "reward": interval(after),
            **{name: found.as_dict() for name, found in kl_intervals(log_ratios, exact_kl, k3, seed=seed).items()},
            "length": interval([lengths_of(g) for g in aligned]),
        },
        "difference": {"reward": paired_difference(before, after, seed=seed).as_dict()},
        "prompts": len(base),
        "completions_per_prompt": base[0].k,
    }


def _lists(values: torch.Tensor, groups: Sequence[Group]) -> list[list[float]]:
    """[B, K] -> the numbers of each group's completions."""
    return [row[: group.k] for row, group in zip(values.tolist(), groups, strict=True)]
