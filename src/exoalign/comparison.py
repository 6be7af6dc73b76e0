"""Compares methods: what comes before alignment is done once, then each training in a stage of its own, then the page.

Everything is in one run folder and goes on where it was stopped: at each finished training, and inside one at its checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exoalign.compare_chain import CompareChain
from exoalign.comparison_results import write_results
from exoalign.config import Recipe
from exoalign.config_compare import Comparison
from exoalign.plan import Say, Stage, described, plan
from exoalign.progress import duration, plain
from exoalign.stages_compare import free
from exoalign.store import RunFolder, StageResult


def compare(
    comparison: Comparison,
    task: Recipe,
    *,
    say: Say = lambda line: None,
    show: bool = True,
    redo: bool = False,
    allow_inexact: bool = False,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Run a comparison, going on after what is complete already.

    Args:
        comparison, task: checked recipes.
        say: takes a line for the user.
        show: show progress on stderr.
        redo: do anew what stands there made from something else.
        allow_inexact: as `run`.
        minutes: begin no stage after so many; the page then shows what is there.

    Returns:
        {"finding", "methods": a row each, "left": names of the stages still to do, "report": file, "out": folder}.

    Raises:
        ExoalignError: with a message for the user; finished stages stay.
    """
    work = CompareChain(comparison, task, show=show, say=say, allow_inexact=allow_inexact)
    for note in work.chain.notes:
        say(f"note: {plain(note)}")
    began = time.monotonic()
    with RunFolder(comparison.out, comparison.name, redo=redo) as folder:
        for planned in plan(folder, work.stages):
            folder.refuse(planned.stage.name, planned.standing)
        done, left = dict[str, StageResult](), list[str]()
        for number, stage in enumerate(work.stages, 1):
            made_from = stage.whole(done)
            late = minutes is not None and time.monotonic() - began > 60 * minutes
            if left or (late and folder.standing(stage.name, made_from).state != "done"):
                left.append(stage.name)
                continue
            result = folder.stage(
                stage.name,
                made_from,
                _bound(stage, done),
                begin=_said(say, f"{stage.name} ({number} of {len(work.stages)}) ..."),
            )
            took = "done before" if result.reused else duration(result.seconds)
            say(f"{stage.name}: {result.what} ({took})")
            done[stage.name] = result
            free()
        return {**write_results(work, done, folder.path), "left": left}


def dry_run(comparison: Comparison, task: Recipe, *, redo: bool = False) -> list[dict[str, Any]]:
    """What `compare` would do, stage by stage; nothing is written. See `pipeline.dry_run`."""
    work = CompareChain(comparison, task, show=False)
    return described(plan(RunFolder(comparison.out, comparison.name, redo=redo), work.stages), redo=redo)


def _bound(stage: Stage, done: Mapping[str, StageResult]) -> Callable[[Path], str]:
    return lambda path: stage.work(path, done)


def _said(say: Say, line: str) -> Callable[[], None]:
    return lambda: say(line)
