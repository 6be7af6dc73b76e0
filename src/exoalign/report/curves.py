"""The training curves: one declared entry for each plot, drawn when the history holds one of its series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exoalign.report.figures import Figure, layout
from exoalign.report.finding import finite

MARKED = 40  # curves of at most so many steps show every step as a dot
LONG = 200  # longer curves are thin and without dashes, which noise would turn into a pattern


@dataclass(frozen=True)
class Series:
    """One line of a training curve: the key in the history, its name in the legend, its colour and dash."""

    key: str
    label: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Curve:
    """A training curve; drawn when the history holds one of its series."""

    id: str
    title: str
    caption: str
    axis: str
    series: tuple[Series, ...]
    level: float | None = None  # a dashed line to compare with
    bounds: tuple[float, float] | None = None


CURVES = (
    Curve(
        "loss",
        "Loss",
        "Mean loss of each optimizer step, each on other groups within an epoch: look for the trend.",
        "loss",
        (Series("loss", "loss", "aligned"),),
    ),
    Curve(
        "expected-reward",
        "Reward under policy and target",
        "Mean reward of the samples, weighted by the policy q and by the target p: q should climb towards p.",
        "reward",
        (Series("policy_reward", "policy q", "aligned"), Series("target_reward", "target p", "target", "dash")),
    ),
    Curve(
        "accuracy",
        "Training accuracy",
        "Share of pairs that the policy ranks as preferred; 0.5 is chance.",
        "accuracy",
        (Series("accuracy", "accuracy", "aligned"),),
        level=0.5,
        bounds=(0.0, 1.05),
    ),
    Curve(
        "ess",
        "Effective sample size",
        "How many of the K completions carry weight: K is uniform; near 1, a single completion decides the gradient.",
        "completions",
        (Series("policy_ess", "policy q", "aligned"), Series("target_ess", "target p", "target", "dash")),
    ),
    Curve(
        "log-ratio",
        "Log-ratio of best and worst",
        "Log-ratio to the reference of the best and worst completion; if both sink, mass leaves the samples.",
        "nats",
        (Series("best_log_ratio", "best", "aligned"), Series("worst_log_ratio", "worst", "base", "dash")),
        level=0.0,
    ),
    Curve(
        "grad-norm",
        "Gradient norm",
        "Norm before clipping; spikes or steady growth point to a learning rate that is too high.",
        "norm",
        (Series("grad_norm", "gradient norm", "aligned"),),
    ),
)


def training_figures(history: Sequence[Mapping[str, Any]], completions: int | None) -> list[Figure]:
    """The training curves that `history` holds; `completions` is K, the scale of the effective sample size."""
    found = []
    for curve in CURVES:
        columns = {line: [finite(row.get(line.key)) for row in history] for line in curve.series}
        if any(value is not None for column in columns.values() for value in column):
            steps = [finite(row.get("step")) for row in history]
            xs = [index + 1 if step is None else step for index, step in enumerate(steps)]
            found.append(_curve_figure(curve, xs, columns, completions))
    return found


def _curve_figure(
    curve: Curve, xs: Sequence[float], columns: Mapping[Series, list[float | None]], completions: int | None
) -> Figure:
    present = {line: column for line, column in columns.items() if any(value is not None for value in column)}
    long = len(xs) > LONG
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(xs) <= MARKED else "lines",
            "name": line.label,
            "x": list(xs),
            "y": column,
            "line": {"color": f"var(--{line.colour})"} | ({"width": 1} if long else {"width": 2, "dash": line.dash}),
            "marker": {"color": f"var(--{line.colour})", "size": 5},
            "hovertemplate": "%{y:.4g}",
        }
        for line, column in present.items()
    ]
    look = layout("optimizer step", curve.axis, legend=len(curve.series) > 1)
    look["hovermode"] = "x unified"
    if max(xs) - min(xs) <= 10:
        look["xaxis"]["dtick"] = 1  # no half steps
    look["showlegend"] = len(curve.series) > 1
    level, bounds = curve.level, curve.bounds
    if curve.id == "ess" and completions:
        largest = max(value for column in present.values() for value in column if value is not None)
        level, bounds = float(completions), (0.0, 1.15 * max(largest, completions))
        look["annotations"] = [
            {
                "text": f"K = {completions}",
                "xref": "paper",
                "x": 1,
                "xanchor": "right",
                "y": completions,
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": "var(--muted)"},
            }
        ]
    if bounds is not None:
        look["yaxis"]["range"] = list(bounds)
    if level is not None:
        line = {"color": "var(--muted)", "width": 1, "dash": "dot"}
        look["shapes"] = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": level,
                "y1": level,
                "line": line,
                "layer": "between",
            }
        ]
    return Figure(curve.id, curve.title, curve.caption, {"data": traces, "layout": look})
