"""Training that can be interrupted at any moment: `train_resumably` in the place of `trainer.train()`.

What a checkpoint holds of weights, optimizer, schedule, random state and history is transformers' business; when one is saved,
whether it is whole and what it was made from is this file's and `checkpoint_folder`'s. Going on from one gives the same bits as
not having been interrupted.

Nothing that is read back is executed: weights are safetensors, and optimizer, schedule and random state are read by torch with
`weights_only`, which refuses all but numbers.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from exoalign.errors import Interrupted, TrainingError
from exoalign.progress import plain
from exoalign.train.checkpoint_folder import CheckpointFolder
from exoalign.train.group_trainer import GroupTrainer

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def train_resumably(
    trainer: GroupTrainer,
    folder: str | Path,
    *,
    made_from: Mapping[str, Any],
    minutes: float = 10.0,
    allow_inexact: bool = False,
) -> TrainOutput:
    """Train, from the last whole checkpoint in `folder/checkpoints` if there is one, and save checkpoints there.

    A checkpoint is saved every `minutes`, whenever the trainer's own arguments ask for one (`save_strategy`, `save_steps`), and
    when SIGTERM or SIGINT (Ctrl-C) arrives: then the step is ended first. A second signal ends the process at once.

    Args:
        trainer: as built for an uninterrupted training, with the initial weights: a reference is computed from those.
        folder: the stage's folder.
        made_from: settings and identities of data and model, as a JSON value: a checkpoint made from something else is refused.
        minutes: between checkpoints.
        allow_inexact: go on from a checkpoint whose optimizer, schedule or random state was deleted, too.

    Raises:
        Interrupted: after a signal, when the checkpoint is saved.
        TrainingError: if the last whole checkpoint was made from something else or lacks a file; if one cannot be written; if
            the loss or a weight is not finite. What was saved before stands.
    """
    args = trainer.args
    checkpoints = CheckpointFolder(
        Path(folder) / FOLDER,
        {**made_from, "processes": args.world_size},
        main=trainer.is_world_process_zero(),
        wait=trainer.accelerator.wait_for_everyone,
    )
    found = _last(trainer, checkpoints, allow_inexact=allow_inexact)
    if found is not None and checkpoints.main:
        logger.warning("training goes on from %s", plain(str(found)))
    keeper = _Keeper(trainer, found, minutes)
    trainer.checkpoints = checkpoints
    trainer.add_callback(keeper)
    try:
        output = trainer.train(resume_from_checkpoint=None if found is None else str(found))
    except pickle.UnpicklingError as error:
        raise TrainingError(
            f"{found}: the optimizer's, schedule's or random state holds more than numbers, and was not loaded: it is not what"
            f" was saved there. Delete {found} to go on from the checkpoint before"
        ) from error
    finally:
        keeper.release()
        trainer.remove_callback(keeper)
        trainer.checkpoints = None
    if keeper.signal:
        last = checkpoints.of_step(checkpoints.whole[-1]) if checkpoints.whole else "nothing"
        raise Interrupted(
            f"stopped by {signal.Signals(keeper.signal).name} after step {trainer.state.global_step} of"
            f" {trainer.state.max_steps}; {last} is kept. Run the same command again to go on from there",
            keeper.signal,
        )
    return output


def steps_of(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What was logged of each step, the same whether the training was interrupted or not.

    So without what the clock says, and in the order of the names, as checkpoints keep it.
    """
    timed = ("_runtime", "_per_second")
    return [
        {name: value for name, value in sorted(step.items()) if not name.endswith(timed)}
        for step in history
        if "loss" in step
    ]


def _last(trainer: GroupTrainer, checkpoints: CheckpointFolder, *, allow_inexact: bool) -> Path | None:
    """The checkpoint to go on from, which the main process finds for all."""
    if trainer.args.world_size == 1:
        return checkpoints.last(allow_inexact=allow_inexact)
    answer: list[Any] = [None, None]
    if checkpoints.main:
        try:
            answer[0] = checkpoints.last(allow_inexact=allow_inexact)
        except TrainingError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise TrainingError(answer[1])
    return answer[0]


class _Keeper(TrainerCallback):
    """Asks for a checkpoint when it is time, and for one and the end of training when a signal has come.

    Attributes:
        signal: the number of the signal that came, or 0.
    """

    def __init__(self, trainer: GroupTrainer, found: Path | None, minutes: float) -> None:
        self.trainer, self.found, self.seconds = trainer, found, 60 * minutes
        self.signal, self._process, self._wanted = 0, os.getpid(), False
        self._saved = time.monotonic()
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over the signals, and what was noted of a step between two logs."""
        if self.found is not None:
            self.trainer.restore_notes(self.found)
        self._saved = time.monotonic()
        if (
            threading.current_thread() is threading.main_thread() and not self._before
        ):  # auto_find_batch_size begins again
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's worker, which serves this step to its end
            return
        self.signal = number
        several = self.trainer.args.world_size > 1  # a launcher hands on what the terminal has sent to all already
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN if several else signal.SIG_DFL)
        os.write(2, b"\nstopping: this step is ended and saved; a second signal ends at once\n")

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """All processes save and stop together: by the main one's clock, and where a signal came to any.

        The last step of an epoch is saved at the epoch's end: what is evaluated and logged there would not be made up for.
        """
        due = int(time.monotonic() - self._saved >= self.seconds)
        if args.world_size > 1:
            mine = torch.tensor([[due * state.is_world_process_zero, self.signal]], device=args.device)
            due, self.signal = map(int, self.trainer.accelerator.gather(mine).amax(0))
        self._wanted = bool(due or self.signal)
        control.should_save |= self._wanted and not _epoch_is_over(state)
        control.should_training_stop |= bool(self.signal)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save if it was wanted; where a signal has cut the epoch short, nothing that belongs to its end."""
        if _epoch_is_over(state):
            control.should_save |= self._wanted
        elif self.signal:
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The next one is due after another while."""
        self._saved = time.monotonic()


def _epoch_is_over(state: TrainerState) -> bool:
    return state.epoch is not None and float(state.epoch).is_integer()
