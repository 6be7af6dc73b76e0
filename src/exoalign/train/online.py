"""`OnlineExoTrainer`: EXO and DPO on completions of the policy as it trains, with the proposal correction.

Every `resample_every` steps the policy is sampled (iterative EXO). Its samples are corrected by c = log pi_ref - log mu, with
mu the policy that drew them, so that the optimum is the same pi* as with samples of the reference (`train.correction`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from exoalign.errors import ConfigError
from exoalign.groups import GroupBatch
from exoalign.losses import OBJECTIVES
from exoalign.train.arguments import ExoConfig
from exoalign.train.objective import objective_losses
from exoalign.train.rollout_config import RolloutConfig
from exoalign.train.rollouts import RolloutTrainer


@dataclass
class OnlineConfig(RolloutConfig, ExoConfig):
    """Arguments of `OnlineExoTrainer`: those of `RolloutConfig` and of `ExoConfig`.

    Raises:
        ConfigError: as those, and with one completion a prompt or an objective that learns from pairs.
    """

    temperature: float = field(default=1.0, metadata={"help": "logits are divided by it, sampler's and all others"})

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ConfigError(f"k is {self.k}; expected at least 2: one completion alone holds no preference")
        super().__post_init__()
        if OBJECTIVES[self.objective].needs != "rewards":
            raise ConfigError(
                f"objective is {self.objective}, which learns from pairs that somebody chose; online training has rewards:"
                " use exo_rw or dpo_rw"
            )


class OnlineExoTrainer(RolloutTrainer):
    """Aligns a causal language model on its own samples; see `RolloutTrainer` for the arguments, which it shares."""

    args: OnlineConfig

    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """The objective of each group, [B], given its log-probs [B, K]."""
        return objective_losses(self, model, values, batch)
