"""The real files, each the whole way: read, examined, made into tokens, fitted, and ten steps of training on the fast path."""

import json
import logging

import pytest

from exoalign.pipeline import run
from exoalign.recipe import build_recipe

CUTS = ["truncate_prompt_left", "truncate_completion_right"]


def recipe(model, file, objective, out, **data):
    values = {
        "name": "real",
        "out": str(out),
        "model": {"path": str(model)},
        "data": {
            "train": str(file),
            "max_prompt_tokens": 160,
            "max_completion_tokens": 160,
            "truncation": CUTS,
            **data,
        },
        "align": {
            "objective": objective,
            "learning_rate": 1e-3,
            "groups_per_step": 2,
            "trainer": {"max_steps": 10, "logging_steps": 1},
        },
    }
    return build_recipe(values, [])


@pytest.mark.parametrize(
    ("name", "objective", "count"),
    [("hh_harmless_train", "exo_pref", 30), ("hh_harmless_test", "dpo_pref", 30), ("alpaca_eval_k8", "exo_rw", 10)],
)
def test_a_file_goes_the_whole_way(name, objective, count, shared_data, tiny_folder, tmp_path, caplog):
    file = shared_data / f"{name}.jsonl.gz"
    settings = recipe(tiny_folder, file, objective, tmp_path / "run", holdout=0.2, limit=count)
    with caplog.at_level(logging.WARNING, logger="exoalign"):
        result = run(settings, show=False)
    assert "padded rows" not in caplog.text
    kept = [
        part.get("pairs", part.get("groups")) for part in (result["metrics"][side] for side in ("train", "heldout"))
    ]
    cut = [int(note.split(" of ")[0].split()[-1]) for note in result["warnings"] if "left out" in note]
    assert sum(kept) + sum(cut) == count, (kept, result["warnings"])
    steps = json.loads((tmp_path / "run" / "align" / "history.json").read_text())["steps"]
    assert len(steps) == 10
    assert steps[0]["loss"] != steps[-1]["loss"]
