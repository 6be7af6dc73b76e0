"""A comparison's recipe: one task, many methods, each with the same strengths of the KL penalty and the same seeds.

Never imports torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from exoalign.config_data import Count, Positive, Section
from exoalign.config_reward import TRAINED, ScorerSection
from exoalign.config_reward_model import RewardModelSection

Seed = Annotated[int, Field(ge=0, lt=2**32)]
SLUG = re.compile(r"[a-z0-9][a-z0-9_-]*")


class MethodSection(Section):
    """One method: what it changes in the task's section `align`, or `best_of`: the best of so many samples, without training.

    `label` is its name on the page.
    """

    label: str | None = None
    align: dict[str, Any] = Field(default_factory=dict)
    best_of: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _check(self) -> MethodSection:
        if (self.best_of is None) == (not self.align):
            raise ValueError("a method has either `align`, what it changes in the task's section, or `best_of`")
        return self


class SearchSection(Section):
    """What is tried for every trained method before the comparison, each with `seed`, on prompts that are not evaluated later.

    `learning_rate` are the values; that with the largest reward - beta KL on the first `prompts` of the evaluation's is used
    for all seeds. Every method gets the same number of trials.
    """

    learning_rate: Annotated[list[Positive], Field(min_length=2)]
    prompts: Count = 32
    seed: Seed = 1_000_000


class SmallSection(Section):
    """What `--small` changes: `seeds`, `betas`, further `settings` of the task; and nothing is searched for."""

    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0])
    betas: Annotated[list[Positive], Field(min_length=1)] | None = None
    checkpoints: Count = 3
    settings: list[str] = Field(default_factory=list)


class Comparison(Section):
    """A comparison of methods on one task.

    `task` is a recipe beside this one, with prompts; `settings` (as `section.key=value`) change it. Everything before `align`
    is done once for all. Each of `methods` is run with each of `betas`, the strength of the KL penalty (beta_pi times beta_r
    where there are rewards, beta_pi for pairs, the coefficient of the KL for PPO and RLOO), and with each of `seeds`. A run is
    evaluated at `checkpoints` steps, as the task's `evaluate` says. `held_out` is a scorer that no method has trained on, and
    `held_out_model` the reward model that it names as `model: trained`, if that is to be trained here.
    """

    name: str = "compare"
    out: str = "runs/compare"
    task: str
    settings: list[str] = Field(default_factory=list)
    methods: Annotated[dict[str, MethodSection], Field(min_length=1)]
    betas: Annotated[list[Positive], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])
    checkpoints: Count = 5
    search: SearchSection | None = None
    held_out: ScorerSection | None = None
    held_out_model: RewardModelSection | None = None
    small: SmallSection = SmallSection()

    @field_validator("methods")
    @classmethod
    def _check_names(cls, value: dict[str, MethodSection]) -> dict[str, MethodSection]:
        for name in value:
            if not SLUG.fullmatch(name):
                raise ValueError(
                    f"the method {name[:40]!r} names folders; expected small letters, digits, - and _, for example exo-k8"
                )
        return value

    @model_validator(mode="after")
    def _check(self) -> Comparison:
        for name in ("seeds", "betas"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` has a value twice; each is run once")
        if (self.held_out is not None and self.held_out.model == TRAINED) != (self.held_out_model is not None):
            raise ValueError(
                f"`held_out_model` is trained for a scorer `held_out` with `model: {TRAINED}`; give both or none of them"
            )
        if self.search is not None and self.search.seed in self.seeds:
            raise ValueError("`search.seed` is one of `seeds`; the search would have seen that run")
        return self

    def smaller(self) -> Comparison:
        """The comparison of `--small`, in a folder of its own."""
        small = self.small
        return self.model_copy(
            update={
                "name": f"{self.name}-small",
                "out": f"{self.out}-small",
                "seeds": small.seeds,
                "betas": small.betas or self.betas[:1],
                "checkpoints": small.checkpoints,
                "settings": [*self.settings, *small.settings],
                "search": None,
            }
        )
