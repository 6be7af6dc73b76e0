"""Rewards out of columns, against sums done by hand."""

import math

import pytest
from pydantic import ValidationError

from exoalign.config_reward import RewardSection, ScorerSection
from exoalign.rewards.compose import compose, fit


def section(normalise="none", **scorers):
    listed = [{"function": "length", "name": name, **settings} for name, settings in scorers.items()]
    return RewardSection.model_validate({"scorers": listed, "normalise": normalise})


def test_one_column_is_the_reward_to_the_bit():
    values = (0.1 + 0.2, -1e300, 5e-324)
    assert compose({"length": values}, RewardSection(function="length"), {}) == values


def test_columns_are_clipped_and_then_weighted():
    made = section(a={"weight": 0.5, "clip": [0.0, 10.0]}, b={"weight": -2.0}, c={"weight": 0.0})
    found = compose({"a": (-4.0, 4.0, 40.0), "b": (0.0, 1.0, -1.0), "c": (9.0, 9.0, 9.0)}, made, {})
    assert found == (0.0, 0.5 * 4 - 2 * 1, 0.5 * 10 + 2)


def test_within_a_group_each_column_has_mean_0_and_deviation_1():
    found = compose({"a": (1.0, 2.0, 3.0), "b": (50.0, 50.0, 50.0)}, section("group", a={}, b={"weight": 7.0}), {})
    deviation = math.sqrt(2 / 3)  # of 1, 2, 3, divided by 3 and not by 2
    assert found == pytest.approx((-1 / deviation, 0.0, 1 / deviation))


def test_equal_scores_are_0_whatever_their_mean_rounds_to():
    values = (0.1, 0.1, 0.1)  # whose sum / 3 is not 0.1
    assert sum(values) / 3 != 0.1
    assert compose({"a": values}, section("group", a={}), {}) == (0.0, 0.0, 0.0)
    assert fit([{"a": values}]) == {"a": {"mean": 0.1, "std": 0.0}}
    assert compose({"a": (0.1, 7.0)}, section("global", a={}), fit([{"a": values}])) == (0.0, 0.0)


def test_all_completions_count_alike_in_the_moments():
    found = fit([{"a": (0.0, 0.0, 0.0)}, {"a": (4.0,)}])  # mean 4 / 4, variance (3 * 1 + 9) / 4
    assert found["a"] == pytest.approx({"mean": 1.0, "std": math.sqrt(3)})
    assert fit([]) == {}


def test_other_samples_are_scaled_by_the_training_datas_numbers():
    statistics = fit([{"a": (1.0, 3.0)}, {"a": (5.0, 7.0)}])  # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    made = section("global", a={"clip": [-1.0, 3.0]})
    assert compose({"a": (4.0, 104.0, -100.0)}, made, statistics) == (0.0, 3.0, -1.0)  # clipped after they are scaled
    assert compose({"a": (9.0,)}, made, statistics) == pytest.approx((math.sqrt(5),))


def test_large_numbers_have_moments_too():
    found = fit([{"a": (1e200, -1e200)}])["a"]
    assert found == pytest.approx({"mean": 0.0, "std": 1e200})


def test_a_constant_added_to_a_column_changes_nothing_once_normalised():
    before = compose({"a": (1.0, 2.5, -1.0)}, section("group", a={}), {})
    after = compose({"a": (101.0, 102.5, 99.0)}, section("group", a={}), {})
    assert after == pytest.approx(before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either `function`, or a list of `scorers`"),
        ({"function": "length", "scorers": [{"function": "length"}]}, "give either `function`"),
        ({"scorers": []}, "at least 1 item"),
        ({"scorers": [{}]}, "one of `function`, `model`, `server`.*found none of them"),
        ({"scorers": [{"function": "length", "model": "m"}]}, "found `function` and `model`"),
        ({"scorers": [{"model": "m", "arguments": {"n": 1}}]}, "`arguments` is read with `function` only.* is a model"),
        ({"scorers": [{"function": "length", "retries": 1}]}, "`retries` is read with `server` only"),
        ({"scorers": [{"function": "length", "clip": [1.0, 1.0]}]}, "`clip` is 1 to 1; expected the lower bound first"),
        ({"scorers": [{"function": "length", "clip": [1.0]}]}, "at least 2 items"),
        ({"scorers": [{"function": "length", "weight": math.inf}]}, "finite number"),
        ({"scorers": [{"server": "localhost:80"}]}, "expected a URL that begins with http:// or https://"),
        ({"scorers": [{"server": "http://"}]}, "expected a URL"),
        ({"scorers": [{"function": "length"}, {"function": "my.module:length"}]}, "2 scorers are called `length`"),
        ({"scorers": [{"function": "length"}], "arguments": {"target": 3}}, "`arguments` belong to a function"),
        ({"function": "length", "normalise": "row"}, "'none', 'group' or 'global'"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        RewardSection.model_validate(values)


def test_a_password_in_a_url_is_refused_without_repeating_it():
    with pytest.raises(ValidationError, match="this URL has a password in it"):
        ScorerSection(server="http://me:hunter2@localhost/score")


def test_columns_are_named_after_what_fills_them():
    names = [ScorerSection.model_validate(values).column for values in [
        {"function": "sentiment"}, {"function": "my.module:Judge.score"}, {"model": "models/reward/"},
        {"model": "owner/reward"}, {"model": "trained"}, {"server": "http://localhost"}, {"model": "m", "name": "x"},
    ]]  # fmt: skip
    assert names == ["sentiment", "Judge.score", "reward", "reward", "trained", "server", "x"]
