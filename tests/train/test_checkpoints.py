"""Training that is interrupted, damaged or refused, against the same training left alone: equal to the bit."""

import contextlib
import json
import os
import pickle
import random
import re
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

from exoalign import Group, load_tokenizer, stages
from exoalign.errors import Interrupted, TrainingError
from exoalign.files import checksum
from exoalign.recipe import build_recipe
from exoalign.train.checkpoint_folder import CheckpointFolder
from exoalign.train.checkpoints import train_resumably
from exoalign.train.progress_callback import StepProgress

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
        return os.waitstatus_to_exitcode(self.source.ask("end"))

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

    def ask(self, line: str) -> int:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, folder: Path, **request) -> Child:
        return Child(self.ask(json.dumps({"folder": str(folder), **request})), self, folder)


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


def test_killed_at_random_moments_it_ends_with_the_same_bits(trainings, tmp_path):
    """48 steps. Each saves, which takes longer than the step: many kills hit a checkpoint that is being written."""
    rng, folder = random.Random(5), tmp_path / "run"
    for _ in range(5):
        before, child = max(steps(folder), default=0), trainings.start(folder, num_train_epochs=12)
        until = time.monotonic() + 60
        while max(steps(folder), default=0) == before and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.06))  # it has saved a step, and is at some moment of the next ones
        os.kill(child.pid, signal.SIGKILL)
        assert child.end() == -signal.SIGKILL, child.log
    child = trainings.start(folder, num_train_epochs=12)
    assert child.end() == 0, child.log
    alone = trainings.start(tmp_path / "alone", num_train_epochs=12, minutes=60.0)
    assert alone.end() == 0, alone.log
    assert child.outcome == alone.outcome
    assert len(alone.outcome["history"]) == 48


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
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
    """It arrives between two passes of step 7; no checkpoint was due."""
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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What comes out of a training in this process that saves nothing, computed once for each settings."""
    known: dict[str, dict] = {}

    def expected(**settings) -> dict:
        key = json.dumps(settings)
        if key not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            trainer = build(folder / "out", **settings)
            trainer.train()
            known[key] = outcome(trainer, folder)
        return known[key]

    return expected


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (4, {}),  # the end of an epoch
        (3, {"logging_steps": 5}),  # what was noted since the last log is not lost
        (7, {"lora": True}),
        (4, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}),  # an uneven last step in each epoch
        (8, {"eval_strategy": "epoch"}),
    ],
    ids=str,
)
def test_going_on_is_as_not_having_stopped(uninterrupted, tmp_path, step, settings):
    cut(tmp_path, step, **settings)
    assert resume(tmp_path, **settings) == uninterrupted(**settings)


def test_dropout_is_real(uninterrupted):
    """Else the random state would not matter."""
    assert uninterrupted()["weights"] != uninterrupted(disable_dropout=True)["weights"]


def test_the_reference_stays_that_of_the_initial_weights(uninterrupted, tmp_path):
    """There is no cache: it is computed again, from the initial weights, before the checkpoint's are loaded."""
    cut(tmp_path, 6)
    again = resume(tmp_path)
    assert again["reference"] == uninterrupted()["reference"]
    assert again["weights"] == uninterrupted()["weights"]


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


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", flip_a_bit), ("model.safetensors", cut_in_half), ("notes_0.json", flip_a_bit)],
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(uninterrupted, tmp_path, caplog, damage, name):
    cut(tmp_path, 3)
    damage(tmp_path / "checkpoints" / "checkpoint-3" / name)
    assert resume(tmp_path) == uninterrupted()
    assert f"checkpoint-3/{name}: checksum mismatch" in caplog.text
    assert f"training goes on from {tmp_path}/checkpoints/checkpoint-2" in caplog.text


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
    assert re.search(message, caplog.text)


def test_without_any_that_is_whole_it_begins_anew(uninterrupted, tmp_path, caplog):
    cut(tmp_path, 1)
    flip_a_bit(tmp_path / "checkpoints" / "checkpoint-1" / "model.safetensors")
    assert resume(tmp_path) == uninterrupted()
    assert "no checkpoint in" in caplog.text
    assert "training begins anew" in caplog.text


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_without_its_state_a_checkpoint_is_refused(uninterrupted, tmp_path, caplog, name):
    cut(tmp_path, 3)
    (tmp_path / "checkpoints" / "checkpoint-3" / name).unlink()
    with pytest.raises(
        TrainingError, match=rf"checkpoint-3: {name} is missing; .* other numbers .*\(--allow-inexact\)"
    ):
        resume(tmp_path)
    assert resume(tmp_path, allow_inexact=True)["weights"] != uninterrupted()["weights"]
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


@pytest.mark.parametrize(
    ("name", "form"),
    [("optimizer.pt", "torch"), ("optimizer.pt", "pickle"), ("scheduler.pt", "torch"), ("rng_state.pth", "torch")],
)
@pytest.mark.parametrize("forged", [False, True], ids=["", "with its checksum"])
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
    with contextlib.suppress(
        RuntimeError
    ):  # a bare pickle is executed before torch finds that it is no file of its own
        torch.load(folder / name, weights_only=False)
    assert target.exists()  # the attack is real


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
    assert steps(tmp_path, whole=False) == [10, STEPS]  # 5 as well, and transformers saves the last step


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


def test_a_signal_inside_an_epoch_evaluates_nothing(trainings, tmp_path):
    """transformers would take the cut for the epoch's end: one more evaluation, in the history and among the best."""
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "minutes": 60.0}
    child = trainings.start(tmp_path / "run", fault={"step": 6, "number": signal.SIGTERM}, **settings)
    assert child.end() == 143
    state = json.loads((child.folder / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [log["step"] for log in state["log_history"] if "eval_loss" in log] == [4]
    alone = trainings.start(tmp_path / "alone", **settings)
    assert alone.end() == 0
    again = trainings.start(child.folder, **settings)
    assert again.end() == 0, again.log
    assert again.outcome == alone.outcome


# 6. The stage of a recipe.


class Stopping(StepProgress):
    """Sends the process a real SIGTERM at step 2."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_stage_leaves_the_same_bytes_whether_it_was_stopped_or_not(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "unread.jsonl").write_text("")
    recipe = build_recipe(
        {
            "name": "tiny",
            "model": {"path": str(tiny_folder), "precision": "float32"},
            "data": {"train": str(tmp_path / "unread.jsonl")},
            "align": {
                "learning_rate": 0.003, "groups_per_step": 2, "checkpoint_minutes": 60,
                "trainer": {"include_num_input_tokens_seen": "all"},
            },
        },
        [],
    )  # fmt: skip
    context = stages.Context(recipe, load_tokenizer(str(tiny_folder)), bf16=False, show=False)
    data = [Group(f"Film {i}:", (" good", " bad", " fine"), rewards=(1.0, 0.1 * i, 0.3)) for i in range(6)]
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    stages.align(context, data, tmp_path / "alone")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "StepProgress", Stopping)
        with pytest.raises(Interrupted, match="stopped by SIGTERM after step 2 of 3") as caught:
            stages.align(context, data, tmp_path / "stopped")
    assert caught.value.exit_code == 143
    assert [p.name for p in (tmp_path / "stopped").iterdir()] == ["checkpoints"]
    stages.align(context, data, tmp_path / "stopped")
    files = {
        name: {
            str(p.relative_to(tmp_path / name)): checksum(p)
            for p in sorted((tmp_path / name).rglob("*"))
            if p.is_file() and "checkpoints" not in p.parts
        }
        for name in ("alone", "stopped")
    }
    assert files["stopped"] == files["alone"]
    assert {"history.json", "groups.parquet", "model/model.safetensors"} <= set(files["alone"])


# 7. Several processes.


def ranks(folder: Path, **request) -> tuple[int, str]:
    """Two ranks by torchrun, with gloo on the CPU: the launcher's exit code and what the ranks said."""
    folder.mkdir(exist_ok=True)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(HERE / "resumable_training.py")]
    launcher = subprocess.Popen(
        [sys.executable, *command, json.dumps({"folder": str(folder), **request})],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        code = launcher.wait(timeout=240)
    finally:
        launcher.terminate()  # it ends its ranks
        launcher.wait()
    return code, (folder / "log.txt").read_text()


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on(tmp_path):
    """6 steps of 2 x 2 groups. SIGKILL ends one rank in step 3: the other ends too, and what was saved is gone on from. Then
    SIGTERM reaches one rank in step 5: both end that step, and save it."""
    code, log = ranks(tmp_path / "alone", minutes=60.0)
    assert code == 0, log
    expected = Child(0, None, tmp_path / "alone").outcome
    assert [step["step"] for step in expected["history"]] == [1, 2, 3, 4, 5, 6]

    folder = tmp_path / "run"
    code, log = ranks(folder, fault={"step": 3, "number": signal.SIGKILL, "rank": 1})
    assert code != 0
    assert steps(folder)[-1] == 2, log
    code, log = ranks(folder, minutes=60.0, fault={"step": 5, "number": signal.SIGTERM, "rank": 1})
    assert code != 0
    assert f"goes on from {folder}/checkpoints/checkpoint-2" in log
    assert log.count("stopped by SIGTERM after step 5 of 6") == 2, log
    assert steps(folder)[-1] == 5
    code, log = ranks(folder)
    assert code == 0, log
    assert Child(0, None, folder).outcome == expected
    with pytest.raises(TrainingError, match="processes was 2 and is 1"):
        train_resumably(build(tmp_path / "out"), folder, made_from={})
