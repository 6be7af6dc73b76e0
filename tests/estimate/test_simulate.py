"""Simulated passes against real ones: bytes by hand, and what autograd saves on the CPU."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from exoalign.estimate.simulate import PassShape, simulate
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
    assert shares_prefix(model)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}
    batch = GroupBatch(
        torch.ones(1, shape.prompt, dtype=torch.long),
        torch.tensor([shape.prompt]),
        torch.ones(1, shape.completions, shape.completion, dtype=torch.long),
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
