"""The stages as the page shows them: what each did, its numbers, its plots and texts.

Names and titles come from the stage, in which a name of the user's may stand: plotly reads some HTML in its labels, so what
enters a figure is escaped.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from exoalign.report.curves import LONG, MARKED
from exoalign.report.figures import MODELS, Figure, bars, layout
from exoalign.report.finding import MINUS, Estimate, decimals, finite, number
from exoalign.report.html import visible
from exoalign.report.summary import CurvePlot, HistogramPlot, Line, Summary, Texts, read_summary

COLOURS = ("aligned", "target", "base", "plum", "leaf")
DASHES = ("solid", "dash", "dot")  # of the lines that take a colour for the first, second and third time
HEIGHT = 250  # pixels of a plot
BESIDE = 24  # characters of a label that stands beside its text
UPRIGHT = 6  # so many names at an axis stand upright
ACROSS, UP = 40, 24  # characters that fit along a plot and up its side


def stage_view(index: int, stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage for the template.

    Args:
        index: its place in the chain, from 0.
        stage: {"name", "seconds", "state", "what"}, and "summary" with what its summary.json holds.

    Raises:
        DataError: if the summary is malformed, with the stage and the key.
    """
    seconds, name = finite(stage.get("seconds")), str(stage.get("name", ""))
    summary = Summary() if stage.get("summary") is None else read_summary(stage["summary"], name)
    plots = [_curves(plot) for plot in summary.curves]
    plots += [_histogram(plot) for plot in summary.histograms]
    figures = [Figure(f"stage-{index + 1}-plot-{place + 1}", *plot) for place, plot in enumerate(filter(None, plots))]
    return {
        "id": f"stage-{index + 1}",
        "name": name,
        "what": str(stage.get("what", "")),
        "state": str(stage.get("state", "")),
        "time": "–" if seconds is None else duration(seconds),
        "numbers": [
            {"label": row.label, "value": shown(row.value), "note": row.note, "text": isinstance(row.value, str)}
            for row in summary.numbers
        ],
        "figures": figures,
        "texts": [_texts(texts) for texts in summary.texts if texts.rows],
    }


def _texts(texts: Texts) -> dict[str, Any]:
    """Labels beside the texts, or over them where one is long, as a prompt is."""
    rows = [(row.label, row.text.removeprefix(" ")) for row in texts.rows]  # the space that parts it from the prompt
    return {"title": texts.title, "rows": rows, "over": any(len(label) > BESIDE for label, _ in rows)}


def shown(value: int | str | Estimate | None) -> str:
    """A number as text: "0.61 [0.55, 0.67]" with the decimals that the width of the interval deserves, "–" for none."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return number(value, 0)
    if value.low is None or value.high is None:
        small = value.mean != 0 and not 1e-4 <= abs(value.mean) < 1e15
        return f"{Decimal(f'{value.mean:.3g}'):e}".replace("-", MINUS) if small else number(value.mean, decimals(value))
    places = decimals(value)
    mean, low, high = (number(end, places) for end in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def duration(seconds: float) -> str:
    """Seconds as "8.1 s", "1 min 20 s" or "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def label(text: str, width: int = ACROSS, lines: int = 1) -> str:
    """A text for a figure, no longer than fits, and with nothing in it that plotly would read as HTML."""
    wrapped = textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], f"{wrapped[lines - 1][: width - 1]}…"]
    return "<br>".join(_inert(line) for line in wrapped)


def _inert(text: str) -> str:
    return html.escape(visible(text), quote=False)


def _colours(names: Sequence[str]) -> list[tuple[str, str]]:
    """A colour and a dash for each name; "base" and "aligned" have the colours that they have elsewhere on the page."""
    free = [colour for colour in COLOURS if not (colour in MODELS and colour in names)]
    found, given = [], 0
    for name in names:
        if name in MODELS:
            found.append((name, "solid"))
        else:
            found.append((free[given % len(free)], DASHES[min(given // len(free), len(DASHES) - 1)]))
            given += 1
    return found


def _curves(plot: CurvePlot) -> tuple[str, str, dict[str, Any]] | None:
    """Title, caption and figure of a curve plot, or None when it holds no value."""
    present = [line for line in plot.series if any(y is not None for y in line.y)]
    if not present:
        return None
    measured = [line for line in present if not line.diagonal] or present
    looks = iter(_colours([line.name for line in measured]))
    traces = [_line(line, *next(looks)) if line in measured else _diagonal(line) for line in present]
    look = layout(label(plot.x_label, lines=2), label(plot.y_label, UP, 2), height=HEIGHT, legend=len(present) > 1)
    look["yaxis"]["exponentformat"] = "e"  # 1e-5 rather than 10µ
    look["hovermode"] = "x unified" if measured == present else "closest"
    xs = [x for line in present for x in line.x]
    numbers = [x for x in xs if isinstance(x, float)]
    if names := list(dict.fromkeys(x for x in xs if isinstance(x, str))):
        look["xaxis"] |= _categories(names)
    elif numbers and all(x.is_integer() for x in numbers) and max(numbers) - min(numbers) <= 10:
        look["xaxis"]["dtick"] = 1  # no half steps
    return plot.title, plot.note, {"data": traces, "layout": look}


def _categories(names: Sequence[str]) -> dict[str, Any]:
    """An axis of names: in two lines each where they are few, else as plotly turns them."""
    room = ACROSS if len(names) > UPRIGHT else max(ACROSS // len(names), 6)
    ticks = {"tickvals": [_inert(name) for name in names], "ticktext": [label(name, room, 2) for name in names]}
    return {"type": "category", **ticks} | ({} if len(names) > UPRIGHT else {"tickangle": 0})


def _line(line: Line, colour: str, dash: str) -> dict[str, Any]:
    count, paint = len(line.x), f"var(--{colour})"
    return {
        "type": "scatter",
        "mode": "lines+markers" if count <= MARKED else "lines",
        "name": label(line.name),
        "x": [_inert(x) if isinstance(x, str) else x for x in line.x],
        "y": list(line.y),
        "line": {"color": paint, "width": 1 if count > LONG else 2, "dash": dash},
        "marker": {"color": paint, "size": 5},
        "hovertemplate": "%{y:.4g}",
    }


def _diagonal(line: Line) -> dict[str, Any]:
    return _line(line, "muted", "dot") | {"mode": "lines", "hoverinfo": "skip", "hovertemplate": None}


def _histogram(plot: HistogramPlot) -> tuple[str, str, dict[str, Any]] | None:
    """Title, caption and figure of a histogram, or None when it holds no value."""
    present = [
        (series.name, [value for value in series.values if value is not None])
        for series in plot.series
        if any(value is not None for value in series.values)
    ]
    if not present:
        return None
    colours = _colours([name for name, _ in present])
    named = [(label(name), colour, found) for (name, found), (colour, _) in zip(present, colours, strict=True)]
    traces, look = bars(named, label(plot.x_label, lines=2))
    look |= {"height": HEIGHT, "showlegend": len(present) > 1}
    if len(present) == 1:
        look["margin"]["t"] = 14
    return plot.title, plot.note, {"data": traces, "layout": look}
