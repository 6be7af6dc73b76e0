"""The results of a run as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exoalign.progress import plain

ROWS = [
    ("reward", "reward"),
    ("kl", "KL, nats a completion"),
    ("kl_exact", "KL, exact per step"),
    ("length", "length, tokens"),
]


def result_tables(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the metrics, the warnings and where everything lies."""
    console = console or Console(highlight=False)
    metrics = result["metrics"]
    if "aligned" in metrics:
        console.print(_samples_table(metrics))
    if "train" in metrics:
        console.print(_groups_table(metrics))
    for warning in result["warnings"]:
        console.print(Text(f"warning: {plain(warning)}", style="yellow"))
    for name in ("model", "report"):
        console.print(Text(f"{name}: {plain(str(result[name]))}"), soft_wrap=True)


def _samples_table(metrics: Mapping[str, Any]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{metrics['prompts']} held-out prompts x {metrics['completions_per_prompt']} completions, 95% intervals",
        title_justify="left",
    )
    for column in ("", "base", "aligned", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    for key, label in ROWS:
        cells = [interval(metrics.get(part, {}).get(key)) for part in ("base", "aligned", "difference")]
        table.add_row(label, *cells)
    return table


def _groups_table(metrics: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "groups", "loss before", "loss after", "accuracy, 95% interval"):
        table.add_column(column, justify="left" if not column else "right")
    for key, label in (("train", "training"), ("heldout", "held out")):
        part = metrics.get(key)
        if part:
            count = part.get("pairs", part.get("groups"))
            losses = f"{part['loss_before']:.4f}", f"{part['loss_after']:.4f}"
            table.add_row(label, str(count), *losses, interval(part["accuracy"]))
    return table


def interval(value: Mapping[str, float] | None) -> str:
    """`0.59 (0.53 to 0.65)`, or nothing."""
    return f"{value['mean']:.3g} ({value['low']:.3g} to {value['high']:.3g})" if value else ""
