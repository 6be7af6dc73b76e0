"""Rewards from a shared prefix against the model's own forward on padded rows: forward, backward, and where neither packs."""

import pytest
import torch
from architectures import SETTINGS, assert_same, assert_same_gradients, gradients, group_of, in_float64
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from exoalign import collate
from exoalign.logprobs import readout
from exoalign.logprobs.engine import completion_scores, shares_prefix
from exoalign.rewards.inputs import with_places

PAD = 22
# Texts of one group: they share a beginning; one is the beginning of another; two are equal. None ends with the padding token.
TEXTS = [
    [(3, 1, 4, 1, 5, 9, 2, 6), (3, 1, 4, 1, 5), (3, 1, 4, 1, 5, 9, 7)],
    [(7, 22, 3)],
    [(0, 2, 1), (0, 2, 1), (0, 5)],
]
KINDS = ["llama", "qwen3", "gpt2", "gemma2", "mistral", "gpt_neox", "phi"]


def build_reward_model(kind, *, labels=1, dtype=torch.float64, pad=PAD, scale=1.0, attention="sdpa"):
    torch.manual_seed(0)
    settings = {**SETTINGS[kind], "vocab_size": 23, "num_labels": labels, "pad_token_id": pad}
    config = CONFIG_MAPPING[kind](**settings, initializer_range=0.2)
    model = AutoModelForSequenceClassification.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    with torch.no_grad():
        readout.score_head(model).weight.mul_(scale)
    return in_float64(model) if dtype == torch.float64 else model


def batch_of(texts=TEXTS):
    return collate([with_places(group, PAD) for group in texts], pad_id=PAD)


def alone(model, texts=TEXTS):
    """The logits of each text by itself, unpadded: the truth."""
    return [[model(input_ids=torch.tensor([ids])).logits[0] for ids in group] for group in texts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [1, 2])
def test_packed_and_padded_rewards_are_those_of_single_texts_and_so_are_gradients(kind, labels):
    capped = kind == "gemma2"  # sdpa cannot cap scores
    model = build_reward_model(kind, labels=labels, attention="eager" if capped else "sdpa")
    oracle = build_reward_model(kind, labels=labels, attention="eager_in_float64" if capped else "sdpa")
    assert shares_prefix(model)
    batch = batch_of()
    scores = completion_scores(model, batch)
    assert scores.shape == (3, 3, labels)
    assert scores.dtype == torch.float64
    truth = alone(oracle)
    flat = torch.stack([logits for group in truth for logits in group])
    rows = readout.row_scores(oracle, batch)
    assert_same(scores[batch.mask].detach(), flat.detach())
    assert_same(rows[batch.mask].detach(), flat.detach())
    assert scores[~batch.mask].eq(0).all()
    weights = torch.arange(1.0, flat.numel() + 1, dtype=torch.float64).view_as(flat)
    ours = gradients(model, scores[batch.mask] * weights)
    assert_same_gradients(ours, gradients(oracle, flat * weights))


def test_in_float32_the_fast_way_errs_no_more_than_rows_do():
    truth = torch.stack([x for group in alone(build_reward_model("llama")) for x in group])
    fast, slow = build_reward_model("llama", dtype=torch.float32), build_reward_model("llama", dtype=torch.float32)
    batch = batch_of()
    ours = (completion_scores(fast, batch)[batch.mask] - truth).abs().max()
    theirs = (readout.row_scores(slow, batch)[batch.mask] - truth).abs().max()
    assert ours <= theirs + 2e-6


def test_a_head_that_has_learnt_nothing_does_not_hide_a_layout_that_is_misread(monkeypatch):
    # with rewards of 0 both ways agree whatever they read, so the examination looks at hidden states
    model = build_reward_model("llama", scale=0.0)
    assert shares_prefix(model)
    broken = build_reward_model("llama", scale=0.0)
    real = readout.row_states
    monkeypatch.setattr(readout, "row_states", lambda *args: real(*args).flip(1))
    assert not shares_prefix(broken)


def test_a_model_without_padding_goes_text_by_text(monkeypatch):
    model = build_reward_model("llama", pad=None)
    batch = batch_of()
    flat = torch.stack([x for group in alone(model) for x in group])
    assert_same(readout.row_scores(model, batch)[batch.mask].detach(), flat.detach())


def test_encoders_get_rows_and_are_read_at_their_first_token():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=23, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=2,
        pad_token_id=PAD,
    )  # fmt: skip
    model = BertForSequenceClassification(config).double().eval()
    assert not shares_prefix(model)
    texts = [[(3, 1, 4, 1, 5, 9), (3, 1, 2)], [(7, 8, 9, 10, 11, 12, 13)]]
    batch = batch_of(texts)
    flat = torch.stack([x for group in alone(model, texts) for x in group])
    assert_same(completion_scores(model, batch)[batch.mask].detach(), flat.detach())


def test_a_language_model_has_no_such_head(tiny_model):
    assert readout.score_head(tiny_model) is None
    assert shares_prefix(tiny_model)  # and is examined by its log-probs as before


def test_bfloat16_does_not_round_rewards():
    model = build_reward_model("llama", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = completion_scores(model, batch_of())
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_group_of_and_places_agree_about_the_layout():
    made = with_places(TEXTS[0], PAD)
    assert made.prompt_ids == (3, 1, 4, 1, 5)
    assert made.completion_ids == ((9, 2, 6, PAD), (PAD,), (9, 7, PAD))
    assert made.completion_masks == ((False,) * 3 + (True,), (True,), (False, False, True))
    assert group_of((1,), (2,)).completion_masks is None
