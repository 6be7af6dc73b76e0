"""Reading, tokenising, fingerprinting and caching of 100,000 rows: python benchmarks/tokenise.py [--rows N] [--json FILE]

The rows are those of an HH file, repeated with a counter in the prompt so that no two are the same. Each run is a process of
its own, for its time and its peak resident memory: a first one, a second one that finds the cache, and one with a fifth of the
rows, whose memory the first one's should not be above. Times include the start of Python and the tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from processes import DATA, measured, peak_bytes, report

ROWS = DATA / "hh_harmless_train.jsonl.gz"
TARGETS = {"first run": (90.0, 2e9), "second run": (5.0, 2e9)}
FIRST = "\n\nHuman:"


def write_rows(source: Path, target: Path, count: int) -> None:
    """`count` transcripts, those of the source again and again, with a number in their first turn."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with target.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = rows[i % len(rows)]
            numbered = {key: row[key].replace(FIRST, f"{FIRST} ({i})", 1) for key in ("chosen", "rejected")}
            file.write(json.dumps(numbered) + "\n")


def measure(path: str, cache: str) -> dict[str, Any]:
    """One run, in this process."""
    from exoalign.config_data import DataSection
    from exoalign.data.prepare import prepare
    from exoalign.models import load_tokenizer

    tokenizer = load_tokenizer("demo")
    data = DataSection(train=path)
    began = time.perf_counter()
    prepared = prepare(data, "train", tokenizer, context=None, seed=0, cache=Path(cache))
    assert prepared is not None
    return {
        "groups": len(prepared.groups),
        "preparing": time.perf_counter() - began,
        "peak": peak_bytes(),
        "lines": prepared.lines,
    }


def run(path: Path, cache: Path) -> dict[str, Any]:
    began = time.perf_counter()
    result = measured("tokenise.py", "--measure", path, cache)
    return {**result, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--data", type=Path, default=ROWS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        report(measure(*options.measure))
        return
    if not options.data.is_file():
        raise SystemExit(f"{options.data} is missing; give an HH file (`chosen`, `rejected`) with --data")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fewer = options.rows // 5
        write_rows(options.data, folder / "all.jsonl", options.rows)
        write_rows(options.data, folder / "fewer.jsonl", fewer)
        results[f"{fewer:,} rows"] = run(folder / "fewer.jsonl", folder / "cache")
        results["first run"] = run(folder / "all.jsonl", folder / "cache")
        results["second run"] = run(folder / "all.jsonl", folder / "cache")
    print(f"{options.rows:,} rows of {options.data.name}")
    print("| run | groups | seconds | of them preparing | peak memory | target |")
    print("|---|---|---|---|---|---|")
    for name, r in results.items():
        target = TARGETS.get(name)
        told = f"{target[0]:.0f} s, {target[1] / 1e9:.0f} GB" if target else ""
        print(
            f"| {name} | {r['groups']:,} | {r['seconds']:.1f} | {r['preparing']:.1f} | {r['peak'] / 1e9:.2f} GB | {told} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"rows": options.rows, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
