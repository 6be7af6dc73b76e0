"""The stage of supervised fine-tuning on a tiny model: what it leaves, what it measures, what it refuses."""

import json
import math
import os
import shutil
import signal

import pytest
import torch

from exoalign import load_model, load_tokenizer
from exoalign.config import ModelSection
from exoalign.config_sft import SftSection
from exoalign.errors import ConfigError, DataError, Interrupted
from exoalign.files import checksum
from exoalign.stages_sft import check_sft, read_sft_data, sft, sft_arguments
from exoalign.train.sft import SftTrainer

SKY = "The sky is blue, and the sea is blue too."


@pytest.fixture
def rows(tmp_path):
    """24 texts of which a quarter is held out."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{SKY} {i}"}) for i in range(24)))
    return str(path)


@pytest.fixture
def tune(tiny_folder, tiny_tokenizer, tmp_path):
    """Runs the stage; returns its folder and what it said."""

    def tune(name="stage", model=tiny_folder, seed=0, **settings):
        section = SftSection.model_validate({"learning_rate": 0.01, "rows_per_step": 4, **settings})
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        data = read_sft_data(section, tiny_tokenizer, context=512, seed=seed)
        of = ModelSection(path=str(model))
        said = sft(section, data, folder, model=of, tokenizer=tiny_tokenizer, seed=seed, bf16=False, show=False)
        return folder, said

    return tune


def loss_of(model, tokenizer, texts):
    """Nats a token by transformers' own `labels`, text by text, all but the first token of each."""
    total = tokens = 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens


@pytest.fixture
def heldout_texts(rows, tiny_tokenizer):
    def heldout_texts(holdout):
        section = SftSection.model_validate({"data": {"train": rows, "holdout": holdout}})
        data = read_sft_data(section, tiny_tokenizer, context=512, seed=0)
        return [group.completions[0] for group in data.heldout.groups]

    return heldout_texts


def test_the_stage_leaves_a_model_that_predicts_held_out_texts_better(tune, rows, heldout_texts, tiny_model):
    folder, said = tune(data={"train": rows, "holdout": 0.25}, epochs=2)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert [name for name in found if "/" not in name] == ["history.json", "metrics.json", "summary.json"]
    assert "model/model.safetensors" in found
    assert not [name for name in found if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    tuned, tokenizer = load_model(str(folder / "model"), device="cpu"), load_tokenizer(str(folder / "model"))
    metrics = json.loads((folder / "metrics.json").read_text())["heldout"]
    texts = heldout_texts(0.25)
    assert metrics["rows"] == metrics["of"] == len(texts)
    for when, model in (("before", tiny_model), ("after", tuned)):
        expected = loss_of(model, tokenizer, texts)
        assert metrics[when]["loss"]["mean"] == pytest.approx(expected, rel=1e-4)
        assert metrics[when]["perplexity"]["mean"] == pytest.approx(math.exp(expected), rel=1e-3)
        assert metrics[when]["loss"]["low"] <= metrics[when]["loss"]["mean"] <= metrics[when]["loss"]["high"]
    assert metrics["difference"]["high"] < -0.5
    history = json.loads((folder / "history.json").read_text())["steps"]
    steps = 2 * math.ceil((24 - len(texts)) / 4)
    assert [step["step"] for step in history] == list(range(1, steps + 1))
    assert history[0]["perplexity"] == pytest.approx(math.exp(history[0]["loss"]))
    assert said.startswith(f"{steps} steps of 4 rows, perplexity of {len(texts)} held-out rows ")


def test_the_summary_holds_what_a_page_shows(tune, rows, heldout_texts):
    folder, _ = tune(data={"train": rows, "holdout": 0.25})
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"numbers", "curves", "histograms", "texts"}
    numbers = {number["label"]: number["value"] for number in summary["numbers"]}
    texts = heldout_texts(0.25)
    assert numbers["training rows"] == 24 - len(texts)
    assert set(numbers["held-out perplexity after"]) == {"mean", "low", "high"}
    assert [len(series["values"]) for series in summary["histograms"][0]["series"]] == [len(texts)] * 2
    for part in summary["texts"]:
        assert len(part["rows"]) == 3
        assert {row["text"] for row in part["rows"]} <= set(texts)


def files(folder):
    return {str(p.relative_to(folder)): checksum(p) for p in folder.rglob("*") if p.is_file()}


def test_the_same_settings_leave_the_same_bytes_and_another_seed_does_not(tune, rows):
    data = {"train": rows, "evaluation": rows}
    for more in ({}, {"lora": {"r": 2}}):
        first, again, other = (
            files(tune(f"{name}{len(more)}", seed=seed, data=data, **more)[0])
            for name, seed in (("first", 0), ("again", 0), ("other", 1))
        )
        assert first == again
        assert first["model/model.safetensors"] != other["model/model.safetensors"]


def test_a_stage_that_was_stopped_goes_on_to_the_same_bytes(tune, rows, monkeypatch):
    settings = {"data": {"train": rows, "holdout": 0.25}, "epochs": 2, "lora": {"r": 2}}
    undisturbed, said = tune("undisturbed", **settings)
    step = SftTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SftTrainer, "training_step", stopped)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 4"):
        tune("stopped", **settings)
    monkeypatch.undo()
    folder, said_then = tune("stopped", **settings)
    assert said_then == said
    assert (folder / "checkpoints" / "checkpoint-4").is_dir()
    shutil.rmtree(folder / "checkpoints")  # as the store does
    shutil.rmtree(undisturbed / "checkpoints", ignore_errors=True)
    assert files(folder) == files(undisturbed)


def test_without_anything_held_out_there_are_no_metrics_and_a_note(tune, rows, tiny_tokenizer):
    folder, said = tune(data={"train": rows})
    assert said == "6 steps of 4 rows"
    assert not (folder / "metrics.json").exists()
    assert set(json.loads((folder / "summary.json").read_text())) == {"numbers", "curves"}
    section = SftSection.model_validate({"data": {"train": rows}})
    (note,) = read_sft_data(section, tiny_tokenizer, context=512, seed=0).notes
    assert note == "nothing is held out, so what was learnt is not measured; set data.holdout or data.evaluation"


def test_held_out_rows_that_are_trained_on_are_told(rows, tiny_tokenizer):
    section = SftSection.model_validate({"data": {"train": rows, "evaluation": {"path": rows, "limit": 3}}})
    (note,) = read_sft_data(section, tiny_tokenizer, context=512, seed=0).notes
    assert note.startswith("3 held-out rows are training rows too (")
    assert "rows.jsonl:1, ...): the evaluation is not of unseen texts" in note


def test_an_adapter_is_merged_or_left_as_the_section_says(tune, rows, tiny_folder):
    data = {"train": rows, "holdout": 0.25}
    merged, _ = tune("merged", data=data, lora={"r": 4}, epochs=2)
    left, _ = tune("left", data=data, lora={"r": 4}, epochs=2, merge=False)
    assert not (merged / "model" / "adapter_config.json").exists()
    assert not (merged / "adapter").exists()
    assert (left / "model" / "adapter_config.json").exists()
    ids = torch.tensor([[70, 71, 72, 73]])
    logits = [load_model(str(path), device="cpu").eval()(ids).logits for path in (merged / "model", left / "model")]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(logits[0], load_model(str(tiny_folder), device="cpu").eval()(ids).logits, atol=1e-2)
    assert json.loads((merged / "metrics.json").read_text()) == json.loads((left / "metrics.json").read_text())
    further, _ = tune("further", model=left / "model", data=data)
    assert not (further / "model" / "adapter_config.json").exists()


def test_settings_that_are_wrong_are_refused_before_any_work(rows, tiny_folder):
    def check(**settings):
        section = SftSection.model_validate({"data": {"train": rows}, **settings})
        check_sft(section, ModelSection(path=str(tiny_folder)), seed=0, bf16=False)

    check()
    with pytest.raises(ConfigError, match=r"sft\.trainer\.learning_rat is no argument.*did you mean learning_rate"):
        check(trainer={"learning_rat": 1})
    with pytest.raises(ConfigError, match=r"sft\.trainer\.learning_rate: the recipe sets this itself"):
        check(trainer={"learning_rate": 1e-3})
    with pytest.raises(ConfigError, match=r"sft\.lora: target_modules: LlamaForCausalLM has no module 'q_pro'"):
        check(lora={"target_modules": ["q_pro"]})
    with pytest.raises(ValueError, match=r"`lora.dropout` has no effect while all dropout is off"):
        check(lora={"dropout": 0.1})


def test_the_settings_reach_the_trainer(rows):
    section = SftSection.model_validate(
        {"data": {"train": rows}, "rows_per_step": 3, "max_tokens_per_pass": 99, "trainer": {"weight_decay": 0.5}}
    )
    arguments = sft_arguments(section, seed=5, bf16=False)
    found = (arguments.per_device_train_batch_size, arguments.max_tokens_per_pass, arguments.weight_decay)
    assert found == (3, 99, 0.5)
    assert (arguments.learning_rate, arguments.seed) == (2e-5, 5)


def test_a_text_beyond_the_context_is_named(tmp_path, tiny_tokenizer):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "ab" * 400}))
    section = SftSection.model_validate({"data": {"train": str(path)}})
    with pytest.raises(
        DataError, match=r"long\.jsonl:1: prompt of 1 and completion of 800 tokens, but the context allows 512"
    ):
        read_sft_data(section, tiny_tokenizer, context=512, seed=0)


def test_real_replies_and_reviews_are_learnt(tune, shared_data):
    reviews = {"path": str(shared_data / "rt_polarity_train.jsonl.gz"), "adapter": "rt_polarity", "limit": 24}
    test = {"path": str(shared_data / "rt_polarity_test.jsonl.gz"), "adapter": "rt_polarity", "limit": 12}
    hh = {"path": str(shared_data / "hh_harmless_train.jsonl.gz"), "adapter": "hh", "limit": 24}
    cut = {"max_prompt_tokens": 200, "max_completion_tokens": 200}
    both = ["truncate_prompt_left", "truncate_completion_right"]
    for name, data in (("reviews", {"train": reviews, "evaluation": test}), ("hh", {"train": hh, "holdout": 0.2})):
        for loss_on in ("completions", "all"):
            settings = {"data": {**data, **cut, "truncation": both}, "loss_on": loss_on}
            folder, _ = tune(f"{name} {loss_on}", **settings)
            difference = json.loads((folder / "metrics.json").read_text())["heldout"]["difference"]
            assert difference["high"] < 0, (name, loss_on)
