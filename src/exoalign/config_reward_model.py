"""The section of a recipe that says how a reward model is trained: `reward_model`. Never imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from exoalign.config_data import Count, DataSection, Positive
from exoalign.config_train import TrainingSection

RewardKind = Literal["ranking", "classifier"]


class RewardModelSection(TrainingSection):
    """A reward model, trained on preferences (`kind: ranking`) or on labelled texts (`kind: classifier`).

    A ranking learns from pairs (Bradley and Terry), and from ratings, rankings or K completions with rewards (Plackett and
    Luce). A classifier learns from rows `text, label` with 0 or 1, and its reward is the log-odds of label 1.
    `model` is a causal model, whose layers get a fresh head, or a reward model to train further; null is the run's model.
    `margin` asks of a pair the difference in reward that the data says. `centring` times the squared sum of a group's rewards
    is added to the loss, which keeps rewards around 0 (0.01 in the paper). Inputs longer than `max_tokens`, or than the model
    takes, are cut at the left.

    `groups_per_step` groups or texts make one optimizer step (see `TrainingSection` too). An adapter (`lora`) is merged into
    the model that is saved.
    """

    data: DataSection
    kind: RewardKind = "ranking"
    model: str | None = None
    margin: bool = False
    centring: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    learning_rate: Positive = 1e-5
    groups_per_step: Count = 16

    @model_validator(mode="after")
    def _check(self) -> RewardModelSection:
        unread = {"margin", "centring"} if self.kind == "classifier" else set()
        for name in sorted(unread & self.model_fields_set):
            raise ValueError(f"`{name}` has no effect with kind: classifier; leave it out")
        for name in ("max_prompt_tokens", "max_completion_tokens", "truncation"):
            if name in self.data.model_fields_set:
                raise ValueError(
                    f"`data.{name}` has no effect on a reward model, whose inputs are cut at the left; set `max_tokens`"
                )
        if self.kind == "classifier" and "completions" in self.data.model_fields_set:
            raise ValueError("`data.completions` has no effect with kind: classifier, whose rows are single texts")
        if self.lora is not None and self.lora.quantize is not None:
            raise ValueError(
                "`lora.quantize` has no effect here: the adapter is merged into weights of 32 bits; leave it out"
            )
        return self
