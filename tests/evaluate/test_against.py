"""Groups and verdicts as win rates, against values counted by hand."""

import pytest

from exoalign.errors import DataError
from exoalign.evaluate.against import by_reward, by_verdicts, check_prompts, preferred
from exoalign.groups import Group
from exoalign.rewards.comparisons import Case, Judged
from exoalign.rewards.verdicts import Verdict

A, B, TIE, NONE = Verdict("first"), Verdict("second"), Verdict("tie"), Verdict(why="empty")


def pair(prompt: str, *verdicts: Verdict, texts=("x", "y")) -> Judged:
    return Judged(Case(0, (0, 0), prompt, texts, "w"), (), (), verdicts)


def test_one_reply_a_prompt_has_the_interval_of_wilson():
    ours = [Group(f"p{i}", ("abc",), rewards=(float(i),)) for i in range(10)]
    theirs = [Group(f"p{i}", ("abc",), rewards=(1.5,)) for i in range(10)]
    found = by_reward(ours, theirs)
    assert (found["interval"], found["pairs"], found["prompts"], found["ties"]) == ("Wilson", 10, 10, 0)
    # 8 of 10: 0.4902 and 0.9433 (Wilson's formula by hand: (0.8 + 0.19207 +- 0.31361) / 1.38415)
    assert found["rate"] == pytest.approx({"mean": 0.8, "low": 0.4902, "high": 0.9433}, abs=1e-4)
    assert found["length_controlled"]["mean"] == pytest.approx(0.8, abs=0.01)  # all are as long


def test_several_replies_a_prompt_are_no_independent_cases():
    """Two prompts of one mind: redrawn prompts give 0, 1/2 and 1, where Wilson's interval of 18 pairs would be narrow."""
    ours = [Group("p", ("a", "b", "c"), rewards=(5.0, 6.0, 7.0)), Group("q", ("a", "b", "c"), rewards=(0.0, 0.0, 0.0))]
    theirs = [Group(p, ("a", "b", "c"), rewards=(1.0, 2.0, 3.0)) for p in ("p", "q")]
    found = by_reward(ours, theirs)
    assert (found["interval"], found["pairs"], found["prompts"]) == ("bootstrap over prompts", 18, 2)
    assert found["rate"] == {"mean": 0.5, "low": 0.0, "high": 1.0}
    # differences of means: 4 and -2; of the four signs ++, --, +-, -+ the sums are 2, -2, 6, -6
    assert found["p_value"] == 1.0


def test_a_column_of_the_scores_decides_where_it_is_asked_for():
    ours = [Group("p", ("a",), rewards=(1.0,), scores={"other": (0.0,)})]
    theirs = [Group("p", ("b",), rewards=(0.0,), scores={"other": (1.0,)})]
    assert by_reward(ours, theirs)["rate"]["mean"] == 1.0
    assert by_reward(ours, theirs, column="other")["rate"]["mean"] == 0.0
    with pytest.raises(DataError, match="has no score 'others'; there are other"):
        by_reward(ours, theirs, column="others")
    with pytest.raises(DataError, match="has no rewards"):
        by_reward([Group("p", ("a",))], theirs)


def test_lengths_are_tokens_where_both_sides_have_them():
    """Ours wins where it has more tokens, though its text is always as long: only tokens can explain it."""
    won = [True, False] * 20
    ours = [
        Group(f"p{i}", ("ab",), rewards=(float(w),), completion_ids=((1,) * (9 if w else 1),))
        for i, w in enumerate(won)
    ]
    theirs = [Group(f"p{i}", ("ab",), rewards=(0.5,), completion_ids=((1,) * 4,)) for i in range(40)]
    # 3 in 4 wins: without lengths 0.75
    ours, theirs = ours + ours[:1] * 40, theirs + theirs[:1] * 40
    assert by_reward(ours, theirs)["rate"]["mean"] == 0.75
    assert by_reward(ours, theirs)["length_controlled"]["mean"] < 0.6
    bare = [Group(g.prompt, g.completions, rewards=g.rewards) for g in theirs]
    assert by_reward(ours, bare)["length_controlled"]["mean"] == pytest.approx(0.75, abs=1e-2)


def test_the_reply_that_the_data_prefers_stands_alone():
    groups = [Group("p", ("bad", "good"), winner=1, rewards=(0.0, 2.0), scores={"s": (3.0, 4.0)})]
    (found,) = preferred(groups)
    assert (found.completions, found.rewards, found.winner, found.scores["s"]) == (("good",), (2.0,), 0, (4.0,))
    with pytest.raises(DataError, match="no reply is preferred"):
        preferred([Group("p", ("a", "b"))])


def test_other_prompts_are_refused():
    with pytest.raises(DataError, match="2 prompts of one side and 1 of the other"):
        check_prompts([Group("p", ("a",)), Group("q", ("a",))], [Group("p", ("a",))])
    with pytest.raises(DataError, match=r"prompt 2 is 'q' .* and 'r' .*same prompts in the same order"):
        check_prompts([Group("p", ("a",)), Group("q", ("a",))], [Group("p", ("a",)), Group("r", ("a",))])


def test_verdicts_by_hand():
    judged = [
        pair("p", A, B),  # won
        pair("p", A, A),  # contradicts itself: half
        pair("q", B, A),  # lost
        pair("r", TIE, TIE),  # half
        pair("s", NONE, A),  # invalid
        pair("t", texts=("x", "x")),  # the same text, which nobody is asked about: half
    ]
    found = by_verdicts(judged)
    assert found["rate"]["mean"] == pytest.approx((0.75 + 0 + 0.5 + 0.5) / 4)
    assert found | {"rate": 0, "length_controlled": 0} == {
        "rate": 0, "length_controlled": 0, "interval": "bootstrap over prompts", "pairs": 5, "prompts": 4,
        "ties": 3, "inconsistent": 1, "invalid": 1,
        # shares less one half: 1/4, -1/2, 0, 0; their sum is 1/4 from 0, as far as that of any signs
        "p_value": 1.0,
    }  # fmt: skip


def test_a_judge_that_prefers_the_longer_reply_is_seen_through():
    """Ours is longer in nine of ten prompts, and wins exactly there."""
    judged = [pair(f"p{i}", A, B, texts=("long" * 5, "short")) for i in range(90)]
    judged += [pair(f"q{i}", B, A, texts=("short", "long" * 5)) for i in range(10)]
    found = by_verdicts(judged)
    assert (found["rate"]["mean"], found["interval"]) == (0.9, "Wilson")
    assert found["length_controlled"]["mean"] == pytest.approx(0.5, abs=0.03)


def test_a_judge_that_decides_nothing_is_told():
    with pytest.raises(DataError, match="no pairs; expected one at least that somebody could decide"):
        by_verdicts([pair("p", NONE, NONE)])
