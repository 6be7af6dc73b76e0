"""On completions that exist already: does the aligned model prefer the better one more than its reference does?"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from exoalign.data.collate import collate
from exoalign.errors import DataError
from exoalign.estimators import cluster_bootstrap
from exoalign.groups import Group
from exoalign.train.correction import Correction
from exoalign.train.reference import logprobs_of

if TYPE_CHECKING:
    Losses = Callable[[torch.Tensor, Any], torch.Tensor]


def spread(groups: Sequence[Group], most: int, *, seed: int) -> Sequence[Group]:
    """At most `most` groups: all, or one drawn from each of so many equal stretches, so that no order of the data tells."""
    if len(groups) <= most:
        return groups
    draw = random.Random(f"spread {seed}")
    ends = [i * len(groups) // most for i in range(most + 1)]
    return [groups[draw.randrange(start, end)] for start, end in itertools.pairwise(ends)]


def log_ratios_of(
    groups: Sequence[Group],
    policy: torch.nn.Module,
    *,
    bf16: bool,
    temperature: float,
    report: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """log pi_theta(y_k|x) - log pi_ref(y_k|x) for each completion of groups with reference log-probs.

    Raises:
        DataError: naming a group without them.
    """
    ratios = []
    for group in groups:
        if group.reference_logprobs is None:
            raise DataError(f"{group.where}: has no reference log-probs; call add_reference first")
        values = logprobs_of([group], policy, bf16=bf16, temperature=temperature)[0]
        ratios.append([ours - theirs for ours, theirs in zip(values, group.reference_logprobs, strict=True)])
        if report:
            report(1)
    return ratios


def losses_of(
    groups: Sequence[Group],
    log_ratios: Sequence[Sequence[float]],
    objective: Losses,
    *,
    correction: Correction | None = None,
) -> list[float]:
    """The objective's loss of each group, given its log-ratios, with the proposal of those that the correction is for."""
    proposal = (lambda group: None) if correction is None else correction.of
    return [
        float(objective(torch.tensor([list(row)]), collate([group], proposals=[proposal(group)]))[0])
        for group, row in zip(groups, log_ratios, strict=True)
    ]


def accuracy(
    groups: Sequence[Group], log_ratios: Sequence[Sequence[float]], *, seed: int = 0
) -> dict[str, float] | None:
    """Share of groups whose best completion (the winner, or the most rewarded) has the largest log-ratio.

    Where several log-ratios are the largest, the group counts the share of them that are best; groups whose completions all
    have the same reward are left out.

    Returns:
        {"mean", "low", "high", "chance"}: a 95% bootstrap interval over groups, and what equal log-ratios would reach; None
        where no group has a best completion.
    """
    hits, chance = [], []
    for group, row in zip(groups, log_ratios, strict=True):
        if group.winner is not None:
            best = {group.winner}
        else:
            assert group.rewards is not None
            best = {k for k, reward in enumerate(group.rewards) if reward == max(group.rewards)}
        if len(best) == group.k:
            continue
        chance.append(len(best) / group.k)
        top = {k for k, value in enumerate(row) if value == max(row)}
        hits.append([len(best & top) / len(top)])
    if not hits:
        return None
    return {**cluster_bootstrap(hits, seed=seed).as_dict(), "chance": sum(chance) / len(chance)}
