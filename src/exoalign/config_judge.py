"""The section of a recipe that says who judges completions, and how: `judge`. Never imports torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator, model_validator

from exoalign.config_data import Count, Positive, Section

_SPENDING = frozenset({"api_key_env", "max_calls", "concurrency", "timeout", "retries"})
"""Settings that no verdict depends on."""


class JudgeSection(Section):
    """A judge behind a server that speaks OpenAI's protocol, at `url` (which as a rule ends in /v1), under the name `model`.

    `kind` is what it is asked: which of two replies is better (`pairwise`, in both orders), or a score for each (`pointwise`).
    `prompt` is `dialogue`, `summarisation`, `instruction`, or a file of your own. `pairs` says which completions of a prompt
    are compared: `all` with each other, or the `first` with the others. Verdicts are written as `pairs` with a winner, or as
    `rewards`: the score, or the share of its comparisons that a completion wins. `control` prompts are judged with a reply that
    says nothing, to see how easily the judge is fooled.
    The key comes from the environment variable `api_key_env` and is stored nowhere. At most `concurrency` questions are under
    way at once; each is tried `retries` times more after a failure, and fails after `timeout` seconds without an answer.
    `max_calls` limits how many questions one run asks. An answer has at most `max_tokens` tokens.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # somebody writes a key where its variable's name belongs

    url: str
    model: Annotated[str, Field(min_length=1)]
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    prompt: str = "instruction"
    pairs: Literal["all", "first"] = "all"
    write: Literal["pairs", "rewards"] = "pairs"
    control: Annotated[int, Field(ge=0)] = 20
    max_tokens: Count = 16
    max_calls: Count | None = None
    concurrency: Count = 4
    timeout: Positive = 120.0
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    api_key_env: str = "OPENAI_API_KEY"

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fine = False
        if not fine:
            raise ValueError("expected the address of a server, such as http://localhost:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "the address holds more than a host and a path; what is secret belongs into the environment (`api_key_env`)"
            )
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _check_variable(cls, value: str) -> str:
        if re.fullmatch(r"[A-Z_][A-Z0-9_]*", value) is None:
            raise ValueError("expected the name of an environment variable in capitals, never the key itself")
        return value

    @model_validator(mode="after")
    def _check_read(self) -> JudgeSection:
        if self.kind == "pointwise":
            for name in sorted({"pairs", "write"} & self.model_fields_set):
                raise ValueError(f"`{name}` has no effect with pointwise scores, which are rewards; leave it out")
        return self

    def identity(self) -> dict[str, Any]:
        """What verdicts depend on: for a stage's fingerprint."""
        return self.model_dump(exclude=set(_SPENDING))
