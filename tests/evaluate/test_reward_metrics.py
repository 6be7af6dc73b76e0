"""How good a reward model is: accuracy, calibration and length, counted by hand."""

import math

import pytest

from exoalign import Group
from exoalign.evaluate.reward_model import calibration, classifier_metrics, ranking_metrics
from exoalign.evaluate.reward_summary import reward_summary


def pair(winner, loser, first=0):
    completions = ("w" * winner, "l" * loser)
    return Group("p", completions if first == 0 else completions[::-1], winner=first)


GROUPS = [pair(10, 10), pair(40, 10), pair(10, 40, first=1), pair(12, 10)]
REWARDS = [(1.0, 0.0), (2.0, -1.0), (1.0, 0.5), (0.0, 0.0)]  # right, right, wrong (0.5 against 1), tied


def test_a_ranking_by_hand():
    found = ranking_metrics(GROUPS, REWARDS)
    assert (found["groups"], found["pairs"]) == (4, 4)
    assert found["accuracy"]["mean"] == (1 + 1 + 0 + 0.5) / 4
    assert found["accuracy"]["low"] < found["accuracy"]["mean"] < found["accuracy"]["high"]
    lengths = found["by_length"]
    assert lengths["winner less than half as long"] == {"pairs": 1, "mean": 0.0, "low": 0.0, "high": 0.0}
    assert lengths["winner shorter"] == {"pairs": 0}
    assert lengths["about as long (within 10%)"]["mean"] == 1.0
    assert lengths["winner longer"] == {"pairs": 1, "mean": 0.5, "low": 0.5, "high": 0.5}  # 12 against 10
    assert lengths["winner more than twice as long"]["mean"] == 1.0
    assert sum(part["pairs"] for part in lengths.values()) == 4
    assert found["longer_wins"]["mean"] == (0.5 + 1 + 0 + 1) / 4


def test_calibration_of_a_ranking_is_of_the_confidence_in_the_better_one():
    found = ranking_metrics(GROUPS, REWARDS)["calibration"]
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0.0, 0.5, 1.0, 3.0)]  # tied, wrong, right, right
    counts = {b["low"]: (b["count"], b.get("predicted"), b.get("observed")) for b in found["bins"]}
    assert counts[0.5] == (1, 0.5, 0.5)
    assert counts[0.6] == (1, pytest.approx(sigmoid[1]), 0.0)
    assert counts[0.7] == (1, pytest.approx(sigmoid[2]), 1.0)
    assert counts[0.8] == (0, None, None)
    assert counts[0.9] == (1, pytest.approx(sigmoid[3]), 1.0)
    assert found["error"] == pytest.approx((0 + sigmoid[1] + 1 - sigmoid[2] + 1 - sigmoid[3]) / 4)


def test_a_group_counts_once_however_many_pairs_it_has():
    groups = [Group("p", ("a", "b", "c"), rewards=(2.0, 1.0, 1.0)), pair(1, 1)]
    found = ranking_metrics(groups, [(0.0, 1.0, -1.0), (1.0, 0.0)])  # of a's two pairs one is right; b and c are tied
    assert found["pairs"] == 3
    assert found["accuracy"]["mean"] == (0.5 + 1) / 2


def test_a_classifier_by_hand():
    groups = [
        Group("", (text,), rewards=(label,)) for text, label in (("a", 1.0), ("bb", 0.0), ("ccc", 1.0), ("dd", 1.0))
    ]
    found = classifier_metrics(groups, [(2.0,), (1.0,), (-3.0,), (0.5,)])
    assert found["accuracy"]["mean"] == 0.5  # right, wrong, wrong, right
    assert found["majority"] == 0.75
    assert {name: part["mean"] for name, part in found["by_length"].items()} == {
        "1 to 1 characters": 1.0,
        "2 to 2 characters": 0.0,
        "2 to 3 characters": 0.5,
    }


def test_calibration_counts_the_ends_and_is_zero_where_all_comes_true_as_often_as_said():
    found = calibration([(0.25, 0.0), (0.25, 0.0), (0.25, 0.0), (0.25, 1.0), (1.0, 1.0), (0.0, 0.0)], (0.0, 0.5, 1.0))
    assert [b["count"] for b in found["bins"]] == [5, 1]
    assert found["bins"][0]["predicted"] == pytest.approx(0.2)
    assert found["bins"][0]["observed"] == pytest.approx(0.2)
    assert found["error"] == pytest.approx(0.0)


def test_the_summary_shows_the_largest_mistake_and_thins_what_is_long():
    groups, rewards = GROUPS * 600, REWARDS * 600
    found = reward_summary(
        groups,
        rewards,
        ranking_metrics(groups, rewards),
        [{"step": 1, "loss": 0.7, "accuracy": 0.5}],
        ranking=True,
        on="held-out",
    )
    assert found["numbers"][0]["label"] == "accuracy on held-out data"
    assert set(found["numbers"][0]["value"]) == {"mean", "low", "high"}
    (histogram,) = found["histograms"]
    assert len(histogram["series"][0]["values"]) == 1200  # of 2,400: at most 2,000, thinned evenly
    rows = found["texts"][0]["rows"]
    assert len(rows) == 3
    assert rows[0]["text"].startswith("[1.00] " + "l" * 40)
