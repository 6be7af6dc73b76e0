"""What the doctor found in a data set as one HTML file: the findings, the numbers, and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from exoalign.data.doctor.findings import Examination, counted
from exoalign.report.figures import Figure, layout
from exoalign.report.finding import Card
from exoalign.report.html import write_template

HISTOGRAMS = {
    "prompt": (
        "Length of prompts",
        "{unit}",
        "prompts",
        "How long the prompts are; the last bar holds all longer ones.",
    ),
    "completion": (
        "Length of completions",
        "{unit}",
        "completions",
        "How long the completions are; the last bar holds all longer ones.",
    ),
    "k": ("Completions of a group", "K", "groups", "How many completions each prompt has."),
    "rewards": (
        "Rewards",
        "reward",
        "completions",
        "Rewards of all completions: a pile at one end is a saturated reward.",
    ),
    "ess": (
        "Effective sample size",
        "completions",
        "groups",
        "ESS of softmax(r / beta_r) in each group whose rewards differ, at the beta_r given, else the suggested one:"
        " near 1, one completion has all the weight.",
    ),
}


def write_doctor_page(path: Path, examination: Examination) -> Path:
    """Write an examination as one self-contained HTML file, and return its path.

    Args:
        path: the file to write; its folder must exist. It is replaced in one step.
        examination: what the doctor found; names of files and words of the data stay text.
    """
    counts = [counted(count, grade) for grade, count in examination.counts().items() if count]
    return write_template(
        path,
        "doctor.html",
        title=examination.source,
        finding=", ".join(counts) or "Nothing found.",
        cards=_cards(examination),
        findings=[
            {
                "grade": finding.grade,
                "text": finding.text,
                "remedy": finding.remedy,
                "places": ", ".join(map(examination.place, finding.where)),
                "more": len(finding.where) < (finding.count or 0),
            }
            for finding in examination.findings
        ],
        figures=doctor_figures(examination),
        numbers=examination.lines(),
        tables=[
            (name, rows)
            for name, rows in (
                ("Sharpness of the target", examination.target_rows()),
                ("What the budgets cut", examination.truncation_rows()),
            )
            if rows
        ],
    )


def doctor_figures(examination: Examination) -> list[Figure]:
    """The histograms that have something to show, and how the target sharpens with beta_r."""
    found = []
    for name, (heading, x_title, y_title, caption) in HISTOGRAMS.items():
        histogram = examination.histograms[name]
        if histogram["counts"]:
            if examination.kind == "text":
                heading, y_title, caption = (
                    words.replace("completions", "texts") for words in (heading, y_title, caption)
                )
            bars = _categories(histogram) if name == "k" else _bars(histogram)
            look = layout(x_title.format(unit=examination.unit), y_title)
            look |= {"bargap": 0.05}
            look["xaxis"] |= {"type": "category"} if name == "k" else {}
            look["yaxis"] |= {"rangemode": "tozero"}
            found.append(Figure(f"histogram-{name}", heading, caption, {"data": [bars], "layout": look}))
    table = examination.targets["beta_r"]
    return found if table is None else [*found, _target_figure(table["values"])]


def _bars(histogram: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    edges, counts = histogram["edges"], histogram["counts"]
    width = edges[1] - edges[0]
    labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return {
        "type": "bar",
        "x": [low + width / 2 for low in edges[:-1]],
        "y": list(counts),
        "width": [width] * len(counts),
        "customdata": labels,
        "marker": {"color": "var(--target)", "line": {"width": 0}},
        "hovertemplate": "%{customdata}: %{y}<extra></extra>",
    }


def _categories(histogram: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        "type": "bar",
        "x": [f"{value:g}" for value in histogram["edges"]],
        "y": list(histogram["counts"]),
        "marker": {"color": "var(--target)", "line": {"width": 0}},
        "hovertemplate": "K = %{x}: %{y}<extra></extra>",
    }


def _target_figure(values: Sequence[Mapping[str, float]]) -> Figure:
    look = layout("beta_r", "(ESS - 1) / (K - 1)")
    look["xaxis"] |= {"type": "log"}
    look["yaxis"] |= {"range": [-0.03, 1.05]}
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [value["beta_r"] for value in values],
        "y": [value["ess_share"] for value in values],
        "line": {"color": "var(--target)", "width": 2},
        "marker": {"color": "var(--target)", "size": 6},
        "hovertemplate": "beta_r %{x:.3g}: %{y:.3f}<extra></extra>",
    }
    caption = "Median over the groups whose rewards differ: 0 is one completion with all the weight, 1 a flat target."
    return Figure("target-sharpness", "Sharpness of the target", caption, {"data": [line], "layout": look})


def _cards(examination: Examination) -> list[Card]:
    rows = examination.rows
    lost = f"{rows['set_aside']:,} set aside, {rows['malformed']:,} malformed"
    different = f"Different {'texts' if examination.kind == 'text' else 'prompts'}"
    found = [
        Card("Rows", f"{rows['read']:,}", lost),
        Card("Groups", f"{examination.groups:,}", f"of kind {examination.kind}"),
        Card(different, f"{examination.prompts:,}", "after exact repetitions"),
    ]
    table = examination.targets["beta_r"]
    if table is not None and table["suggested"] is not None:
        found.append(Card("Suggested beta_r", f"{table['suggested']:g}", "see the target below"))
    return found
