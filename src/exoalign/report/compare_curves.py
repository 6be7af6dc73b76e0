"""Curves of a comparison: what reward cost in time and tokens, what was learnt, and what the trainers told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from exoalign.report.compare_data import ComparisonView, Point
from exoalign.report.compare_figures import error_of, key_of, name_of, told, trace_of
from exoalign.report.figures import Figure, layout, title
from exoalign.report.finding import Estimate, finite
from exoalign.report.stage_views import duration

WIDE = 30.0  # an axis whose ends differ by more than this factor is logarithmic
KEPT = 40  # points of a run's history; of longer ones they are means, as noise would hide the curves
HISTORIES = {
    "loss": ("Loss", "loss", "The objectives differ, so their losses do not compare: look for the trend of each."),
    "policy_reward": ("Reward of the policy", "reward", "Mean reward of the training samples, weighted by the policy."),
    "accuracy": ("Training accuracy", "accuracy", "Share of pairs that the policy ranks as preferred."),
    "policy_ess": (
        "Effective sample size",
        "completions",
        "How many completions of a group the policy gives weight to.",
    ),
    "kl": ("KL of the training samples", "nats", "The trainer's own estimate on what it was trained on."),
    "proposal_ess": ("ESS of the correction", "completions", "How many samples carry the correction to the policy."),
    "grad_norm": (
        "Gradient norm",
        "norm",
        "Before clipping: spikes or growth point to a learning rate that is too high.",
    ),
}
"""Of a key of the histories its title, axis and caption."""

Measure = Callable[[Point], float | None]


def cost_figures(view: ComparisonView) -> list[Figure]:
    """Reward against wall-clock, and against the tokens that went through the model."""
    found = (
        _runs_figure(view, "reward-seconds", "Reward against time", "seconds of training and sampling", _seconds,
                     "Wall-clock of one run up to each checkpoint, on the machine that it ran on."),
        _runs_figure(view, "reward-tokens", "Reward against tokens", "tokens through the model", lambda p: p.tokens,
                     "Tokens that went through the model in training and in sampling, a measure that no machine changes."),
    )  # fmt: skip
    return [figure for figure in found if figure]


def learning_figures(view: ComparisonView) -> list[Figure]:
    """Reward and KL of the checkpoints of each run against the step."""
    trained = view.model_copy(update={"runs": [run for run in view.runs if run.history] or view.runs})
    found = (
        _runs_figure(trained, "reward-step", "Reward while learning", "optimizer step", lambda p: float(p.step),
                     "Held-out reward of each checkpoint, a line for each run."),
        _runs_figure(trained, "kl-step", "KL while learning", "optimizer step", lambda p: float(p.step),
                     "How far each run has moved from the model before alignment.",
                     y=lambda p: p.distance, y_title="KL, nats"),
        _runs_figure(view, "length-reward", "Length against reward", "tokens a completion", _length,
                     "Whether reward came with longer replies: a method whose points move right gains by length.",
                     lines=False),
    )  # fmt: skip
    return [figure for figure in found if figure]


def _log(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis of these values; with its range, as plotly finds none when all methods are switched off."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = 0.06 * (high - low) or 0.1
    return {"type": "log", "dtick": 1, "range": [low - pad, high + pad]}


def _seconds(point: Point) -> float | None:
    return point.seconds


def _length(point: Point) -> float | None:
    return None if point.length is None else point.length.mean


def _reward(point: Point) -> Estimate | None:
    return point.reward


def _runs_figure(
    view: ComparisonView,
    id: str,
    heading: str,
    x_title: str,
    x: Measure,
    caption: str,
    *,
    y: Callable[[Point], Estimate | None] = _reward,
    y_title: str = "mean reward",
    lines: bool = True,
) -> Figure | None:
    """One trace a method: its runs one after the other, with a gap between them."""
    traces, everything = [], []
    for place, method in enumerate(view.methods):
        xs: list[float | None] = []
        ys: list[float | None] = []
        notes: list[list[Any]] = []
        for run in view.runs:
            if run.method != method.name:
                continue
            for point in run.points:
                at, value = x(point), y(point)
                if at is not None and value is not None:
                    xs.append(at)
                    ys.append(value.mean)
                    notes.append([name_of(method), *key_of(run, point), told(value), x_text(id, at)])
            xs, ys, notes = [*xs, None], [*ys, None], [*notes, []]
        present = [value for value in xs if value is not None]
        if present:
            everything += present
            hover = (
                "<b>%{customdata[0]}</b><br>beta %{customdata[1]}, seed %{customdata[2]}, step %{customdata[3]}"
                f"<br>{y_title} %{{customdata[4]}}<br>%{{customdata[5]}}<extra></extra>"
            )
            trace = trace_of(place, method, x=xs[:-1], y=ys[:-1], customdata=notes[:-1], hovertemplate=hover)
            trace["line"]["width"] = 1.3
            traces.append(trace | {"mode": "lines+markers" if lines else "markers"})
    if not traces:
        return None
    look = layout(x_title, y_title, height=340)
    look["hovermode"] = "closest"
    if id != "length-reward" and min(everything) > 0 and max(everything) / min(everything) > WIDE:
        look["xaxis"] |= {**_log(everything), "title": title(f"{x_title} (log scale)")}
    return Figure(id, heading, caption, {"data": traces, "layout": look})


def x_text(id: str, value: float) -> str:
    """The x of a point for its hover label."""
    if id == "reward-seconds":
        return f"after {duration(value)}"
    unit = {"reward-tokens": "tokens", "length-reward": "tokens a completion"}.get(id)
    return f"{value:,.0f} {unit}" if unit else f"at step {value:g}"


def history_figures(view: ComparisonView) -> list[Figure]:
    """What the trainers told at each step, a line for each run."""
    found = []
    for key, (heading, y_title, caption) in HISTORIES.items():
        traces = []
        for place, method in enumerate(view.methods):
            xs: list[float | None] = []
            ys: list[float | None] = []
            for run in view.runs:
                if run.method == method.name and run.history:
                    steps, values = _thinned(run.history, key)
                    xs, ys = [*xs, *steps, None], [*ys, *values, None]
            if any(y is not None for y in ys):
                trace = trace_of(place, method, x=xs[:-1], y=ys[:-1], mode="lines", connectgaps=False)
                trace["line"]["width"] = 1
                traces.append(trace | {"hovertemplate": "step %{x}: %{y:.4g}"})
        if traces:
            look = layout("optimizer step", y_title, height=300)
            look["hovermode"] = "closest"
            found.append(Figure(f"history-{key}", heading, caption, {"data": traces, "layout": look}))
    return found


def _thinned(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float | None]]:
    """Steps and values of a history; where it is long, means of as many parts as a curve is drawn with."""
    every = -(-len(history) // KEPT)
    steps, values = [], []
    for start in range(0, len(history), every):
        part = history[start : start + every]
        found = [value for row in part if (value := finite(row.get(key))) is not None]
        step = finite(part[-1].get("step"))
        steps.append(start + len(part) if step is None else step)
        values.append(fmean(found) if found else None)
    return steps, values


def variance_figures(view: ComparisonView) -> list[Figure]:
    """Variance of the gradient estimates and their cosine with the true gradient, against the number of completions."""
    parts = (
        ("variance", "Variance of the gradient", "variance",
         "Of estimates from so many completions: lower is better."),
        ("cosine", "Direction of the gradient", "cosine with the true gradient",
         "How near an estimate from so many completions points to the true gradient: 1 is the same direction."),
    )  # fmt: skip
    found = []
    for key, heading, y_title, caption in parts:
        traces = []
        for place, method in enumerate(view.methods):
            rows = sorted((v for v in view.variance if v.method == method.name), key=lambda v: v.completions)
            pairs = [(row.completions, value) for row in rows if (value := getattr(row, key)) is not None]
            if pairs:
                trace = trace_of(place, method, x=[k for k, _ in pairs], y=[value.mean for _, value in pairs])
                told_values = [told(value) for _, value in pairs]
                hover = f"<b>%{{fullData.name}}</b><br>%{{x}} completions<br>{key} %{{customdata}}<extra></extra>"
                trace |= {"mode": "lines+markers", "customdata": told_values, "hovertemplate": hover}
                traces.append(trace | {"error_y": error_of(place, [value for _, value in pairs])})
        if traces:
            look = layout("completions (log scale)", y_title, height=340)
            counts = sorted({k for trace in traces for k in trace["x"]})
            look["xaxis"] |= {"type": "log", "tickvals": counts, "ticktext": [f"{k:,}" for k in counts]}
            look["hovermode"] = "closest"
            values = [y for trace in traces for y in trace["y"]]
            if key == "variance" and min(values) > 0:
                look["yaxis"] |= {**_log(values), "title": title(f"{key} (log scale)")}
            found.append(Figure(f"gradient-{key}", heading, caption, {"data": traces, "layout": look}))
    return found
