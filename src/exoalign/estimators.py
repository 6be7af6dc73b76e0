"""Numbers with their uncertainty: bootstrap intervals over prompts, effective sample size, entropy. NumPy only.

Samples of one prompt resemble each other, so prompts, not samples, are the unit that is resampled: an interval over
samples as if they were independent is too narrow. Sources: Efron, Bootstrap Methods: Another Look at the Jackknife,
Annals of Statistics 7 (1979), for the percentile interval; Kong, A Note on Importance Sampling Using Standardized
Weights, technical report 348, University of Chicago (1992), for the effective sample size.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.errors import DataError

_DRAWS_AT_ONCE = 1_000_000  # indices held in memory: 8 MB, and as much again for the values they pick


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name, for JSON."""
        return asdict(self)


def cluster_bootstrap(
    values: Sequence[Sequence[float]], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean over clusters of the cluster mean, with the percentile bootstrap interval over clusters (Efron 1979).

    With m_i the mean of cluster i (a prompt) of n, the estimate is sum_i m_i / n. Each resample draws n clusters with
    replacement; the interval lies between the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of their means.
    With few clusters (below about 20) it is too narrow, and with one it has no width. The same arguments give the same
    bits.

    Args:
        values: for each cluster its samples; clusters may differ in size and count equally.
        confidence: in (0, 1).
        resamples: how many times the clusters are redrawn.
        seed: of the generator.

    Raises:
        DataError: no clusters, or a cluster that is empty or holds something that is not a finite number.
        ValueError: confidence or resamples out of range.

    >>> cluster_bootstrap([[1.0, 3.0], [5.0]])
    Interval(mean=3.5, low=2.0, high=5.0)
    """
    return _bootstrap(_cluster_means(values, "values"), confidence, resamples, seed)


def ratio_bootstrap(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """sum_i a_i / sum_i b_i with its percentile bootstrap interval over the pairs (a_i, b_i) (Efron 1979).

    With a_i the loss of text i and b_i its tokens: the loss a token, where every token weighs the same and texts are redrawn.
    The same arguments give the same bits.

    Args:
        numerators: [N].
        denominators: [N], above 0.
        confidence: in (0, 1).
        resamples: how many times the pairs are redrawn.
        seed: of the generator.

    Raises:
        DataError: no pairs, unequal numbers of them, something that is not a finite number, or a denominator not above 0.
        ValueError: confidence or resamples out of range.

    >>> ratio_bootstrap([2.0, 4.0], [1.0, 2.0])
    Interval(mean=2.0, low=2.0, high=2.0)
    """
    a, b = _cluster_means([[x] for x in numerators], "numerators"), np.asarray(denominators, dtype=np.float64)
    if a.shape != b.shape or not (np.isfinite(b) & (b > 0)).all():
        raise DataError(f"denominators: expected {len(a)} finite numbers above 0, found {str(list(denominators))[:60]}")
    return _bootstrap(np.stack([a, b], axis=1), confidence, resamples, seed, lambda sums: sums[..., 0] / sums[..., 1])


def paired_difference(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean over prompts of mean(after_i) - mean(before_i), bootstrapped over prompts as in `cluster_bootstrap`.

    Prompt i must be the same in both, so that what makes it easy or hard cancels; the numbers of samples may differ.

    Raises:
        DataError: unequal numbers of prompts, or the reasons of `cluster_bootstrap`.
        ValueError: confidence or resamples out of range.

    >>> paired_difference([[1.0], [10.0]], [[2.0, 4.0], [12.0]])
    Interval(mean=2.0, low=2.0, high=2.0)
    """
    if len(before) != len(after):
        found = f"{len(before)} before, {len(after)} after"
        raise DataError(f"paired_difference: expected the same prompts in both, found {found}; keep the common ones")
    difference = _cluster_means(after, "after") - _cluster_means(before, "before")
    return _bootstrap(difference, confidence, resamples, seed)


def correlation_bootstrap(
    x: Sequence[Sequence[float]],
    y: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval | None:
    """Correlation (Pearson's) of x and y within clusters, with the percentile bootstrap interval over clusters.

    Both are taken as deviations from their cluster's mean, so that differences between clusters say nothing. With the sums of
    products of deviations of cluster i: r = sum_i S_xy,i / sqrt(sum_i S_xx,i sum_i S_yy,i). A resample in which one of them
    does not vary counts as 0.

    Returns:
        None where x or y varies within no cluster.

    Raises:
        DataError: unequal numbers of clusters or samples, or the reasons of `cluster_bootstrap`.
        ValueError: confidence or resamples out of range.

    >>> correlation_bootstrap([[0.0, 1.0], [5.0, 7.0]], [[3.0, 4.0], [0.0, 2.0]])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    for name, values in (("x", x), ("y", y)):
        _cluster_means(values, name)
    if list(map(len, x)) != list(map(len, y)):
        raise DataError("correlation_bootstrap: expected as many samples of x as of y in each cluster")
    products = []
    for xs, ys in zip(x, y, strict=True):
        a, b = (np.asarray(values, dtype=np.float64) for values in (xs, ys))
        a, b = (v - v.mean() if v.min() < v.max() else 0 * v for v in (a, b))  # no rounding where nothing varies
        products.append((a @ b, a @ a, b @ b))
    sums = np.array(products)
    if not (sums[:, 1].any() and sums[:, 2].any()):
        return None

    def correlation(means: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = np.sqrt(means[..., 1] * means[..., 2])
        return np.divide(means[..., 0], scale, out=np.zeros_like(scale), where=scale > 0)

    return _bootstrap(sums, confidence, resamples, seed, correlation)


def effective_sample_size(log_weights: ArrayLike, mask: ArrayLike | None = None) -> NDArray[np.float64]:
    """1 / sum_k p_k^2 along the last axis for p = softmax(log_weights): of K completions, how many count (Kong 1992).

    K when all weigh the same, 1 when one has all the weight, 0 for a group with no real completion.

    Args:
        log_weights: [..., K], up to a constant: log q or log p of the losses, or `np.log` of probabilities. -inf is
            weight zero.
        mask: [..., K] bool, True for real completions; None if all are.

    Returns:
        [...], a float for a single group.

    Raises:
        DataError: NaN or +inf among the real log-weights, or a group whose real weights are all zero.
        ValueError: a mask of another shape or dtype, or log-weights without an axis.

    >>> float(effective_sample_size(np.log([0.25, 0.25, 0.25, 0.25])))
    4.0
    """
    p = _probabilities(log_weights, mask)
    squares = (p**2).sum(-1)
    return np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)[()]  # 1 / sum_k p_k^2


def entropy(log_weights: ArrayLike, mask: ArrayLike | None = None) -> NDArray[np.float64]:
    """-sum_k p_k log p_k along the last axis, in nats, for p = softmax(log_weights), with 0 log 0 = 0 (Shannon 1948).

    Arguments and errors as for `effective_sample_size`: log K when all weigh the same, 0 when one has all the weight
    and for a group with no real completion.

    >>> print(f"{entropy(np.log([0.5, 0.5])):.4f}")
    0.6931
    """
    p = _probabilities(log_weights, mask)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return -(p * log_p).sum(-1) + 0.0  # -sum_k p_k log p_k; + 0.0 turns -0.0 into 0.0


def _cluster_means(values: Sequence[Sequence[float]], name: str) -> NDArray[np.float64]:
    if len(values) == 0:
        raise DataError(f"{name}: no clusters; expected at least one prompt with its samples")
    return np.array([_cluster_mean(cluster, f"{name}[{i}]") for i, cluster in enumerate(values)])


def _cluster_mean(cluster: Sequence[float], where: str) -> float:
    try:
        samples = np.asarray(cluster, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a list of numbers ({error})") from error
    if samples.ndim != 1:
        raise DataError(f"{where}: expected a list of numbers, found {samples.ndim} axes; give each prompt a list")
    if samples.size == 0:
        raise DataError(f"{where}: the cluster is empty; leave the prompt out or sample it")
    bad = np.flatnonzero(~np.isfinite(samples))
    if bad.size:
        raise DataError(f"{where}[{bad[0]}]: expected a finite number, found {cluster[bad[0]]}")
    return float(samples.mean())


def _bootstrap(
    values: NDArray[np.float64],
    confidence: float,
    resamples: int,
    seed: int,
    of_means: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda means: means,
) -> Interval:
    """A function of the means of [N] or [N, D] values over N, with its interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), found {confidence!r}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, found {resamples!r}")
    generator = np.random.default_rng(seed)
    n = len(values)
    redrawn = np.empty(resamples)
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        redrawn[start : start + rows] = of_means(values[generator.integers(n, size=(rows, n))].mean(axis=1))
    low, high = np.quantile(redrawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(of_means(values.mean(axis=0))), low=float(low), high=float(high))


def _probabilities(log_weights: ArrayLike, mask: ArrayLike | None) -> NDArray[np.float64]:
    """Softmax over the real entries of the last axis; zeros under the mask."""
    scores = np.asarray(log_weights, dtype=np.float64)
    if scores.ndim == 0:
        raise ValueError("log_weights: expected shape [..., K], found a single number")
    real = np.ones(scores.shape, dtype=bool) if mask is None else np.asarray(mask)
    if real.shape != scores.shape or real.dtype != np.bool_:
        found = f"{real.dtype} of shape {list(real.shape)}"
        raise ValueError(f"mask: expected bool of shape {list(scores.shape)}, found {found}")
    bad = np.argwhere(real & (np.isnan(scores) | (scores == np.inf)))
    if bad.size:
        found = scores[tuple(bad[0])]
        raise DataError(f"log_weights{bad[0].tolist()}: expected a finite number or -inf, found {found}")
    scores = np.where(real, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    massless = np.argwhere((top[..., 0] == -np.inf) & real.any(axis=-1))
    if len(massless):
        raise DataError(f"log_weights, group {massless[0].tolist()}: every real completion has weight zero")
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)
