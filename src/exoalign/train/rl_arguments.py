"""The arguments of `PpoTrainer` and `RlooTrainer`: what both share, and each one's own.

Defaults are those of the code of arXiv 2403.17031 (vwxyzjn/summarize_from_feedback_details, `ppo.py`) where it has the setting,
and everything is said of in docs/ppo.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from exoalign.config_ppo import PpoSection
from exoalign.config_train import AlignSection
from exoalign.errors import ConfigError
from exoalign.train.rollout_config import RolloutConfig


@dataclass
class PolicyGradientConfig(RolloutConfig):
    """Arguments of a policy gradient: those of `RolloutConfig`, and the objective J = E[r] - beta KL(pi_theta || pi_ref).

    Attributes:
        beta: strength of the KL penalty; the same number as beta_pi * beta_r of EXO has the same optimum.
        missing_eos_penalty: taken from the reward of a completion that was cut at `max_new_tokens` (the "EOS trick" of
            2403.17031 puts -1 in its place; here what the reward told apart stays apart).

    Raises:
        ConfigError: if one is out of range, or if the policy is not sampled as it is.
    """

    beta: float = field(default=0.05, metadata={"help": "strength of the KL penalty"})
    missing_eos_penalty: float = field(default=0.0, metadata={"help": "taken from the reward of a cut completion"})
    learning_rate: float = field(default=3e-6, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "learning rate schedule"})
    adam_beta2: float = field(default=0.999, metadata={"help": "Adam's second decay"})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Adam's epsilon"})

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"beta is {self.beta}; expected a positive number")
        if not 0 <= self.missing_eos_penalty < float("inf"):
            raise ConfigError(f"missing_eos_penalty is {self.missing_eos_penalty}; expected a number of at least 0")
        if self.top_p < 1 or self.top_k:
            raise ConfigError(
                f"top_p is {self.top_p} and top_k {self.top_k}: the policy gradient is that of samples of the policy itself;"
                " leave them at 1 and 0"
            )
        super().__post_init__()


@dataclass
class RlooConfig(PolicyGradientConfig):
    """Arguments of `RlooTrainer`; its learning rate is the one of 2402.14740.

    Raises:
        ConfigError: as `PolicyGradientConfig`; with one completion a prompt, or several passes over a block.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "peak learning rate"})

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ConfigError(
                f"k is {self.k}; expected at least 2: the baseline of a completion is the mean of the others"
            )
        if self.passes_per_block != 1:
            raise ConfigError(
                f"passes_per_block is {self.passes_per_block}: RLOO takes one step on each sample, and nothing keeps further"
                " ones near the policy that drew it; leave it at 1, or use PPO"
            )
        super().__post_init__()


@dataclass
class PpoConfig(PolicyGradientConfig):
    """Arguments of `PpoTrainer`.

    A block of `resample_every` minibatches of `per_device_train_batch_size` prompts is one rollout; it is trained on
    `passes_per_block` times.

    Attributes:
        clip: the ratio of a token's probabilities counts up to 1 +- this.
        value_clip: a value counts as moved by this much at most since the rollout.
        value_coefficient: weight of the value's loss beside the policy's.
        value_learning_rate: of the value head, which begins at zero; the trunk below it has the policy's.
        gamma, lam: discount, and GAE's weight of longer returns.
        whiten_advantages: to mean 0 and variance 1 over the rollout's tokens.
        whiten_rewards: the rollout's token rewards to variance 1, their mean kept.
        scale_rewards: divide rewards and penalty by the deviation of all rewards so far.
        target_kl: adapt beta so that the KL stays near this many nats a completion; None leaves beta alone.
        kl_horizon: completions over which an adapted beta may change by a fifth.

    Raises:
        ConfigError: if one is out of range or has no effect.
    """

    passes_per_block: int = field(default=4, metadata={"help": "epochs over a rollout"})
    clip: float = field(default=0.2, metadata={"help": "range of the probability ratio"})
    value_clip: float = field(default=0.2, metadata={"help": "range of the value since the rollout"})
    value_coefficient: float = field(default=0.1, metadata={"help": "weight of the value's loss"})
    value_learning_rate: float = field(default=1e-4, metadata={"help": "peak learning rate of the value head"})
    gamma: float = field(default=1.0, metadata={"help": "discount"})
    lam: float = field(default=0.95, metadata={"help": "GAE's lambda"})
    whiten_advantages: bool = field(default=True, metadata={"help": "advantages to mean 0 and variance 1"})
    whiten_rewards: bool = field(default=False, metadata={"help": "token rewards to variance 1"})
    scale_rewards: bool = field(default=False, metadata={"help": "rewards by their running deviation"})
    target_kl: float | None = field(default=None, metadata={"help": "adapt beta to this KL in nats"})
    kl_horizon: float = field(default=10_000.0, metadata={"help": "completions over which beta adapts"})

    def __post_init__(self) -> None:
        for name in ("clip", "value_clip", "value_learning_rate", "kl_horizon", "target_kl"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; expected a positive number")
        if not 0 <= self.value_coefficient < float("inf"):
            raise ConfigError(f"value_coefficient is {self.value_coefficient}; expected a number of at least 0")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")
        if self.whiten_rewards and self.scale_rewards:
            raise ConfigError("whiten_rewards and scale_rewards both set the scale of the rewards; choose one")
        super().__post_init__()


def policy_gradient_arguments(section: AlignSection) -> tuple[type[PolicyGradientConfig], dict[str, Any]]:
    """The class of arguments for a recipe whose objective is `ppo` or `rloo`, and what is that objective's own.

    The strength of the KL penalty is beta_pi * beta_r, so that every objective of a recipe has the same optimum.
    """
    beta = {"beta": section.beta_pi * section.beta_r}
    if section.objective == "rloo":
        return RlooConfig, beta
    settings = (section.ppo or PpoSection()).model_dump()
    return PpoConfig, {**beta, "passes_per_block": settings.pop("epochs"), **settings}
