"""The objectives on log-probs, with what is noted of them: common to training on ready groups and on the policy's own samples.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exoalign.errors import TrainingError
from exoalign.groups import GroupBatch
from exoalign.losses import OBJECTIVES, policy_log_probs, preference_target, reward_target
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
    return args.loss(log_ratios, batch)


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
