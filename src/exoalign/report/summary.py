"""What a stage left in its summary.json, checked: numbers, curves, histograms and texts of models.

All parts are optional; a key that is not known is refused, because what it holds would be missing from the page. Numbers
that are not finite are None here, and "–" or a gap on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from exoalign.config_data import Section
from exoalign.errors import DataError
from exoalign.report.finding import Estimate, finite

SAID = {
    "missing": "this key is missing",
    "extra_forbidden": "this key is not known",
    "model_type": "expected a mapping",
    "list_type": "expected a list",
    "string_type": "expected a text",
}
SHOWN = 80  # characters of a wrong value in an error


def _value(value: Any) -> int | str | Estimate | None:
    """A number, a text or an estimate; by hand, as pydantic's unions tell of each form that they tried."""
    if isinstance(value, Mapping) and "mean" in value and not set(value) - {"mean", "low", "high"}:
        mean, low, high = (_number(value.get(end)) for end in ("mean", "low", "high"))
        if mean is None:
            return None
        return Estimate(mean, low, high) if low is not None and high is not None else Estimate(mean)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e15):
        return value
    if value is None or isinstance(value, int | float):
        return None if (found := _number(value)) is None else Estimate(found)
    raise ValueError("expected a number, a text or {mean, low, high}")


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("expected a number")
    return finite(value)


def _place(value: Any) -> float | str | None:
    return value if isinstance(value, str) else _number(value)


Value = Annotated[int | str | Estimate | None, BeforeValidator(_value)]
Number = Annotated[float | None, BeforeValidator(_number)]
Place = Annotated[float | str | None, BeforeValidator(_place)]


class NumberRow(Section):
    """One row of the table of numbers."""

    label: str
    value: Value
    note: str = ""


class Line(Section):
    """One line of a curve: as many y as x; x are numbers, or names of categories."""

    name: str
    x: list[Place]
    y: list[Number]

    @model_validator(mode="after")
    def _as_long(self) -> Line:
        if len(self.x) != len(self.y):
            raise ValueError(f"found {len(self.x)} x and {len(self.y)} y; expected as many of both")
        if len({isinstance(x, str) for x in self.x if x is not None}) > 1:
            raise ValueError("found numbers and names among the x; expected one kind")
        return self

    @property
    def diagonal(self) -> bool:
        """Whether this is a line to compare with, of what is predicted and holds."""
        return len(self.x) > 1 and all(x is not None and x == y for x, y in zip(self.x, self.y, strict=True))


class CurvePlot(Section):
    """Lines over one axis."""

    title: str
    x_label: str
    y_label: str
    series: list[Line]
    note: str = ""


class Values(Section):
    """The values of one distribution, as many as the stage chose to keep."""

    name: str
    values: list[Number]


class HistogramPlot(Section):
    """Distributions over one axis."""

    title: str
    x_label: str
    series: list[Values]
    note: str = ""


class TextRow(Section):
    """A text that a model wrote, and what is said of it, as its reward."""

    label: str
    text: str


class Texts(Section):
    """Texts under one heading."""

    title: str
    rows: list[TextRow]


class Summary(Section):
    """What a stage tells of itself."""

    numbers: list[NumberRow] = Field(default_factory=list)
    curves: list[CurvePlot] = Field(default_factory=list)
    histograms: list[HistogramPlot] = Field(default_factory=list)
    texts: list[Texts] = Field(default_factory=list)


def read_summary(found: Any, stage: str) -> Summary:
    """Check a stage's summary.

    Args:
        found: what the stage's summary.json holds, read.
        stage: the stage, for errors.

    Raises:
        DataError: with the stage, the key, what was found and what was expected.
    """
    try:
        return Summary.model_validate(found)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = "summary" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong["loc"])
        said = SAID.get(wrong["type"], wrong["msg"].removeprefix("Value error, "))
        shown = repr(wrong["input"])
        shown = "" if said.startswith("found") else f", found {shown[:SHOWN]}{'…' if len(shown) > SHOWN else ''}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise DataError(f"the stage {stage!r}: {where}: {said}{shown}{more}") from error
