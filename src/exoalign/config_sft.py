"""The section of a recipe that says how a model is fine-tuned on examples: `sft`. Never imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from exoalign.config_data import Count, DataSection, Positive
from exoalign.config_train import TrainingSection

LossOn = Literal["completions", "all"]
"""Which tokens are learnt: of completions (in a conversation what the assistant wrote), or the prompt's and all others' too."""


class SftSection(TrainingSection):
    """Supervised fine-tuning on examples, before everything else: what comes out is the policy and the reference of `align`.

    `data` are examples: plain texts, conversations, prompts with a reply, or groups, of which the best completion is learnt.
    `loss_on` says which of their tokens: those of `completions`, or `all`. Every token weighs the same.

    `rows_per_step` examples make one optimizer step (see `TrainingSection` too). An adapter (`lora`) is merged into the model
    at the end, so that all that follows has a plain model to work with; `merge: false` leaves it as it is, and so does
    `lora.quantize`.
    """

    data: DataSection
    loss_on: LossOn = "completions"
    learning_rate: Positive = 2e-5
    rows_per_step: Count = 16
    merge: bool = True

    @model_validator(mode="after")
    def _check(self) -> SftSection:
        if "completions" in self.data.model_fields_set:
            raise ValueError(
                "`data.completions` has no effect here: of a group its best completion is learnt; leave it out"
            )
        if self.lora is None and "merge" in self.model_fields_set:
            raise ValueError("`merge` has no effect without `lora`; leave it out")
        return self
