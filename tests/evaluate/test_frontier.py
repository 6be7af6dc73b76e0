"""Frontiers by hand: corners and areas of triangles and steps, and resamples that can be counted."""

import json

import numpy as np
import pytest

from exoalign.errors import DataError
from exoalign.evaluate import frontier
from exoalign.evaluate.frontier import Point, area, frontiers


def corners(kls, rewards):
    """The corners' values, with the reference at (0, 0)."""
    kls, rewards = [*kls, 0], [*rewards, 0]
    return [(kls[i], rewards[i]) for i in frontier.corners(kls, rewards)]


class TestCorners:
    def test_it_is_concave_and_keeps_what_lies_on_top(self):
        # (2, 1.5) lies above the line from (1, 1) to (3, 1.8); (1.5, 1.1) below it
        assert corners([3, 1, 1.5, 2], [1.8, 1, 1.1, 1.5]) == [(0, 0), (1, 1), (2, 1.5), (3, 1.8)]
        assert corners([1, 2], [0.1, 1]) == [(0, 0), (2, 1)]
        assert corners([1, 2], [0.5, 1]) == [(0, 0), (2, 1)]  # in line with its neighbours

    def test_it_stops_at_the_highest_reward(self):
        assert corners([1, 2, 3], [1, 1.5, 1.2]) == [(0, 0), (1, 1), (2, 1.5)]
        assert corners([1, 2], [-1, -2]) == [(0, 0)]  # all worse than the base

    def test_at_one_kl_the_best_counts(self):
        assert corners([1, 1, 1], [0.2, 0.8, 0.5]) == [(0, 0), (1, 0.8)]
        assert corners([0, 1], [0.3, 0.8]) == [(0, 0.3), (1, 0.8)]

    def test_the_order_does_not_matter(self):
        generator = np.random.default_rng(0)
        kls, rewards, order = generator.exponential(size=30), generator.normal(size=30), generator.permutation(30)
        assert corners(kls, rewards) == corners(kls[order], rewards[order])

    def test_no_point_lies_above_it(self):
        generator = np.random.default_rng(1)
        kls, rewards = generator.exponential(size=50), generator.normal(size=50)
        xs, ys = np.array(corners(kls, rewards)).T
        assert (rewards <= np.interp(kls, xs, ys) + 1e-12).all()
        assert (np.diff(np.diff(ys) / np.diff(xs)) < 0).all()
        assert (np.diff(ys) > 0).all()


class TestArea:
    def test_by_hand(self):
        xs, ys = np.array([0.0, 1.0, 3.0]), np.array([1.0, 2.0, 3.0])
        # trapezia 1.5, then 5 over two nats; less the base of 1
        assert area(xs, ys, 1.0, 1.0) == pytest.approx(0.5)
        assert area(xs, ys, 1.0, 3.0) == pytest.approx((1.5 + 5) / 3 - 1)
        assert area(xs, ys, 1.0, 2.0) == pytest.approx((1.5 + (2 + 2.5) / 2) / 2 - 1)  # cut between corners
        assert area(xs, ys, 1.0, 5.0) == pytest.approx((1.5 + 5 + 6) / 5 - 1)  # flat behind the last

    def test_the_base_alone_has_none(self):
        assert area(np.array([0.0]), np.array([2.0]), 2.0, 1.0) == 0.0


def flat(reward, kl, prompts=4):
    return Point([reward] * prompts, [kl] * prompts)


class TestFrontiers:
    def test_two_methods_by_hand(self):
        methods = {"a": {0: [flat(1.0, 1.0), flat(1.5, 2.0)]}, "b": {0: [flat(1.0, 2.0)]}}
        found = frontiers(methods, [0.0] * 4, resamples=50)
        first, second = found["frontiers"]
        assert (first["method"], first["up_to"], first["reached"]) == ("a", 2.0, 2.0)
        area_a = (0.5 + 1.25) / 2
        assert first["area"] == pytest.approx({"mean": area_a, "low": area_a, "high": area_a})  # no prompt differs
        assert first["area_seeds"] == pytest.approx([area_a])
        assert second["area"]["mean"] == pytest.approx(0.5)
        (difference,) = found["difference"]
        assert (difference["a"], difference["b"]) == ("a", "b")
        assert difference["area"]["mean"] == pytest.approx(area_a - 0.5)
        curve = dict(zip(first["kl"], first["reward"], strict=True))
        assert (curve[0.0], curve[1.0], curve[2.0]) == (0.0, 1.0, 1.5)
        assert len(first["kl"]) == len(first["low"]) == len(first["high"]) == 101
        json.dumps(found)

    def test_who_does_not_go_so_far_is_held_to_the_best_it_reached(self):
        methods = {"far": {0: [flat(2.0, 4.0)]}, "near": {0: [flat(1.0, 1.0)]}}
        found = frontiers(methods, [0.0] * 4, resamples=10)
        # the common KL is the near one's: 1/2 of 1, and 1/2 of 1/2
        assert [f["up_to"] for f in found["frontiers"]] == [1.0, 1.0]
        assert [f["area"]["mean"] for f in found["frontiers"]] == pytest.approx([0.25, 0.5])
        found = frontiers(methods, [0.0] * 4, up_to=4.0, resamples=10)
        assert [f["area"]["mean"] for f in found["frontiers"]] == pytest.approx([1.0, (0.5 + 3) / 4])
        assert [f["reached"] for f in found["frontiers"]] == [4.0, 1.0]
        assert [f["kl"][-1] for f in found["frontiers"]] == [4.0, 1.0]

    def test_the_base_is_where_they_start(self):
        methods = {"a": {0: [flat(2.0, 1.0)]}}
        (found,) = frontiers(methods, [1.0] * 4, resamples=10)["frontiers"]
        assert found["reward"][0] == 1.0
        assert found["area"]["mean"] == pytest.approx(0.5)  # the gain over the base
        moved = frontiers({"a": {0: [flat(12.0, 1.0)]}}, [11.0] * 4, resamples=10)["frontiers"][0]
        assert moved["area"]["mean"] == pytest.approx(0.5)  # a constant on the rewards changes nothing

    def test_seeds_are_averaged_not_pooled(self):
        seeds = {0: [flat(1.0, 1.0)], 1: [flat(0.0, 1.0), flat(0.5, 2.0)], 5: [flat(2.0, 2.0)]}
        (found,) = frontiers({"a": seeds}, [0.0] * 4, up_to=2.0, resamples=10)["frontiers"]
        assert found["area_seeds"] == pytest.approx([(0.5 + 1) / 2, 0.25, 1.0])
        assert found["area"]["mean"] == pytest.approx(2 / 3)
        assert found["reward"][-1] == pytest.approx((1.0 + 0.5 + 2.0) / 3)

    def test_the_spread_over_seeds_is_in_the_wider_interval(self):
        seeds = {0: [flat(1.0, 1.0)], 1: [flat(3.0, 1.0)]}
        found = frontiers({"a": seeds, "b": {0: [flat(1.0, 1.0)]}}, [0.0] * 4, resamples=400)
        assert found["frontiers"][0]["area"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
        # two seeds with areas 0.5 and 1.5: in a quarter of the redraws twice the one, in a quarter twice the other
        assert found["frontiers"][0]["area_with_seeds"] == {"mean": 1.0, "low": 0.5, "high": 1.5}
        assert found["difference"][0]["area"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
        assert found["difference"][0]["area_with_seeds"] == {"mean": 0.5, "low": 0.0, "high": 1.0}

    def test_the_interval_of_two_prompts(self):
        # rewards 0 and 2 at a KL of 1: a resample has means 0, 1, 2 with chances 1/4, 1/2, 1/4, and half of it as its area
        found = frontiers({"a": {0: [Point([0.0, 2.0], [1.0, 1.0])]}}, [0.0, 0.0], folds=1, resamples=400)["frontiers"][
            0
        ]
        assert found["area"] == {"mean": 0.5, "low": 0.0, "high": 1.0}
        assert (found["low"][-1], found["reward"][-1], found["high"][-1]) == (0.0, 1.0, 2.0)

    def test_methods_share_the_resampled_prompts(self):
        # prompts differ by far more than the methods: only the paired difference sees 0.1 everywhere
        hard = np.random.default_rng(0).normal(0, 10, size=30)
        methods = {
            "a": {0: [Point(hard + 1.2, np.ones(30))]},
            "b": {0: [Point(hard + 1.0, np.ones(30))], 1: [Point(hard + 1.0, np.ones(30))]},
        }
        found = frontiers(methods, hard, resamples=200)
        for end in ("mean", "low", "high"):
            assert found["difference"][0]["area"][end] == pytest.approx(0.1)
            assert found["frontiers"][0]["area"][end] == pytest.approx(0.6)  # the gain over the base is paired as well
        assert found["frontiers"][0]["high"][-1] - found["frontiers"][0]["low"][-1] > 3

    def test_kl_is_resampled_with_the_rewards(self):
        # one prompt has all KL: resampled means 0, 1, 2 of the KL, at a reward of 1
        point = Point([1.0, 1.0], [0.0, 2.0])
        found = frontiers({"a": {0: [point]}}, [0.0, 0.0], up_to=1.0, folds=1, resamples=400)["frontiers"][0]
        # at KL 2 the line is at 1/2 at the common KL: area 1/4; at KL 0 the reward is 1 everywhere
        assert found["area"] == {"mean": 0.5, "low": 0.25, "high": 1.0}

    def test_a_kl_below_0_counts_as_0(self):
        (found,) = frontiers({"a": {0: [flat(0.3, -0.1), flat(0.8, 1.0)]}}, [0.0] * 4, resamples=10)["frontiers"]
        assert (found["reward"][0], found["reward"][-1]) == pytest.approx((0.3, 0.8))

    def test_corners_are_chosen_and_measured_on_different_prompts(self):
        # Two points at a KL of 1. On prompt 0 the first is better (3 against 2), on prompt 1 the second (5 against 1): what
        # prompt 1 chooses earns 2 on prompt 0, what prompt 0 chooses earns 1 on prompt 1. Both together choose the second.
        points = [Point([3.0, 1.0], [1.0, 1.0]), Point([2.0, 5.0], [1.0, 1.0])]
        found = [frontiers({"a": {0: points}}, [0.0, 0.0], folds=n, resamples=10)["frontiers"][0] for n in (2, 1)]
        assert [f["reward"][-1] for f in found] == pytest.approx([(2 + 1) / 2, (2 + 5) / 2])
        assert [f["area"]["mean"] for f in found] == pytest.approx([0.75, 1.75])

    def test_corners_lie_where_the_other_prompts_have_them(self):
        # prompt 0 has a KL of 1, prompt 1 of 3, both a reward of 4: each fold's line goes to the other's KL
        found = frontiers({"a": {0: [Point([4.0, 4.0], [1.0, 3.0])]}}, [0.0, 0.0], folds=2, up_to=1.0, resamples=10)
        assert found["frontiers"][0]["area"]["mean"] == pytest.approx((4 / 2 + 4 / 3 / 2) / 2)

    def test_many_points_without_effect_gain_nothing(self):
        # 40 experiments: 20 points that are the base plus noise, 50 prompts. The best of 20 leads by 1.9 standard errors
        generator, areas = np.random.default_rng(0), {1: [], 5: []}
        for _ in range(40):
            points = [Point(generator.normal(size=50), np.ones(50)) for _ in range(20)]
            for folds, found in areas.items():
                (of_method,) = frontiers({"a": {0: points}}, np.zeros(50), folds=folds, resamples=1)["frontiers"]
                found.append(
                    2 * of_method["area"]["mean"]
                )  # the reward at the common KL: a line from the base leads there
        error = np.std(areas[5]) / 40**0.5
        assert np.mean(areas[1]) == pytest.approx(1.9 * 50**-0.5, rel=0.15)
        assert abs(np.mean(areas[5])) < 3 * error < 0.1

    def test_the_interval_holds_a_known_frontier(self):
        """15 checkpoints along reward = sqrt(KL) / 2: the prompts that choose the corners must not measure them as well."""
        kls = np.linspace(0.2, 4, 15)
        rewards = np.sqrt(kls) / 2
        truth = area(np.append(0, kls), np.append(0, rewards), 0.0, 4.0)
        generator, hits = np.random.default_rng(0), {1: 0, 5: 0}
        for _ in range(30):
            base = generator.normal(0, 0.5, size=64)
            points = [
                Point(0.6 * base + r + generator.normal(0, 0.5, size=64), k * generator.gamma(4, 1 / 4, size=64))
                for k, r in zip(kls, rewards, strict=True)
            ]
            for folds in hits:
                (found,) = frontiers({"a": {0: points}}, base, up_to=4.0, folds=folds, resamples=100)["frontiers"]
                hits[folds] += found["area"]["low"] <= truth <= found["area"]["high"]
        assert hits[5] >= 27
        assert hits[1] <= 15

    def test_the_seed_decides_every_bit(self):
        generator = np.random.default_rng(0)
        points = [Point(generator.normal(size=8), generator.exponential(size=8)) for _ in range(5)]
        found = [frontiers({"a": {0: points}}, np.zeros(8), resamples=50, seed=seed) for seed in (3, 3, 4)]
        assert found[0] == found[1] != found[2]

    def test_it_covers_the_truth(self):
        # 100 experiments with one point and 40 prompts: half the mean reward is the area, so the coverage is the bootstrap's
        generator, hits = np.random.default_rng(0), 0
        for _ in range(100):
            point = Point(generator.normal(2.0, 1.0, size=40), np.ones(40))
            interval = frontiers({"a": {0: [point]}}, np.zeros(40), resamples=200)["frontiers"][0]["area"]
            hits += interval["low"] <= 1.0 <= interval["high"]
        assert 85 <= hits <= 99


class TestRefusals:
    @pytest.mark.parametrize(
        ("methods", "message"),
        [
            ({}, "no methods"),
            ({"a": {}}, "method 'a': expected at least one point"),
            ({"a": {0: []}}, "method 'a': expected at least one point"),
            ({"a": {0: [flat(1, 1, prompts=3)]}}, r"seed 0, point 1: rewards have the shape \[3\]; expected 4"),
            ({"a": {0: [Point([1.0] * 4, [np.nan] * 4)]}}, "point 1: kls: expected finite numbers, found nan"),
            ({"a": {0: [flat(1, 0)]}, "b": {0: [flat(1, 2)]}}, r"common KL is 0;.*method 'a' reaches 0"),
        ],
    )
    def test_points(self, methods, message):
        with pytest.raises(DataError, match=message):
            frontiers(methods, [0.0] * 4)

    def test_settings(self):
        methods = {"a": {0: [flat(1, 1)]}}
        with pytest.raises(DataError, match="common KL is -1"):
            frontiers(methods, [0.0] * 4, up_to=-1.0)
        with pytest.raises(ValueError, match="confidence"):
            frontiers(methods, [0.0] * 4, confidence=1.0)
        with pytest.raises(ValueError, match="folds"):
            frontiers(methods, [0.0] * 4, folds=0)
        with pytest.raises(ValueError, match="resamples"):
            frontiers(methods, [0.0] * 4, resamples=0)
