"""Groups and verdicts as pairs: a model's replies against another's, or against those that the data prefers. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from exoalign.data.mix import choose
from exoalign.errors import DataError
from exoalign.evaluate.preferences import Pairs, sign_flip_test, summary_of, win_rate
from exoalign.evaluate.samples import rewards_of
from exoalign.groups import Group, completion_text, prompt_text
from exoalign.rewards.comparisons import Judged
from exoalign.rewards.verdicts import SHARE


def by_reward(
    ours: Sequence[Group], theirs: Sequence[Group], *, column: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """The win rate by rewards; see `preferences.win_rate` for what comes back.

    Lengths are in tokens where both sides have token ids, else in characters.

    Args:
        ours, theirs: rewarded replies, one group a prompt, the same prompts in the same order.
        column: of the groups' `scores`, to decide by in place of their rewards.
        seed: of the bootstrap.

    Raises:
        DataError: other prompts, no rewards, or no such column; naming the group.
    """
    check_prompts(ours, theirs)
    both = [*ours, *theirs]
    length = characters if any(group.completion_ids is None for group in both) else tokens
    mine, yours = ([numbers(group, column) for group in side] for side in (ours, theirs))
    lengths = [length(group) for group in ours], [length(group) for group in theirs]
    return win_rate(mine, yours, lengths, seed=seed)


def by_verdicts(judged: Iterable[Judged], *, seed: int = 0) -> dict[str, Any]:
    """The win rate of the left replies by a judge asked in both orders, as `by_reward` tells it.

    Verdicts that contradict each other are a tie; "inconsistent" says how many of "ties" are. A pair with an invalid verdict
    counts in "invalid" alone. The test is of each prompt's share of wins less one half, lengths are in characters.

    Raises:
        DataError: no pair with two valid verdicts.
    """
    number: dict[str, int] = {}
    prompts, won, longer = list[int](), list[float](), list[float]()
    inconsistent = invalid = 0
    for one in judged:
        share = SHARE.get(one.outcome)
        inconsistent += one.outcome == "inconsistent"
        if share is None:
            invalid += 1
            continue
        left, right = one.case.texts
        prompts.append(number.setdefault(one.case.prompt, len(number)))
        won.append(share)
        longer.append(float(len(left) - len(right)))
    pairs = Pairs(np.array(prompts, dtype=np.int64), np.array(won), np.array(longer), won.count(0.5), invalid)
    found = summary_of(pairs, seed=seed)
    return {**found, "p_value": sign_flip_test(pairs.by_prompt() - 0.5, seed=seed), "inconsistent": inconsistent}


def preferred(groups: Sequence[Group]) -> list[Group]:
    """Of each group the reply that the data prefers, alone: what a model's replies may be compared with.

    Raises:
        DataError: naming a group without a winner.
    """
    for group in groups:
        if group.winner is None:
            raise DataError(
                f"{group.where}: no reply is preferred (no winner); expected pairs, or completions with a choice"
            )
    return [choose(group, [group.winner]) for group in groups if group.winner is not None]


def check_prompts(ours: Sequence[Group], theirs: Sequence[Group]) -> None:
    """Refuse two sides that are not the same prompts in the same order.

    Raises:
        DataError: naming the first prompt that differs.
    """
    if len(ours) != len(theirs):
        raise DataError(f"win rate: {len(ours)} prompts of one side and {len(theirs)} of the other; expected the same")
    for i, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
        texts = prompt_text(mine.prompt), prompt_text(yours.prompt)
        if texts[0] != texts[1]:
            raise DataError(
                f"win rate: prompt {i + 1} is {texts[0][:60]!r} ({mine.where}) of one side and {texts[1][:60]!r}"
                f" ({yours.where}) of the other; expected the same prompts in the same order"
            )


def numbers(group: Group, column: str | None) -> tuple[float, ...]:
    """The rewards of a group's replies, or one column of their scores.

    Raises:
        DataError: there are none.
    """
    if column is None:
        return rewards_of(group)
    if column not in (group.scores or {}):
        there = ", ".join(group.scores or {}) or "none"
        raise DataError(f"{group.where}: has no score {column!r}; there are {there}")
    return (group.scores or {})[column]


def tokens(group: Group) -> list[float]:
    """How many tokens of each reply count."""
    return [float(count) for count in group.counted_tokens]


def characters(group: Group) -> list[float]:
    """How many characters each reply has."""
    return [float(len(completion_text(completion))) for completion in group.completions]
