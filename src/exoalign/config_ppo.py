"""The section `align.ppo` of a recipe: how PPO goes about it. Never imports torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from exoalign.config_data import Count, Positive, Section

Share = Annotated[float, Field(ge=0, le=1)]
AtLeastNothing = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PpoSection(Section):
    """Proximal policy optimisation; the strength of the KL penalty is `align.beta_pi` times `align.beta_r`, as for EXO.

    A rollout is trained on `epochs` times. `target_kl` adapts the penalty to a KL in nats, and then the optimum is no more that
    of one beta. `missing_eos_penalty` is taken from the reward of a completion that was cut.
    """

    epochs: Count = 4
    clip: Positive = 0.2
    value_clip: Positive = 0.2
    value_coefficient: AtLeastNothing = 0.1
    value_learning_rate: Positive = 1e-4
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    scale_rewards: bool = False
    target_kl: Positive | None = None
    kl_horizon: Positive = 10_000.0
    missing_eos_penalty: AtLeastNothing = 0.0

    @model_validator(mode="after")
    def _check(self) -> PpoSection:
        if self.whiten_rewards and self.scale_rewards:
            raise ValueError("`whiten_rewards` and `scale_rewards` both set the scale of the rewards; choose one")
        if self.target_kl is None and "kl_horizon" in self.model_fields_set:
            raise ValueError("`kl_horizon` has no effect without `target_kl`; leave it out")
        return self
