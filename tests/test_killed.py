"""A run that is killed at 20 random moments ends with the same bytes as one that was left alone."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from exoalign.pipeline import run
from exoalign.recipe import build_recipe

KILLS = {"chain": 20, "online": 8}
"""Of a run whose alignment trains on samples that were drawn before, and on its own."""
PRELOADED = ["exoalign.pipeline", "pytest", "datasets", "transformers.models.llama.modeling_llama"]
APART = {"timing.json", "index.html", ".lock"}
"""What holds times, and the lock."""


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in APART
    }


def compare(left_alone: Path, killed: Path) -> None:
    alone, after = contents(left_alone), contents(killed)
    assert after.pop("recipe.json") != alone.pop("recipe.json")  # `out` is in it
    assert after.keys() == alone.keys()
    assert [name for name in alone if after[name] != alone[name]] == []


@pytest.fixture
def recipe(tiny_folder, tmp_path, monkeypatch):
    """Every stage of a chain, small, with a checkpoint at each step and rewards that take their time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXOALIGN_CACHE", str(tmp_path / "cache"))
    texts = [{"text": f"A {word} film, number {i}.", "label": i % 2} for i, word in enumerate(["bad", "fine"] * 8)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"prompt": f"Film {i}:"}) for i in range(6)))
    (tmp_path / "heldout.jsonl").write_text("\n".join(json.dumps({"prompt": f"Book {i}:"}) for i in range(3)))
    (tmp_path / "slow_reward.py").write_text(
        "import time\n\n\ndef vowels(prompts, completions):\n    time.sleep(0.05)\n"
        "    return [sum(c in 'aeiou' for c in text) / 10 for text in completions]\n"
    )
    each_step = {"save_strategy": "steps", "save_steps": 1}

    def make(out: str, kind: str):
        own = {"epochs": 4, "online": {"k": 3, "resample_every": 2}}
        return build_recipe(
            {
                "name": "tiny",
                "out": out,
                "model": {"path": str(tiny_folder), "precision": "float32"},
                "sft": {"data": {"train": "texts.jsonl"}, "rows_per_step": 4, "trainer": each_step},
                "reward_model": {
                    "kind": "classifier",
                    "data": {"train": "texts.jsonl", "holdout": 0.25},
                    "groups_per_step": 4,
                    "trainer": each_step,
                },
                "prompts": {"train": "train.jsonl", "evaluation": "heldout.jsonl"},
                "sample": {"max_new_tokens": 8, "batch_size": 4} | ({} if kind == "online" else {"k": 4}),
                "reward": {"scorers": [{"function": "slow_reward:vowels"}, {"model": "trained", "weight": 0.1}]},
                "align": {"learning_rate": 0.003, "groups_per_step": 2, "trainer": each_step}
                | (own if kind == "online" else {}),
                "evaluate": {"k": 2},
            }
        )

    return make


def child(recipe, folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.path.insert(0, str(folder))
    run(recipe, show=False)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["chain", pytest.param("online", marks=pytest.mark.slow)])
def test_killed_many_times_it_ends_with_the_same_bytes(recipe, tmp_path, kind):
    # forked off a process that has imported all and computed nothing: OpenMP does not outlive a fork
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)

    def start(out: str) -> multiprocessing.Process:
        process = server.Process(target=child, args=(recipe(out, kind), tmp_path, dict(os.environ)))
        process.start()
        return process

    start("warm_up").join(300)
    began = time.monotonic()
    process = start("left_alone")
    process.join(300)
    assert process.exitcode == 0
    whole = time.monotonic() - began

    draw, killed, stages = random.Random(0), 0, set()
    while killed < KILLS[kind]:
        process = start("killed")
        # what is done by then is not done again, so that the moments move through the run
        process.join(draw.uniform(0.05, 0.7) * whole)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            stages |= {path.name for path in (tmp_path / "killed").glob(".*.partial")}
        else:  # complete before its time: once more from the beginning
            assert process.exitcode == 0
            compare(tmp_path / "left_alone", tmp_path / "killed")
            shutil.rmtree(tmp_path / "killed")
    process = start("killed")
    process.join(300)
    assert process.exitcode == 0
    compare(tmp_path / "left_alone", tmp_path / "killed")
    assert len(stages) >= 3, f"killed only in {stages}, of {whole:.1f} s"
