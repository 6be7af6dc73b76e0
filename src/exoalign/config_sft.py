"""The section of a recipe that says how a model is fine-tuned on examples: `sft`. Never imports torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from exoalign.config_data import Count, DataSection, Positive, Section
from exoalign.config_train import LoraSection

LossOn = Literal["completions", "all"]
"""Which tokens are learnt: of completions (in a conversation what the assistant wrote), or the prompt's and all others' too."""


class SftSection(Section):
    """Supervised fine-tuning on examples, before everything else: what comes out is the policy and the reference of `align`.

    `data` are examples: plain texts, conversations, prompts with a reply, or groups, of which the best completion is learnt.
    `loss_on` says which of their tokens: those of `completions`, or `all`. Every token weighs the same.

    `rows_per_step` examples make one optimizer step; `max_tokens_per_pass` tokens go through the model at once (`auto`: as many
    as are of use and fit into memory). Memory grows with the second, and the result depends on the first only.
    `lora` trains an adapter, which is merged into the model at the end, so that all that follows has a plain model to work
    with; `merge: false` leaves the adapter as it is, and so does `lora.quantize`.
    A checkpoint is written every `checkpoint_minutes`, so that a run that was stopped goes on from there.
    `trainer` holds any further argument of transformers' `TrainingArguments`.
    """

    data: DataSection
    loss_on: LossOn = "completions"
    learning_rate: Positive = 2e-5
    epochs: Positive = 1.0
    rows_per_step: Count = 16
    max_tokens_per_pass: Count | Literal["auto"] = "auto"
    checkpoint_minutes: Positive = 10.0
    lora: LoraSection | None = None
    merge: bool = True
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> SftSection:
        if "completions" in self.data.model_fields_set:
            raise ValueError(
                "`data.completions` has no effect here: of a group its best completion is learnt; leave it out"
            )
        if self.lora is not None and self.lora.dropout and self.trainer.get("disable_dropout", True):
            raise ValueError(
                "`lora.dropout` has no effect while all dropout is off; set trainer.disable_dropout to false too"
            )
        return self
