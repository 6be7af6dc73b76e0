"""Adapters merged into their base: the same log-probs by the textbook, or nothing is kept."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from exoalign import adapters, load_model, merge
from exoalign.errors import ModelError

peft = pytest.importorskip("peft")
SEQUENCE = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def adapter_on(base, folder, scale=0.1, **settings):
    """A folder with an adapter drawn at random."""
    model = adapters.wrap(load_model(str(base), device="cpu"), peft.LoraConfig(r=3, **settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.copy_(scale * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tied_folder(tiny_folder, tiny_tokenizer, tmp_path):
    """A model whose embedding and head are one tensor."""
    config = copy.deepcopy(AutoModelForCausalLM.from_pretrained(tiny_folder).config)
    config.tie_word_embeddings = True
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    tiny_tokenizer.save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


@torch.no_grad()
def logits(folder, kind=AutoModelForCausalLM):
    """As others load it: transformers, or peft for an adapter."""
    return kind.from_pretrained(str(folder), dtype=torch.float32).eval()(SEQUENCE).logits


@pytest.mark.filterwarnings("ignore")  # peft warns of tied weights
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_the_merged_model_is_base_and_adapter(settings, tied, tiny_folder, tied_folder, tmp_path):
    base = tied_folder if tied else tiny_folder
    adapter = adapter_on(base, tmp_path / "adapter", **settings)
    result = merge(str(adapter), tmp_path / "merged")
    theirs = logits(adapter, peft.AutoPeftModelForCausalLM)
    torch.testing.assert_close(logits(tmp_path / "merged"), theirs, atol=1e-4, rtol=1e-4)
    assert (logits(base) - theirs).abs().max() > 0.1
    assert result["largest_difference"] < 1e-3 < 0.1 < result["adapter_moves"]
    assert result["base"] == str(base)


def test_what_is_written_is_a_standard_folder(tiny_folder, tiny_tokenizer, tmp_path):
    adapter = adapter_on(tiny_folder, tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "merged").mkdir()  # an empty folder is no obstacle
    result = merge(str(adapter), tmp_path / "merged", dtype="bfloat16")
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not [name for name in names if "adapter" in name or name.endswith(".bin")]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tiny_tokenizer.chat_template
    assert 1e-5 < result["largest_difference"] < 0.5
    assert {p.name for p in tmp_path.iterdir()} >= {"adapter", "merged"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_merged_model_that_differs_is_not_kept(tiny_folder, tmp_path, monkeypatch):
    """A weight is changed in the file, after the merge and before it is read again."""
    adapter = adapter_on(tiny_folder, tmp_path / "adapter", target_modules=["q_proj"])
    save = LlamaForCausalLM.save_pretrained

    def save_something_else(self, folder, **kwargs):
        self.lm_head.weight.data[7] += 0.5
        save(self, folder, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_something_else)
    with pytest.raises(
        ModelError, match=r"the merged model gives .* the log-prob .*, base and adapter give it .* float32"
    ):
        merge(str(adapter), tmp_path / "merged")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter"}


def test_what_cannot_be_merged(tiny_folder, tmp_path):
    adapter = adapter_on(tiny_folder, tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("...")
    for source, out, settings, message in [
        (tiny_folder, "merged", {}, "is no adapter: no adapter_config.json in it"),
        (adapter, "thesis", {}, "thesis is there already; choose another with --out"),
        (adapter, "thesis/thesis.tex", {}, "thesis.tex is there already"),
        (adapter, "thesis/thesis.tex/below", {}, "below cannot be written"),
        (adapter, "merged", {"dtype": "float8"}, "dtype is 'float8'; expected float32 or bfloat16"),
        (tmp_path / "nowhere", "merged", {}, "no such folder"),
    ]:
        with pytest.raises(ModelError, match=message):
            merge(str(source), tmp_path / out, **settings)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter", "thesis"}


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_peft_cannot_merge(tiny_folder, tmp_path):
    """A bias for a layer that has none."""
    adapter = adapter_on(tiny_folder, tmp_path / "adapter", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(ModelError, match=r"cannot be merged: .*no bias"):
        merge(str(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_weights_that_are_not_finite_are_not_merged(tiny_folder, tmp_path):
    adapter = adapter_on(tiny_folder, tmp_path / "adapter", scale=float("nan"), target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"cannot be merged: NaNs detected"):
        merge(str(adapter), tmp_path / "merged")
