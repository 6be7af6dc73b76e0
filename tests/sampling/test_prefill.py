"""Completions that share a prompt's prefill are those of prompts read one by one, in every kind of cache."""

import copy
import logging

import pytest
import torch
from architectures import SETTINGS as ARCHITECTURES
from architectures import build_fast

from exoalign import SamplingSettings, TransformersSampler
from exoalign.sampling import prefill

PROMPTS = ["!#$%&(", '$$"', "'()*+,-./0123!", "##"]  # 2 to 14 tokens, all of the 23 that these models know
SETTINGS = SamplingSettings(k=3, temperature=0.9, max_new_tokens=7, seed=2)


@pytest.fixture
def bare(tiny_tokenizer):
    """Pads with the model's end token, as small vocabularies hold no padding token of this tokenizer's."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    return tokenizer


def both_ways(model, tokenizer, **arguments):
    model.generation_config.eos_token_id = 22
    return [
        TransformersSampler(model, tokenizer, share_prefill=share, **arguments).sample(PROMPTS, SETTINGS)
        for share in (True, False)
    ]


def largest_difference(shared, plain):
    pairs = [(a, b) for x, y in zip(shared, plain, strict=True) for a, b in zip(x, y, strict=True)]
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_draws_the_same(name, bare, caplog):
    model = build_fast(name, dtype=torch.float32)
    shared, plain = both_ways(model, bare, batch_size=8)
    assert [g.completion_ids for g in shared] == [g.completion_ids for g in plain]
    assert largest_difference([g.sampler_logprobs for g in shared], [g.sampler_logprobs for g in plain]) < 1e-4
    assert len({ids for group in shared for ids in group.completion_ids}) > 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_each_prompt_goes_through_the_model_once(tiny_model, tiny_tokenizer, dtype):
    tiny_model.to(dtype)
    seen = []
    tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    settings = SamplingSettings(k=4, max_new_tokens=2)
    sampler = TransformersSampler(tiny_model, tiny_tokenizer)
    sampler.sample(["four", "fours"], settings)
    seen.clear()
    sampler.sample(["four", "fours"], settings)
    assert seen == [(2, 4), (8, 1), (8, 1)]  # all tokens of both prompts but the last, then of each completion one


def test_a_prompt_of_one_token_is_read_by_each(tiny_model, tiny_tokenizer):
    sampler = TransformersSampler(tiny_model, tiny_tokenizer)
    sampler.sample(["x", "four"], SamplingSettings(k=4, max_new_tokens=2))
    assert sampler.share_prefill is None  # never tried


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda cache, rows: (_ for _ in ()).throw(NotImplementedError("no batches here")),
            "NotImplementedError: no b",
        ),
        (lambda cache, rows: None, "cannot be copied"),
        (lambda cache, rows: cache.reorder_cache(rows.flip(0)), "draws otherwise"),
    ],
    ids=["raises", "left as it was", "mixed up"],
)
def test_a_cache_that_cannot_be_copied_is_told_once(tiny_model, tiny_tokenizer, monkeypatch, caplog, break_it, message):
    settings = SamplingSettings(k=3, max_new_tokens=4)
    prompts = ["one prompt", "another one", "and a third"]
    plain = TransformersSampler(tiny_model, tiny_tokenizer, batch_size=3, share_prefill=False).sample(prompts, settings)
    original = prefill.expanded_cache

    def broken(generate, input_ids, attention, rows):
        cache = original(generate, input_ids, attention, torch.arange(len(input_ids)))
        break_it(cache, rows)
        return cache

    monkeypatch.setattr(prefill, "expanded_cache", broken)
    with caplog.at_level(logging.WARNING, "exoalign"):
        sampler = TransformersSampler(tiny_model, tiny_tokenizer, batch_size=6)
        found = sampler.sample(prompts, settings)
    assert sampler.share_prefill is False
    assert [g.completion_ids for g in found] == [g.completion_ids for g in plain]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("exoalign")]
    assert len(told) == 1
    assert message in told[0]
    assert told[0].endswith("each completion reads its prompt on its own")


def test_rows_and_the_prompts_they_are_of():
    assert prefill.distinct([7, 7, 3, 9, 9, 9]) == ([7, 3, 9], [0, 0, 1, 2, 2, 2])
