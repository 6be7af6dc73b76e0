"""Training on the policy's own samples: its plan, what a block holds, and that an interruption changes nothing."""

import os
import signal

import pytest
from tiny_online import build_online
from transformers import TrainerCallback

from exoalign.errors import Interrupted
from exoalign.files import checksum
from exoalign.train.checkpoints import train_resumably
from exoalign.train.rollout_block import GROUPS

STEPS = 8


class SignalAt(TrainerCallback):
    """SIGTERM in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(trainer, folder) -> dict:
    trainer.save_model(str(folder / "model"))
    return {
        "weights": {p.name: checksum(p) for p in sorted((folder / "model").glob("*.safetensors"))},
        "history": [sorted(step.items()) for step in trainer.state.log_history if "loss" in step],
        "block": trainer.block.groups,
    }


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_interrupted_at_any_step_it_ends_with_the_same_bits(tmp_path, lora):
    alone = build_online(tmp_path / "out", lora=lora)
    train_resumably(alone, tmp_path / "alone", made_from={}, minutes=60.0)
    expected = outcome(alone, tmp_path / "alone")
    assert len(expected["history"]) == STEPS
    folder = tmp_path / "run"
    for step in (1, 2, 3, 6):  # in the middle of a block, and between two
        trainer = build_online(tmp_path / "out", lora=lora)
        trainer.add_callback(SignalAt(step))
        with pytest.raises(Interrupted, match=f"after step {step} of 8"):
            train_resumably(trainer, folder, made_from={}, minutes=60.0)
        assert (folder / "checkpoints" / f"checkpoint-{step}" / GROUPS).exists() == (step % 2 == 1)
    last = build_online(tmp_path / "out", lora=lora)
    train_resumably(last, folder, made_from={}, minutes=60.0)
    assert outcome(last, folder) == expected
