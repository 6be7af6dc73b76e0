"""Expected values come from hand counts, or from the normal theory that the bootstrap must approach."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exoalign import estimators
from exoalign.errors import DataError
from exoalign.estimators import (
    Interval,
    cluster_bootstrap,
    correlation_bootstrap,
    effective_sample_size,
    entropy,
    paired_difference,
    ratio_bootstrap,
)

NAN, INF = math.nan, math.inf


def width(interval):
    return interval.high - interval.low


class TestClusterBootstrap:
    def test_two_clusters_by_hand(self):
        # Cluster means 2 and 5. A resample of two has mean 2, 3.5 or 5 with chances 1/4, 1/2, 1/4.
        values = [[1.0, 3.0], [5.0]]
        assert cluster_bootstrap(values) == Interval(mean=3.5, low=2.0, high=5.0)
        # The quantiles 0.3 and 0.7 lie within the middle half, 0.2 and 0.8 within the outer quarters.
        assert cluster_bootstrap(values, confidence=0.4) == Interval(mean=3.5, low=3.5, high=3.5)
        assert cluster_bootstrap(values, confidence=0.6) == Interval(mean=3.5, low=2.0, high=5.0)

    def test_clusters_count_equally_whatever_their_size(self):
        assert cluster_bootstrap([[0.0] * 9, [1.0]]).mean == 0.5

    def test_one_cluster_has_no_width(self):
        assert cluster_bootstrap([[1.0, 2.0, 6.0]]) == Interval(mean=3.0, low=3.0, high=3.0)

    def test_large_sample_agrees_with_normal_theory(self):
        means = np.random.default_rng(0).normal(2.0, 3.0, size=400)
        interval = cluster_bootstrap(means[:, None].tolist())
        half = 1.959964 * means.std(ddof=1) / math.sqrt(400)
        assert interval.mean == pytest.approx(means.mean(), rel=1e-12)
        assert interval.low == pytest.approx(means.mean() - half, abs=0.05 * half)
        assert interval.high == pytest.approx(means.mean() + half, abs=0.05 * half)

    def test_coverage(self):
        # 300 experiments of 40 prompts: the standard error of the coverage is 1.3 points; percentile intervals of 40
        # clusters cover about 94%.
        generator = np.random.default_rng(0)
        hits = 0
        for _ in range(300):
            interval = cluster_bootstrap(generator.normal(size=(40, 1)).tolist(), resamples=500)
            hits += interval.low <= 0 <= interval.high
        assert 0.89 < hits / 300 < 0.98

    def test_correlated_samples_of_a_prompt_widen_the_interval(self):
        # 8 almost equal samples of each of 60 prompts are worth 60 samples, not 480: sqrt(8) = 2.83 times as wide.
        generator = np.random.default_rng(0)
        values = generator.normal(size=(60, 1)) + 0.01 * generator.normal(size=(60, 8))
        clustered, flat = cluster_bootstrap(values.tolist()), cluster_bootstrap(values.reshape(-1, 1).tolist())
        assert clustered.mean == pytest.approx(flat.mean)
        assert width(clustered) / width(flat) == pytest.approx(math.sqrt(8), rel=0.1)

    def test_seed_decides_every_bit(self):
        values = np.random.default_rng(0).normal(size=(20, 2)).tolist()
        assert cluster_bootstrap(values, seed=3) == cluster_bootstrap(values, seed=3)
        assert cluster_bootstrap(values, seed=3) != cluster_bootstrap(values, seed=4)

    def test_chunks_change_nothing(self, monkeypatch):
        values = np.random.default_rng(0).normal(size=(7, 1)).tolist()
        whole = cluster_bootstrap(values, resamples=1000)
        monkeypatch.setattr(estimators, "_DRAWS_AT_ONCE", 20)
        assert cluster_bootstrap(values, resamples=1000) == whole
        monkeypatch.setattr(estimators, "_DRAWS_AT_ONCE", 1)
        assert cluster_bootstrap(values, resamples=1000) == whole

    def test_memory_is_bounded(self):
        values = np.zeros((20_000, 1))  # 20,000 x 1,000 draws at once would be 160 MB of indices
        tracemalloc.start()
        cluster_bootstrap(values, resamples=1000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40e6

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), min_size=1, max_size=8))
    def test_the_interval_lies_within_the_cluster_means(self, values):
        interval = cluster_bootstrap(values, resamples=50)
        means = [math.fsum(cluster) / len(cluster) for cluster in values]
        slack = 1e-9 * (1 + max(map(abs, means)))
        assert min(means) - slack <= interval.low <= interval.high <= max(means) + slack
        assert interval.mean == pytest.approx(math.fsum(means) / len(means), abs=slack)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([], "values: no clusters"),
            ([[1.0], []], r"values\[1\]: the cluster is empty"),
            ([[1.0], [2.0, NAN]], r"values\[1\]\[1\]: expected a finite number, found nan"),
            ([[1.0], [2.0], [-INF]], r"values\[2\]\[0\]: expected a finite number, found -inf"),
            ([[None]], r"values\[0\]\[0\]: expected a finite number, found None"),
            ([1.0, 2.0], r"values\[0\]: expected a list of numbers, found 0 axes"),
            ([[[1.0]]], r"values\[0\]: expected a list of numbers, found 2 axes"),
            ([["good"]], r"values\[0\]: expected a list of numbers \("),
        ],
    )
    def test_bad_values(self, values, message):
        with pytest.raises(DataError, match=message):
            cluster_bootstrap(values)

    @pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95, NAN])
    def test_bad_confidence(self, confidence):
        with pytest.raises(ValueError, match="confidence: expected a number in"):
            cluster_bootstrap([[1.0]], confidence=confidence)

    def test_bad_resamples(self):
        with pytest.raises(ValueError, match="resamples: expected at least 1, found 0"):
            cluster_bootstrap([[1.0]], resamples=0)


class TestRatioBootstrap:
    def test_two_texts_by_hand(self):
        # Losses 6 of 2 tokens and 1 of 1: resamples of two have 6/2, 7/3 or 1/1 with chances 1/4, 1/2, 1/4.
        assert ratio_bootstrap([6.0, 1.0], [2, 1]) == Interval(mean=7 / 3, low=1.0, high=3.0)
        assert ratio_bootstrap([6.0, 1.0], [2, 1], confidence=0.4) == Interval(mean=7 / 3, low=7 / 3, high=7 / 3)

    def test_large_sample_agrees_with_normal_theory(self):
        # The delta method: Var(a/b) ~ Var(a_i - r b_i) / (n mean(b)^2).
        generator = np.random.default_rng(0)
        b = generator.integers(5, 50, size=400)
        a = b * generator.normal(3.0, 0.5, size=400)
        interval = ratio_bootstrap(a.tolist(), b.tolist())
        ratio = a.sum() / b.sum()
        half = 1.959964 * (a - ratio * b).std(ddof=1) / (b.mean() * math.sqrt(400))
        assert interval.mean == pytest.approx(ratio, rel=1e-12)
        assert interval.low == pytest.approx(ratio - half, abs=0.05 * half)
        assert interval.high == pytest.approx(ratio + half, abs=0.05 * half)

    def test_what_cannot_be_divided_is_refused(self):
        with pytest.raises(DataError, match=r"denominators: expected 2 finite numbers above 0, found \[1, 0\]"):
            ratio_bootstrap([1.0, 1.0], [1, 0])
        with pytest.raises(DataError, match="expected 2 finite numbers above 0, found"):
            ratio_bootstrap([1.0, 1.0], [1])
        with pytest.raises(DataError, match=r"numerators\[1\]\[0\]: expected a finite number, found nan"):
            ratio_bootstrap([1.0, NAN], [1, 1])


class TestPairedDifference:
    def test_by_hand(self):
        # Differences of means 3 - 1 and 10 - 5, so resamples have means 2, 3.5 and 5.
        interval = paired_difference([[1.0], [4.0, 6.0]], [[2.0, 4.0], [10.0]])
        assert interval == Interval(mean=3.5, low=2.0, high=5.0)

    def test_pairing_cancels_the_difficulty_of_the_prompts(self):
        generator = np.random.default_rng(0)
        difficulty = generator.normal(size=(50, 1))
        before = difficulty + 0.1 * generator.normal(size=(50, 4))
        after = difficulty + 0.3 + 0.1 * generator.normal(size=(50, 4))
        paired = paired_difference(before.tolist(), after.tolist())
        unpaired = math.hypot(width(cluster_bootstrap(before.tolist())), width(cluster_bootstrap(after.tolist())))
        assert paired.low < 0.3 < paired.high
        assert width(paired) < unpaired / 5

    def test_arguments_are_passed_on(self):
        before, after = [[0.0]] * 4, [[1.0], [2.0], [3.0], [7.0]]
        arguments = {"confidence": 0.5, "resamples": 200, "seed": 9}
        assert paired_difference(before, after, **arguments) == cluster_bootstrap(after, **arguments)
        assert paired_difference(before, after, **arguments) != cluster_bootstrap(after)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ([[1.0]], [[1.0], [2.0]], "expected the same prompts in both, found 1 before, 2 after"),
            ([], [], "no clusters"),
            ([[1.0]], [[]], r"after\[0\]: the cluster is empty"),
            ([[NAN]], [[1.0]], r"before\[0\]\[0\]: expected a finite number, found nan"),
        ],
    )
    def test_bad_values(self, before, after, message):
        with pytest.raises(DataError, match=message):
            paired_difference(before, after)


# p = (1/2, 1/4, 1/4) up to a constant: ESS = 1 / (1/4 + 1/16 + 1/16) = 8/3; entropy = 1/2 log 2 + 1/2 log 4 = 1.5 log 2
LOG_WEIGHTS = np.log([2.0, 1.0, 1.0]) + 1000.0


class TestWeights:
    def test_by_hand(self):
        assert effective_sample_size(LOG_WEIGHTS) == pytest.approx(8 / 3, rel=1e-12)
        assert entropy(LOG_WEIGHTS) == pytest.approx(1.0397207708399179, rel=1e-12)
        assert isinstance(effective_sample_size(LOG_WEIGHTS), float)
        assert isinstance(entropy(LOG_WEIGHTS), float)

    def test_even_and_degenerate(self):
        log_weights = [[-3.0, -3.0, -3.0, -3.0], [0.0, -INF, -INF, -INF], [0.0, -1e6, -1e7, -1e8]]
        np.testing.assert_allclose(effective_sample_size(log_weights), [4, 1, 1], rtol=1e-12)
        np.testing.assert_allclose(entropy(log_weights), [math.log(4), 0, 0], rtol=1e-12)

    def test_mask_hides_garbage_and_empty_groups_are_zero(self):
        log_weights = [[*LOG_WEIGHTS, NAN, INF], [NAN] * 5]
        mask = [[True, True, True, False, False], [False] * 5]
        np.testing.assert_allclose(effective_sample_size(log_weights, mask), [8 / 3, 0], rtol=1e-12)
        np.testing.assert_allclose(entropy(log_weights, mask), [1.0397207708399179, 0], rtol=1e-12)

    def test_leading_axes_and_no_completions(self):
        stacked = np.broadcast_to(LOG_WEIGHTS, (2, 4, 3))
        np.testing.assert_allclose(effective_sample_size(stacked), np.full((2, 4), 8 / 3), rtol=1e-12)
        assert effective_sample_size(np.zeros((2, 0))).tolist() == entropy(np.zeros((2, 0))).tolist() == [0, 0]

    @pytest.mark.parametrize("function", [effective_sample_size, entropy])
    @pytest.mark.parametrize(
        ("log_weights", "mask", "error", "message"),
        [
            ([[0.0, 1.0], [0.0, NAN]], None, DataError, r"log_weights\[1, 1\]: expected a finite .*, found nan"),
            ([0.0, INF], None, DataError, r"log_weights\[1\]: expected a finite number or -inf, found inf"),
            ([[0.0, 0.0], [-INF, -INF]], None, DataError, r"group \[1\]: every real completion has weight zero"),
            ([[0.0, -INF]], [[False, True]], DataError, "every real completion has weight zero"),
            ([0.0, 1.0], [True], ValueError, r"mask: expected bool of shape \[2\], found bool of shape \[1\]"),
            ([0.0, 1.0], [1, 0], ValueError, r"mask: expected bool of shape \[2\], found int64"),
            (0.0, None, ValueError, "found a single number"),
        ],
    )
    def test_errors(self, function, log_weights, mask, error, message):
        with pytest.raises(error, match=message):
            function(log_weights, mask)


def test_interval_as_dict_is_json():
    interval = cluster_bootstrap([[1.0, 3.0], [5.0]])
    assert json.loads(json.dumps(interval.as_dict())) == {"mean": 3.5, "low": 2.0, "high": 5.0}
    with pytest.raises(AttributeError):
        interval.mean = 0.0


class TestCorrelation:
    def test_by_hand(self):
        # deviations of x: (-1, 1), (-2, 2); of y: (-1, 1), (1, -1): sums 2 - 4 = -2, 2 + 8 = 10, 2 + 2 = 4
        x, y = [[0.0, 2.0], [1.0, 5.0]], [[3.0, 5.0], [9.0, 7.0]]
        found = correlation_bootstrap(x, y)
        assert found.mean == pytest.approx(-2 / math.sqrt(40))
        assert (found.low, found.high) == pytest.approx((-1.0, 1.0))  # either cluster alone

    def test_a_constant_in_a_cluster_changes_nothing(self):
        generator = np.random.default_rng(0)
        x, y = generator.normal(size=(2, 20, 4))
        moved = x + generator.normal(0, 1000, size=(20, 1))
        found = [correlation_bootstrap(values.tolist(), y.tolist()) for values in (x, moved)]
        assert found[0].as_dict() == pytest.approx(found[1].as_dict(), abs=1e-9)

    def test_where_nothing_varies_there_is_none(self):
        assert correlation_bootstrap([[1.0, 2.0]], [[0.1, 0.1]]) is None
        assert correlation_bootstrap([[0.1, 0.1, 0.1]], [[1.0, 2.0, 3.0]]) is None  # whose mean is not 0.1
        assert correlation_bootstrap([[1.0]], [[2.0]]) is None

    def test_a_resample_where_nothing_varies_is_no_correlation(self):
        found = correlation_bootstrap([[1.0, 2.0], [3.0, 3.0]], [[1.0, 2.0], [1.0, 2.0]])
        assert found.mean == pytest.approx(1 / math.sqrt(2))
        assert found.low == 0.0

    def test_unequal_samples_are_refused(self):
        with pytest.raises(DataError, match="as many samples of x as of y"):
            correlation_bootstrap([[1.0, 2.0]], [[1.0]])
        with pytest.raises(DataError, match="as many samples of x as of y"):
            correlation_bootstrap([[1.0], [2.0]], [[1.0]])
        with pytest.raises(DataError, match=r"y\[0\]\[1\]: expected a finite number"):
            correlation_bootstrap([[1.0, 2.0]], [[1.0, NAN]])
