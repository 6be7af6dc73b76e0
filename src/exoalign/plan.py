"""The stages of a run in their order: what each is made from, what stands there already, what is to be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exoalign.progress import duration
from exoalign.store import RunFolder, StageResult, Standing

Say = Callable[[str], None]
Done = Mapping[str, StageResult]


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: its folder.
        made_from: its settings and the identities of what comes from no stage, as JSON values.
        inputs: the stages whose files it is made from.
        work: writes into the folder and returns a few words on what was done; takes the stages that are done.
        forecast: what it will take, in a few words, as far as that can be told without doing it.
    """

    name: str
    made_from: Mapping[str, Any]
    inputs: tuple[str, ...]
    work: Callable[[Path, Done], str]
    forecast: Callable[[], str]

    def whole(self, done: Done) -> dict[str, Any]:
        """All that it is made from, with the identities of those of its inputs that are done."""
        return {**self.made_from, "stages": {name: done[name].identity for name in self.inputs if name in done}}


@dataclass(frozen=True)
class Planned:
    """A stage and what stands in its place."""

    stage: Stage
    standing: Standing


def plan(folder: RunFolder, stages: Sequence[Stage]) -> list[Planned]:
    """What is done already, what is to be done, and what stands there made from something else.

    A stage that stands while one that it is made from is yet to be done counts as changed: it is of an older one.
    """
    done: dict[str, StageResult] = {}
    planned = []
    for stage in stages:
        pending = [name for name in stage.inputs if name not in done]
        standing = folder.standing(stage.name, stage.whole(done), pending)
        if standing.state == "done":
            if pending:
                standing = Standing("changed", (f"it was made from an older {' and '.join(pending)}",))
            else:
                done[stage.name] = folder.result(stage.name)
        planned.append(Planned(stage, standing))
    return planned


def carry_out(folder: RunFolder, stages: Sequence[Stage], say: Say) -> dict[str, StageResult]:
    """Do what is not done yet, one after the other, and say what happens.

    Raises:
        StoreError: before anything is done, if a stage stands there made from something else and this is no redo.
    """
    for planned in plan(folder, stages):
        folder.refuse(planned.stage.name, planned.standing)
    done: dict[str, StageResult] = {}
    for stage in stages:
        result = folder.stage(
            stage.name,
            stage.whole(done),
            lambda path, stage=stage: stage.work(path, done),  # type: ignore[misc]
            begin=lambda stage=stage: say(f"{stage.name} ..."),  # type: ignore[misc]
        )
        say(f"{stage.name}: {result.what} ({'done before' if result.reused else duration(result.seconds)})")
        done[stage.name] = result
    return done


def described(planned: Sequence[Planned], *, redo: bool) -> list[dict[str, Any]]:
    """A plan as plain values: name, what would be done, what it takes, and what differs."""
    words = {"done": "done before", "unfinished": "goes on", "to do": "to do", "changed": "refused: it has changed"}
    if redo:
        words["changed"] = "to do anew: it has changed"
    return [
        {
            "stage": each.stage.name,
            "state": words[each.standing.state],
            "forecast": "" if each.standing.state == "done" else each.stage.forecast(),
            "changes": list(each.standing.changes),
        }
        for each in planned
    ]
