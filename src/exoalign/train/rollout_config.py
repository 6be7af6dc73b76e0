"""The arguments of trainers that sample the policy as it trains: see `train.rollouts`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from exoalign.errors import ConfigError
from exoalign.sampling import SamplingSettings
from exoalign.train.arguments import GroupConfig


@dataclass
class RolloutConfig(GroupConfig):
    """Arguments of a `RolloutTrainer`: those of `GroupConfig`, and how the policy is sampled.

    `num_train_epochs` says how often each prompt is sampled.

    Attributes:
        k: completions for each prompt.
        resample_every: steps that go over a block's groups once: the policy is sampled every so many steps (times
            `passes_per_block`).
        passes_per_block: how often a block's groups are trained on.
        temperature: the logits are divided by it, when sampling and in all log-probs.
        top_p, top_k, stop, max_new_tokens: as `SamplingSettings`.
        sampling_batch_size: completions drawn at once.

    Raises:
        ConfigError: if one is out of range.
    """

    k: int = field(default=4, metadata={"help": "completions for each prompt"})
    resample_every: int = field(default=1, metadata={"help": "steps between two samplings of the policy"})
    passes_per_block: int = field(default=1, metadata={"help": "how often a block's groups are trained on"})
    temperature: float = field(default=1.0, metadata={"help": "logits are divided by it, sampler's and all others"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus that is sampled from"})
    top_k: int = field(default=0, metadata={"help": "likeliest tokens that are sampled from; 0: all"})
    stop: tuple[str, ...] = field(default=(), metadata={"help": "texts at which a completion ends"})
    max_new_tokens: int = field(default=128, metadata={"help": "completions end here at the latest"})
    sampling_batch_size: int = field(default=64, metadata={"help": "completions drawn at once"})

    def __post_init__(self) -> None:
        for name in ("k", "resample_every", "passes_per_block", "max_new_tokens", "sampling_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; expected a positive number")
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(f"top_p is {self.top_p} and top_k {self.top_k}; expected above 0 up to 1, and at least 0")
        super().__post_init__()

    def sampling(self, block: int) -> SamplingSettings:
        """How a block's completions are drawn."""
        seed = int(np.random.SeedSequence([self.seed, block]).generate_state(1)[0])
        return SamplingSettings(
            self.k, self.temperature, self.top_p, self.max_new_tokens, seed, self.top_k, tuple(self.stop)
        )
