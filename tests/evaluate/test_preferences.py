"""Win rates, ratings and the paired test: values by hand, by enumeration and in closed form."""

import itertools
import math

import numpy as np
import pytest

from exoalign.errors import DataError
from exoalign.evaluate.length_control import at_equal_length, logistic
from exoalign.evaluate.preferences import matrix, shares, shares_between, sign_flip_test, wilson, win_rate
from exoalign.evaluate.ratings import ratings


def test_wilson_is_the_published_example():
    # 15 of 148: 0.0624 and 0.1605 (Newcombe, Statistics in Medicine 17 (1998), method 3)
    found = wilson(15, 148)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0624, 0.1605)
    assert wilson(0, 5).low == pytest.approx(0.0, abs=1e-15)
    with pytest.raises(DataError, match="6 wins of 5 cases"):
        wilson(6, 5)


def test_a_win_rate_by_hand():
    found = win_rate([[1.0, 3.0], [5.0]], [[2.0, 3.0], [4.0, 5.0, 6.0]])
    # prompt 1: 0, 0, 1, half; prompt 2: 1, half, 0
    assert found["rate"]["mean"] == pytest.approx((1.5 / 4 + 1.5 / 3) / 2)
    assert (found["ties"], found["pairs"]) == (2, 7)
    # differences of the means: -0.5 and 0; all four signs are as far from 0
    assert found["p_value"] == 1.0
    assert found["length_controlled"] is None


def test_all_models_at_once_are_the_shares_of_each_two():
    a, b, c = [[1.0], [3.0]], [[2.0], [3.0]], [[0.0], [4.0]]
    found = shares_between([a, b, c])
    assert np.isnan(found[:, [0, 1, 2], [0, 1, 2]]).all()
    assert found[:, 0, 1].tolist() == [0.0, 0.5]
    assert found[:, 2, 0].tolist() == [0.0, 1.0]
    assert found[:, 1, 2].tolist() == [1.0, 0.0]


def test_swapping_the_sides_swaps_the_rate():
    generator = np.random.default_rng(0)
    a, b = generator.integers(4, size=(2, 20, 3)).tolist()
    assert shares(a, b) == pytest.approx(1 - shares(b, a))
    table = matrix(["a", "b"], {"a": a, "b": b}.__getitem__)
    assert table[0][0] is None
    assert table[0][1]["mean"] + table[1][0]["mean"] == pytest.approx(1.0)


def test_the_logistic_regression_solves_its_normal_equations():
    # two points with shares 1/4 at x = -1 and 3/4 at x = 1: logit = log(3) x
    x, y = np.array([-1.0, 1.0] * 50), np.array([0.25, 0.75] * 50)
    intercept, slope = logistic(x, y, ridge=(0.0, 0.0))
    assert intercept == pytest.approx(0.0, abs=1e-9)
    assert slope == pytest.approx(math.log(3), abs=1e-9)


def test_what_the_length_explains_is_taken_away():
    generator = np.random.default_rng(1)
    longer = generator.normal(3.0, 2.0, size=400)  # ours are longer as a rule
    won = (longer + generator.normal(0, 0.5, size=400) > 0).astype(float)
    assert won.mean() > 0.9
    found = at_equal_length(won, longer)
    assert found.low < 0.5 < found.high
    # and a quality that has nothing to do with the length stays
    fair = (generator.random(400) < 0.8).astype(float)
    found = at_equal_length(fair, longer)
    assert found.low < 0.8 < found.high
    assert found.low > 0.6


def test_all_prompts_weigh_the_same_in_the_regression():
    """All are as long as the other, so that nothing but the shares is left: 3/4 of a prompt's 4 pairs, 0 of another's one."""
    won, longer = [1.0, 1.0, 1.0, 0.0, 0.0], [0.0] * 5
    assert at_equal_length(won, longer, prompts=[7, 7, 7, 7, 4]).mean == pytest.approx(
        (0.75 + 0) / 2, abs=5e-3
    )  # ridge
    assert at_equal_length(won, longer).mean == pytest.approx(3 / 5, abs=5e-3)


def test_a_redrawn_prompt_takes_all_its_pairs_along():
    """One prompt always wins and one always loses: redrawn, the rate is 0, 1/2 or 1, but for the ridge."""
    found = at_equal_length([1.0] * 8 + [0.0] * 8, [0.0] * 16, prompts=[0] * 8 + [1] * 8)
    assert found.low < 0.1
    assert found.high > 0.9


def test_the_length_that_decides_all_leaves_a_finite_rate():
    found = at_equal_length([1.0, 1.0, 0.0, 0.0], [5.0, 4.0, -4.0, -5.0])
    assert found.mean == pytest.approx(0.5, abs=1e-6)
    assert at_equal_length([1.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]).mean == pytest.approx(0.75, abs=0.01)


def test_the_sign_flip_test_by_enumeration():
    d = [0.5, -0.2, 0.9, 0.1]
    by_hand = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=4)]
    assert sign_flip_test(d) == sum(value >= 1.3 - 1e-9 for value in by_hand) / 16
    assert sign_flip_test([0.0] * 3) == 1.0


def test_sums_that_differ_by_rounding_alone_are_as_far_from_0():
    # all are 0 but for rounding, so that all signs count: 0.1 + 0.2 + 0.3 - 0.6 is 1.1e-16, and in another order 5.6e-17
    assert sign_flip_test([0.1, 0.2, 0.3, -0.6]) == sign_flip_test([-0.6, 0.1, 0.3, 0.2]) == 1.0


def test_memory_does_not_change_the_test_or_the_regression(monkeypatch):
    generator = np.random.default_rng(3)
    d = generator.normal(0.2, 1, size=30)
    won = (d > 0).astype(float)
    p, rate = sign_flip_test(d), at_equal_length(won, d).as_dict()
    monkeypatch.setattr("exoalign.evaluate.preferences._AT_ONCE", 30 * 7)
    monkeypatch.setattr("exoalign.evaluate.length_control._AT_ONCE", 30 * 7)
    assert sign_flip_test(d) == p
    assert at_equal_length(won, d).as_dict() == pytest.approx(rate, abs=1e-9)


def test_many_prompts_are_drawn_from():
    assert sign_flip_test([1.0] * 30) == pytest.approx(1 / 10_001)
    generator = np.random.default_rng(0)
    ps = [sign_flip_test(generator.normal(size=20), resamples=500, seed=i) for i in range(200)]
    assert 0.4 < np.mean(ps) < 0.6  # uniform where nothing differs


def test_two_models_have_the_rating_in_closed_form():
    won = np.full((8, 2, 2), np.nan)
    won[:6, 0, 1], won[:6, 1, 0] = 1.0, 0.0
    won[6:, 0, 1], won[6:, 1, 0] = 0.0, 1.0
    found = ratings(["a", "b"], won)
    # (6 + 1/2) wins against (2 + 1/2)
    ahead = 400 * math.log10(6.5 / 2.5)
    assert [row["model"] for row in found] == ["a", "b"]
    assert found[0]["elo"] - found[1]["elo"] == pytest.approx(ahead, abs=1e-4)
    assert found[0]["elo"] + found[1]["elo"] == pytest.approx(2000)
    assert found[0]["low"] < found[0]["elo"] < found[0]["high"]


def test_a_model_that_won_everything_is_held_by_the_prior():
    won = np.full((8, 2, 2), np.nan)
    won[:, 0, 1], won[:, 1, 0] = 1.0, 0.0
    first, second = ratings(["a", "b"], won)
    assert first["elo"] - second["elo"] == pytest.approx(400 * math.log10(8.5 / 0.5), abs=1e-4)
    assert first["low"] == pytest.approx(first["elo"])  # every resample says the same


def test_many_models_solve_the_likelihood_equations():
    """At the maximum each model's wins are those that its rating lets expect: sum_j n_ij s_i / (s_i + s_j)."""
    generator = np.random.default_rng(4)
    won = np.full((30, 4, 4), np.nan)
    for i, j in itertools.combinations(range(4), 2):
        if (i, j) != (1, 3):  # these two never met
            won[:, i, j] = generator.choice([0.0, 0.5, 1.0], size=30)
            won[:, j, i] = 1 - won[:, i, j]
    names = ["a", "b", "c", "d"]
    elo = {row["model"]: row["elo"] for row in ratings(names, won)}
    for i, name in enumerate(names):
        others = [(j, other) for j, other in enumerate(names) if j != i and {i, j} != {1, 3}]
        expected = sum(31 / (1 + 10 ** ((elo[other] - elo[name]) / 400)) for _, other in others)
        assert won[:, i, [j for j, _ in others]].sum() + 0.5 * len(others) == pytest.approx(expected, abs=1e-6)


def test_a_chain_of_comparisons_is_enough_and_a_gap_is_told():
    won = np.full((4, 3, 3), np.nan)
    won[:, 0, 1], won[:, 1, 0] = 0.75, 0.25
    won[:, 1, 2], won[:, 2, 1] = 0.75, 0.25
    found = {row["model"]: row["elo"] for row in ratings(["a", "b", "c"], won)}
    step = 400 * math.log10(3.5 / 1.5)
    assert found["a"] - found["b"] == pytest.approx(step, abs=1e-3)
    assert found["b"] - found["c"] == pytest.approx(step, abs=1e-3)
    won[:, 1, 2] = won[:, 2, 1] = np.nan
    with pytest.raises(DataError, match="no chain of comparisons connects 'c' with 'a'"):
        ratings(["a", "b", "c"], won)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [([], [], "found 0 and 0 prompts"), ([[1.0]], [], "1 and 0 prompts"), ([[]], [[1.0]], "prompt 1 has no reply")],
)
def test_what_cannot_be_compared_is_told(ours, theirs, words):
    with pytest.raises(DataError, match=words):
        win_rate(ours, theirs)


def test_lengths_of_other_replies_are_told():
    with pytest.raises(DataError, match="prompt 1 has 1 and 2 replies and lengths of 1 and 1"):
        win_rate([[1.0]], [[1.0, 2.0]], ([[3.0]], [[3.0]]))
