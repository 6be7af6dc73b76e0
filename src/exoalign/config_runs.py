"""What the commands that do a single stage run: each as the sections that its settings `section.key=value` name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from exoalign.config import ModelSection
from exoalign.config_data import Section
from exoalign.config_reward_model import RewardModelSection
from exoalign.config_sft import SftSection


class SftRun(Section):
    """`exoalign sft`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelSection
    sft: SftSection


class RewardModelRun(Section):
    """`exoalign reward train`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelSection
    reward_model: RewardModelSection
