"""Win rates and ratings of the methods of a comparison, by the samples of their last points. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exoalign.evaluate.preferences import matrix, shares_between, win_rate
from exoalign.evaluate.ratings import ratings
from exoalign.evaluate.samples import lengths_of, rewards_of
from exoalign.groups import Group

Samples = Mapping[str, Sequence[Sequence[Group]]]
"""Of each model the groups of each of its runs, all of the same prompts."""


def win_rates(samples: Samples, base: str, *, held_out: str | None, seed: int = 0) -> dict[str, Any]:
    """The comparison's "win_rates": a matrix, the rate of each method against the model before alignment, and ratings.

    Args:
        samples: of each model, the base among them; the replies of all runs of a model are compared together.
        base: the name of the model before alignment.
        held_out: the column of a reward that nothing was trained on, None where there is none.
        seed: of the bootstrap.
    """
    names = list(samples)
    trained = [name for name in names if name != base]
    if len(names) < 2:
        return {}
    rewards = {name: _together(samples[name], rewards_of) for name in names}
    lengths = {name: _together(samples[name], lengths_of) for name in names}
    columns = {"reward": rewards}
    if held_out is not None:
        columns["held-out reward model"] = {
            name: _together(samples[name], lambda group: (group.scores or {})[held_out]) for name in names
        }
    against = [
        {
            "model": name,
            "other": base,
            "by": by,
            **win_rate(of[name], of[base], (lengths[name], lengths[base]), seed=seed),
        }
        for by, of in columns.items()
        for name in trained
    ]
    deciding = columns.get("held-out reward model", rewards)
    return {
        "models": names,
        "matrix": matrix(names, deciding.__getitem__, seed=seed),
        "against": against,
        "ratings": ratings(names, shares_between([deciding[name] for name in names]), seed=seed),
    }


def _together(runs: Sequence[Sequence[Group]], values: Any) -> list[list[float]]:
    """Of each prompt the values of the replies of all runs."""
    return [[float(x) for group in of_prompt for x in values(group)] for of_prompt in zip(*runs, strict=True)]
