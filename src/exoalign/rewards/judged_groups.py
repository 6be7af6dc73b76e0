"""Verdicts as training data: pairs with a winner, or groups with rewards. What is left out is counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from exoalign.data.mix import choose
from exoalign.groups import Group
from exoalign.rewards.comparisons import Judged
from exoalign.rewards.verdicts import SHARE


def winners(
    judged: Sequence[Judged], groups: Sequence[Group], partners: Sequence[Group] | None
) -> tuple[list[Group], dict[str, int]]:
    """One group of two completions with its winner for each pair that has one.

    Args:
        judged: pairs.
        groups: those that they come from.
        partners: for each of them the group of the second file, from which the right one comes; None where there is none.

    Returns:
        The pairs, and how many were left out by outcome.
    """
    made, left_out = [], Counter[str]()
    for case in judged:
        if case.outcome not in ("left", "right"):
            left_out[case.outcome] += 1
            continue
        group, (left, right) = groups[case.case.group], case.case.completions
        pair = choose(group, [left, right]) if partners is None else _joined(group, partners[case.case.group], left)
        made.append(replace(pair, rewards=None, winner=int(case.outcome == "right")))
    return made, dict(sorted(left_out.items()))


def win_shares(judged: Sequence[Judged], groups: Sequence[Group], *, both: bool) -> tuple[list[Group], dict[str, int]]:
    """Groups whose rewards are the share of its valid comparisons that each completion wins, ties and inconsistent ones half.

    Args:
        judged: pairs.
        groups: those that they come from.
        both: whether the right ones are completions of these groups too.

    Returns:
        The groups all of whose completions have a valid comparison, and how many have not.
    """
    shares = defaultdict[tuple[int, int], list[float]](list)
    for case in judged:
        if case.outcome in SHARE:
            left, right = case.case.completions
            shares[case.case.group, left].append(SHARE[case.outcome])
            if both:
                shares[case.case.group, right].append(1 - SHARE[case.outcome])
    return _rewarded(groups, {key: sum(values) / len(values) for key, values in shares.items()})


def scores(judged: Sequence[Judged], groups: Sequence[Group]) -> tuple[list[Group], dict[str, int]]:
    """Groups whose rewards are the scores of their completions; those with an invalid one are left out and counted."""
    found = {
        (case.case.group, *case.case.completions): verdict.score
        for case in judged
        for verdict in case.verdicts
        if verdict.score is not None
    }
    return _rewarded(groups, found)


def _rewarded(groups: Sequence[Group], rewards: Mapping[tuple[int, ...], float]) -> tuple[list[Group], dict[str, int]]:
    made = [
        replace(group, winner=None, rewards=tuple(rewards[i, k] for k in range(group.k)))
        for i, group in enumerate(groups)
        if all((i, k) in rewards for k in range(group.k))
    ]
    missing = len(groups) - len(made)
    return made, {"groups with a completion that has no valid verdict": missing} if missing else {}


def _joined(group: Group, other: Group, k: int) -> Group:
    """Completion k of both files as one group; token ids stay where both have them for the same prompt ids."""
    ours, theirs = choose(group, [k]), choose(other, [k])
    provenance = {"source": group.where, "other": other.where}
    tokenizer = group.provenance.get("tokenizer")
    pair = Group(group.prompt, (*ours.completions, *theirs.completions), provenance=provenance)
    if (
        None in (ours.completion_ids, theirs.completion_ids)
        or group.prompt_ids != other.prompt_ids
        or tokenizer != other.provenance.get("tokenizer")
    ):
        return pair
    masks = [
        one.completion_masks or tuple((True,) * len(ids) for ids in one.completion_ids or ()) for one in (ours, theirs)
    ]
    counted = ours.completion_masks is None and theirs.completion_masks is None
    return replace(
        pair,
        prompt_ids=group.prompt_ids,
        completion_ids=(*(ours.completion_ids or ()), *(theirs.completion_ids or ())),
        completion_masks=None if counted else (*masks[0], *masks[1]),
        provenance=provenance if tokenizer is None else {**provenance, "tokenizer": tokenizer},
    )
