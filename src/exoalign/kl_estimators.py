"""How far a policy is from its reference: three unbiased estimates of one KL from the policy's own samples. NumPy only.

With y drawn from pi, prefixes s_t of y and the log-ratio d_t = log pi(y_t|s_t) - log pi_ref(y_t|s_t) of each of its tokens:

| name | of a completion | |
|---|---|---|
| `kl` | sum_t d_t | the log-ratio, k1: negative for many samples |
| `kl_k3` | sum_t (r_t - 1) - log r_t with r_t = exp(-d_t) | never negative; its variance has no bound (r_t has none) |
| `kl_exact` | sum_t KL(pi(.|s_t) ‖ pi_ref(.|s_t)) over the vocabulary | never negative; only the prefixes are left to chance |

The mean of each over samples is KL(pi ‖ pi_ref) of whole completions: by the chain rule it is the mean of sum_t KL(pi(.|s_t) ‖
pi_ref(.|s_t)), and given s_t the means of d_t and of (r_t - 1) - log r_t are that step's KL. `kl_exact` is `kl` with each step
replaced by its mean given the prefix (Rao-Blackwell; for language models: arXiv 2504.10637). k1 and k3: J. Schulman,
Approximating KL Divergence (2020), http://joschu.net/blog/kl-approx.html, whose q is pi here and whose p is pi_ref.

This holds for samples of the very policy that is measured, at its temperature, without top-k or top-p: where some token is
never drawn, E[r_t] < 1, which takes as much off k3.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.errors import DataError
from exoalign.estimators import Interval, cluster_bootstrap


def k3_terms(log_ratios: ArrayLike) -> NDArray[np.float64]:
    """(r - 1) - log r with r = pi_ref / pi, token by token (Schulman 2020, k3), in nats, never below 0.

    Args:
        log_ratios: [...], log pi - log pi_ref of single tokens. Of whole completions it is unbiased too, but its variance grows
            exponentially with their length.

    >>> print(k3_terms([0.0, np.log(2.0)]).round(4))  # r = 1/2: (1/2 - 1) + log 2
    [0.     0.1931]
    """
    d = np.asarray(log_ratios, dtype=np.float64)
    return np.expm1(-d) + d  # (r - 1) - log r


def kl_intervals(
    log_ratios: Sequence[Sequence[float]],
    exact_kl: Sequence[Sequence[float]],
    k3: Sequence[Sequence[float]],
    *,
    seed: int = 0,
) -> dict[str, Interval]:
    """{"kl", "kl_exact", "kl_k3"}: the three estimates in nats a completion, each with its bootstrap interval over prompts.

    Args:
        log_ratios, exact_kl, k3: of each prompt's completions, summed over their tokens.
        seed: of the bootstrap; the same prompts are redrawn for all three.

    Raises:
        DataError: unequal numbers of prompts, or the reasons of `cluster_bootstrap`.

    >>> kl_intervals([[1.0, -1.0]], [[0.5, 0.5]], [[0.25, 0.5]])["kl_exact"]
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    values = {"kl": log_ratios, "kl_exact": exact_kl, "kl_k3": k3}
    if len({len(part) for part in values.values()}) > 1:
        found = ", ".join(f"{len(part)} of {name}" for name, part in values.items())
        raise DataError(f"kl_intervals: expected the same prompts in all three, found {found}")
    return {name: cluster_bootstrap(part, seed=seed) for name, part in values.items()}
