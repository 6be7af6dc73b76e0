"""Budgets: what is cut or left out is counted, an end is never invented, and by default nothing is cut at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exoalign.data.truncate import Truncated, fit
from exoalign.errors import ConfigError, DataError
from exoalign.groups import Group, Message

BOS, END = 1, 2
LEFT, RIGHT = "truncate_prompt_left", "truncate_completion_right"


def group(prompt, *completions, source="f:1", **more):
    texts = tuple("text" for _ in completions)
    return Group(
        "prompt", texts, prompt_ids=prompt, completion_ids=completions, provenance={"source": source, "x": 1}, **more
    )


def run(groups, policy, *, bos=BOS, **given):
    counts = Truncated("train")
    limits = {"max_prompt_tokens": None, "max_completion_tokens": None, "context": None} | given
    return list(fit(groups, policy=policy, counts=counts, bos=bos, **limits)), counts


LONG = group((BOS, 10, 11, 12, 13), (20, 21, END), (22, 23, 24, 25, END))


def test_what_fits_passes_untouched():
    for policy in ("error", "drop", LEFT, RIGHT, [LEFT, RIGHT]):
        out, counts = run([LONG], policy, max_prompt_tokens=5, max_completion_tokens=5, context=10)
        assert out == [LONG]
        assert (counts.read, counts.kept, counts.lines()) == (1, 1, [])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_prompt_tokens": 4},
            "f:1: prompt of 5 tokens, but max_prompt_tokens allows 4; raise max_prompt_tokens, shorten or remove the row, or"
            " choose the policy drop or truncate_prompt_left (in a recipe: data.max_prompt_tokens, data.truncation)",
        ),
        (
            {"max_completion_tokens": 4},
            "f:1: completion of 5 tokens, but max_completion_tokens allows 4; raise max_completion_tokens, shorten or remove"
            " the row, or choose the policy drop or truncate_completion_right (in a recipe: data.max_completion_tokens,"
            " data.truncation)",
        ),
        (
            {"context": 9},
            "f:1: prompt of 5 and completion of 5 tokens, but the context allows 9; give a model with a longer one, shorten"
            " or remove the row, or choose the policy drop or truncate_prompt_left or truncate_completion_right (in a recipe:"
            " data.truncation)",
        ),
    ],
)
def test_an_error_names_row_lengths_and_remedies(limits, message):
    with pytest.raises(DataError) as error:
        run([LONG], "error", **limits)
    assert str(error.value) == message
    out, counts = run([LONG], "drop", **limits)
    assert (out, counts.read, counts.kept) == ([], 1, 0)
    assert len(counts.lines()) == 1


def test_a_side_that_may_not_be_cut_is_an_error():
    with pytest.raises(DataError, match="completion of 5 tokens"):
        run([LONG], LEFT, max_completion_tokens=4)
    with pytest.raises(DataError, match="prompt of 5 tokens"):
        run([LONG], RIGHT, max_prompt_tokens=4)


def test_a_prompt_loses_its_beginning_and_keeps_bos():
    out, counts = run([LONG], LEFT, max_prompt_tokens=3)
    assert out[0].prompt_ids == (BOS, 12, 13)
    assert out[0].completion_ids == LONG.completion_ids
    assert run([LONG], LEFT, max_prompt_tokens=3, bos=None)[0][0].prompt_ids == (11, 12, 13)
    assert counts.lines() == ["train: 1 of 1 group cut: the prompt lost its beginning (f:1)"]


def test_a_completion_loses_its_end_and_no_end_is_invented():
    out, counts = run([LONG], RIGHT, max_completion_tokens=4)
    assert out[0].completion_ids == ((20, 21, END), (22, 23, 24, 25))
    assert out[0].prompt_ids == LONG.prompt_ids
    assert counts.lines() == [
        "train: 1 of 1 group cut: a completion lost its end, and its end-of-turn token with it (f:1)"
    ]


def test_a_cut_group_keeps_its_texts_and_loses_what_was_summed_over_its_tokens():
    before = group(LONG.prompt_ids, *LONG.completion_ids, rewards=(1, 2), sampler_logprobs=(-1, -2))
    after = run([before], [LEFT, RIGHT], max_prompt_tokens=2, max_completion_tokens=2)[0][0]
    assert (after.prompt, after.completions, after.rewards) == (before.prompt, before.completions, before.rewards)
    assert after.sampler_logprobs is None
    assert (after.provenance["x"], len(after.provenance["truncated"])) == (1, 2)


@pytest.mark.parametrize(
    ("policy", "context", "prompt", "longest"),
    [
        (LEFT, 8, 3, 5),  # the completion stays
        (RIGHT, 8, 5, 3),  # the prompt stays
        ([LEFT, RIGHT], 8, 4, 4),  # half for the completion, the rest for the prompt
        ([LEFT, RIGHT], 9, 4, 5),
    ],
)
def test_prompt_and_completion_fit_the_context_together(policy, context, prompt, longest):
    after = run([LONG], policy, context=context)[0][0]
    assert (len(after.prompt_ids), max(map(len, after.completion_ids))) == (prompt, longest)


def test_a_short_prompt_leaves_the_completion_more_than_half():
    short = group((10, 11), (20, 21, 22, 23, 24, 25, END), (26, END))
    after = run([short], [LEFT, RIGHT], context=8)[0][0]
    assert (after.prompt_ids, after.completion_ids[0]) == ((10, 11), (20, 21, 22, 23, 24, 25))


LEFT_OUT = {
    "the completion alone fills the context": ([LONG], LEFT, {"context": 5}),
    "the prompt alone fills the context": ([LONG], RIGHT, {"context": 5}),
    "of the prompt nothing is left but the beginning-of-sequence token": ([LONG], LEFT, {"max_prompt_tokens": 1}),
    "completions that differed are the same once cut": (
        [group((10,), (20, 21, END), (20, 21, 22, END))],
        RIGHT,
        {"max_completion_tokens": 2},
    ),
    "longer than max_prompt_tokens allows (4 tokens)": ([LONG], "drop", {"max_prompt_tokens": 4}),
    "longer than max_completion_tokens allows (4 tokens)": ([LONG], "drop", {"max_completion_tokens": 4}),
    "longer than the context allows (9 tokens)": ([LONG], "drop", {"context": 9}),
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_a_group_that_is_of_no_use_any_more_is_left_out_and_counted(reason):
    groups, policy, limits = LEFT_OUT[reason]
    fine = group((10,), (20,), (21,), source="f:2")
    out, counts = run([*groups, fine], policy, **limits)
    assert out == [fine]
    assert counts.lines() == [f"train: 1 of 2 groups left out: {reason} (f:1)"]


def test_completions_that_were_equal_before_are_no_loss_of_the_cut():
    same = group((10,), (20, 21, END), (20, 21, END), (22, 23, END))
    assert run([same], RIGHT, max_completion_tokens=2)[0][0].completion_ids == ((20, 21), (20, 21), (22, 23))


def test_of_a_trajectory_the_mask_is_cut_with_the_tokens():
    turns = (Message("assistant", "a"), Message("user", "b"), Message("assistant", "c"))
    masks = ((True, False, True, True), (False, False, True, True))
    trajectory = Group(
        (Message("user", "x"),),
        (turns, turns),
        prompt_ids=(10,),
        completion_ids=((20, 21, 22, END), (23, 24, 25, END)),
        completion_masks=masks,
        provenance={"source": "f:1"},
    )
    after = run([trajectory], RIGHT, max_completion_tokens=3)[0][0]
    assert after.completion_masks == ((True, False, True), (False, False, True))
    out, counts = run([trajectory], RIGHT, max_completion_tokens=2)
    assert out == []
    assert counts.lines() == ["train: 1 of 1 group left out: of a completion no token is left that counts (f:1)"]


def test_the_first_three_rows_are_named():
    groups = [group((10, 11), (20,), (21,), source=f"f:{i}") for i in range(5)]
    assert run(groups, "drop", max_prompt_tokens=1)[1].lines() == [
        "train: 5 of 5 groups left out: longer than max_prompt_tokens allows (1 tokens) (f:0, f:1, f:2, ...)"
    ]


def test_names_of_files_are_inert():
    lines = run([group((10, 11), (20,), source="\x1b[2Jf:1")], "drop", max_prompt_tokens=1)[1].lines()
    assert "\x1b" not in lines[0]


@pytest.mark.parametrize(
    ("policy", "limits", "message"),
    [
        ("cut", {}, "policy is 'cut'; expected error, drop, truncate_prompt_left or truncate_completion_right"),
        (["drop", LEFT], {}, "are drop, truncate_prompt_left; expected one, or"),
        ([], {}, "are none; expected one, or"),
        ("drop", {"max_prompt_tokens": 0}, "max_prompt_tokens is 0; expected at least 1 token"),
        ("drop", {"context": -1}, "context is -1; expected at least 1 token"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(policy, limits, message):
    limits = {"max_prompt_tokens": None, "max_completion_tokens": None, "context": None} | limits
    with pytest.raises(ConfigError, match=message):
        fit([], policy=policy, counts=Truncated(), **limits)


def test_groups_without_ids_are_named():
    with pytest.raises(DataError, match=r"^f:7: has no token ids; call exoalign\.tokenize first"):
        run([Group("x", ("a",), provenance={"source": "f:7"})], "drop")


token_ids = st.lists(st.integers(3, 9), min_size=1, max_size=8).map(tuple)
limit = st.none() | st.integers(1, 10)


@settings(deadline=None)
@given(
    st.lists(st.tuples(token_ids, st.lists(token_ids, min_size=1, max_size=4)), max_size=6),
    st.sampled_from(["drop", [LEFT, RIGHT]]),
    limit,
    limit,
    limit,
    st.booleans(),
)
def test_groups_in_are_groups_out_and_counted(rows, policy, max_prompt, max_completion, context, with_bos):
    groups = [
        group((BOS, *p) if with_bos else p, *((*c, END) for c in cs), source=f"f:{i}") for i, (p, cs) in enumerate(rows)
    ]
    limits = {"max_prompt_tokens": max_prompt, "max_completion_tokens": max_completion, "context": context}
    out, counts = run(groups, policy, **limits)
    assert counts.read == len(groups)
    assert counts.kept == len(out)
    assert counts.read == counts.kept + sum(rows.count for rows in counts.dropped.values())
    by_source = {g.where: g for g in groups}
    changed = [g for g in out if g != by_source[g.where]]
    assert len(changed) <= sum(rows.count for rows in counts.cut.values()) <= 2 * len(changed)
    for after in out:
        before = by_source[after.where]
        longest = max(map(len, after.completion_ids))
        assert max_prompt is None or len(after.prompt_ids) <= max_prompt
        assert max_completion is None or longest <= max_completion
        assert context is None or len(after.prompt_ids) + longest <= context
        assert before.prompt_ids[0] != BOS or after.prompt_ids[0] == BOS
        for ids, whole in zip(after.completion_ids, before.completion_ids, strict=True):
            assert whole[: len(ids)] == ids
