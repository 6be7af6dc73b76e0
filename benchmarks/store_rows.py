"""What keeping finished rows costs: 100,000 rows in SQLite, added as a stage adds them, read back and written to Parquet.

    python benchmarks/store_rows.py            # about 20 s
    python benchmarks/store_rows.py --rows 1000

A row is a sampled completion with its token ids and log-probs (some 700 bytes of JSON); 64 rows a transaction, K = 8.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exoalign.data.table import write_table
from exoalign.finished import Finished
from exoalign.groups import Group

K, TOGETHER, TOKENS = 8, 64, 64


def value(draw: random.Random) -> dict[str, Any]:
    ids = [draw.randrange(50_000) for _ in range(TOKENS)]
    return {"text": "word " * 40, "ids": ids, "logprob": draw.random(), "finish": "stop"}


def groups(done: Finished) -> Iterator[Group]:
    drawn = []
    for (prompt, k), row in done:
        drawn.append(row)
        if k == K - 1:
            yield Group(
                f"prompt {prompt}",
                tuple(row["text"] for row in drawn),
                completion_ids=tuple(row["ids"] for row in drawn),
                sampler_logprobs=tuple(row["logprob"] for row in drawn),
            )
            drawn = []


def measure(rows: int) -> dict[str, float]:
    """Seconds of each part; making the rows is left out."""
    draw, spent = random.Random(0), {"add": 0.0, "keys": 0.0, "parquet": 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Finished(folder / "rows.sqlite", "benchmark") as done:
            for start in range(0, rows, TOGETHER):
                some = [(divmod(i, K), value(draw)) for i in range(start, min(start + TOGETHER, rows))]
                began = time.perf_counter()
                done.add(some)
                spent["add"] += time.perf_counter() - began
            began = time.perf_counter()
            assert len(done.keys()) == rows
            spent["keys"] = time.perf_counter() - began
            began = time.perf_counter()
            write_table(groups(done), folder / "groups.parquet")
            spent["parquet"] = time.perf_counter() - began
        size = sum(path.stat().st_size for path in folder.glob("rows.sqlite*"))
    return {"rows": rows, **spent, "total": sum(spent.values()), "megabytes": size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="a multiple of 8")
    found = measure(parser.parse_args().rows)
    sys.stdout.write(json.dumps({name: round(value, 2) for name, value in found.items()}) + "\n")


if __name__ == "__main__":
    main()
