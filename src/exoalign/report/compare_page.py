"""A comparison of methods as one HTML file: the frontier, the methods, what they wrote side by side, and what was run.

How the file stays self-contained and what came as data stays data: `html`. The comparison itself stands in the page as JSON;
compare.js shows its samples, a few at a time, and offers it and its figures as files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exoalign.report.compare_curves import cost_figures, history_figures, learning_figures, variance_figures
from exoalign.report.compare_data import read_comparison
from exoalign.report.compare_figures import colour, frontier_figure
from exoalign.report.compare_rates import rating_figure, win_matrix
from exoalign.report.compare_tables import against_tables, finding, labels, method_rows, search_tables
from exoalign.report.html import write_template
from exoalign.report.page import sections


def write_compare_page(path: Path, comparison: Mapping[str, Any]) -> Path:
    """Write a comparison as one self-contained HTML file, and return its path.

    Args:
        path: the file to write; its folder must exist. It is replaced in one step.
        comparison: `compare_data.ComparisonView` as JSON values; title, methods and runs must be there. Lengths are in tokens,
            KL in nats a completion, seconds and tokens those of a run up to a checkpoint.

    Raises:
        DataError: if the comparison is malformed, with the key.
    """
    view = read_comparison(comparison)
    return write_template(
        path,
        "compare.html",
        styles=("style.css", "compare.css"),
        scripts=("page.js", "compare.js"),
        title=view.title,
        finding=finding(view),
        cards=[],
        warnings=list(view.warnings),
        frontier=frontier_figure(view),
        methods=method_rows(view),
        costs=cost_figures(view),
        learning=learning_figures(view),
        histories=history_figures(view),
        variances=variance_figures(view),
        win_matrix=win_matrix(view),
        rating=rating_figure(view),
        against=against_tables(view),
        searches=search_tables(view),
        samples=sum(len(prompt.rows) for prompt in view.samples),
        recipe=sections(view.recipe),
        versions=view.versions,
        data=finite_only(comparison),
        look={
            "labels": labels(view),
            "colours": {method.name: colour(place) for place, method in enumerate(view.methods)},
        },
    )


def finite_only(value: Any) -> Any:
    """The value with null for each number that is not finite, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite_only(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite_only(item) for item in value]
    return value
