"""Ragged groups become padded tensors in which every token stands where it belongs."""

import dataclasses

import pytest
import torch

from exoalign.data.collate import collate
from exoalign.errors import DataError
from exoalign.groups import Group, GroupBatch

ONE = Group(
    "a", ("x", "y"), rewards=(1, 2), prompt_ids=(11,), completion_ids=((21,), (22, 23)), reference_logprobs=(-1, -2)
)
TWO = Group(
    "b",
    ("x", "y", "z"),
    rewards=(3, 4, 5),
    prompt_ids=(12, 13, 14),
    completion_ids=((24, 25, 26, 27), (28,), (29,)),
    reference_logprobs=(-3, -4, -5),
)


def test_every_token_stands_in_its_place():
    batch = collate([ONE, TWO], pad_id=99)
    assert batch.prompt_ids.tolist() == [[11, 99, 99], [12, 13, 14]]
    assert batch.prompt_lengths.tolist() == [1, 3]
    assert batch.completion_ids.tolist() == [
        [[21, 99, 99, 99], [22, 23, 99, 99], [99, 99, 99, 99]],
        [[24, 25, 26, 27], [28, 99, 99, 99], [29, 99, 99, 99]],
    ]
    assert batch.completion_lengths.tolist() == [[1, 2, 0], [4, 1, 1]]
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.rewards.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert batch.reference_logprobs.tolist() == [[-1, -2, 0], [-3, -4, -5]]
    assert batch.winner is None
    assert batch.shape == (2, 3)


def test_types():
    batch = collate([dataclasses.replace(ONE, winner=1)])
    ids = (batch.prompt_ids, batch.prompt_lengths, batch.completion_ids, batch.completion_lengths, batch.winner)
    assert {tensor.dtype for tensor in ids} == {torch.int64}
    assert {batch.rewards.dtype, batch.reference_logprobs.dtype} == {torch.float32}


def test_the_dict_of_a_batch_makes_the_batch_again():
    batch = collate([ONE, TWO])
    assert "winner" not in batch.as_dict()
    again = GroupBatch(**batch.as_dict())
    assert all(torch.equal(value, again.as_dict()[name]) for name, value in batch.as_dict().items())


def test_what_one_group_lacks_the_batch_lacks():
    plain = dataclasses.replace(ONE, rewards=None, reference_logprobs=None)
    batch = collate([plain, TWO])
    assert batch.rewards is None
    assert batch.reference_logprobs is None
    won = dataclasses.replace(ONE, winner=1)
    assert collate([won, TWO]).winner is None
    assert collate([won, won]).winner.tolist() == [1, 1]


def test_masks_of_one_group_are_masks_of_the_batch():
    turns = dataclasses.replace(TWO, completion_masks=((True, False, False, True), (True,), (True,)))
    batch = collate([ONE, turns])
    assert batch.completion_masks.dtype == torch.bool
    assert batch.completion_masks.int().tolist() == [  # True at the real tokens of the group without masks
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
        [[1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]],
    ]
    assert collate([ONE, TWO]).completion_masks is None
    assert "completion_masks" not in collate([ONE]).as_dict()
    part = batch.take([1], [2, 0])
    assert part.completion_masks.int().tolist() == [[[1, 0, 0, 0], [1, 0, 0, 1]]]
    assert batch.take([0]).completion_masks.int().tolist() == [[[1, 0], [1, 1], [0, 0]]]


def test_groups_without_ids_are_refused():
    with pytest.raises(DataError, match=r"^f:1: has no token ids; call exoalign\.tokenize first"):
        collate([ONE, Group("a", ("x",), prompt_ids=(1,), provenance={"source": "f:1"})])
    with pytest.raises(DataError, match="no groups to make a batch of"):
        collate([])
