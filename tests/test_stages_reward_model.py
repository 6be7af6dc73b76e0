"""The stage that trains a reward model, from data to a standard folder: what it writes, goes on from, and tells."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from exoalign.config import ModelSection
from exoalign.config_reward_model import RewardModelSection
from exoalign.errors import ConfigError, Interrupted, ModelError
from exoalign.rewards.model import RewardModel
from exoalign.stages_reward_model import made_from, read_reward_data, reward_arguments, reward_model
from exoalign.train.reward import RewardTrainer

TRAINING = {"learning_rate": 3e-3, "epochs": 2.0, "groups_per_step": 4}
WORDS = ["tree", "house", "river", "stone", "cloud", "field", "night", "glass", "sound", "light", "water", "plant"]


def talk(text):
    return [{"role": "user", "content": text}]


PAIRS = [
    {"prompt": talk(f"Say {word}"), "chosen": f"{word.upper()}!", "rejected": f"{word}? No, I would rather not."}
    for word in WORDS
]
TEXTS = [{"text": f"{word} is {'good' if i % 2 else 'bad'}", "label": i % 2} for i, word in enumerate(WORDS)]


def section_for(tmp_path, rows, **settings):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(path), **settings.pop("data", {})}
    return RewardModelSection.model_validate({"data": data, **TRAINING, **settings})


def run(section, folder, model, *, seed=0):
    folder.mkdir(exist_ok=True)
    data = read_reward_data(section, seed=seed)
    return reward_model(section, data, folder, model=ModelSection(path=str(model)), seed=seed, bf16=False, show=False)


def files_of(folder):
    """All but checkpoints, which the store removes."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and "checkpoints" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.fixture
def smol_like(tiny_folder, tmp_path):
    """The tiny model with a tokenizer whose padding token ends turns, and a template with nothing behind the last one."""
    folder = tmp_path / "smol_like"
    shutil.copytree(tiny_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": tokenizer.eos_token_id}))
    return folder


def test_what_is_saved_gives_the_same_rewards_in_plain_transformers(smol_like, tmp_path):
    section = section_for(tmp_path, PAIRS, data={"holdout": 0.3})
    told = run(section, tmp_path / "stage", smol_like)
    folder = tmp_path / "stage" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    groups = read_reward_data(section, seed=0).heldout.groups
    texts = [
        tokenizer.apply_chat_template(
            [*(turn._asdict() for turn in group.prompt), {"role": "assistant", "content": reply}], tokenize=False
        )
        for group in groups
        for reply in group.completions
    ]
    assert texts[0].endswith("<|im_end|>")
    with torch.no_grad():
        theirs = (
            model(**tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")).logits[:, 0].tolist()
        )
    ours = RewardModel(str(folder), device="cpu")(groups)
    assert [x for row in ours for x in row] == pytest.approx(theirs, abs=1e-4)
    # and the stage measured just that
    right = sum(theirs[2 * i] > theirs[2 * i + 1] for i in range(len(groups)))
    metrics = json.loads((tmp_path / "stage" / "metrics.json").read_text())["heldout"]
    assert metrics["accuracy"]["mean"] == pytest.approx(right / len(groups))
    assert f"accuracy {right / len(groups):.3f} (" in told
    assert told.endswith(f"on {len(groups)} held-out groups")


def test_a_classifier_is_one_of_transformers_too(tiny_folder, tmp_path):
    section = section_for(tmp_path, TEXTS, kind="classifier", epochs=8.0)
    told = run(section, tmp_path / "stage", tiny_folder)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stage" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "stage" / "model")
    assert model.config.num_labels == 2
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in TEXTS], padding=True, return_tensors="pt")).logits
    right = (logits.argmax(-1) == torch.tensor([row["label"] for row in TEXTS])).double().mean().item()
    metrics = json.loads((tmp_path / "stage" / "metrics.json").read_text())
    assert metrics["train"]["accuracy"]["mean"] == pytest.approx(right)  # nothing is held out
    assert right > 0.9
    assert "on 12 training groups" in told
    summary = json.loads((tmp_path / "stage" / "summary.json").read_text())
    assert [series["name"] for series in summary["histograms"][0]["series"]] == ["label 0", "label 1"]


def test_interrupted_it_goes_on_and_leaves_the_same_bytes(tiny_folder, tmp_path, monkeypatch):
    section = section_for(tmp_path, PAIRS, data={"holdout": 0.3})
    run(section, tmp_path / "whole", tiny_folder)
    calls, real = [], RewardTrainer.losses

    def losses(self, model, values, batch):
        if model.training:
            calls.append(self.state.global_step)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        return real(self, model, values, batch)

    monkeypatch.setattr(RewardTrainer, "losses", losses)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3 of"):
        run(section, tmp_path / "stage", tiny_folder)
    assert not (tmp_path / "stage" / "model").exists()
    run(section, tmp_path / "stage", tiny_folder)
    assert calls == sorted(set(calls))  # no step was taken twice
    assert files_of(tmp_path / "stage") == files_of(tmp_path / "whole")


def test_a_merged_adapter_is_saved_as_a_whole_model(tiny_folder, tmp_path):
    pytest.importorskip("peft")
    section = section_for(tmp_path, PAIRS, lora={"r": 4})
    run(section, tmp_path / "stage", tiny_folder)
    folder = tmp_path / "stage" / "model"
    assert not (folder / "adapter_config.json").exists()
    log = json.loads((tmp_path / "stage" / "history.json").read_text())["steps"]
    assert log[-1]["loss"] < log[0]["loss"]
    metrics = json.loads((tmp_path / "stage" / "metrics.json").read_text())["train"]
    assert metrics["accuracy"]["mean"] > 0.9  # of the model as it was loaded again
    torch.manual_seed(77)  # what ran before in this process changes nothing
    run(section, tmp_path / "again", tiny_folder)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "stage")


def test_what_the_stage_is_made_from(tiny_folder, tmp_path):
    def inputs(**settings):
        section = section_for(tmp_path, PAIRS, **settings)
        return made_from(
            section, read_reward_data(section, seed=0), ModelSection(path=str(tiny_folder)), seed=0, bf16=False
        )

    first = inputs()
    assert json.loads(json.dumps(first)) == first
    assert inputs(checkpoint_minutes=1.0) == first
    assert inputs(centring=0.1) != first
    assert inputs(model=str(tiny_folder)) == first  # the run's own model, named


def test_pairs_and_rankings_learn_together(tiny_folder, tmp_path):
    ranked = [
        {"prompt": talk(f"Say {w}"), "completions": [w, f"{w}!", w.upper()], "rewards": [0, 1, 1]} for w in WORDS[:4]
    ]
    other = tmp_path / "ranked.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in ranked))
    section = section_for(tmp_path, PAIRS)
    both = section.data.model_copy(update={"train": [*_sources(section), *_sources_of(other)]})
    section = section.model_copy(update={"data": both})
    assert "8 steps of 4" in run(section, tmp_path / "stage", tiny_folder)  # 16 groups, 2 epochs


def _sources(section):
    from exoalign.config_data import as_list

    return as_list(section.data.train)


def _sources_of(path):
    from exoalign.config_data import as_list

    return as_list(str(path))


def test_a_reward_model_is_trained_further_and_must_be_of_the_kind(tiny_folder, tmp_path):
    section = section_for(tmp_path, PAIRS, epochs=1.0)
    run(section, tmp_path / "first", tiny_folder)
    again = section_for(tmp_path, PAIRS, epochs=1.0, model=str(tmp_path / "first" / "model"))
    run(again, tmp_path / "second", tiny_folder)
    first, second = (json.loads((tmp_path / n / "history.json").read_text())["steps"] for n in ("first", "second"))
    assert second[0]["loss"] < first[0]["loss"]
    wrong = section_for(tmp_path, TEXTS, kind="classifier", model=str(tmp_path / "first" / "model"))
    with pytest.raises(ModelError, match="has 1 labels, and 2 are wanted"):
        run(wrong, tmp_path / "third", tiny_folder)


def test_an_encoder_learns_too_though_its_tokenizer_ends_no_text(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = sorted({word for row in TEXTS for word in row["text"].split()})
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    base = tmp_path / "bert"
    BertForMaskedLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    assert tokenizer.eos_token is None
    section = section_for(tmp_path, TEXTS, kind="classifier", learning_rate=5e-3, epochs=15.0)
    run(section, tmp_path / "stage", base)
    metrics = json.loads((tmp_path / "stage" / "metrics.json").read_text())["train"]
    assert metrics["accuracy"]["mean"] > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stage" / "model").eval()
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in TEXTS], padding=True, return_tensors="pt")).logits
    scorer = RewardModel(str(tmp_path / "stage" / "model"), device="cpu", reads="completion")
    found = [row[0] for row in scorer(read_reward_data(section, seed=0).train.groups)]
    assert found == pytest.approx((logits[:, 1] - logits[:, 0]).tolist(), abs=1e-4)


def test_trainer_settings_are_checked(tmp_path):
    section = section_for(tmp_path, PAIRS, trainer={"warmup_stepss": 3})
    with pytest.raises(ConfigError, match=r"reward_model\.trainer\.warmup_stepss .*did you mean warmup_steps\?"):
        reward_arguments(section, seed=0, bf16=False, output_dir=str(tmp_path))


def test_real_preferences_and_real_reviews(tiny_folder, shared_data, tmp_path):
    pairs = RewardModelSection.model_validate(
        {
            "data": {
                "train": str(shared_data / "hh_harmless_train.jsonl.gz"),
                "evaluation": str(shared_data / "hh_harmless_test.jsonl.gz"),
                "limit": 16,
                "evaluation_limit": 24,
            },
            "max_tokens": 300,
            "margin": False,
            "centring": 0.01,
        }
    )
    run(pairs, tmp_path / "pairs", tiny_folder)
    found = json.loads((tmp_path / "pairs" / "metrics.json").read_text())["heldout"]
    assert found["pairs"] == 24
    assert sum(part["pairs"] for part in found["by_length"].values()) == 24
    assert sum(part["count"] for part in found["calibration"]["bins"]) == 24
    assert RewardModel(str(tmp_path / "pairs" / "model"), device="cpu").inputs.max_tokens == 300
    (cut,) = json.loads((tmp_path / "pairs" / "history.json").read_text())["warnings"]
    assert "inputs are longer than the reward model's 300 tokens: cut at the left" in cut
    reviews = RewardModelSection.model_validate(
        {
            "data": {
                "train": {"path": str(shared_data / "rt_polarity_train.jsonl.gz"), "adapter": "rt_polarity"},
                "evaluation": {"path": str(shared_data / "rt_polarity_test.jsonl.gz"), "adapter": "rt_polarity"},
                "limit": 32,
                "evaluation_limit": 64,
            },
            "kind": "classifier",
        }
    )
    run(reviews, tmp_path / "reviews", tiny_folder)
    found = json.loads((tmp_path / "reviews" / "metrics.json").read_text())["heldout"]
    assert found["texts"] == 64
    assert 0.5 <= found["majority"] <= 0.7


class TestCommand:
    def command(self, *arguments):
        from typer.testing import CliRunner

        from exoalign.cli import app

        return CliRunner().invoke(app, ["reward", "train", *map(str, arguments)])

    def test_a_model_is_trained_once(self, tiny_folder, tmp_path):
        section_for(tmp_path, PAIRS)
        arguments = [
            "--model",
            tiny_folder,
            "--data",
            tmp_path / "data.jsonl",
            "--out",
            tmp_path / "run",
            "--holdout",
            "0.3",
        ]
        settings = ["reward_model.learning_rate=1e-3", "reward_model.groups_per_step=4", "--json", "--quiet"]
        first = json.loads(self.command(*arguments, *settings).stdout)
        assert (tmp_path / "run" / "reward_model" / "model" / "model.safetensors").is_file()
        assert first["model"] == str(tmp_path / "run" / "reward_model" / "model")
        assert first["metrics"]["heldout"]["pairs"] >= 1
        written = (tmp_path / "run" / "reward_model" / "manifest.json").stat().st_mtime_ns
        assert json.loads(self.command(*arguments, *settings).stdout) == first
        assert (tmp_path / "run" / "reward_model" / "manifest.json").stat().st_mtime_ns == written

    def test_the_commands_of_the_docs(self, tiny_folder, tmp_path, monkeypatch):
        from typer.testing import CliRunner

        from exoalign.cli import app

        section_for(tmp_path, PAIRS)
        (tmp_path / "data.jsonl").rename(tmp_path / "pairs.jsonl")
        section_for(tmp_path, TEXTS)
        (tmp_path / "data.jsonl").rename(tmp_path / "reviews.jsonl")
        monkeypatch.chdir(tmp_path)
        page = (Path(__file__).parents[1] / "docs" / "reward-models.md").read_text()
        commands = re.findall(r"^exoalign (reward train .*)$", page, re.MULTILINE)
        assert len(commands) == 2
        for command in commands:
            command = command.replace("--model demo", f"--model {tiny_folder}").replace(
                "--holdout 0.1", "--holdout 0.3"
            )
            found = CliRunner().invoke(app, command.split())
            assert found.exit_code == 0, found.exception
            assert re.search(r"^model: runs/\w+/reward_model/model$", found.stdout, re.MULTILINE)

    def test_the_section_of_the_docs(self):
        from ruamel.yaml import YAML

        page = (Path(__file__).parents[1] / "docs" / "reward-models.md").read_text()
        (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        section = RewardModelSection.model_validate(YAML(typ="safe").load(block)["reward_model"])
        assert section.centring == 0.01

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("reward_model.centering=1", "unknown key `reward_model.centering`; did you mean `centring`?"),
            ("reward_model.kind=pairs", "`reward_model.kind` is 'pairs'; expected 'ranking' or 'classifier'"),
            ("reward_model.kind.of=3", "kind is a value, not a section"),
        ],
    )
    def test_wrong_settings_are_named(self, tiny_folder, tmp_path, setting, message):
        found = self.command("--model", tiny_folder, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "run", setting)
        assert isinstance(found.exception, ConfigError)
        assert message in str(found.exception)
        assert not (tmp_path / "run").exists()
