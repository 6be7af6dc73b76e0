"""Work between the steps of a training, whose time is not the training's: an evaluation of the model as it stands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from exoalign.files import write_text

CLOCK = "clock.json"


def spread_steps(total: int, count: int) -> list[int]:
    """`count` steps of `total`, as equally spread as can be, the last among them: fewer where there are fewer.

    >>> spread_steps(12, 5)
    [2, 5, 7, 10, 12]
    """
    return sorted({max(1, round(total * i / count)) for i in range(1, count + 1)})


class AtSteps(TrainerCallback):
    """Calls `work` after some steps of training.

    Args:
        count: so many times, spread equally over the training, the last after its last step.
        work: called with the step, and the seconds of training up to it.
        folder: keeps the clock, so that a training that goes on from a checkpoint counts on from there.
    """

    def __init__(self, count: int, work: Callable[[int, float], None], folder: Path) -> None:
        self.count, self.work, self.file = count, work, folder / CLOCK
        self._before, self._began, self._steps = 0.0, 0.0, set[int]()

    @property
    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Go on with the clock of the checkpoint's step."""
        self._steps = set(spread_steps(state.max_steps, self.count))
        self._before, self._began = self._kept().get(str(state.global_step), 0.0), time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Do the work; the clock stands still."""
        if state.global_step in self._steps:
            self._before = self._seconds
            try:
                self.work(state.global_step, self._before)
            finally:
                self._began = time.monotonic()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep what the clock says at this checkpoint."""
        kept = {**self._kept(), str(state.global_step): round(self._seconds, 1)}
        write_text(self.file, json.dumps(kept))

    def _kept(self) -> dict[str, float]:
        try:
            return dict(json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}
