"""`ExoConfig`: transformers' training arguments with the objective's own, and the paper's optimisation settings as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import TrainingArguments

from exoalign.errors import ConfigError, DataError
from exoalign.groups import GroupBatch
from exoalign.losses import OBJECTIVES


@dataclass
class ExoConfig(TrainingArguments):
    """Arguments of `ExoTrainer`; batch sizes count groups (a prompt with its K completions).

    `per_device_train_batch_size` groups (times `gradient_accumulation_steps`) make an optimizer step, in as many passes as
    `max_tokens_per_pass` asks for: the step is the same whatever its passes, but for rounding.

    Defaults that differ from transformers' are the paper's: learning rate 1e-6, cosine, no warm-up, Adam (0.9, 0.95).

    Attributes:
        objective: exo_rw, exo_pref, dpo_rw or dpo_pref.
        beta_pi: scale of the log-ratios in q = softmax(beta_pi * rho).
        beta_r: scale of the rewards in p = softmax(r / beta_r); the effective KL strength is beta_pi * beta_r.
        epsilon: mass of the preference target on the loser; None takes the objective's own (1e-3 for exo_pref, 0 for
            dpo_pref).
        temperature: policy and reference logits are divided by it; the one that the completions were sampled at.
        max_tokens_per_pass: tokens that go through the model at once, a prompt counted once; memory grows with it. None
            takes as many as fit into memory and are of use.
        disable_dropout: switch dropout off, so that policy and reference see the same network.

    Raises:
        ConfigError: on an unknown objective, or a beta, epsilon or temperature out of range.
    """

    objective: str = field(default="exo_rw", metadata={"help": "exo_rw, exo_pref, dpo_rw or dpo_pref"})
    beta_pi: float = field(default=0.5, metadata={"help": "scale of the log-ratios in q"})
    beta_r: float = field(default=0.5, metadata={"help": "scale of the rewards in p"})
    epsilon: float | None = field(default=None, metadata={"help": "mass of the target on the loser"})
    temperature: float = field(default=1.0, metadata={"help": "logits are divided by it, policy and reference alike"})
    max_tokens_per_pass: int | None = field(default=None, metadata={"help": "tokens that go through the model at once"})
    disable_dropout: bool = field(default=True, metadata={"help": "switch dropout off"})

    learning_rate: float = field(default=1e-6, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second decay"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "epochs"})
    logging_steps: float = field(default=1, metadata={"help": "log every so many steps"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "groups are no columns"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "a NaN loss is an error here"})

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective is {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        for name in ("beta_pi", "beta_r", "temperature"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; expected a positive number")
        if self.max_tokens_per_pass is not None and self.max_tokens_per_pass < 2:
            raise ConfigError(
                f"max_tokens_per_pass is {self.max_tokens_per_pass}; expected at least a prompt and its longest completion"
            )
        if self.epsilon is None:
            self.epsilon = OBJECTIVES[self.objective].default_epsilon
        elif not 0 <= self.epsilon < 0.5:
            raise ConfigError(f"epsilon is {self.epsilon}; expected a number from 0 up to 0.5")
        if self.objective == "exo_pref" and not self.epsilon:
            raise ConfigError("epsilon is 0 with exo_pref: the target has no mass on the loser; set it above 0")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # transformers refuses bf16 on a CPU that it was not told of
        super().__post_init__()

    def loss(self, log_ratios: Tensor, batch: GroupBatch) -> Tensor:
        """The objective on the log-ratios [B, K] of a batch -> [B]."""
        objective = OBJECTIVES[self.objective]
        if getattr(batch, objective.needs) is None:  # without a winner, the functions would take column 0
            raise DataError(f"{self.objective} needs `{objective.needs}` for every group of a batch")
        if objective.needs == "rewards":
            return objective.function(
                log_ratios, batch.rewards, beta_pi=self.beta_pi, beta_r=self.beta_r, mask=batch.mask
            )
        return objective.function(log_ratios, batch.winner, beta_pi=self.beta_pi, epsilon=self.epsilon)
