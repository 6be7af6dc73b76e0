"""The trie of a group's completions by hand and against all prefixes, and batches against all ways to cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exoalign.logprobs import trie as trie_module
from exoalign.logprobs.trie import Node, batches, common_prefix, trie

FEW_TOKENS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=8)


def paths(nodes, before=()):
    """(tokens from the top to the node's end, node) of every node."""
    for node in nodes:
        tokens = (*before, *node.tokens)
        yield tokens, node
        yield from paths(node.children, tokens)


class TestTrie:
    def test_three_stems_by_hand(self):
        a, b, c = [1] * 8, [2] * 8, [3] * 4
        completions = {0: [9], 2: a + b + [5], 3: a + c + [6], 4: a + b + [7, 7], 7: a + c + [4], 8: a + c}
        # a: 5 completions x 8 tokens; after it b saves 8 and c 2 x 4
        expected = [
            Node([9], [0]),
            Node(
                a,
                [2, 3, 4, 7, 8],
                [
                    Node(b, [2, 4], [Node([5], [2]), Node([7, 7], [4])]),
                    Node(c, [3, 7, 8], [Node([6], [3]), Node([4], [7])]),
                ],
            ),
        ]
        assert trie(completions) == expected

    def test_a_stem_that_does_not_pay_leaves_its_tokens_to_those_after_it(self):
        # two share 4 tokens, which saves 4; of these and 4 more it saves 8, and then the outer stem saves 3 more of 4
        assert trie({0: [1] * 4 + [2], 1: [1] * 4 + [3]}) == [Node([1] * 4 + [2], [0]), Node([1] * 4 + [3], [1])]
        assert trie({0: [1] * 8 + [2], 1: [1] * 8 + [3], 2: [1] * 3 + [4]}) == [
            Node([1] * 8, [0, 1], [Node([2], [0]), Node([3], [1])]),
            Node([1] * 3 + [4], [2]),
        ]

    @pytest.mark.parametrize("saved", [1, 3, 8])
    @given(drawn=FEW_TOKENS)
    def test_every_completion_is_one_path_and_every_stem_pays(self, saved, drawn):
        completions = {3 * k: tokens for k, tokens in enumerate(drawn)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trie_module, "SAVED", saved)
            top = trie(completions)
        for k, completion in completions.items():
            own = [tokens for tokens, node in paths(top) if k in node.members]
            assert own[-1] == tuple(completion)
            assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(own))
            # the path runs along the tree
            assert sum(len(node.tokens) for _, node in paths(top) if k in node.members) == len(completion)
        for tokens, node in paths(top):
            assert node.tokens
            assert node.members == sorted(k for k in node.members if tuple(completions[k][: len(tokens)]) == tokens)
            assert len(node.members) == 1 or (len(node.members) - 1) * len(node.tokens) >= saved
            assert len(node.members) > 1 or not node.children

    @given(drawn=FEW_TOKENS)
    def test_where_every_token_pays_each_prefix_stands_once(self, drawn):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trie_module, "SAVED", 1)
            top = trie(dict(enumerate(drawn)))
        prefixes = {tuple(tokens[:n]) for tokens in drawn for n in range(1, len(tokens) + 1)}
        assert sum(len(node.tokens) for _, node in paths(top)) == len(prefixes)

    def test_completions_nested_a_thousand_deep(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trie_module, "SAVED", 1)
            nodes, depth = trie({k: [5] * (k + 1) for k in range(1000)}), 0
        while nodes:
            (node,) = nodes
            assert node.tokens == [5]
            nodes, depth = node.children, depth + 1
        assert depth == 1000


def test_the_common_prefix():
    assert common_prefix([[1, 2, 3]]) == 3
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix([[1], [2]]) == 0


class TestBatches:
    @given(st.lists(st.integers(1, 90), max_size=6), st.integers(0, 200))
    def test_none_is_cheaper(self, lengths, depth):
        """Against every way to cut the lengths in order; that batches of neighbours are best is plain."""

        def cost(cut):
            calls = [[lengths[i] for i in batch] for batch in cut]
            return sum(len(c) * max(c) * (depth + max(c)) + trie_module.CALL for c in calls)

        found = batches(lengths, depth)
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        ways = []
        for n in range(2 ** max(len(order) - 1, 0)):
            cut = [[]]
            for place, i in enumerate(order):
                if place and n >> (place - 1) & 1:
                    cut.append([])
                cut[-1].append(i)
            ways.append(cut if order else [])
        assert cost(found) == min(map(cost, ways))
        assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
        assert all(batch == sorted(batch) for batch in found)

    def test_equal_lengths_stay_together_in_their_order(self):
        assert batches([64] * 5, 512) == [[0, 1, 2, 3, 4]]
        assert batches([], 512) == []

    def test_a_long_one_stands_apart(self):
        assert batches([20, 250, 22, 20], 64) == [[0, 2, 3], [1]]
