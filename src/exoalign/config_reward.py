"""The recipe's section `reward`: what scores the completions, and how a reward is made of the scores. Never imports torch."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from exoalign.config_data import Count, Positive, Section
from exoalign.config_judge import JudgeSection

Number = Annotated[float, Field(allow_inf_nan=False)]
TRAINED = "trained"
"""What a scorer calls the reward model that the run has trained itself."""
KINDS = ("function", "model", "server", "judge")
_OWN = {
    "function": {"arguments"},
    "model": {"input", "positive_label", "revision", "trust_remote_code"},
    "server": {"batch_size", "concurrency", "timeout", "retries"},
}
"""The keys that only one kind of scorer reads."""


class ScorerSection(Section):
    """One scorer, which fills a column of scores. Exactly one of `function`, `model`, `server` and `judge` says
    what it is.

    `function` is a short name (`sentiment`, `length`, `regex`, `repetition`, `readability`, `if_verifiable`) or
    `module:function`; `arguments` are its keyword arguments.

    `model` is the folder or hub id of a reward model, or `trained` for the one that the recipe trains. `input` says what it is
    given of a text prompt: the `whole` or the `completion` alone. Of a classifier, `positive_label` is the good label.

    `server` is the URL of a reward server, asked for `batch_size` completions at a time, with `concurrency` requests under way,
    each at most `timeout` seconds long and asked again at most `retries` times.

    `judge` is a section like the recipe's own (see `JudgeSection`) with `kind: pointwise`: a language model's score.

    The column is called `name`. The reward is the sum over all scorers of `weight` times the column, which is kept within
    `clip` (lowest, highest) first; a weight of 0 keeps a column for the eye alone.
    """

    function: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    input: Literal["whole", "completion"] = "whole"
    positive_label: int | str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    server: str | None = None
    judge: JudgeSection | None = None
    batch_size: Count = 32
    concurrency: Count = 4
    timeout: Positive = 60.0
    retries: Annotated[int, Field(ge=0)] = 5
    name: Annotated[str, Field(min_length=1)] | None = None
    weight: Number = 1.0
    clip: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None

    @field_validator("server")
    @classmethod
    def _check_server(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            parts = urlsplit(value)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            whole = False
        if not whole:
            raise ValueError("expected a URL that begins with http:// or https://, with a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a recipe is kept with the run and shown, and this URL has a password in it; leave it out")
        return value

    @model_validator(mode="after")
    def _check(self) -> ScorerSection:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(f"`{kind}`" for kind in given) or "none of them"
            raise ValueError(f"a scorer is one of {', '.join(f'`{kind}`' for kind in KINDS)}; found {found}")
        for kind, keys in _OWN.items():
            unread = sorted(keys & self.model_fields_set)
            if kind != given[0] and unread:
                raise ValueError(f"`{unread[0]}` is read with `{kind}` only, and this scorer is a {given[0]}")
        if self.judge is not None and self.judge.kind != "pointwise":
            raise ValueError(
                "`judge.kind` is pairwise, and a scorer gives each completion a number: set it to pointwise"
            )
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"`clip` is {self.clip[0]:g} to {self.clip[1]:g}; expected the lower bound first")
        return self

    @property
    def column(self) -> str:
        """The name of its column: its own, else that of the function or of the model's folder, or `server`, or `judge`."""
        if self.name is not None:
            return self.name
        if self.function is not None:
            return self.function.rpartition(":")[2]
        if self.model is not None:
            return self.model.rstrip("/").rpartition("/")[2] or self.model
        return "server" if self.server is not None else "judge"


class RewardSection(Section):
    """What completions are worth: a single `function` with its `arguments`, or `scorers`, a list of scorers of any kind.

    `normalise` makes columns of different scales comparable before they are clipped, weighted and summed: `group` to mean 0
    and deviation 1 over the completions of each prompt, `global` over all completions of the training data, whose mean and
    deviation scale the evaluation's in both cases; a column that is the same everywhere becomes 0.
    """

    function: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    scorers: Annotated[list[ScorerSection], Field(min_length=1)] | None = None
    normalise: Literal["none", "group", "global"] = "none"

    @model_validator(mode="after")
    def _check(self) -> RewardSection:
        if (self.function is None) == (self.scorers is None):
            raise ValueError("give either `function`, or a list of `scorers`")
        if self.scorers is not None and self.arguments:
            raise ValueError("`arguments` belong to a function; give them to the scorer that they are meant for")
        columns = Counter(scorer.column for scorer in self.all)
        if (twice := columns.most_common(1)[0])[1] > 1:
            raise ValueError(f"{twice[1]} scorers are called `{twice[0]}`; give each a `name` of its own")
        return self

    @property
    def all(self) -> list[ScorerSection]:
        """The scorers, in either form."""
        if self.scorers is not None:
            return self.scorers
        return [ScorerSection(function=self.function, arguments=self.arguments)]
