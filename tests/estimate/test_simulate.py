"""Simulated passes against real ones: bytes by hand, and what autograd saves on the CPU."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

from exoalign.errors import ModelError
from exoalign.estimate.live import Live
from exoalign.estimate.simulate import PassShape, _layers_alike, simulate
from exoalign.groups import GroupBatch
from exoalign.logprobs.engine import completion_logprobs, shares_prefix
from exoalign.models import autocast

CPU = torch.device("cpu")


def llama(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaConfig(**{**settings, **changes})


def skeleton(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def real_pass(config, shape: PassShape, *, bf16: bool) -> int:
    """Bytes that autograd saves, each storage once, weights not counted: real weights, real numbers."""
    model = AutoModelForCausalLM.from_config(config)
    shares_prefix(model)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}
    batch = GroupBatch(
        torch.ones(1, shape.prompt, dtype=torch.long),
        torch.tensor([shape.prompt]),
        torch.arange(shape.completions)[None, :, None].expand(1, -1, shape.completion),  # no two alike
        torch.full((1, shape.completions), shape.completion),
    )

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(CPU, bf16=bf16):
        completion_logprobs(model, batch).sum()
    return sum(t.untyped_storage().nbytes() for t in saved.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [PassShape(40, 3, 12), PassShape(100, 16, 30)])
def test_activations_are_what_autograd_saves(shape, bf16):
    config = llama()
    found = simulate(skeleton(config), shape, bf16=bf16, device=CPU, checkpointing=False)
    assert found.shared
    assert found.activations == pytest.approx(real_pass(config, shape, bf16=bf16), rel=0.05)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_highest_point_is_that_of_a_real_pass(bf16):
    """Real tensors, all that are alive: with tiles of 720 x 2048 logits and gradients that are there already."""
    config, shape = llama(vocab_size=5000), PassShape(100, 24, 30)
    model = AutoModelForCausalLM.from_config(config)
    assert shares_prefix(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    ids = torch.arange(24)[None, :, None].expand(1, 24, 30)
    batch = GroupBatch(torch.ones(1, 100, dtype=torch.long), torch.tensor([100]), ids, torch.full((1, 24), 30))
    with Live() as live:
        for t in (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())):
            live.add(t)
        before = live.bytes
        with autocast(CPU, bf16=bf16):
            total = completion_logprobs(model, batch).sum()
        total.backward()
    found = plain(config, shape, bf16=bf16)
    assert found.temporary > 512 * 5000 * 4
    assert found.activations + found.temporary == pytest.approx(live.peak - before, rel=0.03)


def plain(config, shape, **changes):
    return simulate(skeleton(config), shape, **{"bf16": False, "device": CPU, "checkpointing": False, **changes})


def test_weights_and_gradients_by_hand():
    # embedding and head 500 x 64 each; a layer: q and out 64 x 64, k and v 32 x 64, mlp 3 x 160 x 64, two norms; one more norm
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64 + 2 * 64
    parameters = 2 * 500 * 64 + 3 * layer + 64
    model = skeleton(llama())
    buffers = sum(b.numel() * 4 for b in model.buffers())
    found = plain(llama(), PassShape(20, 2, 10))
    assert (found.trainable, found.gradients, found.weights) == (parameters, 4 * parameters, 4 * parameters + buffers)
    tied = plain(llama(tie_word_embeddings=True), PassShape(20, 2, 10))
    assert found.trainable - tied.trainable == 500 * 64


def test_operations_by_hand():
    # a multiplication and an addition for each weight of the layers and token, and two products for each attended pair
    shape = PassShape(20, 2, 11)  # 20 prompt tokens, 2 x 10 completion tokens that are fed, 2 x 11 that are predicted
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64
    pairs = 20 * 20 + 2 * 10 * 30  # the square is computed, masked or not
    found = plain(llama(), shape)
    attended = 3 * 4 * 64 * pairs
    rotary = found.forward - 3 * 2 * layer * 40 - attended
    assert 0 <= rotary < 0.001 * found.forward
    assert found.head == 2 * 22 * 64 * 500
    # each product is two in the backward, attention's two are five, and the head computes its logits again
    assert found.backward == pytest.approx(3 * 4 * layer * 40 + 2.5 * attended + 3 * found.head, rel=0.002)


SIZES = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
OTHERS = {
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=16, num_key_value_heads=2),
    "gpt2": transformers.GPT2Config(vocab_size=500, n_embd=64, n_layer=3, n_head=4),
    "neox": transformers.GPTNeoXConfig(**SIZES),
    "window": transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=32),
    "rows": transformers.BloomConfig(vocab_size=500, hidden_size=64, n_layer=3, n_head=4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_agree_with_what_autograd_saves(name):
    shape = PassShape(60, 4, 20)
    found, real = plain(OTHERS[name], shape), real_pass(OTHERS[name], shape, bf16=False)
    assert found.shared == (name != "rows")
    assert found.activations == pytest.approx(real, rel=0.1)


def test_experts_are_estimated():
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2)
    found = plain(config, PassShape(60, 4, 20))
    # of each token two experts with three matrices of 64 x 160, a router, and attention
    per_token = 2 * 3 * 64 * 160 + 64 * 4 + 4 * 64 * 64
    pairs = 60 * 60 + 4 * 19 * 79
    assert found.forward == pytest.approx(3 * (2 * per_token * 136 + 4 * 64 * pairs), rel=0.02)
    assert found.backward == pytest.approx(2 * found.forward + 3 * found.head, rel=0.05)


def test_a_few_layers_stand_for_all(monkeypatch):
    config, shape = llama(num_hidden_layers=12), PassShape(50, 6, 20)
    drawn = plain(config, shape, bf16=True)
    monkeypatch.setattr("exoalign.estimate.simulate._layers_alike", lambda model: None)
    run = plain(config, shape, bf16=True)
    assert drawn == run


def test_layers_that_differ_are_all_run():
    config = transformers.Gemma2Config(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=8, num_attention_heads=4, head_dim=16
    )
    assert _layers_alike(skeleton(config)) is None
    assert len(_layers_alike(skeleton(llama(num_hidden_layers=8)))) == 8
    frozen = skeleton(llama(num_hidden_layers=8))
    frozen.model.layers[0].requires_grad_(False)
    assert _layers_alike(frozen) is None


def test_more_tokens_take_more_and_the_same_tokens_the_same():
    few, more = (plain(llama(), PassShape(50, c, 17)) for c in (4, 16))
    assert more.activations > 2 * few.activations
    assert more.taken > few.taken
    # 16 short completions and 4 long ones: as many tokens, so about as many bytes
    long = plain(llama(), PassShape(50, 4, 65))
    assert long.activations == pytest.approx(more.activations, rel=0.1)


def test_checkpointing_frozen_weights_and_adapters_take_less():
    peft = pytest.importorskip("peft")
    config, shape = llama(num_hidden_layers=8), PassShape(60, 8, 20)
    full = plain(config, shape)
    assert plain(config, shape, checkpointing=True).activations < 0.3 * full.activations
    adapted = peft.get_peft_model(skeleton(config), peft.LoraConfig(task_type="CAUSAL_LM", r=4))
    found = simulate(adapted, shape, bf16=False, device=CPU, checkpointing=False)
    # q_proj 64 -> 64 and v_proj 64 -> 32, each with two matrices of rank 4
    assert found.trainable == 8 * 4 * (64 + 64 + 64 + 32)
    assert found.gradients == 4 * found.trainable
    assert found.activations < full.activations


def test_the_model_is_left_as_it_is(tiny_model):
    before = {name: p.clone() for name, p in tiny_model.named_parameters()}
    kind, training = tiny_model.config._attn_implementation, tiny_model.training
    simulate(tiny_model, PassShape(20, 2, 10), bf16=True, device=CPU, checkpointing=True)
    assert (tiny_model.config._attn_implementation, tiny_model.training) == (kind, training)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in tiny_model.named_parameters())


def test_a_model_that_needs_numbers_is_refused_in_one_line(tiny_model, monkeypatch, capfd):
    layer = type(tiny_model.model.layers[0].mlp)
    plainly = layer.forward

    def fickle(self, x):
        return plainly(self, x) if float(x.detach().sum()) > 0 else x

    monkeypatch.setattr(layer, "forward", fickle)
    with pytest.raises(ModelError, match=r"^LlamaForCausalLM does not run on tensors without data \(\w+: [^\n]*\)$"):
        simulate(tiny_model, PassShape(20, 2, 10), bf16=False, device=CPU, checkpointing=False)
    assert capfd.readouterr().err == ""
