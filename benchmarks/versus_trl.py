"""Exoalign against TRL's DPOTrainer with its EXO loss: the same rows, batch, optimizer and precision, in one run.

    python benchmarks/versus_trl.py --json results.json                 # all cases, 5 rounds, about an hour on two cores
    python benchmarks/versus_trl.py --case k8_long_prompt --rounds 1

One process a measurement, ABAB order, other rows each round. Needs the development environment with
`pip install -e '.[bench]'`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

from cases import CASES
from processes import measured, parser

from exoalign.models import resolve


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Median ratios over the rounds with their range, and both sides' medians."""
    speed = [r["ours"]["per_second"] / r["trl"]["per_second"] for r in rounds]
    memory = [r["ours"]["peak_bytes"] / r["trl"]["peak_bytes"] for r in rounds]
    sides = {
        side: {key: statistics.median(r[side][key] for r in rounds) for key in ("seconds", "per_second", "peak_bytes")}
        for side in ("ours", "trl")
    }
    return {
        "speedup": statistics.median(speed),
        "speedup_range": [min(speed), max(speed)],
        "memory_ratio": statistics.median(memory),
        "memory_ratio_range": [min(memory), max(memory)],
        **sides,
        "rounds": rounds,
    }


def main() -> None:
    """Measure, print a table, write JSON after each case."""
    command = parser(__doc__, rounds=5)
    command.add_argument("--case", choices=list(CASES), help="this case only")
    options = command.parse_args()
    model = resolve(options.model)
    results: dict[str, Any] = {}
    for name in [options.case] if options.case else CASES:
        case, rounds = CASES[name], []
        for number in range(options.rounds):
            began = time.perf_counter()
            rounds.append(
                {side: measured("sides.py", side, name, model, options.data, number) for side in ("ours", "trl")}
            )
            now, a, b = summary(rounds), rounds[-1]["ours"], rounds[-1]["trl"]
            sys.stderr.write(
                f"{name} round {number + 1}: {a['seconds']:.1f} s against {b['seconds']:.1f} s,"
                f" {a['peak_bytes'] / 1e9:.2f} against {b['peak_bytes'] / 1e9:.2f} GB"
                f" ({time.perf_counter() - began:.0f} s)\n"
            )
        results[name] = {"what": case.what, "unit": case.unit, **now}
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
        low, high = now["speedup_range"]
        sys.stdout.write(
            f"{name:15} {now['speedup']:5.2f}x the {case.unit} a second ({low:.2f} to {high:.2f}),"
            f" {now['memory_ratio']:.3f} of the peak memory: {now['ours']['per_second']:.2f} against"
            f" {now['trl']['per_second']:.2f} a second, {now['ours']['peak_bytes'] / 1e9:.2f} against"
            f" {now['trl']['peak_bytes'] / 1e9:.2f} GB\n"
        )


if __name__ == "__main__":
    main()
