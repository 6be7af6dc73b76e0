"""The recipe: one typed section for each stage, checked whole before anything runs. Never imports torch.

Input files are looked for beside the recipe first, then in the working directory; `out` is relative to the working
directory. A value can be set from the command line as `section.key=value`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from exoalign.config_data import Count, DataSection, PromptsSection, Section
from exoalign.config_judge import JudgeSection
from exoalign.config_reward import TRAINED, RewardSection
from exoalign.config_reward_model import RewardModelSection
from exoalign.config_sample import SampleSection
from exoalign.config_sft import SftSection
from exoalign.config_train import PAIRED, AlignSection


class ModelSection(Section):
    """The policy before alignment, which is also the reference.

    `precision` is what the matrix products run in; the weights being trained are float32 in any case. `auto` takes bfloat16
    where the processor has instructions for it.
    """

    path: str
    revision: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False


class EvaluateSection(Section):
    """How the models are compared: `k` fresh completions a held-out prompt, at `sample.temperature` and untruncated."""

    k: Count = 4


class Recipe(Section):
    """A whole run. Either `prompts` (completions are sampled and rewarded) or `data` (they exist already) is given.

    With `sft` the model is fine-tuned first, and what comes out is the policy and the reference of all that follows. With
    `reward_model` one is trained, which a scorer of `reward` names as `model: trained`. `judge` compares the samples of the
    evaluation.
    """

    name: str = "run"
    out: str = "runs/run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # NumPy takes no larger ones
    model: ModelSection
    sft: SftSection | None = None
    reward_model: RewardModelSection | None = None
    prompts: PromptsSection | None = None
    data: DataSection | None = None
    sample: SampleSection = SampleSection()
    reward: RewardSection | None = None
    align: AlignSection = AlignSection()
    evaluate: EvaluateSection = EvaluateSection()
    judge: JudgeSection | None = None

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if (self.prompts is None) == (self.data is None):
            raise ValueError("give either `prompts` (to sample completions) or `data` (that has them already)")
        if self.prompts is not None:
            if self.reward is None:
                raise ValueError("`prompts` needs a `reward` section with the function that scores the completions")
            uses = any(scorer.model == TRAINED for scorer in self.reward.all)
            if uses and self.reward_model is None:
                raise ValueError(
                    f"`reward` has a scorer `model: {TRAINED}`, the run's own, and there is no `reward_model` section"
                )
            if self.reward_model is not None and not uses:
                raise ValueError(f"`reward_model` is read by no scorer; name it in `reward` as `model: {TRAINED}`")
            self._check_online()
            chosen = self.align.completions
            if self.align.objective in PAIRED and chosen.k != 2:
                raise ValueError(
                    f"`align.objective` is {self.align.objective}, which learns from pairs; set `align.completions` to"
                    " {choose: best_worst, k: 2}, or use exo_rw or dpo_rw"
                )
            if chosen.k is not None and chosen.k > self.sample.k:
                raise ValueError(
                    f"`align.completions.k` is {chosen.k}, and sample.k only {self.sample.k}; lower it, or sample more"
                )
            if self.align.temperature not in (None, self.sample.temperature):
                raise ValueError(
                    f"`align.temperature` is {self.align.temperature:g} and sample.temperature {self.sample.temperature:g}:"
                    " the completions would be no samples of the reference; leave align.temperature out"
                )
        elif self.align.online is not None:
            raise ValueError("`align.online` samples completions by itself: give it `prompts` in the place of `data`")
        elif unread := sorted({"sample", "evaluate"} & self.model_fields_set):
            raise ValueError(
                f"`{unread[0]}` is read with `prompts` only: `data` has its completions already; leave it out"
            )
        elif "completions" in self.align.model_fields_set:
            raise ValueError("`align.completions` is read with `prompts` only; set `data.completions`")
        else:
            for name in ("reward", "reward_model", "judge"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"`{name}` is read with `prompts` only: `data` carries its rewards or winners itself; leave it out"
                    )
        return self

    def _check_online(self) -> None:
        if self.align.online is None:
            return
        if "k" in self.sample.model_fields_set:
            raise ValueError("`sample.k` is not read with `align.online`; set align.online.k")
        if self.sample.backend != "transformers":
            raise ValueError(
                f"`sample.backend` is {self.sample.backend}: `align.online` samples the model that is being trained, with"
                " transformers"
            )
        assert self.reward is not None
        if self.reward.normalise != "none":
            raise ValueError(
                f"`reward.normalise` is {self.reward.normalise}, and with `align.online` there are no training data whose mean"
                " and deviation could scale the rewards; leave it out (weight and clip work)"
            )

    @property
    def temperature(self) -> float:
        """The temperature of all log-probabilities: `align.temperature`, else that of the sampler, 1 for ready data."""
        if self.align.temperature is not None:
            return self.align.temperature
        return self.sample.temperature if self.prompts is not None else 1.0
