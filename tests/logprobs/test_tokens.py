"""Log-probs and values of single tokens: the shared prompt against padded rows and against single sequences."""

import copy

import pytest
import torch
from architectures import (
    GROUPS,
    PAD,
    TRAJECTORIES,
    assert_same,
    assert_same_gradients,
    build,
    build_fast,
    fast,
    gradients,
)

from exoalign import collate
from exoalign.logprobs import tokens
from exoalign.logprobs.engine import completion_logprobs
from exoalign.logprobs.tokens import completion_tokens, row_tokens, token_mask

SOME = pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi"])


def value_head(dtype=torch.float64) -> torch.nn.Linear:
    torch.manual_seed(5)
    return torch.nn.Linear(32, 1, dtype=dtype)


def one_by_one(model, groups, head, temperature):
    """[2, B, K, L] from single sequences without padding: the log-prob of a token, and the head on what predicts it."""
    shape = token_mask(collate(groups)).shape
    found = torch.zeros(2, *shape, dtype=torch.float64)
    places = []
    for b, group in enumerate(groups):
        for k, ids in enumerate(group.completion_ids):
            whole = torch.tensor([[*group.prompt_ids, *ids]])
            output = model(input_ids=whole, use_cache=False, output_hidden_states=True)
            log_p = torch.log_softmax(output.logits[0] / temperature, -1)
            for t, token in enumerate(ids):
                if group.completion_masks is None or group.completion_masks[k][t]:
                    at = len(group.prompt_ids) + t - 1
                    places.append((0, b, k, t, log_p[at, token]))
                    places.append((1, b, k, t, head(output.hidden_states[-1][0, at])[0]))
    index = tuple(torch.tensor([place[i] for place in places]) for i in range(4))
    return found.index_put(index, torch.stack([place[4] for place in places]))


@SOME
@pytest.mark.parametrize("groups", [GROUPS, TRAJECTORIES], ids=["replies", "trajectories"])
def test_tokens_and_their_gradients_are_those_of_rows_and_of_single_sequences(kind, groups, monkeypatch):
    model, oracle, head = fast(kind), build(kind), value_head()
    other = copy.deepcopy(head)
    batch = collate(groups, pad_id=PAD)
    truth = one_by_one(oracle, groups, other, 0.7)
    slow = torch.stack(row_tokens(oracle, batch, other, temperature=0.7))
    monkeypatch.setattr(tokens, "row_tokens", None)  # what follows is computed without it
    ours = torch.stack(completion_tokens(model, batch, head, temperature=0.7))
    found = gradients(torch.nn.ModuleList([model, head]), ours)
    for expected in (slow, truth):
        assert_same(ours.detach(), expected.detach())
        assert_same_gradients(found, gradients(torch.nn.ModuleList([oracle, other]), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_way_errs_no_more_than_the_slow_one(dtype):
    """Against float64, in nats a token: no more than the slow way at the same precision and a few of its roundings."""
    exact = build("llama")
    batch, head = collate(GROUPS, pad_id=PAD), value_head()
    truth = torch.stack(row_tokens(exact, batch, head))
    low, coarse = copy.deepcopy(exact).to(dtype), value_head(torch.float32)
    quick = build_fast("llama", dtype=dtype)
    quick.load_state_dict(low.state_dict())
    with torch.no_grad():
        slow_error = (torch.stack(row_tokens(build_as(low), batch, coarse)).double() - truth).abs().max()
        fast_error = (torch.stack(completion_tokens(quick, batch, coarse)).double() - truth).abs().max()
    assert fast_error <= slow_error + 30 * torch.finfo(dtype).eps


def build_as(low):
    """Plain transformers with these weights: norms that were patched for float64 stay in float64's model."""
    plain = build_fast("llama", dtype=low.dtype)
    plain.load_state_dict(low.state_dict())
    return plain


def test_the_sum_over_tokens_is_the_completion():
    model, batch = fast("llama"), collate(TRAJECTORIES, pad_id=PAD)
    logprobs, values = completion_tokens(model, batch)
    assert values is None
    torch.testing.assert_close(logprobs.sum(-1), completion_logprobs(model, batch))
    assert not logprobs[~token_mask(batch)].any()


def test_a_model_that_cannot_share_goes_by_rows():
    model, batch, head = build("bloom", dtype=torch.float32), collate(GROUPS, pad_id=PAD), value_head(torch.float32)
    for ours, slow in zip(completion_tokens(model, batch, head), row_tokens(model, batch, head), strict=True):
        assert torch.equal(ours, slow)


def test_an_adapter_on_the_head_leaves_the_values_alone():
    """The tiled head takes hidden states that the adapter has widened: the value is read off the plain ones."""
    pytest.importorskip("peft")
    from exoalign import adapters

    torch.manual_seed(0)
    settings = adapters.lora_config(r=2, alpha=4.0, dropout=0.0, target_modules=["lm_head", "q_proj"])
    model = adapters.wrap(build_fast("llama", dtype=torch.float32), settings).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    batch, head = collate(GROUPS, pad_id=PAD), value_head(torch.float32)
    for ours, slow in zip(completion_tokens(model, batch, head), row_tokens(model, batch, head), strict=True):
        torch.testing.assert_close(ours, slow, atol=2e-5, rtol=1e-5)
