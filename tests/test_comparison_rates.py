"""Win rates and ratings of a comparison's methods, against values counted by hand."""

import math

import pytest

from exoalign.comparison_rates import win_rates
from exoalign.groups import Group

IDS = ((1, 2), (3,))


def run(rewards, held_out) -> list[Group]:
    """Two replies to each prompt."""
    return [
        Group(f"q{i}", ("a", "b"), rewards=row, completion_ids=IDS, scores={"held_out": other})
        for i, (row, other) in enumerate(zip(rewards, held_out, strict=True))
    ]


def test_a_method_against_the_model_before_alignment():
    base = run([(0.0, 1.0), (0.0, 1.0)], [(1.0, 1.0), (1.0, 1.0)])
    first, second = (
        run([(1.0, 2.0), (1.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)]),
        run([(0.0, 0.0), (2.0, 2.0)], [(2.0, 2.0)] * 2),
    )
    found = win_rates({"sft": [base], "exo": [first, second]}, "sft", held_out="held_out")
    by_reward, by_held_out = found["against"]
    # prompt 1: 1, 2, 0, 0 against 0, 1: 1 1/2, 1 1, 1/2 0, 1/2 0; prompt 2: 1, 2, 2, 2: 1 1/2, 1 1, 1 1, 1 1
    assert by_reward["rate"]["mean"] == pytest.approx((4.5 / 8 + 7.5 / 8) / 2)
    assert (by_reward["by"], by_reward["ties"], by_reward["invalid"], by_reward["pairs"]) == ("reward", 4, 0, 16)
    # prompt 1: 0, 0, 2, 2 against 1, 1; prompt 2: 1, 0, 2, 2
    assert by_held_out["rate"]["mean"] == pytest.approx((4 / 8 + 5 / 8) / 2)
    # of the matrix and the ratings the held-out reward decides
    assert found["models"] == ["sft", "exo"]
    assert found["matrix"][1][0] == by_held_out["rate"]
    assert found["matrix"][0][0] is None
    best, other = found["ratings"]
    ahead = 400 * math.log10((9 / 8 + 0.5) / (7 / 8 + 0.5))  # of two games, and half a game for both
    assert (best["model"], best["elo"] - other["elo"]) == ("exo", pytest.approx(ahead, abs=1e-4))


def test_one_model_has_nobody_to_be_compared_with():
    assert win_rates({"sft": [run([(0.0, 1.0)], [(0.0, 1.0)])]}, "sft", held_out=None) == {}
