"""The real files, each the whole way: read, examined, made into tokens, fitted, and ten steps of training on the fast path.

Only a part of each is trained on, its first rows, so that this takes seconds. Whole files go through the doctor in
tests/data/test_doctor_findings.py, through conversion in test_convert.py and through the tokenizer in test_token_report.py.
"""

import json
import logging

import pytest

from exoalign.data.table import read_table
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


def test_beginnings_of_reviews_go_the_whole_way(shared_data, tiny_folder, tmp_path):
    """Prompts from texts: sampled from, rewarded, trained on, and both models compared on those of the other file."""
    train, test = (
        {"path": str(shared_data / f"rt_polarity_{split}.jsonl.gz"), "adapter": "imdb_prompts"}
        for split in ("train", "test")
    )
    values = {
        "name": "real",
        "out": str(tmp_path / "run"),
        "model": {"path": str(tiny_folder)},
        "prompts": {"train": train, "evaluation": test, "limit": 6, "evaluation_limit": 2},
        "sample": {"k": 2, "max_new_tokens": 8},
        "reward": {"function": "length"},
        "align": {
            "objective": "exo_rw",
            "learning_rate": 1e-3,
            "epochs": 4,
            "groups_per_step": 2,
            "trainer": {"max_steps": 10, "logging_steps": 1},
        },
        "evaluate": {"k": 2},
    }
    result = run(build_recipe(values, []), show=False)
    assert [stage["name"] for stage in result["stages"]] == ["sample", "reward", "align", "evaluate"]
    assert len(read_table(tmp_path / "run" / "reward" / "groups.parquet")) == 6
    steps = json.loads((tmp_path / "run" / "align" / "history.json").read_text())["steps"]
    assert len(steps) == 10
