"""How near a step comes to its floor: the operations that it cannot do without, at the rate of the machine's matrix products.

    python benchmarks/floor.py --json floor.json    # 5 rounds of each case, about 8 minutes on two cores

One process a measurement, other rows each round; see steps.py for what is counted. The profile is of one further step.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from processes import measured, run

SHARES = {"hh_fp32": 0.8, "hh_bf16": 0.6, "k8_long_prompt": 0.6}
"""The cases, and the share of the floor that is aimed at."""


def shares(model: str, data: Path, rounds: int) -> dict[str, Any]:
    """The share of each case: its median over the rounds with the range, and where the time goes."""
    found: dict[str, Any] = {}
    for case, aim in SHARES.items():
        settings = {"case": case, "model": model, "data": str(data)}
        runs = [
            measured("steps.py", json.dumps({**settings, "round": number, "profile": number == rounds - 1}))
            for number in range(rounds)
        ]
        values = [run["operations"] / run["seconds"] / run["rate"] for run in runs]
        found[case] = {
            "share": statistics.median(values),
            "range": [min(values), max(values)],
            "aim": aim,
            "gigaflops": statistics.median(run["operations"] / run["seconds"] for run in runs) / 1e9,
            "product_gigaflops": statistics.median(run["rate"] for run in runs) / 1e9,
            "profile": runs[-1]["profile"],
        }
        sys.stderr.write(f"{case}: {found[case]['share']:.2f} of the floor ({min(values):.2f} to {max(values):.2f})\n")
    return found


if __name__ == "__main__":
    run(__doc__, shares, rounds=5)
