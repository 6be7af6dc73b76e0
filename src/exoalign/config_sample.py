"""The section of a recipe that says how completions are drawn: `sample`. Never imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from exoalign.config_data import Count, Positive, Section


class SampleSection(Section):
    """How completions are drawn from the model.

    Of the tokens at each place the `top_k` likeliest are kept (0: all), and of these the fewest that hold `top_p` of the
    probability. A completion ends at the model's end token, at the first of the texts in `stop` (which its text is then
    without) or after `max_new_tokens`. `batch_size` completions are drawn at once. `backend: vllm` needs
    `pip install 'exoalign[vllm]'` and a GPU.
    """

    k: Annotated[int, Field(ge=2)] = 8
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    stop: list[str] = Field(default_factory=list)
    max_new_tokens: Count = 128
    batch_size: Count = 64
    backend: Literal["transformers", "vllm"] = "transformers"

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: list[str]) -> list[str]:
        if not all(value):
            raise ValueError("`stop` holds an empty text, at which every completion would end; leave it out")
        if len(set(value)) < len(value):
            raise ValueError("a text stands twice in `stop`; leave one out")
        return value
