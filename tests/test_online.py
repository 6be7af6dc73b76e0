"""Recipes with `align.online`: alignment that samples by itself, as a run and from the command line."""

import json
import signal

import pytest
from transformers import TrainerCallback

from exoalign import run, stages_online
from exoalign.data.table import read_table
from exoalign.errors import ConfigError, Interrupted
from exoalign.files import checksum
from exoalign.pipeline import dry_run
from exoalign.recipe import build_recipe


@pytest.fixture
def recipe(tiny_folder, tmp_path, monkeypatch):
    """Makes a recipe of a small online run in tmp_path: 4 prompts, twice, in blocks of 2 steps of 2."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 4), ("heldout", 2)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": f"{name} {i}:"}) for i in range(count)))
    values = {
        "name": "tiny",
        "out": "out",
        "model": {"path": str(tiny_folder), "precision": "float32"},
        "prompts": {"train": "train.jsonl", "evaluation": "heldout.jsonl"},
        "sample": {"max_new_tokens": 8},
        "reward": {"function": "length"},
        "align": {"learning_rate": 0.003, "groups_per_step": 2, "epochs": 2, "online": {"k": 3, "resample_every": 2}},
        "evaluate": {"k": 3},
    }

    def make(*overrides, **sections):
        return build_recipe({**json.loads(json.dumps(values)), **sections}, overrides)

    return make


def test_a_run_samples_scores_and_aligns_in_one_stage(recipe, tmp_path):
    assert [(each["stage"], each["state"]) for each in dry_run(recipe())] == [("align", "to do"), ("evaluate", "to do")]
    result = run(recipe(), show=False)
    assert [stage["name"] for stage in result["stages"]] == ["align", "evaluate"]
    assert result["stages"][0]["what"] == "4 steps of 2 prompts x 3 completions, 2 samplings"
    history = json.loads((tmp_path / "out/align/history.json").read_text())["steps"]
    assert [step["step"] for step in history] == [1, 2, 3, 4]
    assert {"sample_reward", "sample_kl", "correction_ess"} <= set(history[0])
    groups = read_table(tmp_path / "out/align/groups.parquet")
    assert [group.k for group in groups] == [3] * 4
    for group in groups:
        assert group.rewards == group.scores["length"] == tuple(float(len(text.split())) for text in group.completions)
        assert group.provenance["sampler"]["online_block"] == 1
    assert result["metrics"]["prompts"] == 2
    assert not list((tmp_path / "out").rglob("*.partial"))
    again = run(recipe(), show=False)
    assert [stage["state"] for stage in again["stages"]] == ["reused", "reused"]


class SignalAt(TrainerCallback):
    """SIGTERM in a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_that_was_stopped_in_a_block_writes_the_same_bytes(recipe, tmp_path, monkeypatch, lora):
    more = ["align.lora.r=2"] if lora else []
    run(recipe("out=alone", *more), show=False)
    built = stages_online.OnlineExoTrainer

    def with_signal(*args, **named):
        trainer = built(*args, **named)
        trainer.add_callback(SignalAt(3))
        return trainer

    monkeypatch.setattr(stages_online, "OnlineExoTrainer", with_signal)
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        run(recipe("out=stopped", *more), show=False)
    monkeypatch.setattr(stages_online, "OnlineExoTrainer", built)
    run(recipe("out=stopped", *more), show=False)
    sums = [
        {
            path.relative_to(tmp_path / out).as_posix(): checksum(path)
            for path in (tmp_path / out / "align").rglob("*.*")
        }
        for out in ("alone", "stopped")
    ]
    assert sums[0].keys() == sums[1].keys()
    assert "align/model/" + ("adapter_" if lora else "") + "model.safetensors" in sums[0]
    assert {name for name in sums[0] if sums[0][name] != sums[1][name]} == {"align/timing.json"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sample.k=4"], "override 'sample.k=4': `sample.k` is not read with `align.online`; set align.online.k"),
        (["sample.backend=vllm"], "`sample.backend` is vllm: `align.online` samples the model that is being trained"),
        (
            ["reward.normalise=global"],
            "`reward.normalise` is global, and with `align.online` there are no training data",
        ),
        (["reward.normalise=group"], "`reward.normalise` is group"),
        (
            ["align.objective=exo_pref"],
            "`objective` is exo_pref, which learns from pairs, and `online` samples have rew",
        ),
        (["align.completions.choose=all"], "`completions` has no effect with `online`"),
        (["align.online.k=1"], "`align.online.k` is 1; input should be greater than or equal to 2"),
        (["align.online.resample=3"], "unknown key `align.online.resample`; did you mean `resample_every`?"),
        (["align.trainer.top_p=0.5"], "align.trainer.top_p: the recipe sets this itself"),
    ],
)
def test_what_does_not_go_with_it_is_refused(recipe, overrides, message):
    with pytest.raises(ConfigError) as caught:
        run(recipe(*overrides), show=False)
    assert message in str(caught.value)


def test_it_takes_prompts_not_data(tiny_folder):
    values = {"model": {"path": str(tiny_folder)}, "data": {"train": "x.jsonl"}, "align": {"objective": "exo_rw"}}
    with pytest.raises(ConfigError, match="samples completions by itself: give it `prompts` in the place of `data`"):
        build_recipe(values, ["align.online.k=4"])


def test_truncated_samples_are_corrected_and_those_of_the_reference_are_not(recipe, tmp_path):
    """Drawn once, from the model cut to its 20 likeliest tokens; then as they are, a run on ready groups."""
    offline = {"learning_rate": 0.003, "groups_per_step": 2}
    lines = []
    run(recipe("out=cut", "sample.top_k=20", align=offline), say=lines.append, show=False)
    assert any("did not draw the completions of 4 of 4 groups" in line for line in lines)
    history = json.loads((tmp_path / "cut/align/history.json").read_text())["steps"]
    assert 1 <= history[0]["correction_ess"] < 7.9
    lines = []
    run(recipe("out=whole", align=offline), say=lines.append, show=False)
    assert not any("did not draw" in line for line in lines)
    assert "correction_ess" not in json.loads((tmp_path / "whole/align/history.json").read_text())["steps"][0]

    ready = recipe("out=ready", align={**offline, "online": None})
    values = {
        **ready.model_dump(include={"model"}),
        "out": "ready",
        "data": {"train": "cut/reward/groups.parquet"},
        "align": {**offline, "learning_rate": 1e-9, "objective": "exo_rw"},
    }
    metrics = run(build_recipe(values), show=False)["metrics"]["train"]
    assert metrics["loss_before"] == pytest.approx(metrics["loss_after"], abs=1e-4)
    off = run(build_recipe({**values, "out": "off"}, ["align.correction=off"]), show=False)["metrics"]["train"]
    assert abs(off["loss_before"] - metrics["loss_before"]) > 0.01
