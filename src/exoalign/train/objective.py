"""The objectives on log-probs, with what is noted of them: common to training on ready groups and on the policy's own samples.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from exoalign.errors import TrainingError
from exoalign.groups import GroupBatch
from exoalign.losses import OBJECTIVES, policy_log_probs, preference_target, reward_target
from exoalign.train.arguments import ExoConfig
from exoalign.train.diagnostics import step_metrics


class _Trainer(Protocol):
    args: ExoConfig

    def note(self, **sums: Tensor) -> None: ...


def objective_losses(trainer: _Trainer, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
    """The objective of each group, [B], given its log-probs [B, K]; while the model trains, its metrics are noted.

    Raises:
        TrainingError: if the batch has no reference log-probs.
    """
    if batch.reference_logprobs is None:
        raise TrainingError("the groups have no reference log-probs; call train() or prepare_reference() first")
    log_ratios = torch.where(batch.mask, values - batch.reference_logprobs.to(values.dtype), 0.0)
    losses = trainer.args.loss(log_ratios, batch)
    if model.training:
        trainer.note(**objective_metrics(trainer.args, log_ratios.detach(), batch))
    return losses


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
