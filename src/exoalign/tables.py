"""The results of a run, what the doctor found, and the runs there are, as tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box, filesize
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exoalign.progress import duration, plain

if TYPE_CHECKING:
    from exoalign.data.doctor.findings import Examination
    from exoalign.listing import RunEntry, StageEntry

ROWS = [
    ("reward", "reward"),
    ("kl", "KL, nats"),
    ("kl_exact", "KL exact, nats"),
    ("length", "length, tokens"),
]


def result_tables(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the metrics, the warnings and where everything lies."""
    console = _console(console)
    metrics = result["metrics"]
    if "aligned" in metrics:
        console.print(_samples_table(metrics))
    if "train" in metrics:
        console.print(_groups_table(metrics))
    for warning in result["warnings"]:
        console.print(Text(f"warning: {plain(warning)}", style="yellow"))
    for name in ("model", "report"):
        console.print(Text(f"{name}: {plain(str(result[name]))}"), soft_wrap=True)


def comparison_table(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what a comparison found: a row for each method, the finding, the warnings and where the page lies."""
    console = _console(console)
    table = Table(box=box.SIMPLE_HEAD, title="95% intervals in brackets", title_justify="left")
    columns = {
        "area": "area under the frontier",
        "reward": "best reward",
        "kl": "at KL, nats",
        "gain": "reward - beta KL",
    }
    for column in ("method", "runs", *columns.values()):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in result["methods"]:
        cells = [interval(row.get(key)) for key in columns]
        table.add_row(Text(plain(row["label"])), str(row["runs"]), *map(Text, cells))
    console.print(table)
    if result["finding"]:
        console.print(Text(plain(result["finding"])))
    for warning in result["warnings"]:
        console.print(Text(f"warning: {plain(warning)}", style="yellow"))
    console.print(Text(f"report: {plain(str(result['report']))}"), soft_wrap=True)


def _console(given: Console | None = None) -> Console:
    console = given or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # nothing is cut where there is no screen
    return console


def _samples_table(metrics: Mapping[str, Any]) -> Table:
    count = f"{metrics['prompts']} held-out prompts x {metrics['completions_per_prompt']} completions"
    table = Table(box=box.SIMPLE_HEAD, title=f"{count}, 95% intervals in brackets", title_justify="left")
    for column in ("", "base", "aligned", "difference"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for key, label in ROWS:
        cells = [interval(metrics.get(part, {}).get(key)) for part in ("base", "aligned", "difference")]
        table.add_row(label, *map(Text, cells))
    return table


def _groups_table(metrics: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "groups", "loss before", "loss after", "accuracy, 95% interval"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for key, label in (("train", "training"), ("heldout", "held out")):
        part = metrics.get(key)
        if part:
            count = part.get("pairs", part.get("groups"))
            losses = f"{part['loss_before']:.4f}", f"{part['loss_after']:.4f}"
            of = f" of {part['of']}" if part.get("of", count) > count else ""
            table.add_row(label, f"{count}{of}", *losses, Text(interval(part.get("accuracy"))))
    return table


def interval(value: Mapping[str, float] | None) -> str:
    """`0.59 [0.53, 0.65]` with the decimals that the width of the interval deserves, or nothing."""
    if not value:
        return ""
    width = value["high"] - value["low"]
    places = min(max(1 - math.floor(math.log10(width)), 0), 6) if width > 0 else 2
    return f"{value['mean']:.{places}f} [{value['low']:.{places}f}, {value['high']:.{places}f}]"


def judge_tables(metrics: Mapping[str, Any]) -> None:
    """Print what a judge found, and how far it can be trusted."""
    console = _console()
    count = f"{metrics['prompts']} prompts, {metrics['calls']} calls"
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{count}, 95% intervals in brackets", title_justify="left", show_header=False
    )
    lines = {
        "win rate": interval(metrics.get("win_rate")),
        "win rate at equal length": interval(metrics.get("length_controlled")),
        "p, if neither is better": "" if metrics.get("p_value") is None else f"{metrics['p_value']:.2g}",
        "score": interval(metrics.get("score")),
        "agreement with the data": interval(metrics.get("agreement")),
        "verdicts for the first place": interval(metrics.get("first_place")),
        **{name: f"{metrics[name]:.1%}" for name in ("inconsistent", "invalid") if name in metrics},
        **{f"constant reply ({name}) wins": interval(c["win_rate"]) or "-" for name, c in metrics["control"].items()},
        "for training": f"{metrics['groups']} groups",
        **{f"left out: {plain(reason)}": str(count) for reason, count in metrics["left_out"].items()},
        "tokens": f"{metrics['prompt_tokens']} asked, {metrics['completion_tokens']} answered",
    }
    for label, value in lines.items():
        if value:
            table.add_row(Text(label), Text(value))
    console.print(table)
    for warning in metrics["warnings"]:
        console.print(Text(f"warning: {plain(warning)}", style="yellow"))


def win_rate_table(found: Mapping[str, Any]) -> None:
    """Print a win rate as `evaluate.preferences` tells it."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    lines = {
        "win rate": interval(found["rate"]),
        "win rate at equal length": interval(found["length_controlled"]),
        "interval": f"95%, {found['interval']}",
        "pairs of replies": f"{found['pairs']}, to {found['prompts']} prompts",
        "ties, each half a win": str(found["ties"]),
        "p, if neither is better": f"{found['p_value']:.2g}",
    }
    for label, value in lines.items():
        table.add_row(Text(label), Text(value))
    _console().print(table)


def ratings_table(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the ratings, the best first."""
    table = Table(box=box.SIMPLE_HEAD, title="95% intervals in brackets", title_justify="left")
    table.add_column("samples", overflow="fold")
    table.add_column("rating", justify="right", no_wrap=True)
    for row in found:
        table.add_row(Text(plain(row["model"])), Text(f"{row['elo']:.0f} [{row['low']:.0f}, {row['high']:.0f}]"))
    _console().print(table)


STYLES = {"error": "bold red", "warning": "yellow", "note": ""}
ROOMY = 100  # columns of a terminal that has room for everything
STATES = {"done": "", "running": "green", "unfinished": "yellow", "damaged": "bold red"}


def examination_tables(examination: Examination) -> None:
    """Print what the doctor counted and found; names of files and texts from the data are inert."""
    console = _console()
    overview = Table(
        box=box.SIMPLE_HEAD, title=Text(plain(examination.source)), title_justify="left", show_header=False
    )
    for name, value in examination.lines():
        overview.add_row(Text(name), Text(plain(value)))
    console.print(overview)
    for rows in (examination.target_rows(), examination.truncation_rows()):
        if rows:
            table = Table(*rows[0], box=box.SIMPLE_HEAD)
            for row in rows[1:]:
                table.add_row(*map(Text, row))
            console.print(table)
    if not examination.findings:
        console.print("nothing found")
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("grade")
    table.add_column("finding", overflow="fold")
    for finding in examination.findings:
        said = Text(plain(finding.text))
        said.append(f"\n{plain(finding.remedy)}", style="dim")
        if finding.where:
            more = ", ..." if len(finding.where) < (finding.count or 0) else ""
            places = ", ".join(examination.place(where) for where in finding.where)
            said.append(f"\nat {plain(places)}{more}", style="dim")
        table.add_row(Text(finding.grade, style=STYLES[finding.grade]), said)
    console.print(table)
    console.print(", ".join(f"{count} {grade}{'s' * (count != 1)}" for grade, count in examination.counts().items()))


def runs_table(runs: Sequence[RunEntry], console: Console | None = None) -> None:
    """Print the runs with their stages: state, time, size, when they last wrote (where there is room), and what was done."""
    console = _console(console)
    columns = ["state", "time", "size", *(["when"] if console.width >= ROOMY else [])]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right" if column in ("time", "size") else "left", no_wrap=True)
    table.add_column("what", overflow="fold")
    for run in runs:
        cells = _cells(run)
        name, folder = Text(plain(run.name), style="bold"), Text(plain(str(run.folder)), style="dim")
        table.add_row(name, *(cells[column] for column in columns), folder)
        for stage in run.stages:
            cells = _cells(stage)
            table.add_row(
                Text(f"  {plain(stage.name)}"), *(cells[column] for column in columns), Text(plain(stage.what))
            )
        table.add_section()
    console.print(table)


def _cells(entry: RunEntry | StageEntry) -> dict[str, Text]:
    return {
        "state": Text(entry.state, style=STATES[entry.state]),
        "time": Text("" if entry.seconds is None else duration(entry.seconds)),
        "size": Text(filesize.decimal(entry.size)),
        "when": Text(f"{entry.when:%Y-%m-%d %H:%M}"),
    }
