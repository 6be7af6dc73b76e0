"""Who wins against whom: the matrix of win rates as a heat map with its numbers, and the ratings."""

from __future__ import annotations

from typing import Any

from exoalign.report.compare_data import ComparisonView
from exoalign.report.compare_figures import colour, symbol, told
from exoalign.report.compare_tables import labels
from exoalign.report.figures import Figure, layout, title
from exoalign.report.finding import Estimate, number
from exoalign.report.stage_views import label

BRIEF = 18  # characters of a model's name at the side of the matrix


def win_matrix(view: ComparisonView) -> Figure | None:
    """The win rate of each row's model against each column's."""
    rates = view.win_rates
    if not any(cell is not None for row in rates.matrix for cell in row):
        return None
    names = [label(labels(view).get(model, model), BRIEF) for model in rates.models]
    places = list(range(len(names)))
    values = [[None if cell is None else cell.mean for cell in row] for row in rates.matrix]
    heat = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": values,
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0.0, "var(--lose)"], [0.5, "var(--surface)"], [1.0, "var(--win)"]],
        "hoverongaps": False,
        "customdata": [
            [f"{row} against {column}: {told(cell)}" for column, cell in zip(names, cells, strict=True)]
            for row, cells in zip(names, rates.matrix, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    look = layout("against", "", height=max(300, 34 * len(names) + 130))
    ticks = {"tickvals": places, "ticktext": names, "showgrid": False, "fixedrange": True}
    look["xaxis"] |= ticks | {"tickangle": -60, "showline": False}
    look["yaxis"] |= ticks | {"autorange": "reversed", "title": title("")}
    look["annotations"] = [
        {
            "x": column,
            "y": row,
            "text": f"{100 * value:.0f}",
            "showarrow": False,
            "font": {"size": 11},
        }
        for row, cells in enumerate(values)
        for column, value in enumerate(cells)
        if value is not None
    ]
    caption = "Share of prompts, in percent, on which the row's model wins against the column's; a tie counts one half."
    return Figure("win-matrix", "Win rates", caption, {"data": [heat], "layout": look})


def rating_figure(view: ComparisonView) -> Figure | None:
    """The ratings with their intervals, the best on top."""
    rated = [(found.model, found) for found in view.win_rates.ratings if found.elo is not None]
    if not rated:
        return None
    rated.sort(key=lambda pair: -(pair[1].elo or 0.0))
    place_of = {method.name: place for place, method in enumerate(view.methods)}
    traces: list[dict[str, Any]] = []
    for row, (model, found) in enumerate(rated):
        place = place_of.get(model)
        paint = "var(--base)" if place is None else f"var(--{colour(place)})"
        value = Estimate(found.elo or 0.0, found.low, found.high)
        dot: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "x": [value.mean],
            "y": [row],
            "showlegend": False,
            "marker": {"size": 10, "color": paint, "symbol": "circle-open" if place is None else symbol(place)},
            "customdata": [told(value) if found.low is not None else number(value.mean, 0)],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        if value.low is not None and value.high is not None:
            ends = {"array": [value.high - value.mean], "arrayminus": [value.mean - value.low]}
            dot["error_x"] = {"type": "data", "symmetric": False, **ends, "color": paint, "thickness": 2, "width": 5}
        traces.append(dot)
    look = layout("Elo", "", height=max(200, 34 * len(rated) + 130))
    names = [label(labels(view).get(model, model), BRIEF) for model, _ in rated]
    look["xaxis"] |= {"showgrid": True}
    look["yaxis"] |= {"tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.4, -0.6]}
    look["yaxis"] |= {"showgrid": False, "fixedrange": True, "title": title("")}
    caption = "Bradley-Terry strengths of all comparisons on the scale of chess: 400 points are odds of 10 to 1."
    return Figure("rating", "Ratings", caption, {"data": traces, "layout": look})
