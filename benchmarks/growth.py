"""How time and peak memory grow with K and with the length of the prompt, in bfloat16, replies of 64 tokens.

    python benchmarks/growth.py --json growth.json    # about 15 minutes on two cores

Three series: K = 2 ... 64 with a prompt of 256 tokens, a group whole up to 4,096 tokens and with passes of 1,024 tokens (a
group that is larger goes through the model twice); prompts of 64 ... 1,024 tokens with K = 8. One process a measurement.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from processes import measured, run

K, PROMPTS = (2, 4, 8, 16, 32, 64), (64, 128, 256, 512, 1024)
PROMPT, REPLY, SMALL = 256, 64, 1024
SERIES: dict[str, list[dict[str, int]]] = {
    "k": [{"k": k, "prompt": PROMPT} for k in K],
    "k_in_1024": [{"k": k, "prompt": PROMPT, "tokens": SMALL} for k in K],
    "prompt": [{"k": 8, "prompt": prompt} for prompt in PROMPTS],
}


def growth(model: str, data: Path, rounds: int) -> dict[str, Any]:
    """Medians of seconds and peak bytes for each point of each series, and the straight line through the seconds."""
    found: dict[str, Any] = {"rounds": rounds}
    for name, points in SERIES.items():
        rows = []
        for point in points:
            settings = {"case": "k8_long_prompt", "model": model, "data": str(data), **point}
            runs = [measured("steps.py", json.dumps({**settings, "round": number})) for number in range(rounds)]
            middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "tokens", "peak_bytes")}
            rows.append({**point, **middle})
            sys.stderr.write(f"{name} {point}: {middle['seconds']:.2f} s, {middle['peak_bytes'] / 1e9:.2f} GB\n")
        found[name] = {"points": rows, **_line(rows)}
    for name in ("k", "k_in_1024"):
        peaks = {row["k"]: row["peak_bytes"] for row in found[name]["points"]}
        found[name]["memory_64_over_8"] = peaks[64] / peaks[8]
    return found


def _line(rows: list[dict[str, float]]) -> dict[str, float]:
    """Seconds = slope * tokens + intercept by least squares, and the share of the variance that it explains."""
    xs, ys = [row["tokens"] for row in rows], [row["seconds"] for row in rows]
    slope, intercept = statistics.linear_regression(xs, ys)
    return {
        "seconds_per_1000_tokens": 1000 * slope,
        "intercept_seconds": intercept,
        "r_squared": statistics.correlation(xs, ys) ** 2,
    }


if __name__ == "__main__":
    run(__doc__, growth, rounds=3)
