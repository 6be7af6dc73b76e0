"""`RewardTrainer`: learns a reward model from pairs, rankings or labelled texts.

The value of a completion is its reward, read at its last token; a prompt is computed once for all its completions. Groups need
the ids that `rewards.inputs.laid_out` gives them.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exoalign.errors import ConfigError
from exoalign.groups import GroupBatch
from exoalign.logprobs.engine import completion_scores
from exoalign.models import autocast
from exoalign.reward_losses import bradley_terry, centring, cross_entropy, plackett_luce
from exoalign.rewards.model import reward_of
from exoalign.train.arguments import GroupConfig
from exoalign.train.group_trainer import GroupTrainer

LABELS = {"ranking": 1, "classifier": 2}
"""Labels that the head of each kind has."""


@dataclass
class RewardConfig(GroupConfig):
    """Arguments of `RewardTrainer`: those of `GroupConfig`, and the loss.

    Attributes:
        kind: `ranking`: groups with a winner or with rewards, by Bradley and Terry or Plackett and Luce; or `classifier`: each
            completion's reward is its label, 0 or 1.
        margin: ask of a winner that it is better by the difference of the group's rewards.
        centring: this much of the squared sum of a group's rewards is added to its loss.

    Raises:
        ConfigError: on an unknown kind, or where something has no effect.
    """

    kind: str = field(default="ranking", metadata={"help": "ranking or classifier"})
    margin: bool = field(default=False, metadata={"help": "ask of a winner the margin of the data"})
    centring: float = field(default=0.0, metadata={"help": "weight of the squared sum of a group's rewards"})
    learning_rate: float = field(default=1e-5, metadata={"help": "peak learning rate"})

    def __post_init__(self) -> None:
        if self.kind not in LABELS:
            raise ConfigError(f"kind is {self.kind!r}; expected one of {', '.join(LABELS)}")
        if self.kind == "classifier" and (self.margin or self.centring):
            raise ConfigError("margin and centring have no effect with kind: classifier; leave them out")
        if not 0 <= self.centring < float("inf"):
            raise ConfigError(f"centring is {self.centring}; expected a number of at least 0")
        super().__post_init__()


class RewardTrainer(GroupTrainer):
    """Trains a sequence classification model on groups; see `GroupTrainer` for the arguments, which it shares.

    The model must be loaded already (`rewards.load.load_reward_model`) and its padding token chosen (`rewards.padding`).
    """

    args: RewardConfig
    values_are = "rewards"

    def values(self, model: torch.nn.Module, batch: GroupBatch) -> Tensor:
        """The reward of each completion, [B, K]."""
        with autocast(batch.prompt_ids.device, bf16=self.args.bf16):
            return reward_of(completion_scores(model, batch))

    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """The loss of each group, [B]."""
        mask = batch.mask
        if self.args.kind == "classifier":
            assert batch.rewards is not None
            if model.training:
                right = (values > 0) == (batch.rewards > 0.5)
                self.note(accuracy=(torch.where(mask, right, False).sum(-1) / mask.sum(-1)).sum())
            return cross_entropy(values, batch.rewards, mask)
        order: Any = batch.rewards
        if batch.winner is not None:
            order = torch.nn.functional.one_hot(batch.winner, values.shape[1])
            margin = None
            if self.args.margin:
                assert batch.rewards is not None
                margin = (batch.rewards[:, 0] - batch.rewards[:, 1]).abs()
            losses = bradley_terry(values, batch.winner, margin)
        else:
            losses = plackett_luce(values, batch.rewards, mask)  # type: ignore[arg-type]  # one of both is there
        if model.training:
            self.note(accuracy=ordered_rightly(values.detach(), order, mask).sum())
        if self.args.centring:
            losses = losses + self.args.centring * centring(values, mask)
        return losses


def ordered_rightly(values: Tensor, order: Tensor, mask: Tensor) -> Tensor:
    """Of the pairs of a group that `order` tells apart, the share that `values` order alike, ties half: [B, K] -> [B].

    A group without such a pair counts 1/2.
    """
    real = mask[:, :, None] & mask[:, None, :]
    better = real & (order[:, :, None] > order[:, None, :])  # [B, k, j]: k is better than j
    difference = values[:, :, None] - values[:, None, :]
    right = torch.where(better, (difference > 0).float() + 0.5 * (difference == 0).float(), 0.0).sum((1, 2))
    pairs = better.sum((1, 2))
    return torch.where(pairs > 0, right / pairs.clamp(min=1), 0.5)
