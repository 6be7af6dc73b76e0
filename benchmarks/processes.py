"""One measurement in a process of its own, which prints its result as the last line, in JSON."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


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
