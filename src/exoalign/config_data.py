"""The sections of a recipe that say which data is read, and how: `prompts` and `data`. Never imports torch.

What all sections share stands here too: their base class and the numbers they hold.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are refused, values do not change afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SourceSection(Section):
    """One data set: a file, a folder or a hub id, and how it is read.

    `adapter` turns rows of a data set's own schema into groups. `split`, `subset` and `revision` choose within a hub data set.
    The first `limit` usable groups are read. `weight` is its share of the groups drawn where several data sets are mixed.
    `local` is a copy on this machine, a file or a folder, which is read in place of `path` where it exists.
    """

    path: str
    adapter: str | None = None
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    limit: Count | None = None
    weight: Positive | None = None
    local: str | None = None


_SECTIONS = TypeAdapter(list[SourceSection])


def _one(value: Any, more: str = "") -> str | SourceSection:
    """By hand, as pydantic's unions put the form that they tried into the place of an error."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | SourceSection):
        return SourceSection.model_validate(value)
    found = "empty" if value is None else repr(value)[:60]
    raise ValueError(f"found {found}; expected a path or hub id, or a section with `path` in it{more}")


def _any(value: Any) -> str | SourceSection | list[SourceSection]:
    if isinstance(value, list) and value:
        return _SECTIONS.validate_python(value)
    return _one(value, ", or a list of such sections")


OneSource = Annotated[str | SourceSection, BeforeValidator(_one)]
Sources = Annotated[str | SourceSection | list[SourceSection], BeforeValidator(_any)]


def as_list(sources: str | SourceSection | list[SourceSection], limit: int | None = None) -> list[SourceSection]:
    """Data sets however they were given; `limit` is that of a section around them."""
    found = sources if isinstance(sources, list) else [sources]
    return [
        SourceSection(path=source, limit=limit)
        if isinstance(source, str)
        else source.model_copy(update={"limit": source.limit or limit})
        for source in found
    ]


def _check_limits(section: PromptsSection | DataSection) -> None:
    """A limit is given once, and where there are several data sets, with each of them."""
    for key, name in (("train", "limit"), ("evaluation", "evaluation_limit")):
        sources = getattr(section, key)
        if getattr(section, name) is None or sources is None:
            continue
        if isinstance(sources, list):
            raise ValueError(
                f"`{name}` is of one data set, and `{key}` has a list; give each of them a limit of its own"
            )
        if isinstance(sources, SourceSection) and sources.limit is not None:
            raise ValueError(f"`{name}` and `{key}.limit` are the same setting; leave one out")


class PromptsSection(Section):
    """Prompts: completions are sampled for `train`, both models are compared on `evaluation`.

    Each is a path or hub id, or a section that says more (see `SourceSection`). A prompt of more than `max_prompt_tokens`, or
    than the model's context has room for, is an error or is left out (`drop`), as `truncation` says.
    """

    train: OneSource
    evaluation: OneSource
    limit: Count | None = None
    evaluation_limit: Count | None = None
    max_prompt_tokens: Count | None = None
    truncation: Literal["error", "drop"] = "error"

    @model_validator(mode="after")
    def _check(self) -> PromptsSection:
        _check_limits(self)
        for key in ("train", "evaluation"):
            if getattr(getattr(self, key), "weight", None) is not None:
                raise ValueError(f"`{key}.weight` has no effect with one data set; leave it out")
        return self


class CompletionsSection(Section):
    """Which completions of a group are kept: `all`, or `k` of them: the best and the worst, or drawn at `random`."""

    choose: Literal["all", "best_worst", "random"] = "all"
    k: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _check(self) -> CompletionsSection:
        if self.choose == "all" and self.k is not None:
            raise ValueError("`k` has no effect while all completions are kept; set `choose` to best_worst or random")
        if self.choose != "all" and self.k is None:
            raise ValueError(f"`choose` is {self.choose}, which needs `k`, the number of completions to keep")
        return self


class DataSection(Section):
    """Groups that have their completions already: preference pairs, transcripts, or K completions with rewards.

    `train` and `evaluation` are each a path or hub id, a section that says more (see `SourceSection`), or a list of such
    sections, whose groups are mixed by their weights (without weights: all groups of all of them). `holdout` keeps this share
    of the prompts for the evaluation instead. What is longer than `max_prompt_tokens`, `max_completion_tokens` or the model's
    context is an error, is dropped, or is cut, as `truncation` says.
    """

    train: Sources
    evaluation: Sources | None = None
    holdout: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    limit: Count | None = None
    evaluation_limit: Count | None = None
    completions: CompletionsSection = CompletionsSection()
    max_prompt_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    truncation: str | list[str] = "error"

    @field_validator("truncation", mode="before")
    @classmethod
    def _check_truncation(cls, value: Any) -> Any:
        single, cuts = ("error", "drop"), ("truncate_prompt_left", "truncate_completion_right")
        if value in (*single, *cuts) or (isinstance(value, list) and value and all(v in cuts for v in value)):
            return value
        wrong = next((v for v in value if v not in cuts), value) if isinstance(value, list) else value
        known = cuts if isinstance(value, list) else (*single, *cuts)
        near = difflib.get_close_matches(str(wrong), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"found {str(wrong)[:60]!r}; expected {', '.join(single)}, or one or both of {', '.join(cuts)}{hint}"
        )

    @model_validator(mode="after")
    def _check(self) -> DataSection:
        _check_limits(self)
        if self.holdout is not None and self.evaluation is not None:
            raise ValueError(
                "`holdout` takes the evaluation from `train`, and `evaluation` is given too; leave one out"
            )
        if self.evaluation_limit is not None and self.evaluation is None:
            raise ValueError("`evaluation_limit` has no effect without `evaluation`; leave it out")
        for key in ("train", "evaluation"):
            sources = getattr(self, key)
            given = [source.weight is not None for source in as_list(sources)] if sources else [False]
            if len(given) == 1 and given[0]:
                raise ValueError(f"`{key}.weight` has no effect with one data set; leave it out")
            if any(given) and not all(given):
                raise ValueError(
                    f"`{key}`: {sum(given)} of {len(given)} data sets have a weight; give each one or none"
                )
        return self
