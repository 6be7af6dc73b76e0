"""Training progress on one line: step, loss and what the objective is doing, with the time left."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from exoalign.progress import Progress

SHOWN = {
    "loss": "loss",
    "policy_reward": "reward of q",
    "target_reward": "of p",
    "sample_reward": "of samples",
    "accuracy": "accuracy",
}


class StepProgress(TrainerCallback):
    """Advances a `Progress` by one at each optimizer step, with the last logged metrics as its note."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to count."""
        before = state.global_step  # of an earlier attempt
        self.progress = Progress("train step", state.max_steps, enabled=self.enabled, done=before).__enter__()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Advance to the step that is logged."""
        if self.progress is not None and logs and "loss" in logs:
            note = ", ".join(f"{label} {logs[name]:.3f}" for name, label in SHOWN.items() if name in logs)
            self.progress.advance(state.global_step - self.progress.done, note)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the line clean."""
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
