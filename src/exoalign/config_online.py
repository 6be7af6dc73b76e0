"""The section of a recipe that makes alignment sample by itself: `align.online`. Never imports torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from exoalign.config_data import Count, Section


class OnlineSection(Section):
    """Completions of the policy as it trains, in the place of samples that were drawn before.

    Every `resample_every` optimizer steps the prompts of these steps get `k` completions each from the policy of that moment
    (temperature, truncation and lengths are those of `sample`) and rewards. `align.epochs` says how often each prompt is
    sampled.
    """

    resample_every: Count = 1
    k: Annotated[int, Field(ge=2)] = 4
