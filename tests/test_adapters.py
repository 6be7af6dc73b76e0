"""Adapters: put on, loaded from folders, known by their fingerprint, and every way in which they are refused."""

import importlib.util
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from exoalign import adapters, collate, completion_logprobs, load_model, load_tokenizer, tokenize
from exoalign.errors import ConfigError, ModelError
from exoalign.groups import Group
from exoalign.models import context_length, fingerprint, identity

peft = pytest.importorskip("peft")


def randomise(model, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.copy_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture
def adapted(tiny_model):
    """The tiny model with an adapter that matters."""
    return randomise(adapters.wrap(tiny_model, peft.LoraConfig(r=3, target_modules="all-linear"))).eval()


@pytest.fixture
def folder(adapted, tmp_path):
    """The folder of that adapter, as peft writes it."""
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def batch(tiny_tokenizer):
    return collate(tokenize([Group("Film:", (" good", " bad and long"))], tiny_tokenizer))


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class TestWrap:
    def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(self, tiny_model, tiny_folder, batch):
        before = completion_logprobs(tiny_model, batch).detach()
        settings = peft.LoraConfig(r=3, target_modules="all-linear")
        model = adapters.wrap(tiny_model, settings)
        assert torch.equal(completion_logprobs(model, batch).detach(), before)
        trained = {name.rpartition(".lora_")[2][0] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"A", "B"}
        assert settings.target_modules == "all-linear"  # peft writes what it found into the settings that it is given
        assert settings.base_model_name_or_path is None
        assert model.peft_config["default"].base_model_name_or_path == str(tiny_folder)
        assert model.peft_config["default"].task_type == "CAUSAL_LM"

    def test_a_relative_base_is_recorded_in_full(self, tiny_folder, monkeypatch):
        monkeypatch.chdir(tiny_folder.parent)
        model = adapters.wrap(load_model("./tiny", device="cpu"), peft.LoraConfig())
        assert model.peft_config["default"].base_model_name_or_path == str(tiny_folder)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"target_modules": ["q_proj", "w_proj"]}, "LlamaForCausalLM has no module 'w_proj'; did you mean .*_proj"),
            ({"target_modules": ["attention"]}, "no module 'attention'; its modules are .*q_proj, .*v_proj"),
            ({"target_modules": ".*nowhere"}, r"does not fit LlamaForCausalLM: Target modules .*nowhere not found"),
            ({"target_modules": ["input_layernorm"]}, "does not fit LlamaForCausalLM: Target module LlamaRMSNorm"),
            (
                {"r": 0},
                "does not fit LlamaForCausalLM: `r` should be a positive integer value but the value passed is 0",
            ),
            ({"r": -2}, "positive integer value but the value passed is -2"),
        ],
        ids=str,
    )
    def test_what_does_not_fit(self, settings, message, tiny_model):
        with pytest.raises(ModelError, match=message):
            adapters.wrap(tiny_model, peft.LoraConfig(**{"target_modules": ["q_proj"], **settings}))

    def test_what_is_no_adapter_that_begins_at_the_model(self, tiny_model):
        for settings, message in [
            ({"r": 8}, "peft_config is dict; expected one of peft's, for example LoraConfig"),
            (
                peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
                "of the type PROMPT_TUNING; expected",
            ),
            (peft.LoraConfig(init_lora_weights="pissa"), "init_lora_weights is 'pissa'; expected True or 'gaussian'"),
            (peft.LoraConfig(init_lora_weights=False), "init_lora_weights is False"),
        ]:
            with pytest.raises(ConfigError, match=message):
                adapters.wrap(tiny_model, settings)

    def test_a_second_adapter_is_refused(self, adapted, tiny_folder):
        with pytest.raises(ModelError, match="has an adapter, and peft_config asks for another: leave peft_config out"):
            adapters.wrap(adapted, peft.LoraConfig())
        native = load_model(str(tiny_folder), device="cpu")
        native.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(ModelError, match="has an adapter"):
            adapters.wrap(native, peft.LoraConfig())


class TestFolders:
    def test_an_adapter_folder_loads_as_base_and_adapter(self, folder, adapted, batch):
        loaded = load_model(str(folder), device="cpu")
        assert torch.equal(completion_logprobs(loaded, batch), completion_logprobs(adapted, batch))
        assert fingerprint(loaded) == fingerprint(adapted)
        assert all(p.requires_grad == ("lora_" in name) for name, p in loaded.named_parameters())

    def test_context_and_tokenizer_are_the_bases(self, folder, tiny_tokenizer):
        assert context_length(str(folder)) == 512
        assert load_tokenizer(str(folder)).get_vocab() == tiny_tokenizer.get_vocab()
        tiny_tokenizer.save_pretrained(folder)  # its own comes first
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "<pad>"}))
        assert load_tokenizer(str(folder)).eos_token == "<pad>"

    def test_the_identity_is_of_adapter_and_base(self, folder, tiny_folder):
        found = identity(str(folder))
        assert found["base model.safetensors"] == identity(str(tiny_folder))["model.safetensors"]
        assert "adapter_model.safetensors" in found

    def test_the_precision_is_the_bases(self, folder):
        loaded = load_model(str(folder), dtype=torch.bfloat16, device="cpu")
        types = {("lora_" in name, p.dtype) for name, p in loaded.named_parameters()}
        assert types == {(False, torch.bfloat16), (True, torch.float32)}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"base_model_name_or_path": "/nowhere/base"},
                "its base model /nowhere/base is not there; put it back, or set",
            ),
            ({"base_model_name_or_path": None}, "names no base model; set base_model_name_or_path"),
            ({"peft_type": "PREFIX_TUNING"}, "an adapter of the type 'PREFIX_TUNING'; expected one of LORA"),
            ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "expected one of LORA"),
            (
                {"target_modules": ["q_proj"]},
                r"does not fit its base model .* has no place; .* and 21 more; is it another model's\?",
            ),
            ({"target_modules": ["c_attn"]}, "does not fit its base model .*Target modules"),
            ({"r": 5}, "does not fit its base model .*size mismatch"),
        ],
        ids=str,
    )
    def test_settings_that_cannot_be_used(self, changes, message, folder):
        edit(folder, **changes)
        with pytest.raises(ModelError, match=message):
            load_model(str(folder), device="cpu")

    @pytest.mark.parametrize("text", ["{", "[]", "{}"])
    def test_damaged_settings(self, text, folder):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"adapter_config\.json is damaged: expected JSON with base_model_name"):
            load_model(str(folder), device="cpu")

    def test_another_models_adapter(self, tiny_model, tiny_folder, tmp_path):
        """A base that is wider, and one with more layers: sizes differ, and weights are missing."""
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path / "adapter"
        adapters.wrap(tiny_model, peft.LoraConfig(target_modules=["down_proj"])).save_pretrained(folder)
        for change, message in [({"intermediate_size": 96}, "size mismatch"), ({"num_hidden_layers": 3}, "is missing")]:
            config = AutoConfig.from_pretrained(tiny_folder, **change)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
            edit(folder, base_model_name_or_path=str(tmp_path / "other"))
            with pytest.raises(ModelError, match=rf"does not fit its base model .*other.*{message}.*another model's"):
                load_model(str(folder), device="cpu")

    def test_damaged_weights(self, folder):
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors is damaged"):
            load_model(str(folder), device="cpu")

    def test_a_weight_that_is_missing(self, folder):
        file = folder / "adapter_model.safetensors"
        weights = load_file(file)
        name = min(weights)
        save_file({key: weights[key] for key in weights if key != name}, file)
        with pytest.raises(ModelError, match=rf"{name} is missing"):
            load_model(str(folder), device="cpu")

    def test_pickled_weights_are_never_loaded(self, folder, tmp_path):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ModelError, match=r"no adapter_model\.safetensors, and pickled weights .* are not loaded"):
            load_model(str(folder), device="cpu")
        assert not (tmp_path / "sprung").exists()

    def test_a_whole_model_beside_the_adapter_does_not_open_a_way_round(self, folder, tiny_folder):
        """transformers would load the adapter of such a folder by itself, pickled if need be."""
        shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.bin").write_bytes(b"")
        with pytest.raises(ModelError, match="pickled weights"):
            load_model(str(folder), device="cpu")

    def test_an_adapter_on_an_adapter_is_refused(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "second")
        edit(tmp_path / "second", base_model_name_or_path=str(folder))
        with pytest.raises(
            ModelError, match=rf"its base .* is an adapter itself; merge that first: exoalign merge {folder}"
        ):
            load_model(str(tmp_path / "second"), device="cpu")

    def test_an_adapter_of_the_hub_is_refused(self, folder, tmp_path, monkeypatch):
        """As a download leaves it; transformers would load it by itself."""
        commit = "0" * 40
        stored = tmp_path / "hub" / "models--someone--adapter"
        shutil.copytree(folder, stored / "snapshots" / commit)
        (stored / "refs").mkdir()
        (stored / "refs" / "main").write_text(commit)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        with pytest.raises(
            ModelError, match=r"is an adapter on the hub; download it to a folder \(hf download someone/adap"
        ):
            load_model("someone/adapter", device="cpu")


class TestFingerprint:
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        "settings",
        [{"target_modules": "all-linear"}, {"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}],
    )
    def test_off_it_is_the_bases(self, settings, tiny_folder):
        base = fingerprint(load_model(str(tiny_folder), device="cpu"))
        model = randomise(adapters.wrap(load_model(str(tiny_folder), device="cpu"), peft.LoraConfig(**settings)))
        assert fingerprint(model) != base
        with model.disable_adapter():
            assert fingerprint(model) == base

    def test_on_it_tells_weights_and_settings_apart(self, folder, tiny_folder):
        found = {fingerprint(load_model(str(folder), device="cpu"))}
        edit(folder, lora_alpha=9)
        found.add(fingerprint(load_model(str(folder), device="cpu")))
        found.add(fingerprint(randomise(load_model(str(folder), device="cpu"), seed=1)))
        assert len(found) == 3

    def test_where_the_base_lies_does_not_matter(self, folder, adapted, tiny_folder, tmp_path):
        shutil.copytree(tiny_folder, tmp_path / "moved")
        edit(folder, base_model_name_or_path=str(tmp_path / "moved"))
        assert fingerprint(load_model(str(folder), device="cpu")) == fingerprint(adapted)


class TestMissingPackages:
    def test_without_peft(self, folder, tiny_model, monkeypatch):
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else found(name, *a))
        for call in (
            lambda: load_model(str(folder)),
            lambda: adapters.wrap(tiny_model, None),
            lambda: adapters.lora_config(r=1, alpha=1, dropout=0.0, target_modules="all-linear"),
        ):
            with pytest.raises(ModelError, match=r"need the package peft; run: pip install 'exoalign\[lora\]'"):
                call()

    def test_four_bits_without_cuda(self, tiny_folder, folder, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for path in (tiny_folder, folder):
            with pytest.raises(ModelError, match="quantize: 4bit needs a CUDA device, and this machine has none"):
                load_model(str(path), quantize=torch.bfloat16)

    def test_four_bits_without_bitsandbytes(self, monkeypatch):
        found = importlib.util.find_spec
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
        )
        with pytest.raises(
            ModelError, match="quantize: 4bit needs the package bitsandbytes; run: pip install bitsandbytes"
        ):
            adapters.quantization(torch.bfloat16)
