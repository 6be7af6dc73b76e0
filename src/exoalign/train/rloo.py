"""`RlooTrainer`: REINFORCE with a leave-one-out baseline, the simplest policy gradient that one should be compared with.

A completion is one action (Ahmadian et al. 2024, "Back to Basics", arXiv 2402.14740). With K completions of a prompt from the
policy and R_k = r_k - beta (log pi_theta(y_k|x) - log pi_ref(y_k|x)),

    gradient of J = mean_k (R_k - mean of R_j, j != k) grad log pi_theta(y_k|x)

There is no value function, no clipping and no whitening. Departure: where a rollout is worth several steps
(`resample_every` > 1) those after the first weigh a completion with pi_theta / mu, mu the policy that drew it, which keeps the
estimate unbiased; in the first the weight is 1 but for rounding.

`PolicyGradientTrainer` is what RLOO and PPO share. Shape legend: B groups, K completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exoalign.data.collate import collate
from exoalign.groups import Group, GroupBatch
from exoalign.rl_losses import rloo_loss
from exoalign.train.correction import proposal_of
from exoalign.train.rl_arguments import PolicyGradientConfig, RlooConfig
from exoalign.train.rollouts import RolloutTrainer


class PolicyGradientTrainer(RolloutTrainer):
    """A `RolloutTrainer` whose rewards are lowered where a completion was cut; see there for the arguments."""

    args: PolicyGradientConfig

    def checked(self, groups: list[Group]) -> list[Group]:
        """The groups, `missing_eos_penalty` taken from the rewards of completions without an end."""
        return penalised(groups, self.args.missing_eos_penalty)


def penalised(groups: Sequence[Group], penalty: float) -> list[Group]:
    """The groups with `penalty` taken from the reward of each completion that the sampler cut at its greatest length.

    A missing EOS is a reward that the policy must not learn to collect: 2403.17031, "EOS trick".
    """
    if not penalty:
        return list(groups)
    found = []
    for group in groups:
        assert group.rewards is not None
        pairs = zip(group.rewards, group.provenance["finish"], strict=True)
        found.append(replace(group, rewards=tuple(r - penalty * (finish == "length") for r, finish in pairs)))
    return found


class RlooTrainer(PolicyGradientTrainer):
    """Trains by the leave-one-out policy gradient; see `RolloutTrainer` for the arguments, which it shares."""

    args: RlooConfig

    def inputs_of(self, groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The tensors of B groups, with c = log pi_ref - log mu as their proposal."""
        return collate(groups, proposals=[proposal_of(group) for group in groups]).as_dict()

    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """The loss of each group, [B], whose gradient is that of -J."""
        assert batch.rewards is not None
        assert batch.reference_logprobs is not None
        assert batch.proposal is not None
        reference, mask = batch.reference_logprobs, batch.mask
        sampler = reference - batch.proposal  # c = log pi_ref - log mu
        if model.training:
            log_ratios = torch.where(mask, values.detach() - reference, 0.0)
            self.note(log_ratio=(log_ratios.sum(-1) / mask.sum(-1).clamp(min=1)).sum())
        return rloo_loss(values, batch.rewards, reference, sampler, mask, beta=self.args.beta)
