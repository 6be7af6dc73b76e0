"""The objectives on log-probs, with what is noted of them: common to training on ready groups and on the policy's own samples.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exoalign.errors import TrainingError
from exoalign.groups import GroupBatch
from exoalign.losses import policy_log_probs, preference_target, reward_target
from exoalign.objectives import OBJECTIVES, best_of
from exoalign.train.arguments import ExoConfig
from exoalign.train.diagnostics import step_metrics


def objective_losses(
    args: ExoConfig, values: Tensor, batch: GroupBatch, *, note: Callable[..., None] | None = None
) -> Tensor:
    """The objective of each group, [B], given its log-probs [B, K].

    Args:
        args: the objective and its settings.
        values: log pi_theta of each completion.
        batch: with reference log-probs, and the proposal where there is one to correct.
        note: takes the metrics, summed over the groups, by name.

    Raises:
        TrainingError: if the batch has no reference log-probs.
    """
    if batch.reference_logprobs is None:
        raise TrainingError("the groups have no reference log-probs; call train() or prepare_reference() first")
    log_ratios = torch.where(batch.mask, values - batch.reference_logprobs.to(values.dtype), 0.0)
    if note is not None:
        note(**objective_metrics(args, log_ratios.detach(), batch))
    losses = args.loss(log_ratios, batch)
    return losses + args.nll_weight * best_nll(values, batch) if args.nll_weight else losses


def best_nll(values: Tensor, batch: GroupBatch) -> Tensor:
    """The negative log-likelihood a token of each group's best completion, [B], given log-probs [B, K]."""
    best = batch.winner if batch.rewards is None else best_of(batch.rewards, batch.mask)
    assert best is not None
    tokens = batch.completion_lengths if batch.completion_masks is None else batch.completion_masks.sum(-1)
    chosen = values.gather(1, best[:, None]) / tokens.gather(1, best[:, None]).clamp(min=1)
    return -chosen.squeeze(1)


def objective_metrics(args: ExoConfig, log_ratios: Tensor, batch: GroupBatch) -> dict[str, Tensor]:
    """What `step_metrics` says of the batch under the objective's q and p, summed over its groups."""
    mask = batch.mask
    if batch.rewards is not None and OBJECTIVES[args.objective].needs == "rewards":
        shared = {"mask": mask, "proposal": batch.proposal}
        log_q = policy_log_probs(log_ratios, beta_pi=args.beta_pi, **shared)
        log_p = reward_target(batch.rewards, beta_r=args.beta_r, **shared)
        return step_metrics(log_ratios, log_q, log_p, mask, batch.rewards, None, batch.proposal)
    log_q = policy_log_probs(log_ratios, beta_pi=args.beta_pi, mask=mask)
    log_p = preference_target(batch.winner, epsilon=args.epsilon or 0.0, like=log_ratios)
    return step_metrics(log_ratios, log_q, log_p, mask, None, batch.winner)
