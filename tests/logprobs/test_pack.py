"""Packed rows written out by hand, and what the attention lets each token see, by enumeration of all pairs."""

from dataclasses import replace

import pytest
import torch
from architectures import GROUPS, group_of
from hypothesis import given, settings
from hypothesis import strategies as st

from exoalign import GroupBatch, collate
from exoalign.logprobs import pack as pack_module
from exoalign.logprobs import trie
from exoalign.logprobs.attention import shared_prefix_attention
from exoalign.logprobs.pack import Branch, Layout, Pack, pack


def assert_packed(packed, ids, positions, predictors, targets, owner, branches, term=None):
    assert packed.input_ids.tolist() == [ids]
    assert packed.position_ids.tolist() == [positions]
    assert packed.predictors.tolist() == predictors
    assert packed.targets.tolist() == targets
    assert packed.term.tolist() == (list(range(len(targets))) if term is None else term)
    assert packed.owner.tolist() == owner
    assert packed.layout == Layout(tuple(Branch(*branch) for branch in branches))
    for name in ("input_ids", "position_ids", "predictors", "targets", "term", "owner"):
        assert getattr(packed, name).dtype == torch.int64


def most_tokens(group):
    """The prompt once, and each completion without its last token."""
    return len(group.prompt_ids) + sum(len(ids) - 1 for ids in group.completion_ids)


class TestPack:
    def test_two_completions_follow_their_prompt_without_their_last_tokens(self):
        assert_packed(
            pack(collate([group_of((11, 12, 13), (21, 22, 23), (31, 32))])),
            ids=[11, 12, 13, 21, 22, 31],
            positions=[0, 1, 2, 3, 4, 3],
            predictors=[2, 3, 4, 2, 5],
            targets=[21, 22, 23, 31, 32],
            owner=[0, 0, 0, 1, 1],
            branches=[((), ((0, 3),)), (((0, 3),), ((3, 5), (5, 6)))],
        )

    def test_a_single_completion(self):
        assert_packed(
            pack(collate([group_of((11, 12), (21, 22))])),
            ids=[11, 12, 21],
            positions=[0, 1, 2],
            predictors=[1, 2],
            targets=[21, 22],
            owner=[0, 0],
            branches=[((), ((0, 2),)), (((0, 2),), ((2, 3),))],
        )

    def test_completions_of_one_token_add_none_to_the_row(self):
        assert_packed(
            pack(collate([group_of((11,), (21,), (22, 23), (24,))])),
            ids=[11, 22],
            positions=[0, 1],
            predictors=[0, 0, 1, 0],
            targets=[21, 22, 23, 24],
            owner=[0, 1, 1, 2],
            branches=[((), ((0, 1),)), (((0, 1),), ((1, 2),))],
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
            branches=[((), ((0, 2),)), ((), ((2, 3),)), (((2, 3),), ((3, 4), (4, 6)))],
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
            branches=[((), ((0, 2),)), (((0, 2),), ((2, 3),)), ((), ((3, 4),))],
        )

    def test_nothing_but_absent_completions_is_an_empty_row(self):
        batch = GroupBatch(torch.tensor([[11]]), torch.tensor([1]), torch.tensor([[[99]]]), torch.tensor([[0]]))
        assert_packed(pack(batch), ids=[], positions=[], predictors=[], targets=[], owner=[], branches=())

    def test_a_stem_stands_once_and_what_follows_it_after_it(self):
        # the first and the last share 8 tokens; the last token of a completion is predicted and no input
        stem = (1, 2, 3, 4, 5, 6, 7, 8)
        assert_packed(
            pack(collate([group_of((11, 12), (*stem, 21, 22), (31, 32, 33), (*stem, 23))])),
            ids=[11, 12, *stem, 31, 32, 21],
            positions=[0, 1, *range(2, 10), 2, 3, 10],
            predictors=[1, *range(2, 9), 1, 10, 11, 9, 12, 9],
            targets=[*stem, 31, 32, 33, 21, 22, 23],
            # each in its turn: the stem's terms are 0 to 7
            term=[*range(8), 11, 12, 8, 9, 10, *range(8), 13],
            owner=[0] * 10 + [1] * 3 + [2] * 9,
            branches=[((), ((0, 2),)), (((0, 2),), ((2, 10), (10, 12))), (((0, 2), (2, 10)), ((12, 13),))],
        )

    def test_seven_tokens_are_no_stem(self):
        stem = (1, 2, 3, 4, 5, 6, 7)
        packed = pack(collate([group_of((11,), (*stem, 21), (*stem, 22))]))
        assert packed.input_ids.tolist() == [[11, *stem, *stem]]

    def test_a_completion_that_ends_where_another_goes_on(self):
        # its last token is an input for the other's sake
        stem = (1, 2, 3, 4, 5, 6, 7, 8)
        assert_packed(
            pack(collate([group_of((11,), (*stem, 21, 22), stem)])),
            ids=[11, *stem, 21],
            positions=list(range(10)),
            predictors=list(range(10)),
            targets=[*stem, 21, 22],
            term=[*range(10), *range(8)],
            owner=[0] * 10 + [1] * 8,
            branches=[((), ((0, 1),)), (((0, 1),), ((1, 9),)), (((0, 1), (1, 9)), ((9, 10),))],
        )

    def test_equal_completions_are_computed_once(self):
        same = (1, 2, 3, 4, 5)
        assert_packed(
            pack(collate([group_of((11,), same, same, same)])),
            ids=[11, 1, 2, 3, 4],
            positions=[0, 1, 2, 3, 4],
            predictors=[0, 1, 2, 3, 4],
            targets=[1, 2, 3, 4, 5],
            term=[0, 1, 2, 3, 4] * 3,
            owner=[0] * 5 + [1] * 5 + [2] * 5,
            branches=[((), ((0, 1),)), (((0, 1),), ((1, 5),))],
        )

    def test_a_prefix_of_all_prompts_stands_once(self):
        system = tuple(range(100, 116))
        groups = [group_of((*system, 11, 12), (21, 22)), group_of((*system, 13), (31, 32))]
        assert_packed(
            pack(collate(groups)),
            ids=[*system, 11, 12, 21, 13, 31],
            positions=[*range(16), 16, 17, 18, 16, 17],
            predictors=[17, 18, 19, 20],
            targets=[21, 22, 31, 32],
            owner=[0, 0, 1, 1],
            branches=[
                ((), ((0, 16),)),
                (((0, 16),), ((16, 18),)),
                (((0, 16), (16, 18)), ((18, 19),)),
                (((0, 16),), ((19, 20),)),
                (((0, 16), (19, 20)), ((20, 21),)),
            ],
        )

    def test_the_last_token_of_a_prompt_stays_with_its_group(self):
        prompt = tuple(range(100, 117))
        for other in (prompt, (*prompt, 11, 12)):  # equal, and one that goes on
            packed = pack(collate([group_of(prompt, (21,)), group_of(other, (21,))]))
            assert packed.input_ids.tolist() == [[*prompt, *other[16:]]]
            assert packed.predictors.tolist() == [16, 16 + len(other[16:])]

    def test_a_prefix_of_15_tokens_is_not_shared(self):
        system = tuple(range(100, 115))
        packed = pack(collate([group_of((*system, 11), (21,)), group_of((*system, 12), (21,))]))
        assert packed.input_ids.tolist() == [[*system, 11, *system, 12]]

    def test_completions_of_very_unequal_lengths_are_attended_to_apart(self):
        short = [(k, 1, 2) for k in range(4)]
        packed = pack(collate([group_of((11,), *short[:2], (20,) * 300, *short[2:])]))
        assert [len(branch.children) for branch in packed.layout.branches] == [1, 4, 1]
        assert packed.layout.branches[2].children == ((9, 308),)

    def test_the_most_tokens_that_a_group_can_take(self):
        for group in MANY:
            assert pack(collate([group])).input_ids.shape[1] == most_tokens(group)

    def test_sums_are_over_the_terms_of_each_completion(self):
        stem = (1, 2, 3, 4, 5, 6, 7, 8)
        packed = pack(collate([group_of((11,), (*stem, 21, 22), stem, (5,))]))
        tokens = torch.arange(1.0, 12.0, dtype=torch.float64)  # the stem's 1 to 8, the single token's 9, then 10 and 11
        assert packed.sums(tokens, (1, 3)).tolist() == [[36 + 10 + 11, 36, 9]]
        assert packed.sums(tokens, (2, 2)).tolist() == [[57, 36], [9, 0]]

    def test_what_does_not_count_is_seen_and_not_predicted(self):
        # assistant 21 22, user 31 32, assistant 41 42
        assert_packed(
            pack(collate([group_of((11, 12), (21, 22, 31, 32, 41, 42), masks=["110011"])])),
            ids=[11, 12, 21, 22, 31, 32, 41],
            positions=[0, 1, 2, 3, 4, 5, 6],
            predictors=[1, 2, 5, 6],
            targets=[21, 22, 41, 42],
            owner=[0] * 4,
            branches=[((), ((0, 2),)), (((0, 2),), ((2, 7),))],
        )

    def test_an_end_that_does_not_count_is_left_out(self):
        assert_packed(
            pack(collate([group_of((11,), (21, 22, 31, 32), (21, 31), masks=["1100", "10"])])),
            ids=[11, 21],
            positions=[0, 1],
            predictors=[0, 1, 0],
            targets=[21, 22, 21],
            owner=[0, 0, 1],
            branches=[((), ((0, 1),)), (((0, 1),), ((1, 2),))],
        )

    def test_a_stem_of_which_each_counts_another_part(self):
        # the same tokens twice, and a third that goes on from where the second's last counted token stands
        stem = (1, 2, 3, 4, 5, 6, 7, 8)
        masks = ["0110000011", "1100000100", "0000000101"]
        assert_packed(
            pack(collate([group_of((11,), (*stem, 21, 22), (*stem, 21, 22), (*stem, 23, 24), masks=masks)])),
            ids=[11, *stem, 21, 23],
            positions=[*range(9), 9, 9],
            # of the stem 1, 2, 3 and 8; then 21 and 22 of the first, and 24 of the third
            predictors=[0, 1, 2, 7, 8, 9, 10],
            targets=[1, 2, 3, 8, 21, 22, 24],
            term=[1, 2, 4, 5, 0, 1, 3, 3, 6],
            owner=[0] * 4 + [1] * 3 + [2] * 2,
            branches=[((), ((0, 1),)), (((0, 1),), ((1, 9),)), (((0, 1), (1, 9)), ((9, 10), (10, 11)))],
        )

    def test_without_a_token_that_counts_a_completion_is_no_part_of_the_row(self):
        batch = replace(
            collate([group_of((11,), (21, 22), (31,))]),
            completion_masks=torch.tensor([[[False, False], [True, True]]]),
        )
        packed = pack(batch)
        assert packed.input_ids.tolist() == [[11]]
        assert (packed.targets.tolist(), packed.owner.tolist()) == ([31], [1])

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


def weights_of(layout, n, window, **extra):
    """[N, N]: the attention weights of two heads over a row with this layout, for random queries and keys."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    value = torch.eye(n, dtype=torch.float64).expand(1, 2, n, n)
    out, _ = shared_prefix_attention(
        torch.nn.Identity(), query, key, value, None, layout=layout, sliding_window=window, **extra
    )
    return out[0].sum(1)


FEW_TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=6)


@st.composite
def few_groups(draw):
    """Up to 3 groups of up to 5 completions, some of them with masks."""
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        completions, masks = draw(st.lists(FEW_TOKENS, min_size=1, max_size=5)), None
        if draw(st.booleans()):
            masks = [draw(st.text("01", min_size=len(ids), max_size=len(ids))) for ids in completions]
            masks = [mask if "1" in mask else "1" * len(mask) for mask in masks]
        groups.append(group_of(draw(FEW_TOKENS), *completions, masks=masks))
    return groups


def assert_each_sees_its_own_sequence(groups, seen, packed, window):
    """What a token that counts is predicted from sees the prompt and the completion so far, each token once, in order."""
    ids, positions = packed.input_ids[0], packed.position_ids[0]
    k = max(group.k for group in groups)
    for b, group in enumerate(groups):
        for j, completion in enumerate(group.completion_ids):
            sequence = [*group.prompt_ids, *completion]
            terms = packed.term[packed.owner == b * k + j]
            mask = group.completion_masks[j] if group.completion_masks else [True] * len(completion)
            assert packed.targets[terms].tolist() == [
                token for token, counts in zip(completion, mask, strict=True) if counts
            ]
            stops = [len(group.prompt_ids) + t for t, counts in enumerate(mask) if counts]
            for m, stop in zip(terms, stops, strict=True):
                start = 0 if window is None else max(0, stop - window)
                before = seen[packed.predictors[m]].nonzero().squeeze(1)
                before = before[positions[before].argsort()]
                assert positions[before].tolist() == list(range(start, stop))
                assert ids[before].tolist() == sequence[start:stop]


@pytest.mark.parametrize("saved", [1, 4])
@pytest.mark.parametrize("system", [1, 3])
@settings(max_examples=60, deadline=None)
@given(groups=few_groups(), window=st.sampled_from([None, 1, 2, 4]), call=st.sampled_from([1, 2048]))
def test_every_predictor_sees_the_sequence_before_its_target(saved, system, groups, window, call):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie, "SAVED", saved)
        patch.setattr(trie, "CALL", call)
        patch.setattr(pack_module, "SYSTEM", system)
        packed = pack(collate(groups))
    n = packed.input_ids.shape[1]
    assert n <= sum(map(most_tokens, groups))
    assert len(packed.predictors) == len(packed.targets)
    assert set(packed.term.tolist()) == set(range(len(packed.targets)))  # nothing is predicted that counts for none
    for extra in ({}, {"softcap": 2.0}):
        assert_each_sees_its_own_sequence(groups, weights_of(packed.layout, n, window, **extra) > 0, packed, window)


def test_the_masks_are_made_once_for_all_layers_with_one_window():
    layout = pack(collate(MANY)).layout
    n = len(list(whereabouts(MANY)))
    x = torch.randn(1, 2, n, 3)
    for window in (3, 4, 3, 4):
        shared_prefix_attention(torch.nn.Identity(), x, x, x, None, layout=layout, sliding_window=window)
    first = dict(layout.blocks)
    assert set(first) == {(i, window) for i in range(len(layout.branches)) for window in (3, 4)}
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
