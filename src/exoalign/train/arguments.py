"""Training arguments: transformers' with what any training on groups adds, and the paper's optimisation settings as defaults.

`GroupConfig` is common to all training on groups, `ExoConfig` adds the objective's own, and `arguments_of` reads a recipe's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import TrainingArguments

from exoalign.errors import ConfigError, DataError
from exoalign.groups import GroupBatch
from exoalign.losses import OBJECTIVES

UNREAD = (
    "label_smoothing_factor",
    "group_by_length",
    "label_names",
    "resume_from_checkpoint",
    "torch_empty_cache_steps",
)
"""Arguments of transformers' trainer that would do nothing here."""
RESUMING = {
    "save_total_limit": "the last two checkpoints are kept, and none when the stage is done",
    "save_only_model": "without the optimizer's state training cannot go on from a checkpoint",
    "restore_callback_states_from_checkpoint": "it would restore the wish to stop, too",
    "ignore_data_skip": "training would go on with groups that it has seen",
}
"""Arguments that would break going on from a checkpoint, and why."""


@dataclass
class GroupConfig(TrainingArguments):
    """Arguments of a `GroupTrainer`; batch sizes count groups (a prompt with its K completions).

    `per_device_train_batch_size` groups (times `gradient_accumulation_steps`) make an optimizer step, in as many passes as
    `max_tokens_per_pass` asks for: the step is the same whatever its passes, but for rounding.

    Defaults that differ from transformers' are the paper's: cosine schedule, no warm-up, Adam (0.9, 0.95).

    Attributes:
        max_tokens_per_pass: tokens that go through the model at once, a prompt counted once; memory grows with it. None
            takes as many as fit into memory and are of use.
        disable_dropout: switch dropout off.

    Raises:
        ConfigError: if `max_tokens_per_pass` is out of range.
    """

    max_tokens_per_pass: int | None = field(default=None, metadata={"help": "tokens that go through the model at once"})
    disable_dropout: bool = field(default=True, metadata={"help": "switch dropout off"})

    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second decay"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "epochs"})
    logging_steps: float = field(default=1, metadata={"help": "log every so many steps"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "groups are no columns"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "a NaN loss is an error here"})

    def __post_init__(self) -> None:
        if self.max_tokens_per_pass is not None and self.max_tokens_per_pass < 2:
            raise ConfigError(
                f"max_tokens_per_pass is {self.max_tokens_per_pass}; expected at least a prompt and its longest completion"
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # transformers refuses bf16 on a CPU that it was not told of
        super().__post_init__()


@dataclass
class ExoConfig(GroupConfig):
    """Arguments of `ExoTrainer`: those of `GroupConfig`, the objective, and the paper's learning rate 1e-6.

    Attributes:
        objective: exo_rw, exo_pref, dpo_rw or dpo_pref.
        beta_pi: scale of the log-ratios in q = softmax(beta_pi * rho).
        beta_r: scale of the rewards in p = softmax(r / beta_r); the effective KL strength is beta_pi * beta_r.
        epsilon: mass of the preference target on the loser; None takes the objective's own (1e-3 for exo_pref, 0 for
            dpo_pref).
        temperature: policy and reference logits are divided by it; the one that the completions were sampled at.
        correction: of completions that the reference did not draw, with rewards: auto, on or off; see `train.correction`.
        disable_dropout: switch dropout off, so that policy and reference see the same network.

    Raises:
        ConfigError: on an unknown objective or correction, or a beta, epsilon or temperature out of range.
    """

    objective: str = field(default="exo_rw", metadata={"help": "exo_rw, exo_pref, dpo_rw or dpo_pref"})
    beta_pi: float = field(default=0.5, metadata={"help": "scale of the log-ratios in q"})
    beta_r: float = field(default=0.5, metadata={"help": "scale of the rewards in p"})
    epsilon: float | None = field(default=None, metadata={"help": "mass of the target on the loser"})
    temperature: float = field(default=1.0, metadata={"help": "logits are divided by it, policy and reference alike"})
    correction: str = field(default="auto", metadata={"help": "of the proposal: auto, on or off"})
    learning_rate: float = field(default=1e-6, metadata={"help": "peak learning rate"})

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective is {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        for name in ("beta_pi", "beta_r", "temperature"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; expected a positive number")
        if self.epsilon is None:
            self.epsilon = OBJECTIVES[self.objective].default_epsilon
        elif not 0 <= self.epsilon < 0.5:
            raise ConfigError(f"epsilon is {self.epsilon}; expected a number from 0 up to 0.5")
        if self.correction not in ("auto", "on", "off"):
            raise ConfigError(f"correction is {self.correction!r}; expected auto, on or off")
        if self.correction == "on" and OBJECTIVES[self.objective].needs == "winner":
            raise ConfigError(
                f"correction is on with {self.objective}, whose target is a preference: it has no proposal to correct"
            )
        if self.objective == "exo_pref" and not self.epsilon:
            raise ConfigError("epsilon is 0 with exo_pref: the target has no mass on the loser; set it above 0")
        super().__post_init__()

    def loss(self, log_ratios: Tensor, batch: GroupBatch) -> Tensor:
        """The objective on the log-ratios [B, K] of a batch -> [B]."""
        objective = OBJECTIVES[self.objective]
        if getattr(batch, objective.needs) is None:  # without a winner, the functions would take column 0
            raise DataError(f"{self.objective} needs `{objective.needs}` for every group of a batch")
        if objective.needs == "rewards":
            return objective.function(
                log_ratios,
                batch.rewards,
                beta_pi=self.beta_pi,
                beta_r=self.beta_r,
                mask=batch.mask,
                proposal=batch.proposal,
            )
        return objective.function(log_ratios, batch.winner, beta_pi=self.beta_pi, epsilon=self.epsilon)


Arguments = TypeVar("Arguments", bound=GroupConfig)


def arguments_of(
    kind: type[Arguments], ours: Mapping[str, Any], trainer: Mapping[str, Any], *, section: str
) -> Arguments:
    """The trainer's arguments that a section of a recipe asks for.

    Args:
        kind: their class.
        ours: what the recipe's own settings say.
        trainer: the section's `trainer`: further arguments by the user.
        section: the section's name, for the errors.

    Raises:
        ConfigError: naming the key of `trainer` that is unknown, or that the recipe has a setting of its own for.
    """
    known = [f.name for f in fields(kind)]
    for key in trainer:
        where = f"{section}.trainer.{key}"
        if key.endswith("_token"):
            raise ConfigError(f"{where}: a recipe is kept with the run and shown; set HF_TOKEN in the environment")
        if key in UNREAD:
            raise ConfigError(f"{where} has no effect here; leave it out")
        if key in RESUMING:
            raise ConfigError(f"{where}: leave it out: {RESUMING[key]}")
        if key in ours:
            raise ConfigError(f"{where}: the recipe sets this itself ({section}, model, seed or out); set it there")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(f"{where} is no argument of the trainer" + (f"; did you mean {near[0]}?" if near else ""))
    defaults = {"save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": torch.accelerator.is_available()}
    try:
        arguments = kind(**{**defaults, **trainer, **ours})
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{section}.trainer: {error}") from error
    if arguments.n_gpu > 1:
        raise ConfigError(f"{arguments.n_gpu} GPUs and one process: a run uses one; set CUDA_VISIBLE_DEVICES=0")
    return arguments
