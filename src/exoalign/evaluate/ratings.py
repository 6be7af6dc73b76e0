"""One number for each of many models, out of comparisons between pairs of them: Bradley and Terry's model on Elo's scale.

P(i beats j) = s_i / (s_i + s_j); the rating is 400 log10 s_i, with mean 1000, so that 400 points more are odds of 10 to 1.
Source: Bradley and Terry, Biometrika 39 (1952); the maximum by minorisation as in Hunter, Annals of Statistics 32 (2004). Each
pair that was compared gets half a win more on both sides, which keeps a model that won everything finite. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.errors import DataError

Floats = NDArray[np.float64]
PRIOR = 0.5
POINTS, MEAN = 400.0, 1000.0


def ratings(names: Sequence[str], won: ArrayLike, *, resamples: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """The rating of each model, the best first.

    Args:
        names: of M models.
        won: [P, M, M], of each prompt's comparisons the share that the row's model won against the column's, NaN where they
            were not compared.
        resamples: redrawn prompts of the 95% percentile interval.
        seed: of the bootstrap.

    Returns:
        [{"model", "elo", "low", "high"}, ...].

    Raises:
        DataError: another shape, or models that no chain of comparisons connects.
    """
    shares = np.asarray(won, dtype=np.float64)
    if shares.ndim != 3 or shares.shape[1:] != (len(names), len(names)) or not len(shares):
        raise DataError(
            f"ratings: found shares of shape {list(shares.shape)} for {len(names)} models; expected [P, M, M]"
        )
    rows = np.random.default_rng(seed).integers(len(shares), size=(resamples, len(shares)))
    found = elo(names, shares)
    redrawn = np.array([elo(names, shares[r], like=shares) for r in rows])
    low, high = np.quantile(redrawn, [0.025, 0.975], axis=0)
    order = np.argsort(-found, kind="stable")
    return [
        {"model": names[i], "elo": float(found[i]), "low": float(low[i]), "high": float(high[i])}
        for i in order.tolist()
    ]


def elo(names: Sequence[str], shares: Floats, *, like: Floats | None = None) -> Floats:
    """Ratings [M] from shares [P, M, M]; `like`: shares that say which pairs were compared, where a resample may lack some."""
    compared: NDArray[np.bool_] = np.logical_not(np.isnan(shares if like is None else like).all(axis=0, keepdims=False))
    np.fill_diagonal(compared, False)
    _check_connected(names, compared)
    wins = np.nansum(shares, axis=0) * compared + PRIOR * compared
    games = wins + wins.T
    strength = np.ones(len(names))
    for _ in range(10_000):
        denominators = np.divide(games, strength[:, None] + strength[None, :]).sum(1)
        after = wins.sum(1) / denominators
        after /= np.exp(np.log(after).mean())
        moved = np.abs(np.log(after / strength)).max()
        strength = after
        if moved < 1e-10:
            break
    return MEAN + POINTS * np.log10(strength)


def _check_connected(names: Sequence[str], compared: NDArray[np.bool_]) -> None:
    reached = {0}
    while more := {int(j) for i in reached for j in np.flatnonzero(compared[i] | compared[:, i])} - reached:
        reached |= more
    if apart := [name for i, name in enumerate(names) if i not in reached]:
        raise DataError(
            f"ratings: no chain of comparisons connects {apart[0]!r} with {names[0]!r}; compare them, or rate them apart"
        )
