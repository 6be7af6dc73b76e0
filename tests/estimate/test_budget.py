"""The largest pass: within its share of memory, by simulating what comes out, and at its bounds."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from exoalign import largest_pass
from exoalign.estimate import memory
from exoalign.estimate.budget import ADAM_BYTES, BASELINE, MOST_TOKENS, SHARE
from exoalign.estimate.simulate import PassShape, simulate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=700, num_hidden_layers=8, num_attention_heads=4
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def taken(model, tokens: int) -> int:
    shape = PassShape(100, (tokens - 100) // 49, 50)
    return simulate(model, shape, bf16=False, device=CPU, checkpointing=False).taken


def largest(model, room: float, **settings) -> int:
    kept = sum(p.numel() for p in model.parameters()) * (4 + 4 + ADAM_BYTES) + BASELINE
    return largest_pass(model, bf16=False, memory=int(kept + room), prompt=100, completion=50, device=CPU, **settings)


@pytest.mark.parametrize("room", [1e8, 2e8])
def test_it_fits_and_a_third_more_does_not(model, room):
    tokens = largest(model, room)
    assert 149 < tokens < MOST_TOKENS["cpu"]
    assert taken(model, tokens) <= SHARE * room * 1.02
    assert taken(model, tokens * 4 // 3) > SHARE * room


def test_more_memory_or_checkpointing_means_more_tokens_up_to_a_bound(model):
    assert largest(model, 1e8) < largest(model, 2e8) < largest(model, 2e8, checkpointing=True)
    assert MOST_TOKENS["cpu"] - 49 < largest(model, 1e12) <= MOST_TOKENS["cpu"]


@pytest.mark.parametrize("room", [-1e12, 0.0])
def test_one_completion_is_the_least(model, room):
    assert largest(model, room) == 100 + 49


def test_memory_of_this_machine():
    total = memory.memory_for(CPU)
    assert total is not None
    assert memory.resident() > 50e6  # Python with torch
    assert memory.resident() < total


def test_a_container_with_less_memory_counts(tmp_path, monkeypatch):
    limit, use = tmp_path / "max", tmp_path / "current"
    limit.write_text("3000000\n")
    use.write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", [(str(limit), str(use))])
    monkeypatch.setattr(memory, "resident", lambda: 500_000)
    assert memory.memory_for(CPU) == 2_500_000
    limit.write_text("max\n")
    assert memory.memory_for(CPU) > 100_000_000
