"""Answers of a judge, read: what is clear is a verdict, all else is invalid with its reason, and never a tie."""

import pytest

from exoalign.rewards.judge_client import Answer
from exoalign.rewards.verdicts import Verdict, outcome_of, read_choice, read_score


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Verdict: A", "first"),
        ("verdict: **B**", "second"),
        ("**Verdict:** tie", "tie"),
        ("Verdict - B", "second"),
        ('"Verdict: A"', "first"),
        ("Reply A names the city.\nVerdict: A. It is right.", "first"),
        ("Verdict: Reply B", "second"),
        ("A", "first"),
        (" B.\n", "second"),
        ("[[A]]", "first"),
        ("Tie", "tie"),
        ("A\n\nBecause it is shorter, which is a virtue.", "first"),
        ("<think>Verdict: A? No.</think>\nVerdict: B", "second"),
    ],
)
def test_a_clear_choice(text, choice):
    assert read_choice(Answer(text)) == Verdict(choice=choice)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A good question has no answer.", "no verdict in it"),  # `A` is an article
        ("Both are fine, so be it", "no verdict in it"),
        ("Verdict: A or B", "no verdict in it"),
        ("Verdict: A/B", "no verdict in it"),
        ("Verdict: both", "no verdict in it"),
        ("Verdict: C", "no verdict in it"),
        ("Verdict: A\nVerdict: B", "contradicts itself"),
        ('Reply with "Verdict: A" or "Verdict: B"', "contradicts itself"),
        ("A\nB", "contradicts itself"),
        ("", "empty"),
        (" \n", "empty"),
        (None, "empty"),
        ("<think>Verdict: A", "empty"),
    ],
)
def test_an_answer_that_says_nothing_clear_is_invalid(text, why):
    assert read_choice(Answer(text)) == Verdict(why=why)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(None, refusal="I cannot judge this."), "refused"),
        (Answer("Verdict: A", finish="content_filter"), "refused"),
        (Answer("The first reply is", finish="length"), "cut off"),
        (Answer("", finish="length"), "cut off"),
    ],
)
def test_refused_and_cut_off_answers_say_so(answer, why):
    assert read_choice(answer) == read_score(answer, 1, 10) == Verdict(why=why)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7),
        ("score: **8/10**", 8),
        ("Score: 10.", 10),
        ("7.5", 7.5),
        ("1", 1),
        ("9 out of 10", 9),
        ("It is short.\nScore: 3 - too short", 3),
    ],
)
def test_a_clear_score(text, score):
    assert read_score(Answer(text), 1, 10) == Verdict(score=score)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Score: 11", "out of the scale"),
        ("0", "out of the scale"),
        ("Score: -3", "out of the scale"),
        ("Score: 4/5", "out of the scale"),  # of another scale
        ("Score: 1-10", "no verdict in it"),
        ("Score: 1 to 10", "no verdict in it"),
        ("Score: 7%", "no verdict in it"),
        ("Score: N", "no verdict in it"),
        ("1e5", "no verdict in it"),
        ("nan", "no verdict in it"),
        ("I would give 7 points", "no verdict in it"),
        ("Score: 3\nScore: 4", "contradicts itself"),
    ],
)
def test_a_score_that_is_none_is_invalid(text, why):
    assert read_score(Answer(text), 1, 10) == Verdict(why=why)


A, B, TIE, NONE = Verdict("first"), Verdict("second"), Verdict("tie"), Verdict(why="empty")


@pytest.mark.parametrize(
    ("forward", "backward", "outcome"),
    [
        (A, B, "left"),  # both times the left one, which stood first and then second
        (B, A, "right"),
        (TIE, TIE, "tie"),
        (A, A, "inconsistent"),
        (B, B, "inconsistent"),
        (A, TIE, "inconsistent"),
        (TIE, B, "inconsistent"),
        (NONE, A, "invalid"),
        (TIE, NONE, "invalid"),
        (NONE, NONE, "invalid"),
    ],
)
def test_two_orders_make_one_outcome(forward, backward, outcome):
    assert outcome_of(forward, backward) == outcome
