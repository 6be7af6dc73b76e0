"""How groups are put into passes, and that passes change no number."""

import pytest
import torch
from architectures import GROUPS, MODELS, assert_same, build, one_by_one
from hypothesis import given
from hypothesis import strategies as st

from exoalign import Group, collate
from exoalign.errors import DataError
from exoalign.logprobs.passes import TOKENS, Pass, budget_for, logprobs_in_passes, split

lengths = st.integers(1, 9)
shapes = st.lists(st.tuples(lengths, st.lists(lengths, min_size=1, max_size=6)), min_size=1, max_size=8)


def test_small_groups_share_as_few_passes_as_can_be_of_about_one_size():
    # 2 + 3 + 4 = 9, 1 + 1 = 2, 3 + 4 = 7 tokens: 18 in two passes
    assert split([2, 1, 3], [[3, 4], [1, 0], [4, 0]], 10, shared=True) == [[Pass([0])], [Pass([2, 1])]]
    # 6, 5, 4 and 3 tokens in two passes of at most 10, which next-fit would make three
    assert split([1] * 4, [[3], [2], [5], [4]], 10, shared=True) == [[Pass([2, 1])], [Pass([3, 0])]]


def test_groups_are_put_together_up_to_a_size_but_not_cut_there():
    # 9 and 7 are more than 5; 2 and 3 fit together
    sets = split([2, 1, 3, 1], [[3, 4], [1, 0], [4, 0], [1, 1]], 10, shared=True, together=5)
    assert sorted(part.groups for (part,) in sets) == [[0], [2], [3, 1]]


def test_a_large_group_is_cut_into_parts():
    # prompt 4: 4 + 5, 4 + 3 + 2; the absent one is in none
    assert split([4], [[3, 5, 0, 2]], 9, shared=True) == [[Pass([0], [1]), Pass([0], [0, 3])]]


def test_rows_repeat_the_prompt_and_are_padded():
    # 2 x (4 + 5) = 18 for the rows of 5 and 3 tokens
    assert split([4], [[3, 5]], 18, shared=False) == [[Pass([0])]]
    assert split([4], [[3, 5]], 17, shared=False) == [[Pass([0], [1]), Pass([0], [0])]]


def test_rows_of_several_groups_are_padded_to_the_longest_of_all():
    # rows of 100 + 1 and of 1 + 100 tokens: together two of 200
    assert split([100, 1], [[1], [100]], 399, shared=False) == [[Pass([0])], [Pass([1])]]
    assert split([100, 1], [[1], [100]], 400, shared=False) == [[Pass([0, 1])]]


@given(shapes, st.integers(18, 60), st.booleans())
def test_every_completion_goes_once_and_no_pass_is_too_large(groups, most, shared):
    prompts = [prompt for prompt, _ in groups]
    k = max(len(row) for _, row in groups)
    completions = [row + [0] * (k - len(row)) for _, row in groups]
    seen = []
    for passes in split(prompts, completions, most, shared=shared):
        assert len(passes) == 1 or len({tuple(part.groups) for part in passes}) == 1
        for part in passes:
            columns = range(k) if part.completions is None else part.completions
            taken = [(b, j) for b in part.groups for j in columns if completions[b][j]]
            seen += taken
            rows = [[completions[b][j] for j in columns if completions[b][j]] for b in part.groups]
            if shared:
                size = sum(prompts[b] + sum(row) for b, row in zip(part.groups, rows, strict=True))
            else:  # all rows as long as the longest prompt and the longest completion
                size = sum(map(len, rows)) * (max(prompts[b] for b in part.groups) + max(map(max, rows)))
            assert size <= most
    assert sorted(seen) == [(b, j) for b, row in enumerate(completions) for j in range(k) if row[j]]


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(
        DataError, match="a prompt of 4 tokens and a completion of 5 do not fit into max_tokens_per_pass = 8"
    ):
        split([4], [[3, 5]], 8, shared=True)


def test_a_group_that_is_larger_than_the_budget_is_named():
    groups = [
        Group("a", ("b",), prompt_ids=(1,), completion_ids=((1,),)),
        Group("c", ("d", "e"), prompt_ids=(1, 2), completion_ids=((1,), (1, 2, 3)), provenance={"source": "x.jsonl:7"}),
    ]
    assert budget_for(groups, 5) == 5
    with pytest.raises(DataError, match=r"x\.jsonl:7: its prompt and longest completion are 5 tokens, .* is 4"):
        budget_for(groups, 4)


def test_without_a_budget_the_longest_group_fits():
    long = Group("a", ("b",), prompt_ids=(1,) * TOKENS, completion_ids=((1, 2),))
    assert budget_for([long], None) == TOKENS + 2
    assert budget_for(GROUPS, None) == TOKENS


@pytest.mark.parametrize("kind", [*MODELS, "stablelm"])
@pytest.mark.parametrize("most", [14, 20, 1000])  # parts of groups; groups; all at once
def test_passes_change_no_logprob(kind, most):
    model = build(kind)
    assert_same(
        logprobs_in_passes(model, collate(GROUPS), max_tokens=most, temperature=0.7), one_by_one(model, GROUPS, 0.7)
    )


def test_a_batch_keeps_what_belongs_to_the_groups_it_takes():
    groups = [
        Group("a", ("x", "y"), rewards=(1, 2), winner=1, prompt_ids=(1, 2, 3), completion_ids=((4, 5, 6), (7,)))
        for _ in range(2)
    ] + [Group("b", ("x", "y"), rewards=(3, 4), winner=0, prompt_ids=(8,), completion_ids=((9,), (1, 2)))]
    batch = collate(groups)
    whole, part = batch.take([2, 0]), batch.take([2], [1])
    torch.testing.assert_close(whole.as_dict(), collate([groups[2], groups[0]]).as_dict())
    assert part.prompt_ids.tolist() == [[8]]
    assert part.completion_ids.tolist() == [[[1, 2]]]
    assert part.rewards.tolist() == [[4]]
    assert part.winner is None  # an index into completions that are not there
