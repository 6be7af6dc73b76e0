"""The plots of rewards, and the look that all plots share, as plain plotly figures (JSON-ready dictionaries).

Colours are written "var(--name)": page.js replaces them by what style.css gives that name in the light or the dark
scheme. No text of a user or of a model enters a figure, because plotly reads some HTML in its labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exoalign.report.finding import Estimate, decimals, difference_places, estimate, finite, interval, number

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MODELS = {"base": "base", "aligned": "aligned"}
BINS = 20  # aimed at; the width is then rounded to a plain number
DISCRETE = 12  # up to so many different rewards are shown each on its own


@dataclass(frozen=True)
class Figure:
    """A plot with its heading and the line that says how to read it."""

    id: str
    title: str
    caption: str
    spec: dict[str, Any]


def reward_figures(metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Mean rewards with their intervals, and the distribution of the rewards of the samples."""
    means = {name: found for name in MODELS if (found := estimate(metrics, name, "reward")) is not None}
    rewards = {name: rewards_of(samples, name) for name in MODELS}
    figures = []
    if means:
        figures.append(_mean_figure(means, estimate(metrics, "difference", "reward")))
    if any(rewards.values()):
        figures.append(_distribution(rewards))
    return figures


def title(text: str) -> dict[str, Any]:
    """An axis title, no larger than the tick labels."""
    return {"text": text, "standoff": 8, "font": {"size": 13}}


def layout(x_title: str, y_title: str, *, height: int = 280, legend: bool = False) -> dict[str, Any]:
    """The common look: transparent, thin grid, legend in one row over the plot."""
    axis = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--rule)",
        "zeroline": False,
        "automargin": True,
    }
    return {
        "height": height,
        "margin": {"l": 48, "r": 16, "t": 36 if legend else 14, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": "var(--text)"},
        "hoverlabel": {"bgcolor": "var(--surface)", "bordercolor": "var(--rule)", "font": {"color": "var(--text)"}},
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        },
        "xaxis": {**axis, "title": title(x_title), "showgrid": False, "showline": True},
        "yaxis": {**axis, "title": title(y_title)},
    }


def _mean_figure(means: Mapping[str, Estimate], difference: Estimate | None) -> Figure:
    """Both means on one axis; under them their difference on its own, with a line at 0."""
    shared = difference_places(difference) if difference is not None else decimals(*means.values())
    traces = [_dot(MODELS[name], found, name, row, shared) for row, (name, found) in enumerate(means.items())]
    look = layout("mean reward", "", height=90 + 65 * len(traces))
    look["margin"]["l"] = 78
    reading = ""
    rows = {"showgrid": False, "zeroline": False, "fixedrange": True, "linecolor": "var(--rule)"}
    look["xaxis"] |= {"showgrid": True, "anchor": "y"}
    look["yaxis"] = rows | {"tickvals": list(range(len(traces))), "ticktext": [trace["name"] for trace in traces]}
    look["yaxis"]["range"] = [len(traces) - 0.4, -0.75]
    if difference is not None and difference.low is not None:
        dot = _dot("difference", difference, "text", 0, shared, sign=True)
        traces.append(dot | {"xaxis": "x2", "yaxis": "y2"})
        look["height"] = 300
        look["yaxis"]["domain"] = [0.5, 1.0]
        ends = [0.0, difference.mean, difference.low, difference.high or 0.0]
        pad = 0.08 * (max(ends) - min(ends))
        look["xaxis2"] = look["xaxis"] | {"anchor": "y2", "title": title("difference")}
        look["xaxis2"]["range"] = [min(ends) - pad, max(ends) + pad]
        look["yaxis2"] = rows | {"tickvals": [0], "ticktext": ["change"], "range": [0.6, -0.8], "domain": [0.0, 0.22]}
        look["yaxis2"]["showline"] = False
        line = {"color": "var(--muted)", "width": 1.5, "dash": "dot"}
        look["shapes"] = [
            {"type": "line", "xref": "x2", "yref": "y2 domain", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "line": line}
        ]
        reading = " The change is clear when its interval stays off the dotted 0."
    caption = f"Means over held-out prompts with 95% bootstrap intervals, clustered by prompt.{reading}"
    heading = "Mean reward before and after" if len(means) == 2 else f"Mean reward, {MODELS[next(iter(means))]}"
    return Figure("mean-reward", heading, caption, {"data": traces, "layout": look})


def _dot(name: str, found: Estimate, colour: str, row: int, places: int, *, sign: bool = False) -> dict[str, Any]:
    value, extent = number(found.mean, places, sign=sign), interval(found, places, sign=sign)
    dot: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [found.mean],
        "y": [row],
        "text": [value],
        "textposition": "top center",
        "cliponaxis": False,
        "marker": {"size": 11, "color": f"var(--{colour})", "symbol": "square" if colour == "base" else "circle"},
        "hovertemplate": f"{value}{f'<br>95%: {extent}' if extent else ''}<extra>{name}</extra>",
    }
    if found.low is not None and found.high is not None:
        dot["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [found.high - found.mean],
            "arrayminus": [found.mean - found.low],
            "color": f"var(--{colour})",
            "thickness": 2.5,
            "width": 7,
        }
    return dot


def rewards_of(samples: Sequence[Mapping[str, Any]], model: str) -> list[float]:
    """All finite rewards of one model's completions."""
    rewards = (finite(completion.get("reward")) for sample in samples for completion in sample.get(model) or ())
    return [reward for reward in rewards if reward is not None]


def bins(rewards: Sequence[float]) -> tuple[list[float], float]:
    """The lower ends of equal bins that cover the rewards, and their width: 1, 2, 2.5 or 5 times a power of ten."""
    low, high = min(rewards), max(rewards)
    if high == low:
        return [low - 0.5], 1.0
    raw = (high - low) / BINS
    power = 10.0 ** math.floor(math.log10(raw))
    width = power * next(step for step in (1, 2, 2.5, 5, 10) if step * power >= raw * (1 - 1e-9))
    return [index * width for index in range(_bin(low, width), _bin(high, width) + 1)], width


def _bin(reward: float, width: float) -> int:
    return math.floor(reward / width + 1e-9)  # 0.3 / 0.1 is a little less than 3


def _distribution(rewards: Mapping[str, Sequence[float]]) -> Figure:
    traces, look = bars([(MODELS[name], name, found) for name, found in rewards.items() if found], "reward")
    look["height"] = 300
    look["yaxis"]["title"] = title("share of completions")
    sizes = ", ".join(f"{len(found):,} {MODELS[name]}" for name, found in rewards.items() if found)
    caption = (
        f"Rewards of the samples below ({sizes}): a shift to the right is a gain, a pile at one end a saturated reward."
    )
    return Figure("reward-distribution", "Distribution of rewards", caption, {"data": traces, "layout": look})


def bars(
    series: Sequence[tuple[str, str, Sequence[float]]], x_title: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Bars of the share of each series that falls into common bins, or on each value where few differ, and their layout.

    Args:
        series: name, colour and values, of which there is at least one.
        x_title: what the values are.
    """
    everything = [value for _, _, found in series for value in found]
    distinct = sorted(set(everything))
    discrete = len(distinct) <= DISCRETE
    lows, width = (distinct, 0.0) if discrete else bins(everything)
    places = decimals(Estimate(width or 1.0))
    labels = [
        number(low, places) if discrete else f"{number(low, places)} to {number(low + width, places)}" for low in lows
    ]
    traces = []
    for name, colour, found in series:
        counts = [0] * len(lows)
        for value in found:
            counts[distinct.index(value) if discrete else _bin(value, width) - _bin(lows[0], width)] += 1
        traces.append(
            {
                "type": "bar",
                "name": name,
                "x": [f"{low:.6g}" if discrete else low + width / 2 for low in lows],
                "y": [count / len(found) for count in counts],
                "customdata": [[label, count] for label, count in zip(labels, counts, strict=True)],
                "marker": {"color": f"var(--{colour})", "line": {"width": 0}},
                "hovertemplate": "%{customdata[0]}: %{y:.1%} (%{customdata[1]})",
            }
        )
    look = layout(x_title, "share", legend=True)
    look |= {"barmode": "group", "bargap": 0.15, "bargroupgap": 0.0, "hovermode": "x"}
    look["xaxis"] |= {"type": "category"} if discrete else {}
    look["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    return traces, look
