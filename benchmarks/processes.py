"""Benchmarks as commands, and one measurement in a process of its own, which prints its result as the last line, in JSON."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"


def parser(about: str | None, rounds: int) -> argparse.ArgumentParser:
    """The command line of a benchmark that runs in rounds; `about` is its docstring."""
    found = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    found.add_argument("--json", type=Path, help="write the results to this file")
    found.add_argument("--rounds", type=int, default=rounds, help=f"rounds of each measurement (default {rounds})")
    found.add_argument("--model", default="demo", help="a folder, a hub id or `demo`")
    found.add_argument("--data", type=Path, default=DATA, help="the folder of the data")
    return found


def run(about: str | None, measure: Callable[[str, Path, int], dict[str, Any]], rounds: int) -> None:
    """Print what `measure` finds for a model, the folder of the data and a number of rounds, and write it to --json."""
    from exoalign.models import resolve  # brings PyTorch, which the processes of tokenise.py begin without

    options = parser(about, rounds).parse_args()
    found = json.dumps(measure(resolve(options.model), options.data, options.rounds), indent=1)
    if options.json:
        options.json.write_text(found)
    sys.stdout.write(found + "\n")


def measured(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script of this folder and return its result.

    Raises:
        SystemExit: with what it said, if it failed.
    """
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join([script, *map(str, arguments)])} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def report(result: dict[str, Any]) -> None:
    """What the process of a measurement prints at its end."""
    sys.stdout.write("\n" + json.dumps(result) + "\n")


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
