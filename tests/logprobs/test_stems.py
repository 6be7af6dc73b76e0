"""Stems of completions and prefixes of prompts, computed once, against single sequences: forward and backward in float64."""

import pytest
import torch
from architectures import (
    MIXTURES,
    MODELS,
    PAD,
    A,
    B,
    assert_same,
    assert_same_gradients,
    build,
    fast,
    gradients,
    group_of,
    one_by_one,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from exoalign import collate
from exoalign.logprobs import pack, rows, trie
from exoalign.logprobs.engine import compare_policies, completion_logprobs, shares_prefix
from exoalign.models import without_dropout

SYSTEM = (2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5)
# A stem in a stem, one that ends where others go on, equal completions, single tokens, and one with nothing in common.
TREE = group_of((3, 1, 4), (*A, *B, 2, 3), (*A, *B, 8, 4, 6), (*A, 5), (7,), A, (*A, *B), (6, 2, 6), A)
BATCHES = {
    "a tree": [TREE],
    "all equal": [group_of((3, 1), *[A] * 4)],
    "one token, nine times": [group_of((3, 1), *[(5,)] * 9)],
    "one a prefix of the other": [group_of((1,), (*A, *B), A)],
    "a system prompt": [
        group_of((*SYSTEM, 11, 12), (*A, 1), (2, 2), (*A, 3, 3)),
        group_of((*SYSTEM, 13), (4,), (5, 6, 7)),
        group_of((*SYSTEM, 11, 14, 15), (4, 4)),
    ],
    "equal prompts": [group_of((*SYSTEM, 1), (1, 2), (3,)), group_of((*SYSTEM, 1), (1, 2, 3))],
    "prompts that go on where others end": [
        group_of(SYSTEM + (1,) * n, tuple(range(1, 6 - n)), (7, 8)) for n in (1, 2, 4)
    ],
}
ALL_BATCHES = pytest.mark.parametrize("groups", BATCHES.values(), ids=BATCHES)


@ALL_BATCHES
@pytest.mark.parametrize("kind", MODELS)
def test_values_and_gradients_are_those_of_single_sequences(kind, groups, no_rows):
    model, oracle = fast(kind), build(kind)
    no_rows(model)
    values, truth = (
        completion_logprobs(model, collate(groups, pad_id=PAD), temperature=0.7),
        one_by_one(oracle, groups, 0.7),
    )
    assert_same(values.detach(), truth.detach())
    assert_same_gradients(gradients(model, values), gradients(oracle, truth))


@ALL_BATCHES
@pytest.mark.parametrize("kind", MIXTURES)
def test_mixtures_of_experts_do_so_in_float32(kind, groups, no_rows):
    model, oracle = fast(kind, dtype=torch.float32), build(kind, dtype=torch.float32)
    no_rows(model)
    values, truth = completion_logprobs(model, collate(groups, pad_id=PAD)), one_by_one(oracle, groups)
    assert_same(values.detach(), truth.detach(), 1e-6)
    assert_same_gradients(gradients(model, values), gradients(oracle, truth), 1e-4)  # sinks sum over all that is seen


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_with_gradient_checkpointing_too(kind):
    model, oracle = fast(kind), build(kind)
    without_dropout(model)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    values, truth = completion_logprobs(model, collate([TREE])), one_by_one(oracle, [TREE])
    assert_same(values.detach(), truth.detach())
    assert_same_gradients(gradients(model, values), gradients(oracle, truth))


def test_what_is_shared_is_computed_once():
    model, seen = build("llama"), []
    assert shares_prefix(model)
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    for name in ("a tree", "all equal", "one token, nine times", "a system prompt"):
        completion_logprobs(model, collate(BATCHES[name]))
    # prompt, A, B, tails of 1, 2 and 0 tokens, 0, 0 and 2 of the others; prompt and A but its last; a prompt; and
    # the system prompt, then 2 + 8 + 0 + 1 + 1, 1 + 0 + 2 and 3 + 1
    assert seen == [3 + 8 + 8 + 1 + 2 + 2, 2 + 7, 2, 16 + 12 + 3 + 4]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_comparison_of_policies_counts_a_stem_for_each_of_its_completions(kind):
    policies, oracles = ([make(kind, seed=seed) for seed in (1, 2)] for make in (fast, build))
    batch = collate([*BATCHES["a system prompt"], TREE], pad_id=PAD)
    expected = rows.compare_policies(*oracles, batch)
    for values, truth in zip(compare_policies(*policies, batch), expected, strict=True):
        assert values.dtype == torch.float64
        assert_same(values, truth)


PAIRS = {kind: (build(kind), build(kind)) for kind in ("llama", "mistral")}


class TestDrawn:
    """Two tokens to draw from, so that prefixes and equal completions are frequent, and every shared token is split off."""

    few = st.lists(st.integers(0, 1), min_size=1, max_size=7)
    groups = st.lists(st.tuples(few, st.lists(few, min_size=1, max_size=5)), min_size=1, max_size=3)

    @pytest.mark.parametrize("kind", ["llama", "mistral"])
    @pytest.mark.parametrize("saved", [1, 4])
    @settings(max_examples=25, deadline=None)
    @given(drawn=groups)
    def test_any_tree(self, kind, saved, drawn):
        groups = [group_of(prompt, *completions) for prompt, completions in drawn]
        model, oracle = PAIRS[kind]
        assert shares_prefix(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trie, "SAVED", saved)
            patch.setattr(pack, "SYSTEM", saved)
            values = completion_logprobs(model, collate(groups, pad_id=PAD))
        truth = one_by_one(oracle, groups)
        assert_same(values.detach(), truth.detach())
        assert_same_gradients(gradients(model, values), gradients(oracle, truth))


class TestPacking:
    """A group's own segments do not depend on the others."""

    def test_without_a_common_prompt_the_numbers_are_the_same_to_rounding(self):
        model = fast("llama", dtype=torch.float32)
        groups = [TREE, group_of((9, 9), (*B, 1), (*B, 2), (4,)), group_of((8,), A, (1, 2))]
        together = completion_logprobs(model, collate(groups))
        for row, group in zip(together, groups, strict=True):
            alone = completion_logprobs(model, collate([group]))[0]
            torch.testing.assert_close(
                row[: group.k], alone, rtol=1e-6, atol=1e-6
            )  # products of other sizes round otherwise

    @pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
    def test_with_one_they_are_the_same_but_for_rounding(self, kind):
        model, groups = fast(kind), BATCHES["a system prompt"]
        together = completion_logprobs(model, collate(groups))
        for row, group in zip(together, groups, strict=True):
            assert_same(row[: group.k], completion_logprobs(model, collate([group]))[0], 1e-12)
