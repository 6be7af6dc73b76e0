"""The sections of a recipe that say how models are trained: `align` and what is common to all training. Never imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from exoalign.config_data import CompletionsSection, Count, Positive, Section
from exoalign.config_online import OnlineSection
from exoalign.config_ppo import PpoSection

ObjectiveName = Literal["exo_rw", "exo_pref", "dpo_rw", "dpo_pref", "ipo", "sft_best", "ppo", "rloo"]
PAIRED = ("exo_pref", "dpo_pref", "ipo")
"""The objectives that learn from pairs with a winner."""
POLICY_GRADIENTS = ("ppo", "rloo")
"""Objectives that only samples of the policy itself serve."""
UNREAD = {
    "exo_rw": ("epsilon", "ppo"),
    "dpo_rw": ("epsilon", "ppo"),
    "exo_pref": ("beta_r", "correction", "ppo"),
    "dpo_pref": ("beta_r", "correction", "ppo"),
    "ipo": ("beta_r", "epsilon", "correction", "ppo"),
    "sft_best": ("beta_pi", "beta_r", "epsilon", "correction", "ppo"),
    "ppo": ("epsilon", "nll_weight", "correction"),
    "rloo": ("epsilon", "nll_weight", "correction", "ppo"),
}
"""The settings that an objective does not read."""


class LoraSection(Section):
    """An adapter that is trained in place of the model's own weights; needs `pip install 'exoalign[lora]'`.

    `target_modules` are names of linear layers, or `all-linear` (all but the head). What the adapter adds is scaled by
    alpha / r. `quantize: 4bit` holds the base in 4 bits (QLoRA); it needs CUDA and bitsandbytes, and then all stages
    sample from and compare with the model of 4 bits.
    """

    r: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"
    quantize: Literal["4bit"] | None = None

    @field_validator("target_modules", mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("expected names of linear layers as a list, or all-linear")
        return value


class TrainingSection(Section):
    """What all training has in common.

    `max_tokens_per_pass` tokens go through the model at once (`auto`: as many as are of use and fit into memory): memory grows
    with it, and the result does not depend on it. `lora` trains an adapter; without it all weights are trained. Every
    `checkpoint_minutes` what is trained so far is saved, so that the same command goes on from there after an interruption.
    `trainer` holds any further argument of transformers' `TrainingArguments`.
    """

    learning_rate: Positive = 1e-6
    epochs: Positive = 1.0
    max_tokens_per_pass: Count | Literal["auto"] = "auto"
    checkpoint_minutes: Positive = 10.0
    lora: LoraSection | None = None
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_dropout(self) -> TrainingSection:
        if self.lora is not None and self.lora.dropout and self.trainer.get("disable_dropout", True):
            raise ValueError(
                "`lora.dropout` has no effect while all dropout is off; set trainer.disable_dropout to false too"
            )
        return self


class AlignSection(TrainingSection):
    """The objective and its optimisation (see `TrainingSection` too).

    `groups_per_step` groups make one optimizer step. `completions` chooses among those that were sampled, for example the best
    and the worst as a pair. `nll_weight` adds so much of the negative log-likelihood a token of the best completion. `online`
    samples the policy as it trains. `correction` is that of the proposal, for completions that the reference did not draw;
    `auto` makes it where they say so.

    `ppo` and `rloo` are the baselines: they need `online`, and their KL penalty has the strength beta_pi times beta_r, at which
    their optimum is that of EXO. The section `ppo` says how PPO goes about it.
    """

    objective: ObjectiveName = "exo_rw"
    completions: CompletionsSection = CompletionsSection()
    beta_pi: Positive = 0.5
    beta_r: Positive = 0.5
    epsilon: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    nll_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    temperature: Positive | None = None
    correction: Literal["auto", "on", "off"] = "auto"
    online: OnlineSection | None = None
    ppo: PpoSection | None = None
    groups_per_step: Count = 8

    @model_validator(mode="after")
    def _check(self) -> AlignSection:
        if self.objective == "exo_pref" and self.epsilon == 0:
            raise ValueError(
                "`epsilon` is 0 with exo_pref: the target has no mass on the loser, so the reverse KL is infinite;"
                " set epsilon above 0 (1e-3 in the paper) or use dpo_pref"
            )
        if self.objective in POLICY_GRADIENTS and self.online is None:
            raise ValueError(
                f"`objective` is {self.objective}, which learns from samples of the policy as it trains: give an `online`"
                " section too, for example {k: 4}"
            )
        if self.online is not None:
            if self.objective in PAIRED:
                raise ValueError(
                    f"`objective` is {self.objective}, which learns from pairs, and `online` samples have rewards: use"
                    " exo_rw or dpo_rw"
                )
            if "completions" in self.model_fields_set:
                raise ValueError(
                    "`completions` has no effect with `online`: all of its `k` are trained on; leave it out"
                )
        for name in sorted(self.model_fields_set.intersection(UNREAD[self.objective])):
            raise ValueError(f"`{name}` has no effect with {self.objective}; leave it out")
        return self
