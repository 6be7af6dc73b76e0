"""Numbers of a judge, against values counted by hand."""

import pytest

from exoalign.evaluate.winrate import control_metrics, invalid_answers, pair_metrics, score_metrics, warnings_of
from exoalign.groups import Group
from exoalign.rewards.comparisons import Case, Judged
from exoalign.rewards.verdicts import Verdict

A, B, TIE, NONE = Verdict("first"), Verdict("second"), Verdict("tie"), Verdict(why="empty")
GROUPS = [
    Group("p", ("a", "b"), winner=0),
    Group("p", ("c", "d"), winner=1),
    Group("q", ("e", "f"), rewards=(0.5, 0.1)),
    Group("r", ("g", "h"), rewards=(1.0, 1.0)),
]


def pair(group: int, *verdicts: Verdict, completions=(0, 1), control="") -> Judged:
    texts = ("x", "y") if verdicts else ("x", "x")
    case = Case(group, completions, str(GROUPS[group].prompt), texts, "w", control)
    return Judged(case, (), (), verdicts)


def test_pairs_by_hand():
    found = pair_metrics([pair(0, A, B), pair(1, A, A), pair(2, B, A), pair(3, NONE, A)], GROUPS, named=True, seed=0)
    assert found["outcomes"] == {"left": 1, "right": 1, "tie": 0, "inconsistent": 1, "invalid": 1}
    assert found["win_rate"]["mean"] == pytest.approx((0.75 + 0) / 2)  # prompt p: (1 + 1/2) / 2; q: 0; r is invalid
    # p: agrees with the winner, and half of an inconsistent pair; q: the judge prefers the less rewarded one
    assert found["agreement"]["mean"] == pytest.approx((0.75 + 0) / 2)
    assert (found["inconsistent"], found["invalid"]) == (0.25, 0.25)
    # first places of p: A, not B, A, A; of q: not B, A; of r: A alone
    assert found["first_place"]["mean"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_an_interval_is_over_prompts_not_pairs():
    """Two prompts that are each of one mind: the resampled means are 0, 1/2 and 1, however many pairs there are."""
    cases = [pair(0, A, B)] * 50 + [pair(2, B, A)] * 50
    assert pair_metrics(cases, GROUPS, named=True, seed=0)["win_rate"] == {"mean": 0.5, "low": 0.0, "high": 1.0}


def test_sides_without_names_have_no_win_rate():
    assert "win_rate" not in pair_metrics([pair(0, A, B)], GROUPS, named=False, seed=0)


def test_ties_count_half_and_invalid_ones_nowhere():
    found = pair_metrics([pair(0, TIE, TIE), pair(2)], GROUPS, named=True, seed=0)
    assert found["win_rate"]["mean"] == 0.5
    assert (found["outcomes"]["tie"], found["same_text"]) == (2, 1)
    found = pair_metrics([pair(0, NONE, NONE)], GROUPS, named=True, seed=0)
    assert found["win_rate"] is found["first_place"] is found["agreement"] is None
    assert found["invalid"] == 1.0


def test_between_two_files_there_is_nothing_to_agree_with():
    assert pair_metrics([pair(0, A, B, completions=(0, 0))], GROUPS, named=True, seed=0)["agreement"] is None


def single(group: int, score: float | None, *, k=0, control="") -> Judged:
    verdict = Verdict(score=score) if score is not None else NONE
    return Judged(Case(group, (k,), str(GROUPS[group].prompt), ("x",), "w", control), (), (), (verdict,))


def test_scores_by_hand():
    found = score_metrics([single(0, 8.0), single(0, 4.0, k=1), single(2, 3.0), single(3, None)], seed=0)
    assert found["score"]["mean"] == pytest.approx((6 + 3) / 2)
    assert (found["replies"], found["invalid"]) == (4, 0.25)


def test_a_constant_reply_in_pairs():
    control = [
        pair(0, A, B, completions=(-1, 0), control="empty"),
        pair(2, B, A, completions=(-1, 0), control="empty"),
        pair(3, NONE, NONE, completions=(-1, 0), control="empty"),
    ]
    found = control_metrics(control, [], seed=0)
    assert found == {"empty": {"win_rate": {"mean": 0.5, "low": 0.0, "high": 1.0}, "cases": 3, "invalid": 1}}


def test_a_constant_reply_among_scores():
    """It wins over a lower score, loses to a higher one, and shares with an equal one; an invalid real score counts nowhere."""
    real = [single(0, 5.0), single(0, 9.0, k=1), single(2, 5.0), single(3, None)]
    control = [single(i, score, k=-1, control="injection") for i, score in ((0, 9.0), (2, 5.0), (3, 1.0))]
    found = control_metrics(control, real, seed=0)
    assert found["injection"]["win_rate"]["mean"] == pytest.approx((1 + 0.5) / 2)
    assert (found["injection"]["cases"], found["injection"]["invalid"]) == (3, 1)


def interval(mean, low=None, high=None):
    return {"mean": mean, "low": mean if low is None else low, "high": mean if high is None else high}


def test_warnings():
    good = {
        "invalid": 0.02,
        "invalid_answers": {"empty": 1},
        "first_place": interval(0.7, 0.55, 0.8),
        "control": {"empty": {"win_rate": interval(0.1)}},
    }
    assert warnings_of(good) == []
    bad = {
        "invalid": 0.5,
        "invalid_answers": {"cut off": 7, "empty": 2},
        "first_place": interval(0.9, 0.8, 1.0),
        "control": {"empty": {"win_rate": interval(0.4, 0.2, 0.6)}, "injection": {"win_rate": None}},
    }
    invalid, place, fooled, unknown = warnings_of(bad)
    assert invalid == "50% of the verdicts are invalid and left out (answers: 7 cut off, 2 empty)"
    assert place.startswith("90% of the verdicts are for the reply that stood first")
    assert fooled.startswith("a constant reply (empty) wins 40% [20%, 60%]")
    assert unknown.startswith("the control 'injection' has no valid verdict")


def test_reasons_are_counted_by_answer():
    assert invalid_answers([pair(0, NONE, A), pair(1, NONE, Verdict(why="cut off"))]) == {"empty": 2, "cut off": 1}
