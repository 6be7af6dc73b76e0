"""Packed rows written out by hand, and what the attention lets each token see, by enumeration of all pairs."""

import pytest
import torch
from architectures import GROUPS, group_of

from exoalign import GroupBatch, collate
from exoalign.logprobs.attention import shared_prefix_attention
from exoalign.logprobs.pack import Layout, Pack, Span, pack


def assert_packed(packed, ids, positions, predictors, targets, owner, spans):
    assert packed.input_ids.tolist() == [ids]
    assert packed.position_ids.tolist() == [positions]
    assert packed.predictors.tolist() == predictors
    assert packed.targets.tolist() == targets
    assert packed.owner.tolist() == owner
    assert packed.layout == Layout(spans)
    for name in ("input_ids", "position_ids", "predictors", "targets", "owner"):
        assert getattr(packed, name).dtype == torch.int64


class TestPack:
    def test_two_completions_follow_their_prompt_without_their_last_tokens(self):
        assert_packed(
            pack(collate([group_of((11, 12, 13), (21, 22, 23), (31, 32))])),
            ids=[11, 12, 13, 21, 22, 31],
            positions=[0, 1, 2, 3, 4, 3],
            predictors=[2, 3, 4, 2, 5],
            targets=[21, 22, 23, 31, 32],
            owner=[0, 0, 0, 1, 1],
            spans=(Span(0, 3, ((3, 5), (5, 6))),),
        )

    def test_a_single_completion(self):
        assert_packed(
            pack(collate([group_of((11, 12), (21, 22))])),
            ids=[11, 12, 21],
            positions=[0, 1, 2],
            predictors=[1, 2],
            targets=[21, 22],
            owner=[0, 0],
            spans=(Span(0, 2, ((2, 3),)),),
        )

    def test_completions_of_one_token_add_none_to_the_row(self):
        assert_packed(
            pack(collate([group_of((11,), (21,), (22, 23), (24,))])),
            ids=[11, 22],
            positions=[0, 1],
            predictors=[0, 0, 1, 0],
            targets=[21, 22, 23, 24],
            owner=[0, 1, 1, 2],
            spans=(Span(0, 1, ((1, 2),)),),
        )

    def test_groups_follow_each_other_with_their_own_positions(self):
        # K = 2, and the first group has one completion only: it owns 0, the others 2 and 3
        batch = collate([group_of((11, 12), (21,)), group_of((13,), (31, 32), (41, 42, 43))], pad_id=99)
        assert_packed(
            pack(batch),
            ids=[11, 12, 13, 31, 41, 42],
            positions=[0, 1, 0, 1, 1, 2],
            predictors=[1, 2, 3, 2, 4, 5],
            targets=[21, 31, 32, 41, 42, 43],
            owner=[0, 2, 2, 3, 3, 3],
            spans=(Span(0, 2, ()), Span(2, 3, ((3, 4), (4, 6)))),
        )

    def test_absent_completions_may_stand_anywhere_and_a_group_of_them_is_left_out(self):
        batch = GroupBatch(
            prompt_ids=torch.tensor([[11, 12], [13, 99], [14, 99]]),
            prompt_lengths=torch.tensor([2, 1, 1]),
            completion_ids=torch.tensor([[[99, 99], [21, 22]], [[99, 99], [99, 99]], [[31, 99], [99, 99]]]),
            completion_lengths=torch.tensor([[0, 2], [0, 0], [1, 0]]),
        )
        assert_packed(
            pack(batch),
            ids=[11, 12, 21, 14],
            positions=[0, 1, 2, 0],
            predictors=[1, 2, 3],
            targets=[21, 22, 31],
            owner=[1, 1, 4],
            spans=(Span(0, 2, ((2, 3),)), Span(3, 4, ())),
        )

    def test_nothing_but_absent_completions_is_an_empty_row(self):
        batch = GroupBatch(torch.tensor([[11]]), torch.tensor([1]), torch.tensor([[[99]]]), torch.tensor([[0]]))
        assert_packed(pack(batch), ids=[], positions=[], predictors=[], targets=[], owner=[], spans=())

    def test_a_span_stops_after_its_last_token(self):
        assert Span(2, 3, ((3, 4), (4, 6))).stop == 6
        assert Span(2, 5, ()).stop == 5

    def test_on_another_device_it_is_the_same(self):
        packed = pack(collate(GROUPS))
        moved = packed.to(torch.device("meta"))
        assert moved.layout is packed.layout
        for name in Pack.__dataclass_fields__.keys() - {"layout"}:
            assert getattr(moved, name).device.type == "meta"
            assert getattr(moved, name).shape == getattr(packed, name).shape


# One-token and longer completions, K = 1, a prompt of one token, a group in which every completion has one token.
MANY = [*GROUPS, group_of((5, 6, 7, 8, 9), (1,), (2,)), group_of((1, 2), (3, 4, 5))]


def whereabouts(groups):
    """(group, completion or None in the prompt, position) of every token of the row, told in the groups' own words."""
    for g, group in enumerate(groups):
        for position in range(len(group.prompt_ids)):
            yield g, None, position
        for k, ids in enumerate(group.completion_ids):
            for position in range(len(group.prompt_ids), len(group.prompt_ids) + len(ids) - 1):
                yield g, k, position


def dense_rule(groups, window):
    """Which token sees which: of the same group, in the prompt or the same completion, not later, and within the window."""
    places = list(whereabouts(groups))
    return [
        [
            g == other_g
            and other_k in (None, k)
            and other_position <= position
            and (window is None or position - other_position < window)
            for other_g, other_k, other_position in places
        ]
        for g, k, position in places
    ]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize(
    "extra",
    [{}, {"softcap": 2.0}, {"s_aux": torch.zeros(4, dtype=torch.float64)}],
    ids=["plain", "capped", "sinks"],
)
def test_every_token_sees_what_the_dense_rule_says(window, extra):
    # the values are the unit vectors, so that what comes out of the attention is its weights
    layout = pack(collate(MANY)).layout
    n = len(list(whereabouts(MANY)))
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, n, 3, generator=generator, dtype=torch.float64) for heads in (4, 2))
    value = torch.eye(n, dtype=torch.float64).expand(1, 2, n, n)
    out, _ = shared_prefix_attention(
        torch.nn.Identity(), query, key, value, None, layout=layout, sliding_window=window, **extra
    )
    assert out.shape == (1, n, 4, n)
    rule = torch.tensor(dense_rule(MANY, window))
    for head in range(4):
        assert torch.equal(out[0, :, head] > 0, rule)
        # and they are the softmax over what is seen: heads 0 and 1 share the first key head
        scores = query[0, head] @ key[0, head // 2].T / 3**0.5
        if "softcap" in extra:
            scores = 2 * torch.tanh(scores / 2)
        weights = torch.exp(scores) * rule
        total = weights.sum(1, keepdim=True) + (1 if "s_aux" in extra else 0)  # a sink of score 0
        torch.testing.assert_close(out[0, :, head], weights / total, rtol=1e-12, atol=0)


def test_the_masks_are_made_once_for_all_layers_with_one_window():
    layout = pack(collate(MANY)).layout
    n = len(list(whereabouts(MANY)))
    x = torch.randn(1, 2, n, 3)
    for window in (None, 4, None, 4):
        shared_prefix_attention(torch.nn.Identity(), x, x, x, None, layout=layout, sliding_window=window)
    first = dict(layout.blocks)
    assert set(first) == {(g, window) for g in range(len(MANY)) for window in (None, 4)}
    shared_prefix_attention(torch.nn.Identity(), x, x, x, None, layout=layout, sliding_window=4)
    assert all(layout.blocks[key] is block for key, block in first.items())


def test_a_bias_on_the_scores_is_refused_and_not_ignored():
    layout = pack(collate([group_of((1, 2), (3, 4))])).layout
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="attention with position_bias cannot share a prompt"):
        shared_prefix_attention(torch.nn.Identity(), x, x, x, None, layout=layout, position_bias=torch.zeros(1))


def test_dropout_drops_weights_of_both_kinds_of_attention():
    layout = pack(collate([group_of((1, 2), (3, 4))])).layout
    x = torch.randn(1, 2, 3, 4)
    for extra in ({}, {"softcap": 2.0}):
        torch.manual_seed(0)
        out, _ = shared_prefix_attention(torch.nn.Identity(), x, x, x, None, layout=layout, dropout=1.0, **extra)
        assert not out.any()
