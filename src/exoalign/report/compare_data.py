"""A comparison as its page gets it, checked: methods, runs with their points, frontiers, win rates, samples.

Only title, methods and runs must be there. Keys that the page does not show are let through, as they are in the JSON that it
offers; numbers that are not finite are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from exoalign.errors import DataError
from exoalign.report.finding import Estimate, finite
from exoalign.report.summary import SAID, SHOWN, Number


class Part(BaseModel):
    """Base of all parts: wrong types are refused, and values do not change afterwards."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def _estimate(value: Any) -> Estimate | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or "mean" not in value:
        raise ValueError("expected {mean, low, high}")
    wrong = [name for name in ("mean", "low", "high") if isinstance(value.get(name), str | bool | list | dict)]
    if wrong:
        raise ValueError(f"expected numbers, found {value[wrong[0]]!r} at {wrong[0]!r}")
    mean, low, high = (finite(value.get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return None
    return Estimate(mean, low, high) if low is not None and high is not None else Estimate(mean)


Quantity = Annotated[Estimate | None, BeforeValidator(_estimate)]


class Method(Part):
    """A method: `name` is a slug, `label` what the page calls it."""

    name: str
    label: str = ""
    about: str = ""


class Point(Part):
    """One evaluated checkpoint; of Best-of-N `step` is N."""

    step: int
    seconds: Number = None
    tokens: Number = None
    reward: Quantity = None
    kl: Quantity = None
    kl_exact: Quantity = None
    length: Quantity = None
    distinct_2: Quantity = None
    self_bleu: Quantity = None

    @property
    def distance(self) -> Estimate | None:
        """The KL from the reference: the exact one where there is one, as it has the lower variance."""
        return self.kl_exact or self.kl


class Run(Part):
    """One training, or one Best-of-N."""

    method: str
    seed: int = 0
    beta: Number = None
    points: list[Point] = Field(default_factory=list)
    history: list[dict[str, Any]] = Field(default_factory=list)


class Frontier(Part):
    """The frontier of a method on a grid of KLs, and the area under it up to a KL of `up_to`."""

    method: str
    kl: list[Number]
    reward: list[Number]
    low: list[Number] = Field(default_factory=list)
    high: list[Number] = Field(default_factory=list)
    area: Quantity = None
    area_with_seeds: Quantity = None
    up_to: Number = None

    @model_validator(mode="after")
    def _as_long(self) -> Frontier:
        lengths = [len(self.kl), len(self.reward)] + [len(ends) for ends in (self.low, self.high) if ends]
        if len(set(lengths)) > 1:
            raise ValueError(f"found lists of the lengths {lengths}; expected kl, reward, low and high of one length")
        return self

    @property
    def gain(self) -> Estimate | None:
        """The area with the widest interval that there is: over prompts and seeds."""
        return self.area_with_seeds or self.area


class Difference(Part):
    """The area of `a` less that of `b`, paired."""

    a: str
    b: str
    area: Quantity = None
    area_with_seeds: Quantity = None

    @property
    def gain(self) -> Estimate | None:
        """As `Frontier.gain`."""
        return self.area_with_seeds or self.area


class Against(Part):
    """The win rate of a model against what another wrote."""

    model: str
    other: str
    by: str = "reward"
    rate: Quantity = None
    length_controlled: Quantity = None
    ties: Number = None
    invalid: Number = None


class Rating(Part):
    """The rating of a model, in Elo points."""

    model: str
    elo: Number
    low: Number = None
    high: Number = None


class WinRates(Part):
    """Who wins against whom: `matrix[i][j]` is the share of prompts on which model i wins against model j."""

    models: list[str] = Field(default_factory=list)
    matrix: list[list[Quantity]] = Field(default_factory=list)
    against: list[Against] = Field(default_factory=list)
    ratings: list[Rating] = Field(default_factory=list)

    @model_validator(mode="after")
    def _square(self) -> WinRates:
        sizes = [len(row) for row in self.matrix]
        if sizes and sizes != [len(self.models)] * len(self.models):
            raise ValueError(f"found rows of {sizes} cells for {len(self.models)} models; expected a square matrix")
        return self


class Variance(Part):
    """The gradient estimate of a method at a number of completions: its variance and its cosine with the true gradient."""

    method: str
    completions: int
    variance: Quantity = None
    cosine: Quantity = None


class Trial(Part):
    """What was tried in a search, and what it reached."""

    settings: dict[str, Any] = Field(default_factory=dict)
    objective: Number = None
    chosen: bool = False


class Search(Part):
    """The search of a method's settings."""

    method: str
    trials: list[Trial] = Field(default_factory=list)


class Sample(Part):
    """A completion of a checkpoint."""

    method: str
    seed: int = 0
    beta: Number = None
    step: int = 0
    text: str
    reward: Number = None


class Prompt(Part):
    """A prompt with what the checkpoints wrote to it."""

    prompt: str
    rows: list[Sample] = Field(default_factory=list)


class ComparisonView(Part):
    """All that the page shows."""

    title: str
    methods: list[Method]
    runs: list[Run]
    finding: str = ""
    frontiers: list[Frontier] = Field(default_factory=list)
    difference: list[Difference] = Field(default_factory=list)
    win_rates: WinRates = Field(default_factory=WinRates)
    variance: list[Variance] = Field(default_factory=list)
    search: list[Search] = Field(default_factory=list)
    samples: list[Prompt] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _known(self) -> ComparisonView:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"methods: found the names {names}; expected each once")
        lists: tuple[tuple[Literal["runs", "frontiers", "variance", "search"], list[Any]], ...] = (
            ("runs", self.runs),
            ("frontiers", self.frontiers),
            ("variance", self.variance),
            ("search", self.search),
        )
        for key, items in lists:
            for place, item in enumerate(items):
                if item.method not in names:
                    raise ValueError(f"{key}[{place}].method: found {item.method!r}; expected one of {names}")
        return self


def read_comparison(found: Any) -> ComparisonView:
    """Check what the page is made from.

    Raises:
        DataError: with the key, what was found and what was expected.
    """
    try:
        return ComparisonView.model_validate(found)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = "comparison" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong["loc"])
        said = SAID.get(wrong["type"], wrong["msg"].removeprefix("Value error, "))
        shown = repr(wrong["input"])
        shown = "" if "found" in said else f", found {shown[:SHOWN]}{'…' if len(shown) > SHOWN else ''}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise DataError(f"{where}: {said}{shown}{more}") from error
