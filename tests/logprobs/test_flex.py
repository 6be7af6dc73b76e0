"""FlexAttention's mask against the dense mask, by enumeration of all pairs, and its plain form against the attention of CPUs.

Its compiled kernels need a GPU and its backward pass too, so that neither is run here.
"""

import pytest
import torch
from architectures import GROUPS, PAD, assert_same, build, group_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pack import assert_each_sees_its_own_sequence, few_groups
from test_stems import BATCHES, TREE
from torch._subclasses.fake_tensor import FakeTensorMode

from exoalign import collate
from exoalign.logprobs import attention, flex, trie
from exoalign.logprobs import pack as pack_module
from exoalign.logprobs.attention import shared_prefix_attention
from exoalign.logprobs.engine import completion_logprobs, shares_prefix
from exoalign.logprobs.pack import Branch, Layout, pack

CPU = torch.device("cpu")
MIXED = [TREE, *BATCHES["a system prompt"][:2], *GROUPS]


def enumerated(layout, window):
    """The mask function asked for every pair of tokens: [N, N]."""
    where = flex.places(layout, CPU)
    visible, n = flex.visible_in_row(where, window), len(where.position)
    token = torch.arange(n)
    return visible(torch.tensor(0), torch.tensor(0), token[:, None].expand(n, n), token.expand(n, n))


def dense(layout, n, window):
    """The layout's meaning, pair by pair: a token sees its ancestors, and its own segment up to itself."""
    sees = [[False] * n for _ in range(n)]
    for branch in layout.branches:
        above = [key for start, end in branch.ancestors for key in range(start, end)]
        for start, end in branch.children:
            path = [*above, *range(start, end)]  # place on the path = position
            for query in range(start, end):
                position = path.index(query)
                first = 0 if window is None else max(0, position - window + 1)
                for key in path[first : position + 1]:
                    sees[query][key] = True
    return torch.tensor(sees).view(n, n)


class TestMask:
    def test_a_small_forest_by_hand(self):
        # segment 0-2, below it 2-3 and 3-5, below the latter 5-6; a tree of its own 6-8
        layout = Layout(
            (
                Branch((), ((0, 2),)),
                Branch(((0, 2),), ((2, 3), (3, 5))),
                Branch(((0, 2), (3, 5)), ((5, 6),)),
                Branch((), ((6, 8),)),
            )
        )
        where = flex.places(layout, CPU)
        assert where.position.tolist() == [0, 1, 2, 2, 3, 4, 0, 1]
        assert where.enter.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
        assert where.leave.tolist() == [4, 4, 2, 4, 4, 4, 5, 5]
        assert ["".join("x" if seen else "." for seen in row) for row in enumerated(layout, None).tolist()] == [
            "x.......",
            "xx......",
            "xxx.....",
            "xx.x....",
            "xx.xx...",
            "xx.xxx..",
            "......x.",
            "......xx",
        ]

    @pytest.mark.parametrize("saved", [1, 4])
    @settings(max_examples=100, deadline=None)
    @given(groups=few_groups(), window=st.sampled_from([None, 1, 2, 3, 100]), call=st.sampled_from([1, 2048]))
    def test_it_is_the_dense_mask_and_what_completions_need(self, saved, groups, window, call):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trie, "SAVED", saved)
            patch.setattr(trie, "CALL", call)
            patch.setattr(pack_module, "SYSTEM", saved)
            packed = pack(collate(groups))
        seen = enumerated(packed.layout, window)
        assert torch.equal(seen, dense(packed.layout, packed.input_ids.shape[1], window))
        assert_each_sees_its_own_sequence(groups, seen, packed, window)

    @pytest.mark.parametrize("window", [None, 5, 40])
    @pytest.mark.parametrize("groups", [MIXED, *BATCHES.values()], ids=["mixed", *BATCHES])
    def test_on_larger_rows(self, groups, window):
        packed = pack(collate(groups))
        seen = enumerated(packed.layout, window)
        assert torch.equal(seen, dense(packed.layout, packed.input_ids.shape[1], window))
        assert_each_sees_its_own_sequence(groups, seen, packed, window)

    def test_blocks_in_which_nothing_is_seen_are_left_out(self):
        # blocks of 128 tokens: the prompt of the first group, its two completions, and the second group
        prompt = tuple(n % 20 for n in range(128))
        groups = [group_of(prompt, (1, *prompt), (2, *prompt)), group_of((5, *prompt[1:]), (3,))]
        blocks = flex.block_mask(pack(collate(groups)).layout, None, CPU)
        assert blocks.to_dense()[0, 0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def row(groups, dtype, heads=(6, 2), size=16):
    layout, generator = pack(collate(groups)).layout, torch.Generator().manual_seed(0)
    n = layout.branches[-1].end
    shapes = [(1, h, n, size) for h in (heads[0], heads[1], heads[1])]
    return layout, [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


LONG = [group_of(tuple(n * n % 20 for n in range(150)), *[(k, *range(20)) for k in range(5)], tuple(range(20)) * 3)]
WINDOWS = pytest.mark.parametrize("window", [None, 3, 30])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
class TestAttend:
    @WINDOWS
    @pytest.mark.parametrize("softcap", [None, 2.0])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
    @pytest.mark.parametrize("groups", [MIXED, LONG], ids=["mixed", "long"])
    def test_it_equals_the_attention_of_cpus(self, groups, dtype, tolerance, softcap, window):
        layout, tensors = row(groups, dtype)
        settings = {"scaling": 0.3, "softcap": softcap}
        expected, _ = shared_prefix_attention(
            torch.nn.Identity(), *tensors, None, layout=layout, sliding_window=window, **settings
        )
        out = flex.attend(*tensors, layout, window, **settings)
        torch.testing.assert_close(out.transpose(1, 2), expected, rtol=tolerance, atol=tolerance)

    def test_one_block_mask_serves_all_layers_with_one_window(self, monkeypatch):
        made, make = [], flex.block_mask
        monkeypatch.setattr(flex, "block_mask", lambda *args: made.append(args[1]) or make(*args))
        layout, tensors = row(MIXED, torch.float32)
        for window in (None, 4, None, 4):
            flex.attend(*tensors, layout, window)
        assert made == [None, 4]

    @pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral", "gemma3_text"])
    def test_a_model_gives_the_same_log_probs_by_it(self, kind, monkeypatch):
        model, batch = build(kind, attention="eager" if kind == "gemma2" else None), collate(MIXED, pad_id=PAD)
        assert shares_prefix(model)
        expected = completion_logprobs(model, batch).detach()
        calls, attend = [], flex.attend
        monkeypatch.setattr(flex, "fits", lambda *args, **kwargs: True)
        monkeypatch.setattr(flex, "attend", lambda *args, **kwargs: calls.append(1) or attend(*args, **kwargs))
        with torch.no_grad():
            assert_same(completion_logprobs(model, batch), expected)
        assert len(calls) == 2  # a layer each
        again = build(kind, attention="eager" if kind == "gemma2" else None)
        assert shares_prefix(again)  # the probe reads the windows of its layers here too
        assert len(calls) == 4


class TestWhatItIsFor:
    """Tensors on a GPU, told by fake ones: they have a device and no memory."""

    @pytest.mark.parametrize(
        ("dtype", "size", "dropout", "sinks", "expected"),
        [
            (torch.float32, 64, 0.0, None, True),
            (torch.bfloat16, 16, 0.0, None, True),
            (torch.float64, 64, 0.0, None, False),
            (torch.float32, 8, 0.0, None, False),
            (torch.float32, 64, 0.1, None, False),
            (torch.float32, 64, 0.0, torch.zeros(2), False),
        ],
    )
    def test_on_a_gpu(self, dtype, size, dropout, sinks, expected):
        with FakeTensorMode():
            query = torch.empty(1, 2, 3, size, dtype=dtype, device="cuda")
        assert flex.fits(query, dropout=dropout, sinks=sinks) is expected

    def test_never_on_a_cpu(self):
        assert not flex.fits(torch.empty(1, 2, 3, 64), dropout=0.0, sinks=None)

    def test_a_mask_and_grouped_heads_never_meet_on_a_gpu(self, monkeypatch):
        """No fused kernel there takes both; with dropout a row goes by scaled_dot_product_attention."""
        calls = []

        def note(query, key, value, *, attn_mask, enable_gqa, is_causal, **kwargs):
            calls.append((query.shape[1] == key.shape[1] == value.shape[1], attn_mask is not None, enable_gqa))
            return query

        monkeypatch.setattr(attention.F, "scaled_dot_product_attention", note)
        with FakeTensorMode():
            tensors = [torch.empty(1, heads, 4, 16, device="cuda") for heads in (4, 2, 2)]
            mask = torch.ones(4, 4, dtype=torch.bool, device="cuda")
            attention._sdpa(*tensors, None, scaling=None, dropout=0.1)
            attention._sdpa(*tensors, mask, scaling=None, dropout=0.1)
        attention._sdpa(*(torch.empty(1, heads, 4, 16) for heads in (4, 2, 2)), mask, scaling=None, dropout=0.1)
        assert calls == [(False, False, True), (True, True, False), (False, True, True)]
