"""`SftTrainer`: supervised fine-tuning on examples, groups of one completion: the first stage of the chain.

The loss of an optimizer step is - sum_t log pi(y_t | x, y_<t) / T over all its tokens that count, T of them: the cross-entropy
that transformers computes from `labels`, and each token weighs the same whatever the passes and the gradient accumulation.
Several examples share a row of the model, each seeing its own tokens only (`logprobs.pack`).

Ten lines fine-tune a model::

    from exoalign import Group
    from exoalign.train.sft import SftConfig, SftTrainer

    examples = [Group("Question: What is the sky?\nAnswer:", (" Blue.",)), ...]
    trainer = SftTrainer(model="demo", args=SftConfig("out"), train_dataset=examples)
    trainer.train()
    trainer.save_model("tuned")

Shapes: B examples, K = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exoalign.errors import DataError
from exoalign.groups import Group, GroupBatch
from exoalign.train.arguments import GroupConfig
from exoalign.train.group_trainer import GroupTrainer


@dataclass
class SftConfig(GroupConfig):
    """Arguments of `SftTrainer`: those of `GroupConfig`, with a learning rate of 2e-5. A group is an example."""

    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})


class SftTrainer(GroupTrainer):
    """Fine-tunes a causal language model on the completions of examples: see `GroupTrainer` for the arguments.

    Logged at each step: `loss` in nats a token, and `perplexity`, its exponential. `eval_loss` of an `eval_dataset` is the
    mean over batches of this loss; `exoalign.evaluate.perplexity` weighs every token the same.

    Raises:
        DataError: naming the first group that has several completions.
    """

    args: SftConfig

    def __init__(self, model: Any, args: SftConfig, train_dataset: Sequence[Group], *others: Any, **named: Any) -> None:
        for groups in (train_dataset, others[0] if others else named.get("eval_dataset")):
            for group in groups or ():
                if group.k != 1:
                    raise DataError(
                        f"{group.where}: {group.k} completions, expected 1; choose the one to learn, as"
                        " exoalign.data.examples.best does"
                    )
        super().__init__(model, args, train_dataset, *others, **named)

    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """- log pi(y|x) of each example, [B], in nats."""
        return -values[:, 0]

    def count(self, batch: GroupBatch) -> int:
        """The tokens that count."""
        if batch.completion_masks is not None:
            return int(batch.completion_masks.sum())
        return int(batch.completion_lengths.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and note the perplexity of a step's loss in the history."""
        super().log(logs, start_time)
        last = self.state.log_history[-1]
        if "loss" in last:
            last["perplexity"] = perplexity(last["loss"])


def perplexity(loss: float) -> float:
    """exp(loss) of a loss in nats a token, and no more than a float holds."""
    return math.exp(min(loss, 700.0))
