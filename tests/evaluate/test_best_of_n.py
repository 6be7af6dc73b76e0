"""Best-of-N against enumeration: over all subsets of the samples, all draws of N, and all sets of samples."""

import itertools
import math

import numpy as np
import pytest

from exoalign.errors import DataError
from exoalign.evaluate.best_of_n import best_of_n, kl_bound, kl_of_selection, selection_weights, sizes_up_to
from exoalign.groups import Group

# A reference over five completions; the first two have the same reward.
REWARDS, PROBABILITIES = np.array([0.0, 0.0, 1.0, 2.0, 3.0]), np.array([0.3, 0.2, 0.25, 0.15, 0.1])


def exact_policy(size):
    """pi_N(y) by drawing N times in every way, ties broken by chance."""
    policy = np.zeros(len(REWARDS))
    for draw in itertools.product(range(len(REWARDS)), repeat=size):
        best = [y for y in draw if REWARDS[y] == max(REWARDS[z] for z in draw)]
        for y in best:
            policy[y] += math.prod(PROBABILITIES[z] for z in draw) / len(best)
    return policy


def exact_kl(size):
    """KL over completions, not over rewards."""
    return float((exact_policy(size) * np.log(exact_policy(size) / PROBABILITIES)).sum())


def mean_over_samples(statistic, n):
    """E over all sets of n samples of the reference."""
    total = 0.0
    for draw in itertools.product(range(len(REWARDS)), repeat=n):
        total += math.prod(PROBABILITIES[z] for z in draw) * statistic(REWARDS[list(draw)], np.array(draw))
    return total


class TestWeights:
    @pytest.mark.parametrize(
        "rewards", [(3.0, 1.0, 2.0, 5.0, 4.0), (1.0, 2.0, 2.0, 0.0, 2.0), (1.0, 1.0, 1.0, 1.0, 1.0)]
    )
    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_they_count_the_subsets(self, rewards, size):
        expected = np.zeros(5)
        subsets = list(itertools.combinations(range(5), size))
        for subset in subsets:
            best = [i for i in subset if rewards[i] == max(rewards[j] for j in subset)]
            expected[best] += 1 / len(best) / len(subsets)
        assert selection_weights(rewards, size).tolist() == pytest.approx(expected.tolist(), abs=1e-15)

    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_reward_and_any_other_quantity_are_unbiased(self, size):
        other = np.array([5.0, -1.0, 2.0, 8.0, 3.0])  # the length, say, of each completion
        policy = exact_policy(size)
        reward = mean_over_samples(lambda rewards, _: selection_weights(rewards, size) @ rewards, 4)
        assert reward == pytest.approx(policy @ REWARDS, rel=1e-12)
        found = mean_over_samples(lambda rewards, draw: selection_weights(rewards, size) @ other[draw], 4)
        assert found == pytest.approx(policy @ other, rel=1e-12)

    def test_many_samples_neither_overflow_nor_vanish(self):
        # of 2,000 different ones, the mean of the best rank of N is N (n + 1) / (N + 1)
        ranks = np.arange(1.0, 2001.0)
        for size in (1, 10, 1000, 2000):
            assert selection_weights(ranks, size) @ ranks == pytest.approx(size * 2001 / (size + 1), rel=1e-9)

    @pytest.mark.parametrize("size", [0, 4])
    def test_more_than_there_are_is_refused(self, size):
        with pytest.raises(ValueError, match=f"best of {size}: expected a number from 1 to the 3 samples"):
            selection_weights([1.0, 2.0, 3.0], size)


def from_shares(rewards, size):
    """The KL where the samples' shares are the truth, one value after the other; the integral by the midpoint rule."""
    total, below = 0.0, 0.0
    for value in sorted(set(rewards)):
        count = list(rewards).count(value)
        above = below + count / len(rewards)
        if count > 1:
            chosen = above**size - below**size
            total += chosen * math.log(chosen / (count / len(rewards)))
        else:
            u = below + (np.arange(20_000) + 0.5) / 20_000 * (above - below)
            density = size * u ** (size - 1)
            total += (density * np.log(density)).mean() * (above - below)
        below = above
    return total


class TestKl:
    @pytest.mark.parametrize("rewards", [(0, 0, 1, 1), (0, 1, 1, 1, 2, 3), (5, 1, 4, 1, 4, 4, 2)])
    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_it_is_the_jackknife_of_the_shares(self, rewards, size):
        n = len(rewards)
        left_out = [from_shares(rewards[:i] + rewards[i + 1 :], size) for i in range(n)]
        expected = n * from_shares(rewards, size) - (n - 1) * sum(left_out) / n
        assert 0 < expected < kl_bound(size)
        assert kl_of_selection(rewards, size) == pytest.approx(expected, abs=1e-6)

    def test_ends(self):
        assert kl_of_selection([7.0, 7.0, 7.0], 3) == 0.0
        assert kl_of_selection([1.0, 2.0, 2.0], 1) == 0.0
        assert kl_of_selection([1.0], 1) == 0.0
        assert kl_bound(1) == 0.0
        assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)

    def test_rewards_that_all_differ_give_the_bound(self):
        rewards = np.random.default_rng(0).normal(size=16)
        for size in (1, 2, 5, 16):
            assert kl_of_selection(rewards, size) == pytest.approx(kl_bound(size), abs=1e-12)

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_with_the_true_shares_it_is_the_exact_kl(self, size):
        # 20,000 samples in the very proportions of the reference: what is left out for bias is of the order 1 / n
        samples = np.repeat(REWARDS, (PROBABILITIES * 20_000).round().astype(int))
        assert len(samples) == 20_000
        assert kl_of_selection(samples, size) == pytest.approx(exact_kl(size), abs=2e-4)
        if size > 1:
            assert exact_kl(size) < kl_bound(size) - 0.04

    @pytest.mark.parametrize(("size", "share"), [(2, 0.1), (3, 0.1), (4, 0.2)])
    def test_from_six_samples_the_mean_is_near_the_truth(self, size, share):
        """Enumerated over all sets of samples: how much is left of the bound's error."""
        exact = exact_kl(size)
        mean = mean_over_samples(lambda rewards, _: kl_of_selection(rewards, size), 6)
        assert abs(mean - exact) < share * (kl_bound(size) - exact)

    @pytest.mark.parametrize(("size", "truth", "mean"), [(16, 1.416, 1.376), (4, 0.2174, 0.2167)])
    def test_a_rare_best_reply_from_16_samples(self, size, truth, mean):
        """The numbers in docs/measures.md: one reply in ten has reward 1, over all numbers of them among the samples."""
        chosen = 1 - 0.9**size
        exact = chosen * math.log(chosen / 0.1) + (1 - chosen) * math.log((1 - chosen) / 0.9)
        assert exact == pytest.approx(truth, abs=1e-3)
        draws = [(math.comb(16, c) * 0.1**c * 0.9 ** (16 - c), [1] * c + [0] * (16 - c)) for c in range(17)]
        assert sum(p * kl_of_selection(r, size) for p, r in draws) == pytest.approx(mean, abs=1e-3)

    def test_it_tends_to_the_truth(self):
        generator = np.random.default_rng(0)
        for n, tolerance in ((100, 0.06), (10_000, 0.01)):
            rewards = generator.choice(REWARDS, p=PROBABILITIES, size=n)
            assert kl_of_selection(rewards, 4) == pytest.approx(exact_kl(4), abs=tolerance)

    @pytest.mark.parametrize("size", [2, 4, 8])
    def test_one_likely_outcome_on_top_is_beiramis_estimator(self, size):
        # 3 of 10 samples are the best, the others all differ: section 4 of arXiv 2401.01879 with epsilon = 0.3
        rest = 0.7
        expected = rest**size * (math.log(size) + (size - 1) * math.log(rest) - (size - 1) / size)
        expected += (1 - rest**size) * math.log((1 - rest**size) / 0.3)
        assert kl_of_selection([*range(700), *[999] * 300], size) == pytest.approx(expected, abs=1e-3)
        assert expected < kl_bound(size) - 0.002

    def test_it_stays_between_0_and_the_bound(self):
        generator = np.random.default_rng(1)
        for _ in range(200):
            rewards = generator.integers(generator.integers(1, 12), size=16)
            for size in (1, 2, 7, 16):
                assert 0 <= kl_of_selection(rewards, size) <= kl_bound(size)

    def test_large_numbers_stay_finite(self):
        assert math.isfinite(kl_of_selection(np.arange(1000) // 2, 1000))


def group(name, rewards, lengths):
    ids = tuple((1,) * n for n in lengths)
    return Group(name, ("text",) * len(rewards), rewards=rewards, prompt_ids=(1,), completion_ids=ids)


class TestPoints:
    GROUPS = (group("a", (0.0, 1.0, 2.0, 3.0), (1, 2, 3, 4)), group("b", (5.0, 5.0, 5.0, 5.0), (8, 8, 2, 2)))

    def test_by_hand(self):
        points = best_of_n(self.GROUPS, seconds=8.0, tokens=100)
        assert [point["step"] for point in points] == [1, 2, 4]
        assert [point["seconds"] for point in points] == [2.0, 4.0, 8.0]
        assert [point["tokens"] for point in points] == [25, 50, 100]
        # best of 2 of (0, 1, 2, 3): 1 in 1 of 6 pairs, 2 in 2, 3 in 3; of equal rewards each is kept as often
        assert points[1]["prompts"]["reward"] == pytest.approx([14 / 6, 5.0])
        assert points[1]["reward"]["mean"] == pytest.approx((14 / 6 + 5) / 2)
        assert points[1]["reward"]["low"] == pytest.approx(14 / 6)
        assert points[1]["length"]["mean"] == pytest.approx((20 / 6 + 5) / 2)
        assert points[1]["prompts"]["kl"] == pytest.approx([math.log(2) - 0.5, 0.0])
        assert points[1]["kl_bound"] == pytest.approx(math.log(2) - 0.5)
        assert points[0]["kl"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
        assert points[2]["kl_exact"] is points[2]["self_bleu"] is None

    def test_the_sizes_that_are_asked_for(self):
        assert [point["step"] for point in best_of_n(self.GROUPS, seconds=1, tokens=1, sizes=[3])] == [3]
        assert [sizes_up_to(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]

    def test_what_is_missing_is_named(self):
        with pytest.raises(DataError, match="no groups"):
            best_of_n([], seconds=1, tokens=1)
        with pytest.raises(DataError, match="no rewards; score the samples"):
            best_of_n([Group("a", ("x", "y"), completion_ids=((1,), (2,)))], seconds=1, tokens=1)
        with pytest.raises(DataError, match="no token ids"):
            best_of_n([Group("a", ("x", "y"), rewards=(1.0, 2.0))], seconds=1, tokens=1)
