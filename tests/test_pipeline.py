"""Whole runs of a tiny model: every stage, resume, refusals, Ctrl-C, and the artefacts that are left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from exoalign import collate, completion_logprobs, load_model, load_tokenizer, run, stages, stages_evaluate
from exoalign.data.table import read_table
from exoalign.errors import ConfigError, DataError, ModelError, RewardError, StoreError
from exoalign.inputs import Data
from exoalign.merging import merge
from exoalign.models import fingerprint
from exoalign.pipeline import dry_run
from exoalign.recipe import build_recipe


@pytest.fixture
def recipe(tiny_folder, tmp_path, monkeypatch):
    """Makes a recipe of a small run in tmp_path; keyword overrides as `align__beta_r=...`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rewards_of_mine", raising=False)
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"prompt": f"Film {i}:"}) for i in range(4)))
    turns = [{"role": "user", "content": "A review, please: <|im_end|>"}]
    (tmp_path / "heldout.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p}) for p in ("Book:", "<script>x</script>", turns))
    )
    (tmp_path / "rewards_of_mine.py").write_text(
        "def vowels(prompts, completions):\n    return [sum(c in 'aeiou' for c in t) / 10 for t in completions]\n"
    )
    values = {
        "name": "tiny",
        "out": "out",
        "model": {"path": str(tiny_folder), "precision": "float32"},
        "prompts": {"train": "train.jsonl", "evaluation": "heldout.jsonl"},
        "sample": {"k": 4, "max_new_tokens": 8},
        "reward": {"function": "rewards_of_mine:vowels"},
        "align": {"learning_rate": 0.003, "groups_per_step": 2},
        "evaluate": {"k": 3},
    }

    def make(*overrides):
        return build_recipe(json.loads(json.dumps(values)), overrides)

    return make


def test_a_whole_run_leaves_every_artefact(recipe, tmp_path):
    lines = []
    result = run(recipe(), say=lines.append, show=False)
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == result["metrics"]
    assert set(metrics["base"]["reward"]) == {"mean", "low", "high"}
    assert set(metrics["aligned"]) == {"reward", "kl", "kl_exact", "kl_k3", "length"}
    assert metrics["prompts"] == 3
    assert "alignment report" in (out / "report" / "index.html").read_text().lower()
    assert [stage["name"] for stage in result["stages"]] == ["sample", "reward", "align", "evaluate"]
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl") or ".partial" in p.name]
    AutoModelForCausalLM.from_pretrained(result["model"])

    groups = read_table(out / "align" / "groups.parquet")
    assert len(groups) == 4
    for group in groups:
        assert group.k == 4
        assert group.rewards == tuple(sum(c in "aeiou" for c in t) / 10 for t in group.completions)
        assert group.sampler_logprobs == pytest.approx(group.reference_logprobs, abs=1e-3)  # mu = pi_ref at T = 1
    base, aligned = (read_table(out / "evaluate" / f"{name}.parquet") for name in ("base", "aligned"))
    assert [g.prompt for g in base] == [g.prompt for g in aligned]
    mean = sum(sum(g.rewards) for g in aligned) / sum(g.k for g in aligned)
    assert metrics["aligned"]["reward"]["mean"] == pytest.approx(mean)
    history = json.loads((out / "align" / "history.json").read_text())["steps"]
    assert [step["step"] for step in history] == [1, 2]
    assert any("align" in line for line in lines)


def test_running_again_does_nothing_anew(recipe, tmp_path):
    run(recipe(), show=False)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.parquet")}
    again = run(recipe(), show=False)
    assert [stage["state"] for stage in again["stages"]] == ["reused"] * 4
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.parquet")} == before


def test_an_error_leaves_finished_stages_and_the_next_run_goes_on(recipe, tmp_path, monkeypatch):
    module = tmp_path / "rewards_of_mine.py"
    good = module.read_text()
    module.write_text("def broken(prompts, completions):\n    return [float('nan')] * len(completions)\n" + good)
    with pytest.raises(RewardError, match=r"returned nan at .*train\.jsonl:1, completion 1"):
        run(recipe("reward.function=rewards_of_mine:broken"), show=False)
    assert (tmp_path / "out" / "sample" / "manifest.json").is_file()
    assert not (tmp_path / "out" / "reward").exists()
    monkeypatch.delitem(sys.modules, "rewards_of_mine")  # the next run is another process in real life
    states = {stage["name"]: stage["state"] for stage in run(recipe(), show=False)["stages"]}
    assert states == {"sample": "reused", "reward": "done", "align": "done", "evaluate": "done"}


def test_changed_settings_are_refused_with_what_differs(recipe, tmp_path):
    run(recipe(), show=False)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet")}
    with pytest.raises(StoreError, match=r"align\.beta_r was 0\.5 and is 0\.1"):
        run(recipe("align.beta_r=0.1"), show=False)
    with pytest.raises(StoreError, match=r"sample\.k was 4 and is 5"):
        run(recipe("sample.k=5"), show=False)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet")} == before
    with pytest.raises(StoreError, match="holds the run 'tiny', not 'other'"):
        run(recipe("name=other"), show=False)


@pytest.mark.parametrize("cache", ["the first run's reference cache", "a new one"])
def test_the_same_recipe_gives_the_same_bits(recipe, tmp_path, monkeypatch, cache):
    run(recipe(), show=False)
    if cache == "a new one":
        monkeypatch.setenv("EXOALIGN_CACHE", str(tmp_path / "cache"))
    run(recipe("out=out2"), show=False)
    for name in ("sample/groups.parquet", "align/model/model.safetensors", "evaluate/metrics.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes(), name


def test_another_beta_objective_and_rate_take_the_reference_from_the_cache(recipe, tmp_path):
    first, other, colder = [], [], []
    run(recipe(), say=first.append, show=False)
    changed = recipe("out=out2", "align.beta_r=0.1", "align.objective=dpo_rw", "align.learning_rate=0.001")
    run(changed, say=other.append, show=False)
    run(recipe("out=out3", "sample.temperature=0.7"), say=colder.append, show=False)
    assert any(line.startswith("align: 2 steps of 2 groups (") for line in first)
    cached = "  4 of 4 reference groups from the cache"
    assert [cached in lines for lines in (first, other, colder)] == [False, True, False]
    groups = [read_table(tmp_path / out / "align" / "groups.parquet") for out in ("out", "out2")]
    assert [g.reference_logprobs for g in groups[0]] == [g.reference_logprobs for g in groups[1]]


def test_the_sampling_temperature_is_the_training_temperature(recipe, tmp_path):
    run(recipe("sample.temperature=0.8"), show=False)
    group = read_table(tmp_path / "out" / "align" / "groups.parquet")[0]
    assert group.provenance["reference"]["temperature"] == 0.8
    assert group.sampler_logprobs == pytest.approx(group.reference_logprobs, abs=1e-3)


def test_pairs_run_and_report_held_out_accuracy(recipe, tmp_path):
    rows = [{"prompt": f"Film {i}:", "chosen": " good", "rejected": " bad"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "pairs",
        "out": "pairs",
        "model": recipe().model.model_dump(),
        "data": {"train": "pairs.jsonl", "evaluation": "pairs.jsonl", "limit": 4, "evaluation_limit": 2},
        "align": {"objective": "exo_pref", "learning_rate": 0.003, "epochs": 5, "groups_per_step": 4},
    }
    lines = []
    metrics = run(build_recipe(values), say=lines.append, show=False)["metrics"]
    assert any(line.startswith("evaluate: 4 training and 2 held-out groups (") for line in lines)
    assert "  6 of 6 reference groups from the cache" in lines  # held out are the first two again
    assert metrics["train"]["pairs"] == 4
    assert metrics["train"]["loss_after"] < metrics["train"]["loss_before"]
    assert metrics["heldout"]["accuracy"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "chance": 0.5}
    assert (tmp_path / "pairs" / "report" / "index.html").is_file()


def test_groups_with_rewards_run_from_a_file_and_some_are_evaluated(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(stages_evaluate, "EVALUATED", 3)
    rows = [
        {"prompt": "a", "completions": [" x", " y", " z"][: 2 + i % 2], "rewards": [1.0, 0.0, -1.0][: 2 + i % 2]}
        for i in range(4)
    ]
    (tmp_path / "k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "k", "out": "k", "model": recipe().model.model_dump(), "data": {"train": "k.jsonl"},
        "align": {"learning_rate": 0.003, "epochs": 5, "groups_per_step": 2},
    }  # fmt: skip
    lines = []
    metrics = run(build_recipe(values), say=lines.append, show=False)["metrics"]
    assert metrics["train"]["loss_after"] < metrics["train"]["loss_before"]
    assert (metrics["train"]["groups"], metrics["train"]["of"]) == (3, 4)
    assert any(line.startswith("evaluate: 3 of 4 training and 0 held-out groups") for line in lines)


def test_everything_is_checked_before_the_first_stage(recipe, tmp_path):
    cases = [
        ("align.trainer={weight_decai: 0.1}", ConfigError, "did you mean weight_decay"),
        ("align.trainer={seed: 3}", ConfigError, "the recipe sets this itself"),
        ("reward.function=sentimental", RewardError, "did you mean sentiment"),
        ("reward.function=nowhere:f", RewardError, "module nowhere cannot be imported"),
        ("sample.max_new_tokens=600", DataError, "more than the model's context of 512"),
    ]
    for override, kind, message in cases:
        with pytest.raises(kind, match=message):
            run(recipe(override), show=False)
    assert not (tmp_path / "out").exists()


def test_a_text_is_not_a_conversation_with_the_same_words(recipe, tmp_path):
    run(recipe(), show=False)
    rows = [{"prompt": [{"role": "user", "content": f"Film {i}:"}]} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(StoreError, match=r"prompts\[0\]"):
        run(recipe(), show=False)


def test_a_stage_is_not_redone_under_what_was_made_from_it(recipe, tmp_path):
    run(recipe(), show=False)
    metrics = (tmp_path / "out" / "metrics.json").read_text()
    shutil.rmtree(tmp_path / "out" / "align")
    with pytest.raises(StoreError, match=r"evaluate stands and does not fit:\n  it was made from an older align"):
        run(recipe("align.beta_r=0.1"), show=False)
    assert not (tmp_path / "out" / "align").exists()
    assert (tmp_path / "out" / "metrics.json").read_text() == metrics


def states(result):
    return {stage["name"]: stage["state"] for stage in result["stages"]}


def test_redo_does_anew_what_changed_and_what_was_made_from_it(recipe, tmp_path):
    run(recipe(), show=False)
    before = (tmp_path / "out" / "align" / "model" / "model.safetensors").read_bytes()
    result = run(recipe("align.beta_r=0.1"), show=False, redo=True)
    assert states(result) == {"sample": "reused", "reward": "reused", "align": "done", "evaluate": "done"}
    assert (tmp_path / "out" / "align" / "model" / "model.safetensors").read_bytes() != before
    again = run(recipe("align.beta_r=0.1"), show=False)
    assert set(states(again).values()) == {"reused"}


def test_redo_of_a_deleted_stage_that_comes_out_the_same_does_no_more(recipe, tmp_path):
    run(recipe(), show=False)
    shutil.rmtree(tmp_path / "out" / "align")
    result = run(recipe(), show=False, redo=True)
    assert states(result) == {"sample": "reused", "reward": "reused", "align": "done", "evaluate": "reused"}


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(recipe, tmp_path):
    plan = dry_run(recipe())
    assert [(each["stage"], each["state"]) for each in plan] == [
        (name, "to do") for name in ("sample", "reward", "align", "evaluate")
    ]
    assert "16 completions of at most 8 tokens" in plan[0]["forecast"]
    assert "2 steps of 2 groups" in plan[2]["forecast"]
    assert not (tmp_path / "out").exists()
    run(recipe(), show=False)
    shutil.rmtree(tmp_path / "out" / "evaluate")
    changed = {each["stage"]: each for each in dry_run(recipe("align.beta_r=0.1"))}
    assert [each["state"] for each in changed.values()] == ["done before"] * 2 + ["refused: it has changed", "to do"]
    assert changed["align"]["changes"] == ["align.beta_r was 0.5 and is 0.1"]
    assert dry_run(recipe("align.beta_r=0.1"), redo=True)[2]["state"] == "to do anew: it has changed"


def test_pairs_of_the_best_and_the_worst_sample(recipe, tmp_path):
    """DPO on the same samples: the winner has more vowels; prompts whose samples are all worth the same are told."""
    lines = []
    pairs = ["align.objective=dpo_pref", "align.completions={choose: best_worst, k: 2}"]
    run(recipe(*pairs), say=lines.append, show=False)
    sampled = {group.prompt: group for group in read_table(tmp_path / "out" / "reward" / "groups.parquet")}
    trained = read_table(tmp_path / "out" / "align" / "groups.parquet")
    for group in trained:
        before = sampled[group.prompt]
        worth = [sum(c in "aeiou" for c in text) for text in group.completions]
        assert group.k == 2
        assert worth[group.winner] == max(sum(c in "aeiou" for c in text) for text in before.completions)
        assert worth[1 - group.winner] == min(sum(c in "aeiou" for c in text) for text in before.completions)
    equal = sum(len(set(group.rewards)) == 1 for group in sampled.values())
    assert len(trained) == 4 - equal
    assert any("are left out: both have the same reward" in line for line in lines) == (equal > 0)


def test_no_pair_is_left_where_all_rewards_are_equal(recipe, tmp_path):
    (tmp_path / "constant.py").write_text("def one(prompts, completions):\n    return [1.0] * len(completions)\n")
    pairs = ["align.objective=exo_pref", "align.completions={choose: best_worst, k: 2}", "reward.function=constant:one"]
    with pytest.raises(DataError, match="no pair to train on: the rewards of all are equal"):
        run(recipe(*pairs), show=False)


def test_an_edited_reward_object_is_noticed(recipe, tmp_path, monkeypatch):
    module = tmp_path / "rewards_of_mine.py"
    code = "class R:\n    def __call__(self, prompts, texts):\n        return [{} * len(t) for t in texts]\n\nr = R()\n"
    module.write_text(code.format("1"))
    run(recipe("reward.function=rewards_of_mine:r"), show=False)
    module.write_text(code.format("-1"))
    monkeypatch.delitem(sys.modules, "rewards_of_mine")
    with pytest.raises(StoreError, match=r"reward\.columns\.r\.code was"):
        run(recipe("reward.function=rewards_of_mine:r"), show=False)


def test_the_groups_of_a_run_are_data_for_another(recipe, tmp_path):
    """Ids are kept and checked; reference log-probs, which may be another model's, are computed anew."""
    run(recipe("sample.temperature=0.8"), show=False)
    values = {
        "name": "again",
        "out": "again",
        "model": recipe().model.model_dump(),
        "data": {"train": "out/align/groups.parquet", "evaluation": "out/align/groups.parquet"},
        "align": {"learning_rate": 0.003, "groups_per_step": 2},
    }
    result = run(build_recipe(values), show=False)
    assert any("sampled at temperature 0.8 and log-probs are taken at 1" in warning for warning in result["warnings"])
    assert any("4 held-out prompts are training prompts too" in warning for warning in result["warnings"])
    reference = read_table(tmp_path / "again" / "align" / "groups.parquet")[0].provenance["reference"]
    assert reference["temperature"] == 1.0


def test_held_out_prompts_that_were_trained_on_are_noted(recipe, tmp_path):
    result = run(recipe("prompts.evaluation=train.jsonl"), show=False)
    assert any("4 held-out prompts are training prompts too" in warning for warning in result["warnings"])


def test_held_out_pairs_of_a_prompt_that_was_trained_on_are_noted(recipe, tmp_path, tiny_folder):
    """By prompt, whatever the replies are; the same words as a conversation of one turn are the same prompt."""
    turns = [{"role": "user", "content": "Film 2:"}]
    train = [{"prompt": f"Film {i}:", "chosen": " good", "rejected": " bad"} for i in range(16)]
    heldout = [
        {"prompt": prompt, "chosen": " a", "rejected": " b"} for prompt in ("Film 1:", "Film 1:", turns, "Book:")
    ]
    for name, rows in {"train": train, "heldout": heldout, "other": heldout[3:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def notes(**data):
        values = {"model": recipe().model.model_dump(), "align": {"objective": "exo_pref"}, "out": "out"}
        made = build_recipe({**values, "data": {"train": "train.jsonl", **data}})
        found = Data(stages.Context(made, load_tokenizer(str(tiny_folder)), False, False)).notes
        return [note for note in found if "held-out prompts" in note]

    expected = "2 held-out prompts are training prompts too ('Film 1:', ...): the evaluation is not of unseen prompts"
    assert notes(evaluation="heldout.jsonl") == [expected]
    assert notes(evaluation="other.jsonl") == []
    assert notes(holdout=0.5) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_finished_stages(recipe, tmp_path):
    """A real process gets SIGINT in its slow reward function: exit code 130, one line, and the next run goes on."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def reward(prompts, completions):\n"
        "    pathlib.Path('reached').touch()\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "tiny.json").write_text(recipe("reward.function=slow:reward").model_dump_json(exclude_none=True))
    command = [sys.executable, "-m", "exoalign", "run", "tiny.json"]  # JSON is YAML
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "reached").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: what is finished is kept" in err
    assert "Traceback" not in err
    assert Path("out/sample/manifest.json").is_file()
    states = [stage["state"] for stage in run(recipe(), show=False)["stages"]]
    assert states == ["reused", "done", "done", "done"]


class TestAdapters:
    """Runs with align.lora: what is left is an adapter, which goes on, is evaluated and merges into the same model."""

    LORA = "align.lora={r: 4, target_modules: [q_proj, v_proj, lm_head]}"

    def test_a_whole_run_and_its_merge(self, recipe, tmp_path, tiny_folder):
        result = run(recipe(self.LORA), show=False)
        model = Path(result["model"])
        names = {p.name for p in model.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
        assert "model.safetensors" not in names
        assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
        assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_folder)
        groups = read_table(tmp_path / "out" / "align" / "groups.parquet")
        for group in groups:
            assert group.sampler_logprobs == pytest.approx(group.reference_logprobs, abs=1e-3)  # the adapter is off
        assert result["metrics"]["aligned"]["kl_exact"]["mean"] > 1e-4

        merged = merge(str(model), tmp_path / "merged")
        assert merged["adapter_moves"] > 1e-3 > merged["largest_difference"]
        policies = [load_model(str(path), device="cpu") for path in (model, tmp_path / "merged")]
        ours, theirs = (completion_logprobs(policy, collate(groups)) for policy in policies)
        assert ours.detach().flatten().tolist() == pytest.approx(theirs.detach().flatten().tolist(), abs=1e-3)
        again = run(recipe(self.LORA), show=False)
        assert [stage["state"] for stage in again["stages"]] == ["reused"] * 4

    def test_an_adapter_is_trained_further(self, recipe, tmp_path, tiny_folder):
        first = run(recipe(self.LORA), show=False)["model"]
        second = run(recipe("out=out2", "name=second", f"model.path={first}"), show=False)
        weights = [Path(model) / "adapter_model.safetensors" for model in (first, second["model"])]
        assert weights[0].read_bytes() != weights[1].read_bytes()
        settings = json.loads((Path(second["model"]) / "adapter_config.json").read_text())
        assert (settings["r"], settings["base_model_name_or_path"]) == (4, str(tiny_folder))
        groups = read_table(tmp_path / "out2" / "align" / "groups.parquet")
        start = load_model(first, device="cpu")
        assert groups[0].provenance["reference"]["weights"] == fingerprint(start)
        assert second["metrics"]["aligned"]["kl_exact"]["mean"] < 10

    def test_pairs(self, recipe, tmp_path):
        rows = [{"prompt": f"Film {i}:", "chosen": " good", "rejected": " bad"} for i in range(4)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        align = {"objective": "exo_pref", "learning_rate": 0.01, "epochs": 5, "groups_per_step": 4, "lora": {"r": 4}}
        values = {
            "name": "pairs", "out": "pairs", "model": recipe().model.model_dump(),
            "data": {"train": "pairs.jsonl"}, "align": align,
        }  # fmt: skip
        metrics = run(build_recipe(values), show=False)["metrics"]
        assert metrics["train"]["loss_after"] < 0.9 * metrics["train"]["loss_before"]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                "{target_modules: [q_porj]}",
                "align.lora: target_modules: LlamaForCausalLM has no module 'q_porj'; did you mean",
            ),
            ("{target_modules: '.*nowhere'}", "align.lora: peft_config does not fit LlamaForCausalLM: Target modules"),
            ("{target_modules: []}", "align.lora.target_modules: expected names of linear"),
            (
                "{target_modules: 3}",
                "align.lora.target_modules: expected names of linear layers as a list, or all-linear",
            ),
            ("{r: 0}", "`align.lora.r` is 0; input should be greater than or equal to 1"),
            ("{rank: 8}", "unknown key `align.lora.rank`"),
            (
                "{dropout: 0.1}",
                "`lora.dropout` has no effect while all dropout is off; set trainer.disable_dropout to false",
            ),
            ("{quantize: 8bit}", "`align.lora.quantize` is '8bit'; "),
            ("true", "`align.lora` is True; expected a section with the keys r, alpha, dropout"),
        ],
    )
    def test_wrong_settings_are_told_before_any_work(self, settings, message, recipe, tmp_path):
        with pytest.raises(ConfigError, match=message):
            run(recipe(f"align.lora={settings}"), show=False)
        assert not (tmp_path / "out").exists()

    def test_four_bits_are_refused_where_they_cannot_run(self, recipe, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(ModelError, match="4bit needs a CUDA device, and this machine has none"):
            run(recipe("align.lora={quantize: 4bit}"), show=False)
        assert not (tmp_path / "out").exists()
        context = stages.Context(recipe("align.lora={quantize: 4bit}"), None, bf16=True)
        with pytest.raises(ModelError, match="4bit needs a CUDA device"):  # every stage asks for 4 bits
            context.load()

    def test_a_fresh_adapter_on_an_adapter_is_refused(self, recipe, tmp_path):
        first = run(recipe(self.LORA), show=False)["model"]
        with pytest.raises(
            ConfigError, match=r"is an adapter, and align\.lora asks for a fresh one: leave align.lora out"
        ):
            run(recipe(self.LORA, "out=out2", f"model.path={first}"), show=False)
        assert not (tmp_path / "out2").exists()

    def test_dropout_with_dropout_on(self, recipe):
        settings = "align={lora: {r: 2, dropout: 0.5}, trainer: {disable_dropout: false}, learning_rate: 0.003}"
        assert [stage["state"] for stage in run(recipe(settings), show=False)["stages"]] == ["done"] * 4


def test_a_share_of_the_prompts_is_held_out_and_the_tokens_are_kept(recipe, tmp_path):
    rows = [{"prompt": f"Film {i}:", "chosen": f" good {i % 9}", "rejected": f" bad {i % 7}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "share",
        "out": "share",
        "model": recipe().model.model_dump(),
        "data": {"train": "pairs.jsonl", "holdout": 0.25},
        "align": {"objective": "exo_pref", "learning_rate": 0.003, "groups_per_step": 8},
    }
    lines = []
    result = run(build_recipe(values), say=lines.append, show=False)
    sizes = [result["metrics"][part]["pairs"] for part in ("train", "heldout")]
    assert sum(sizes) == 24
    assert 0 < sizes[1] < 12
    shown = lines.index("  prompt, 7 tokens")  # one group, before the stage that trains on it
    assert lines[shown + 1].startswith("    - Film ")
    assert lines[shown - 2] == "align ..."
    run(build_recipe({**values, "out": "again"}), say=lines.append, show=False)
    for side in ("train", "heldout"):
        assert sum(line.startswith(f"{side}: pairs.jsonl: token ids from the cache (") for line in lines) == 1
    with pytest.raises(StoreError, match=r"groups\.seed was 0 and is 1"):
        run(build_recipe({**values, "seed": 1}), show=False)


def test_what_the_doctor_calls_an_error_is_refused_before_the_run(recipe, tmp_path, monkeypatch):
    from exoalign import inputs
    from exoalign.data.doctor.findings import Finding

    rows = [{"prompt": f"Film {i}:", "chosen": " good", "rejected": " bad"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [
        Finding("a", "two rows contradict each other", "remove one", "error", 2, ("pairs.jsonl:1", "pairs.jsonl:3")),
        Finding("b", "replies are short", "look at them", "warning"),
    ]
    monkeypatch.setattr(inputs, "examine_fast", lambda groups, special: type("E", (), {"findings": tuple(found)}))
    values = {
        "name": "sick", "out": "sick", "model": recipe().model.model_dump(), "data": {"train": "pairs.jsonl"},
        "align": {"objective": "exo_pref", "learning_rate": 0.003},
    }  # fmt: skip
    expected = r"two rows contradict each other; remove one \(pairs\.jsonl:1, pairs\.jsonl:3\)"
    with pytest.raises(DataError, match=expected):
        run(build_recipe(values), show=False)
    assert not (tmp_path / "sick").exists()
    del found[0]
    assert "replies are short; look at them" in run(build_recipe(values), show=False)["warnings"]
