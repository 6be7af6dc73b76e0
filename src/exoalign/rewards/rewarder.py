"""Rewards for groups at once, in memory: what training on the policy's own samples asks for at each block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from exoalign.config_reward import RewardSection
from exoalign.errors import ConfigError
from exoalign.groups import Group
from exoalign.rewards.compose import compose
from exoalign.rewards.scorers import Scorer

TOGETHER = 64
"""Groups that a scorer is given at once, if it does not say otherwise."""


def rewarder(section: RewardSection, scorers: Sequence[Scorer]) -> Callable[[Sequence[Group]], list[Group]]:
    """A function that gives groups their scores and the rewards that are composed of them.

    Args:
        section: how rewards are made of scores.
        scorers: one for each of the section's, in their order.

    Raises:
        ConfigError: if the rewards are normalised, which takes the statistics of data that are there already.
    """
    if section.normalise != "none":
        raise ConfigError(
            f"reward.normalise is {section.normalise}, and the completions are drawn as the policy trains: there are no"
            " training data whose mean and deviation could scale them; leave it out"
        )

    def rewarded(groups: Sequence[Group]) -> list[Group]:
        columns = {scorer.name: _scores(scorer, groups) for scorer in scorers}
        found = []
        for i, group in enumerate(groups):
            scores = {name: column[i] for name, column in columns.items()}
            found.append(replace(group, scores=scores, rewards=compose(scores, section, {})))
        return found

    return rewarded


def _scores(scorer: Scorer, groups: Sequence[Group]) -> list[tuple[float, ...]]:
    size = getattr(scorer, "together", TOGETHER)
    return [row for start in range(0, len(groups), size) for row in scorer(groups[start : start + size])]
