"""How a comparison is drawn, and its frontier. A method has one colour and marker in all plots; `meta` of a trace is its place.

What a user named enters a figure escaped, because plotly reads some HTML in its labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exoalign.report.compare_data import ComparisonView, Method, Point, Run
from exoalign.report.figures import Figure, layout
from exoalign.report.finding import Estimate, decimals, interval, number
from exoalign.report.stage_views import label

COLOURS = 12  # of the stylesheet: --method-1 to --method-12
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "cross", "x"),
    *("triangle-down", "star", "pentagon", "hexagram", "hourglass", "bowtie"),
)
_STAR = "M0-6 1.4-1.9 5.7-1.9 2.3.7 3.5 4.9 0 2.3-3.5 4.9-2.3.7-5.7-1.9-1.4-1.9z"
PATHS = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "diamond": "M0-6 6 0 0 6-6 0z",
    "triangle-up": "M0-5.5 5.5 4.5h-11z",
    "cross": "M-2-5.5h4v3.5h3.5v4H2v3.5h-4V2h-3.5v-4H-2z",
    "x": "M-5-2.5-2.5-5 0-2.5 2.5-5 5-2.5 2.5 0 5 2.5 2.5 5 0 2.5-2.5 5-5 2.5-2.5 0z",
    "triangle-down": "M0 5.5 5.5-4.5h-11z",
    "star": _STAR,
    "pentagon": "M0-5.5 5.4-1.6 3.3 4.8h-6.6L-5.4-1.6z",
    "hexagram": "M0-6 1.7-3H5.2L3.5 0 5.2 3H1.7L0 6-1.7 3h-3.5L-3.5 0-5.2-3h3.5z",
    "hourglass": "M-5-5.5H5L0 0 5 5.5H-5L0 0z",
    "bowtie": "M-5.5-5V5L0 0 5.5 5V-5L0 0z",
}
"""Of each marker an SVG path in a box from -6 to 6, as the page's own text shows it."""


def colour(place: int) -> str:
    """The name that the stylesheet gives to a method's colour."""
    return f"method-{place % COLOURS + 1}"


def symbol(place: int) -> str:
    """The marker of a method; the thirteenth has the first's colour, but another marker."""
    return SYMBOLS[(place + place // COLOURS) % len(SYMBOLS)]


def name_of(method: Method) -> str:
    """The method's label for a figure."""
    return label(method.label or method.name)


def told(found: Estimate | None) -> str:
    """An estimate as "0.61 [0.55, 0.67]", "–" for none."""
    if found is None:
        return "–"
    places = decimals(found)
    extent = interval(found, places).replace(" to ", ", ")
    return f"{number(found.mean, places)} [{extent}]" if extent else number(found.mean, places)


def beta_text(beta: float | None) -> str:
    """The beta of a run, "–" for a method without one."""
    return "–" if beta is None else f"{beta:g}"


def frontier_figure(view: ComparisonView) -> Figure | None:
    """Reward against KL: all points with their intervals, and each method's frontier with its band."""
    traces: list[dict[str, Any]] = []
    for place, method in enumerate(view.methods):
        for found in view.frontiers:
            if found.method == method.name:
                traces += _frontier(place, found)
        if any(point.reward and point.distance for _, _, point in points_of(view, method)):
            traces.append(_points(view, place))
    if not traces:
        return None
    look = layout("KL, nats a completion", "mean reward", height=540)
    look["hovermode"] = "closest"
    look["margin"]["t"] = 28
    look["yaxis"]["nticks"] = 8
    ends = [found.up_to for found in view.frontiers if found.up_to is not None]
    if ends:
        look["shapes"] = [_limit(ends[0])]
        look["annotations"] = [
            {
                "text": f"areas up to {ends[0]:.3g}",
                "x": ends[0],
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": "var(--muted)", "size": 12},
            }
        ]
    caption = (
        "Each marker is a checkpoint with its 95% intervals. Lines are the frontiers, the reward that a method reaches at"
        " each KL, with their bands. Choose a marker to read what that checkpoint wrote."
    )
    return Figure("frontier-plot", "Reward against KL", caption, {"data": traces, "layout": look})


def points_of(view: ComparisonView, method: Method) -> list[tuple[int, int, Point]]:
    """The points of a method, each with the place of its run and its place there."""
    return [
        (run_place, place, point)
        for run_place, run in enumerate(view.runs)
        if run.method == method.name
        for place, point in enumerate(run.points)
    ]


def _limit(at: float) -> dict[str, Any]:
    line = {"color": "var(--muted)", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line, "layer": "below"}


def trace_of(place: int, method: Method, **more: Any) -> dict[str, Any]:
    """What the traces of a method share."""
    paint = f"var(--{colour(place)})"
    return {
        "type": "scatter",
        "name": name_of(method),
        "meta": place,
        "legendgroup": str(place),
        "line": {"color": paint, "width": 2},
        "marker": {"color": paint, "symbol": symbol(place), "size": 7},
    } | more


def _frontier(place: int, found: Any) -> list[dict[str, Any]]:
    paint = f"var(--{colour(place)})"
    base = {"type": "scatter", "mode": "lines", "meta": place, "legendgroup": str(place), "hoverinfo": "skip"}
    base |= {"showlegend": False}
    line = base | {"x": found.kl, "y": found.reward, "line": {"color": paint, "width": 2.5}}
    band = [
        (kl, low, high)
        for kl, low, high in zip(found.kl, found.low, found.high, strict=False)
        if None not in (kl, low, high)
    ]
    if not band:
        return [line]
    kls, lows, highs = (list(ends) for ends in zip(*band, strict=True))
    filled = {"fill": "toself", "fillcolor": paint, "opacity": 0.13, "line": {"width": 0}}
    return [base | filled | {"x": kls + kls[::-1], "y": highs + lows[::-1]}, line]


def _points(view: ComparisonView, place: int) -> dict[str, Any]:
    method = view.methods[place]
    found = [(r, p, point) for r, p, point in points_of(view, method) if point.reward and point.distance]
    kls = [point.distance for _, _, point in found if point.distance]
    rewards = [point.reward for _, _, point in found if point.reward]
    hover = (
        "<b>%{customdata[0]}</b><br>beta %{customdata[1]}, seed %{customdata[2]}, step %{customdata[3]}"
        "<br>reward %{customdata[4]}<br>KL %{customdata[5]}<extra></extra>"
    )
    return trace_of(place, method) | {
        "mode": "markers",
        "x": [kl.mean for kl in kls],
        "y": [reward.mean for reward in rewards],
        "error_x": error_of(place, kls),
        "error_y": error_of(place, rewards),
        "customdata": [
            [name_of(method), *key_of(view.runs[r], point), told(point.reward), told(point.distance), r, p]
            for r, p, point in found
        ],
        "hovertemplate": hover,
    }


def key_of(run: Run, point: Point) -> list[Any]:
    """beta, seed and step of a point, for a hover label."""
    return [beta_text(run.beta), run.seed, point.step]


def error_of(place: int, found: Sequence[Estimate]) -> dict[str, Any]:
    """Thin error bars of a method's points."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if e.high is None else e.high - e.mean for e in found],
        "arrayminus": [0.0 if e.low is None else e.mean - e.low for e in found],
        "color": f"var(--{colour(place)})",
        "thickness": 0.8,
        "width": 0,
    }
