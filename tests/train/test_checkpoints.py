"""Training that is interrupted, damaged or refused, against the same training left alone: equal to the bit."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_training import STEPS, build, outcome
from transformers import TrainerCallback

from exoalign.errors import TrainingError
from exoalign.train.checkpoint_folder import CheckpointFolder
from exoalign.train.checkpoints import train_resumably

HERE = Path(__file__).parent
EVERY_STEP = 1e-9  # minutes


@dataclass
class Child:
    """A training in a process of its own."""

    pid: int
    source: "Trainings"
    folder: Path

    def end(self) -> int:
        """Its exit code, or minus the signal that killed it."""
        return os.waitstatus_to_exitcode(int(self.source.line()))

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def outcome(self) -> dict:
        return json.loads((self.folder / "outcome.json").read_text())


class Trainings:
    """Starts trainings in processes that find torch loaded."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "resumable_training.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def line(self) -> str:
        return self.process.stdout.readline()

    def start(self, folder: Path, **request) -> Child:
        self.process.stdin.write(json.dumps({"folder": str(folder), **request}) + "\n")
        self.process.stdin.flush()
        return Child(int(self.line()), self, folder)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    found = Trainings({**os.environ, "OMP_NUM_THREADS": "1", "EXOALIGN_CACHE": str(cache)})
    yield found
    found.process.stdin.close()
    assert found.process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def alone(trainings, tmp_path_factory) -> dict:
    """What comes out of a training that nobody interrupts, and that saves no checkpoint."""
    child = trainings.start(tmp_path_factory.mktemp("alone") / "run", minutes=60.0)
    assert child.end() == 0, child.log
    assert not (child.folder / "checkpoints").exists()
    return child.outcome


def steps(folder: Path, *, whole: bool = True) -> list[int]:
    found = [p for p in (folder / "checkpoints").glob("checkpoint-*") if (p / "manifest.json").exists() or not whole]
    return sorted(int(p.name.partition("-")[2]) for p in found)


def test_nothing_is_changed_by_saving(trainings, alone, tmp_path):
    child = trainings.start(tmp_path / "run")
    assert child.end() == 0, child.log
    assert child.outcome == alone
    assert len(alone["history"]) == STEPS
    assert steps(tmp_path / "run") == [STEPS - 1, STEPS]  # the last two


# 1. Interrupted at any moment.


def test_killed_at_random_moments_it_ends_with_the_same_bits(trainings, alone, tmp_path):
    """Each step saves, which takes longer than the step: most kills hit a checkpoint that is being written."""
    rng, folder, kills = random.Random(5), tmp_path / "run", 0
    for _ in range(60):
        child = trainings.start(folder)
        time.sleep(rng.uniform(0.08, 0.3))
        os.kill(child.pid, signal.SIGKILL)  # a child that has ended waits for its parent, as a zombie
        code = child.end()
        kills += code == -signal.SIGKILL
        if code == 0:
            break
        assert code == -signal.SIGKILL, child.log
    assert kills >= 3
    assert child.outcome == alone


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_half_written_checkpoint_is_passed_over(trainings, alone, tmp_path, name):
    child = trainings.start(tmp_path / "run", die=(name, 5))
    assert child.end() == -signal.SIGKILL
    assert steps(child.folder, whole=False) == [3, 4, 5]
    assert steps(child.folder) == [3, 4]
    again = trainings.start(child.folder)
    assert again.end() == 0, again.log
    assert "checkpoint-5 has no manifest.json, so it was not saved to its end" in again.log
    assert "goes on from" in again.log
    assert again.outcome == alone


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_and_saves_it(trainings, alone, tmp_path, number, code):
    """It arrives between the passes of step 7; no checkpoint was due."""
    child = trainings.start(tmp_path / "run", minutes=60.0, fault={"step": 7, "number": number})
    assert child.end() == code, child.log
    assert f"stopped by {number.name} after step 7 of 12; {child.folder}/checkpoints/checkpoint-7 is kept" in child.log
    assert not (child.folder / "model").exists()  # nothing that comes after the training has begun
    assert steps(child.folder) == [7]
    again = trainings.start(child.folder, minutes=60.0)
    assert again.end() == 0, again.log
    assert again.outcome == alone


def test_a_signal_at_the_last_step_ends_it_too(trainings, alone, tmp_path):
    child = trainings.start(tmp_path / "run", minutes=60.0, fault={"step": STEPS, "number": signal.SIGTERM})
    assert child.end() == 143
    assert steps(child.folder) == [STEPS]
    again = trainings.start(child.folder, minutes=60.0)
    assert again.end() == 0, again.log
    assert again.outcome == alone


def test_a_second_signal_ends_at_once(trainings, tmp_path):
    twice = {"step": 7, "number": signal.SIGTERM, "times": 2}
    child = trainings.start(tmp_path / "run", minutes=60.0, fault=twice)
    assert child.end() == -signal.SIGTERM
    assert steps(child.folder, whole=False) == []


def test_the_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = build(tmp_path / "out", max_steps=1)
    train_resumably(trainer, tmp_path, made_from={})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert trainer.checkpoints is None


# 2. Going on in this process: what is equal, what is refused.


class Cut(Exception):
    """The end of a training, as if by a power cut."""


class CutAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Cut


def cut(folder: Path, step: int, made_from: dict | None = None, **settings) -> None:
    """Train, with a checkpoint after each step, until one is saved."""
    trainer = build(folder / "out", **settings)
    trainer.add_callback(CutAfter(step))
    with pytest.raises(Cut):
        train_resumably(trainer, folder, made_from=made_from or {}, minutes=EVERY_STEP)


def resume(folder: Path, made_from: dict | None = None, *, allow_inexact: bool = False, **settings) -> dict:
    trainer = build(folder / "out", **settings)
    train_resumably(trainer, folder, made_from=made_from or {}, allow_inexact=allow_inexact)
    return outcome(trainer, folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"logging_steps": 5},  # what was noted since the last log is not lost
        {"lora": True},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1},  # an uneven last step
        {"eval_strategy": "steps", "eval_steps": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("step", [3, 4, 7])  # 4 is the end of an epoch, but for batches of 3
def test_going_on_is_as_not_having_stopped(tmp_path, step, settings):
    expected = resume(tmp_path / "alone", **settings)
    cut(tmp_path / "cut", step, **settings)
    assert resume(tmp_path / "cut", **settings) == expected


def test_dropout_is_real(tmp_path):
    """Else the random state would not matter."""
    with_dropout, without = resume(tmp_path / "a"), resume(tmp_path / "b", disable_dropout=True)
    assert with_dropout["weights"] != without["weights"]


def test_the_reference_stays_that_of_the_initial_weights(tmp_path, monkeypatch):
    """Without the cache it is computed again: from the initial weights, before the checkpoint's are loaded."""
    cut(tmp_path, 6)
    first = resume(tmp_path / "alone")
    shutil.rmtree(os.environ["EXOALIGN_CACHE"], ignore_errors=True)
    assert resume(tmp_path)["reference"] == first["reference"]


def test_the_passes_of_the_checkpoint_are_used_again(tmp_path):
    """`auto` depends on the memory that is free."""
    trainer = build(tmp_path / "out", max_tokens_per_pass=40, max_steps=2)
    trainer.add_callback(CutAfter(1))
    with pytest.raises(Cut):
        train_resumably(trainer, tmp_path, made_from={}, minutes=EVERY_STEP)
    again = build(tmp_path / "out", max_steps=2)
    assert again.tokens_per_pass > 40
    train_resumably(again, tmp_path, made_from={})
    assert again.tokens_per_pass == 40


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "notes_0.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, damage, name):
    expected = resume(tmp_path / "alone")
    folder = tmp_path / "cut"
    cut(folder, 6)
    damage(folder / "checkpoints" / "checkpoint-6" / name)
    assert resume(folder) == expected
    assert f"checkpoint-6/{name}: checksum mismatch" in caplog.text
    assert f"training goes on from {folder}/checkpoints/checkpoint-5" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "manifest.json").write_text('{"files'), r"manifest\.json is damaged \(JSONDecodeError"),
        (lambda p: (p / "manifest.json").write_text("[]"), r"manifest\.json is damaged \(TypeError"),
        (lambda p: (p / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda p: (p / "scaler.pt").write_bytes(b"x"), r"scaler\.pt was not there when the checkpoint was saved"),
    ],
)
def test_other_damage(tmp_path, caplog, spoil, message):
    cut(tmp_path, 3)
    spoil(tmp_path / "checkpoints" / "checkpoint-3")
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", {"processes": 1})
    assert checkpoints.last(allow_inexact=False) == tmp_path / "checkpoints" / "checkpoint-2"
    assert any(__import__("re").search(message, record.getMessage()) for record in caplog.records)


def test_without_any_that_is_whole_it_begins_anew(tmp_path, caplog):
    expected = resume(tmp_path / "alone")
    cut(tmp_path, 1)
    flip_a_bit(tmp_path / "checkpoints" / "checkpoint-1" / "model.safetensors")
    assert resume(tmp_path) == expected
    assert "no checkpoint in" in caplog.text
    assert "training begins anew" in caplog.text


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_without_its_state_a_checkpoint_is_refused(tmp_path, caplog, name):
    expected = resume(tmp_path / "alone")
    folder = tmp_path / "cut"
    cut(folder, 6)
    (folder / "checkpoints" / "checkpoint-6" / name).unlink()
    with pytest.raises(TrainingError, match=rf"checkpoint-6: {name} is missing; .* other numbers .* --allow-inexact"):
        resume(folder)
    inexact = resume(folder, allow_inexact=True)
    assert inexact["weights"] != expected["weights"]
    assert "but not to the same numbers" in caplog.text


def test_another_training_is_refused_with_what_differs(tmp_path):
    cut(tmp_path, 2, {"align": {"beta_r": 0.5, "seed": 3}, "data": "a" * 70})
    now = {"align": {"beta_r": 0.25, "seed": 3}, "data": "b"}
    with pytest.raises(
        TrainingError, match=r"(?s)checkpoint-2 was made from something else:\n  align\.beta_r was 0\.5 and is"
    ):
        resume(tmp_path, now)
    with pytest.raises(TrainingError, match=r'data was "a+\.\.\. and is "b"\n.*delete .*checkpoints to'):
        resume(tmp_path, now)
    assert steps(tmp_path) == [1, 2]  # nothing was touched


# 3. What cannot be saved.


def test_a_full_disk_is_told_and_what_was_saved_stands(trainings, alone, tmp_path):
    child = trainings.start(tmp_path / "run", fault={"step": 6, "limit": 4096})
    assert child.end() == 2, child.log
    assert "checkpoint-6 cannot be saved (" in child.log
    assert "checkpoint-5 still stands. Is the disk full?" in child.log
    assert "Traceback" not in child.log
    assert steps(child.folder, whole=False) == [4, 5]
    again = trainings.start(child.folder)
    assert again.end() == 0, again.log
    assert again.outcome == alone


class Poison(TrainerCallback):
    """Makes a weight NaN: before the loss of step 5 is computed, or when its gradient is applied."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def poison(self, moment, state, model):
        if moment == self.moment and state.global_step == 4:
            next(model.parameters()).data.fill_(float("nan"))

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.poison("loss", state, model)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.poison("weight", state, model)


@pytest.mark.parametrize(
    ("moment", "message"), [("loss", "the loss at step 5 is nan"), ("weight", "after step 5 a weight is not finite")]
)
def test_what_is_not_finite_is_not_saved(tmp_path, moment, message):
    trainer = build(tmp_path / "out")
    trainer.add_callback(Poison(moment))
    with pytest.raises(TrainingError, match=message):
        train_resumably(trainer, tmp_path, made_from={}, minutes=EVERY_STEP)
    assert steps(tmp_path, whole=False) == [3, 4]
    resume(tmp_path)


# 4. Nothing that is read is executed.


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("forged", [False, True], ids=["", "with its checksum"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_is_never_executed(tmp_path, caplog, name, forged, form):
    cut(tmp_path, 2)
    folder, target = tmp_path / "checkpoints" / "checkpoint-2", tmp_path / "executed"
    if form == "torch":
        torch.save({"state": Malicious(target)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Malicious(target), protocol=2))
    if forged:
        rewrite_manifest(folder)
        with pytest.raises(TrainingError, match=r"checkpoint-2: .* holds more than numbers, and was not loaded"):
            resume(tmp_path)
    else:
        resume(tmp_path)
        assert f"checkpoint-2/{name}: checksum mismatch" in caplog.text
    assert not target.exists()
    torch.load(folder / name, weights_only=False) if form == "torch" and forged else None
    assert target.exists() == (form == "torch" and forged)  # the attack is real


def rewrite_manifest(folder: Path) -> None:
    """As somebody would who can write there."""
    shutil.copytree(folder, folder.with_name("copy"))
    record = json.loads((folder / "manifest.json").read_text())
    owner = CheckpointFolder(folder.parent, record["made_from"])
    with owner.saving(record["step"]) as fresh:
        for path in folder.with_name("copy").iterdir():
            if path.name != "manifest.json":
                shutil.copy(path, fresh)


@pytest.mark.parametrize("name", [".metadata", "pytorch_model_fsdp_0/.metadata", "global_step2/zero_model_states.pt"])
def test_a_sharded_checkpoint_is_refused(tmp_path, name):
    """torch.distributed.checkpoint reads `.metadata` with pickle.load."""
    owner = CheckpointFolder(tmp_path, {})
    with owner.saving(2) as folder:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    with pytest.raises(TrainingError, match=rf"checkpoint-2/{name}: .* pickle, which executes .* not supported"):
        owner.last(allow_inexact=True)


# 5. What the user's own arguments ask for.


def test_the_users_own_save_steps_count_too(tmp_path):
    trainer = build(tmp_path / "out", save_strategy="steps", save_steps=5)
    train_resumably(trainer, tmp_path, made_from={}, minutes=60.0)
    assert steps(tmp_path, whole=False) == [5, 10]


def test_the_best_is_kept_and_loaded(tmp_path):
    settings = {
        "save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 0.3,
    }  # fmt: skip
    trainer = build(tmp_path / "out", **settings)
    train_resumably(trainer, tmp_path, made_from={}, minutes=60.0)
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(losses, key=losses.get)
    assert steps(tmp_path) == sorted({best, 8, 12})
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoints" / f"checkpoint-{best}")
    cut(
        tmp_path / "cut",
        8,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        learning_rate=0.3,
    )
    again = resume(tmp_path / "cut", **settings)
    assert again["weights"] == outcome(trainer, tmp_path)["weights"]
