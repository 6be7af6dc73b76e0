"""`Group` refuses what cannot be trained on when it is made, and never changes afterwards."""

import copy
import dataclasses
import math
import pickle
import subprocess
import sys

import pytest

from exoalign.errors import DataError
from exoalign.groups import Group, Message, check_groups, prompt_text

FULL = Group(
    (Message("system", "Be kind."), Message("user", "Hi")),
    ("Hello!", "What?"),
    rewards=(1, -0.5),
    winner=0,
    prompt_ids=[1, 2],
    completion_ids=[[3], [4, 5]],
    sampler_logprobs=(-1.5, -2.5),
    reference_logprobs=(-1.25, -2.25),
    scores={"sentiment": [1, 0.5], "length": (1.0, 2.0)},
    provenance={"source": "pairs.jsonl:7"},
)


def test_sequences_become_tuples_and_numbers_become_floats():
    assert FULL.prompt_ids == (1, 2)
    assert FULL.completion_ids == ((3,), (4, 5))
    assert FULL.rewards == (1.0, -0.5)
    assert all(type(value) is float for value in FULL.rewards)
    assert FULL.k == 2


def test_tokens_that_do_not_count_are_marked_and_not_counted():
    assert FULL.marked_ids == FULL.completion_ids
    assert FULL.counted_tokens == (1, 2)
    turns = dataclasses.replace(
        FULL, completion_ids=((3,), (4, 0, 6)), completion_masks=((True,), (True, False, False))
    )
    assert turns.marked_ids == ((3,), (4, -1, -7))
    assert turns.counted_tokens == (1, 1)
    assert Group("a", ("b",)).counted_tokens == ()


def test_messages_are_taken_as_pairs_or_as_dicts():
    as_dicts = Group([{"role": "user", "content": "Hi"}], ("a",))
    as_pairs = Group([["user", "Hi"]], ("a",))
    assert as_dicts.prompt == as_pairs.prompt == (Message("user", "Hi"),)


@pytest.mark.parametrize(
    "turn", ["Hi", ("user",), ("user", "Hi", "x"), {"role": "user"}, {"role": "user", "content": 3}, ("user", None), 5]
)
def test_a_turn_that_is_no_role_and_content_is_refused(turn):
    with pytest.raises(DataError, match=r"f\.jsonl:3: a turn of the prompt is"):
        Group([turn], ("a",), provenance={"source": "f.jsonl:3"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"completions": ()}, "at least one completion, found none"),
        ({"completions": "ab"}, "no tuple of texts"),
        ({"completions": ("a", None)}, "no tuple of texts"),
        ({"rewards": (1.0,)}, "1 rewards for 2 completions"),
        ({"rewards": (1.0, 2.0, 3.0)}, "3 rewards for 2 completions"),
        ({"rewards": (1.0, math.nan)}, r"rewards\[1\] is nan; expected a finite number"),
        ({"rewards": (-math.inf, 1.0)}, r"rewards\[0\] is -inf; expected a finite number"),
        ({"rewards": (1.0, 10**400)}, r"rewards\[1\] is inf; expected a finite number"),
        ({"rewards": (1.0, None)}, r"rewards\[1\] is 'None'; expected a finite number"),
        ({"rewards": ("good", 1.0)}, r"rewards\[0\] is 'good'; expected a finite number"),
        ({"sampler_logprobs": (math.nan, 0.0)}, r"sampler_logprobs\[0\] is nan"),
        ({"reference_logprobs": (0.0,)}, "1 reference_logprobs for 2 completions"),
        ({"scores": {"a": (1.0, 2.0), "b": (1.0,)}}, r"1 scores\.b for 2 completions"),
        ({"scores": {"a": (1.0, math.nan)}}, r"scores\.a\[1\] is nan; expected a finite number"),
        ({"winner": 2}, "winner is 2; expected an index from 0 to 1"),
        ({"winner": -1}, "winner is -1; expected an index from 0 to 1"),
        ({"winner": "first"}, "winner is 'first'; expected an index from 0 to 1"),
        ({"completion_ids": ((1,),)}, "token ids of 1 completions for 2 completions"),
        ({"completion_ids": ((1,), ())}, "a completion has no token"),
        ({"prompt_ids": ()}, "the prompt has no token"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_its_source(fields, message):
    given = {"prompt": "Hi", "completions": ("a", "b"), "provenance": {"source": "f.jsonl:3"}, **fields}
    with pytest.raises(DataError, match=rf"^f\.jsonl:3: .*{message}"):
        Group(**given)


def test_without_a_source_the_prompt_names_the_group():
    with pytest.raises(DataError, match="group 'The film was'"):
        Group("The film was", ())


def test_a_group_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.winner = 1
    with pytest.raises(TypeError):
        FULL.provenance["source"] = "elsewhere"
    with pytest.raises(TypeError):
        FULL.scores["sentiment"] = (0.0, 0.0)


def test_scores_become_tuples_of_floats_in_their_order():
    assert list(FULL.scores.items()) == [("sentiment", (1.0, 0.5)), ("length", (1.0, 2.0))]
    assert all(type(value) is float for values in FULL.scores.values() for value in values)


def test_provenance_is_a_copy_of_what_was_given():
    given = {"source": "a:1"}
    group = Group("Hi", ("a",), provenance=given)
    given["source"] = "b:2"
    assert group.where == "a:1"


def test_pickling_and_copying_give_an_equal_group():
    for twin in (pickle.loads(pickle.dumps(FULL)), copy.deepcopy(FULL), dataclasses.replace(FULL)):
        assert twin == FULL
        assert dict(twin.provenance) == {"source": "pairs.jsonl:7"}
        with pytest.raises(TypeError):
            twin.provenance["source"] = "elsewhere"


def test_a_replaced_field_is_validated_too():
    with pytest.raises(DataError, match="3 rewards for 2 completions"):
        dataclasses.replace(FULL, rewards=(1.0, 2.0, 3.0))


def test_prompts_as_people_read_them():
    assert prompt_text("as it stands") == "as it stands"
    assert prompt_text((Message("user", "alone"),)) == "alone"
    assert prompt_text(FULL.prompt) == "system: Be kind.\n\nuser: Hi"


PAIR = Group("Hi", ("a", "b"), winner=0, provenance={"source": "p:1"})
SCORED = Group("Hi", ("a", "b", "c"), rewards=(1.0, 2.0, 3.0), provenance={"source": "r:1"})


def test_groups_that_the_objective_can_use_pass():
    check_groups([PAIR], needs="winner")
    check_groups([SCORED, Group("Hi", ("a", "b"), rewards=(0.0, 1.0))], needs="rewards")  # K may differ


@pytest.mark.parametrize(
    ("groups", "needs", "message"),
    [
        ([], "winner", "the data is empty"),
        ([PAIR, SCORED], "winner", r"^r:1: the objective needs `winner`, .* use exo_rw, dpo_rw or sft_best"),
        ([SCORED, PAIR], "rewards", r"^p:1: the objective needs `rewards`, .* use exo_pref, dpo_pref or ipo"),
        ([dataclasses.replace(SCORED, winner=1)], "winner", "^r:1: found 3 completions, expected 2"),
        ([Group("Hi", ("a",), rewards=(1.0,), provenance={"source": "r:2"})], "rewards", "^r:2: found 1 completion, "),
    ],
)
def test_groups_that_the_objective_cannot_use_are_refused(groups, needs, message):
    with pytest.raises(DataError, match=message):
        check_groups(groups, needs=needs)


def test_importing_groups_loads_no_torch():
    probe = "import sys, exoalign.groups; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "[]\n"
