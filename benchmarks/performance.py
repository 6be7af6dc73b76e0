"""All measurements of docs/performance.md, its tables and its plots, by one command.

    python benchmarks/performance.py            # measure everything (about an hour on two cores), then write the page
    python benchmarks/performance.py --write    # write the page again from docs/performance/*.json

Needs the development environment with `pip install -e '.[bench]'` and the data of --data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
from cases import CASES
from processes import DATA

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "performance"
SCRIPTS = {"versus_trl": "versus_trl.py", "floor": "floor.py", "growth": "growth.py"}
MEMORY_AIM = 0.25
AIMS = {"hh_bf16": 7.0, "hh_fp32": 5.0, "hh_autocast": 7.0, "k8_long_prompt": 10.0, "alpaca_k8": 2.5}
OURS, THEIRS, GREY = "#2f6db3", "#c9792b", "#666666"
MARK = {"fontsize": 9, "color": "#333333"}


def main() -> None:
    """Measure unless told otherwise, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="measure nothing: only write the page")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the data")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if not options.write:
        for name, script in SCRIPTS.items():
            command = [
                sys.executable,
                script,
                "--json",
                str(FOLDER / f"{name}.json"),
                "--data",
                str(options.data.resolve()),
            ]
            subprocess.run(command, cwd=Path(__file__).parent, check=True, stdout=sys.stderr)
    found = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in SCRIPTS}
    plt.rcParams.update(
        {"font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    versus_plot(found["versus_trl"])
    growth_plot(found["growth"])
    floor_plot(found["floor"])
    template = (Path(__file__).parent / "performance.template.md").read_text()
    tables = {
        "versus": versus_table(found["versus_trl"]),
        "floor": floor_table(found["floor"]),
        "profile": profile_table(found["floor"]),
        "lines": lines_table(found["growth"]),
        "growth": growth_table(found["growth"]),
    }
    rounds = found["growth"]["rounds"]
    tables["rounds"] = "one round" if rounds == 1 else f"medians over {rounds} rounds"
    for name, table in tables.items():
        template = template.replace(f"<!-- {name} -->", table)
    (DOCS / "performance.md").write_text(template)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def versus_table(found: dict[str, Any]) -> str:
    """Both sides of each case."""
    rows = []
    for name, case in found.items():
        low, high = case["speedup_range"]
        ours, trl = case["ours"], case["trl"]
        rows.append(
            [
                f"`{name}`",
                case["what"],
                f"**{case['speedup']:.1f}x** ({low:.1f} to {high:.1f})",
                f"{AIMS[name]:g}x",
                f"**{case['memory_ratio']:.2f}**",
                f"{ours['per_second']:.2f} / {trl['per_second']:.2f} {case['unit']}",
                f"{ours['peak_bytes'] / 1e9:.1f} / {trl['peak_bytes'] / 1e9:.1f} GB",
            ]
        )
    head = [
        "case",
        "what",
        "speed, median (range)",
        "aim",
        f"memory, ours over TRL's (aim {MEMORY_AIM})",
        "a second, ours / TRL",
        "peak, ours / TRL",
    ]
    return table(head, rows)


def floor_table(found: dict[str, Any]) -> str:
    """The share of the floor of each case."""
    rows = [
        [
            f"`{name}`",
            CASES[name].precision,
            f"**{case['share']:.2f}** ({case['range'][0]:.2f} to {case['range'][1]:.2f})",
            f"{case['aim']:g}",
            f"{case['gigaflops']:.0f}",
            f"{case['product_gigaflops']:.0f}",
        ]
        for name, case in found.items()
    ]
    return table(
        ["case", "precision", "share, median (range)", "aim", "GFLOP/s of the step", "of a matrix product"], rows
    )


def profile_table(found: dict[str, Any]) -> str:
    """Where the processor time goes."""
    kinds = sorted(next(iter(found.values()))["profile"])
    rows = [[f"`{name}`", *(f"{case['profile'][kind]:.0%}" for kind in kinds)] for name, case in found.items()]
    return table(["case", *kinds], rows)


def lines_table(found: dict[str, Any]) -> str:
    """The straight line through each series, and the growth of memory with K."""
    rows = []
    for name in TITLES:
        series = found[name]
        ratio = series.get("memory_64_over_8")
        rows.append(
            [
                TITLES[name],
                f"{series['seconds_per_1000_tokens']:.2f} s",
                f"{series['r_squared']:.3f}",
                "" if ratio is None else f"{ratio:.2f}",
            ]
        )
    return table(
        ["series", "1,000 tokens more take", "R² of the line", "peak memory, K = 64 over K = 8 (aim 1.3)"], rows
    )


TITLES = {"k": "K, whole up to 4,096 tokens", "k_in_1024": "K, passes of 1,024", "prompt": "prompt, K = 8"}


def growth_table(found: dict[str, Any]) -> str:
    """Time and memory of each point, by series."""
    rows = []
    for name in TITLES:
        for point in found[name]["points"]:
            rows.append(
                [
                    TITLES[name],
                    str(point["k"]),
                    f"{point['prompt']:,}",
                    f"{point['tokens']:,.0f}",
                    f"{point['seconds']:.2f}",
                    f"{1e3 * point['seconds'] / point['tokens']:.2f}",
                    f"{point['peak_bytes'] / 1e9:.2f}",
                ]
            )
    return table(["series", "K", "prompt", "unique tokens", "s", "ms a token", "peak, GB"], rows)


def versus_plot(found: dict[str, Any]) -> None:
    """Speed-ups with their range and the aim; peaks side by side."""
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    names = list(found)
    for y, name in enumerate(names):
        case = found[name]
        low, high = case["speedup_range"]
        speed.barh(y, case["speedup"], color=OURS, height=0.55)
        speed.plot([low, high], [y, y], color="#1b1b1b", linewidth=1.2, marker="|")
        speed.plot([AIMS[name]] * 2, [y - 0.4, y + 0.4], color=THEIRS, linewidth=2, label="aim" if y == 0 else None)
        speed.text(high + 0.2, y, f"{case['speedup']:.1f}x", va="center", **MARK)
        for shift, side, colour in ((-0.2, "ours", OURS), (0.2, "trl", THEIRS)):
            peak = case[side]["peak_bytes"] / 1e9
            label = {"ours": "Exoalign", "trl": "TRL"}[side] if y == 0 else None
            memory.barh(y + shift, peak, color=colour, height=0.36, label=label)
            memory.text(peak + 0.15, y + shift, f"{peak:.1f}", va="center", **MARK)
    for axis, title in ((speed, "times as fast as TRL"), (memory, "peak memory, GB")):
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=10)
        axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, fontsize=9)
        axis.margins(x=0.12)
    save(figure, "versus_trl")


def growth_plot(found: dict[str, Any]) -> None:
    """Time and peak memory against unique tokens and K."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    lines = (("k", "whole up to 4,096 tokens", OURS), ("k_in_1024", "passes of 1,024 tokens", THEIRS))
    for name, label, colour in lines:
        points = found[name]["points"]
        axes[0].plot([p["tokens"] for p in points], [p["seconds"] for p in points], "o-", color=colour, label=label)
        axes[1].plot([p["k"] for p in points], [p["peak_bytes"] / 1e9 for p in points], "o-", color=colour, label=label)
    prompts = found["prompt"]["points"]
    axes[2].plot([p["tokens"] for p in prompts], [p["seconds"] for p in prompts], "o-", color=GREY, label="K = 8")
    axes[0].set(xlabel="unique tokens (K = 2 to 64)", title="seconds a step, K grows")
    axes[1].set(xlabel="K", title="peak memory, GB", xscale="log", xticks=[2, 4, 8, 16, 32, 64])
    axes[1].set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    axes[1].minorticks_off()
    axes[2].set(xlabel="unique tokens (prompt of 64 to 1,024)", title="seconds a step, the prompt grows")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, loc="upper left")
        axis.title.set_size(10)
    axes[1].legend(frameon=False, loc="lower right")
    save(figure, "growth")


def floor_plot(found: dict[str, Any]) -> None:
    """Where the time of a step goes."""
    figure, axis = plt.subplots(figsize=(9.6, 2.6), layout="constrained")
    kinds = list(next(iter(found.values()))["profile"])  # the largest first
    colours = [OURS, THEIRS, "#5a9e6f", "#8a6fb0", "#b0a13c", "#9aa0a6"]
    for y, case in enumerate(found.values()):
        left = 0.0
        for kind, colour in zip(kinds, colours, strict=True):
            share = case["profile"][kind]
            axis.barh(y, share, left=left, color=colour, height=0.6, label=kind if y == 0 else None)
            if share > 0.04:
                axis.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", color="white", fontsize=9)
            left += share
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    axis.set_title("share of the processor time of a step", loc="left", fontsize=10)
    axis.legend(frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.45, -0.12), fontsize=9, columnspacing=1)
    save(figure, "profile")


def save(figure: Any, name: str) -> None:
    """An SVG that is the same for the same numbers."""
    plt.rcParams["svg.hashsalt"] = name
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main()
