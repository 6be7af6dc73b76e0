"""The finding of a comparison in one sentence, and its tables as text."""

from __future__ import annotations

import json
from typing import Any

from exoalign.report.compare_data import ComparisonView, Point, Run
from exoalign.report.compare_figures import PATHS, beta_text, colour, symbol, told
from exoalign.report.finding import decimals, difference_places, number
from exoalign.report.stage_views import duration

NAMES = {"sft": "SFT model", "chosen": "chosen replies"}  # of what is compared with, but is no method


def labels(view: ComparisonView) -> dict[str, str]:
    """What the page calls each method and what else it is compared with."""
    return NAMES | {method.name: method.label or method.name for method in view.methods}


def finding(view: ComparisonView) -> str:
    """Which method's area is the largest, and whether it is clear of the next; the comparison's own sentence if it has one."""
    if view.finding:
        return view.finding[:1].upper() + view.finding[1:]
    name = labels(view)
    ranked = sorted((f for f in view.frontiers if f.gain), key=lambda f: -(f.gain.mean if f.gain else 0.0))
    if not ranked:
        points = sum(len(run.points) for run in view.runs)
        return "No method has a frontier yet." if points else "No run has been evaluated yet."
    first = ranked[0]
    where = "" if first.up_to is None else f" up to a KL of {first.up_to:.3g} nats"
    if len(ranked) == 1:
        return f"{name[first.method]} gains {told(first.gain)} in reward on average{where}; there is no other frontier."
    second = ranked[1]
    said = f"{name[first.method]} gains the most reward{where}"
    for pair in view.difference:
        if pair.gain is not None and {pair.a, pair.b} == {first.method, second.method}:
            sign, places = (1 if pair.a == first.method else -1), difference_places(pair.gain)
            ahead = number(sign * pair.gain.mean, places)
            if pair.gain.low is None or pair.gain.high is None:
                return f"{said}, {ahead} more than {name[second.method]}; no interval was computed."
            low, high = sorted(sign * end for end in (pair.gain.low, pair.gain.high))
            extent = f"(95% interval {number(low, places)} to {number(high, places)})"
            if low > 0:
                return f"{said}, clearly ahead of {name[second.method]}: {ahead} more on average {extent}."
            return f"{said}, but not clearly more than {name[second.method]}: {ahead} more on average {extent}."
    return f"{said}, before {name[second.method]}."


def method_rows(view: ComparisonView) -> list[dict[str, Any]]:
    """A row for each method: its area, and the point with the largest reward - beta KL."""
    betas = [run.beta for run in view.runs if run.beta is not None]
    areas = {found.method: found.gain for found in view.frontiers}
    rows = []
    for place, method in enumerate(view.methods):
        runs = [run for run in view.runs if run.method == method.name and run.points]
        best = _best(runs, betas[0] if betas else 0.0)
        row: dict[str, Any] = {
            "place": place,
            "colour": colour(place),
            "path": PATHS[symbol(place)],
            "label": method.label or method.name,
            "about": method.about,
            "runs": len(runs),
            "area": told(areas.get(method.name)),
        }
        cells = ["–"] * 9
        if best is not None:
            run, point = best
            cells = [
                told(point.reward),
                told(point.distance),
                beta_text(run.beta),
                f"{point.step:,}",
                "–" if point.seconds is None else duration(point.seconds),
                "–" if point.tokens is None else f"{point.tokens:,.0f}",
                *(
                    "–" if found is None else number(found.mean, min(decimals(found), most))
                    for found, most in ((point.length, 1), (point.distinct_2, 3), (point.self_bleu, 3))
                ),
            ]
        rows.append(row | {"cells": cells})
    return rows


def _best(runs: list[Run], beta: float) -> tuple[Run, Point] | None:
    """The point with the largest reward - beta KL; runs without a beta are held to `beta`."""
    found = [
        (point.reward.mean - (beta if run.beta is None else run.beta) * point.distance.mean, run, point)
        for run in runs
        for point in run.points
        if point.reward and point.distance
    ]
    return max(found, key=lambda item: item[0])[1:] if found else None


def against_tables(view: ComparisonView) -> list[dict[str, Any]]:
    """The win rates as text, a table for each of what is compared with and who judged."""
    name = labels(view)
    tables: dict[tuple[str, str], list[list[str]]] = {}
    for found in view.win_rates.against:
        counts = ("–" if count is None else f"{count:,.0f}" for count in (found.ties, found.invalid))
        row = [name.get(found.model, found.model), told(found.rate), told(found.length_controlled), *counts]
        tables.setdefault((found.other, found.by), []).append(row)
    return [
        {"label": f"Against the {name.get(other, other)}, by {by}", "rows": rows}
        for (other, by), rows in tables.items()
    ]


def search_tables(view: ComparisonView) -> list[dict[str, Any]]:
    """Of each method what was tried, as a table."""
    name, found = labels(view), []
    for search in view.search:
        keys = list(dict.fromkeys(key for trial in search.trials for key in trial.settings))
        rows = [
            {
                "cells": [_plain(trial.settings.get(key)) for key in keys],
                "objective": "–" if trial.objective is None else number(trial.objective, 3),
                "chosen": trial.chosen,
            }
            for trial in search.trials
        ]
        if rows:
            found.append({"label": name[search.method], "keys": keys, "rows": rows})
    return found


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
