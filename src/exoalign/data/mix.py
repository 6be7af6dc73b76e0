"""Which groups a run takes, and which of their completions: split by prompt, sets mixed by weight, fewer completions.

Everything here depends on the seed and on what it is asked about, never on the order of rows or on other rows.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from exoalign.errors import DataError
from exoalign.groups import Group, Prompt, completion_text, prompt_text

Choice = Literal["all", "best_worst", "random"]
Side = Literal["train", "heldout"]
BY_COMPLETION = ("finish", "model_logprobs")
"""What a sampler writes into the provenance as a list with one value for each completion."""


def side_of(prompt: Prompt, *, holdout: float, seed: int) -> Side:
    """Whether a prompt is for training or held out, decided by a hash of the seed and its text alone.

    Args:
        prompt: what it reads as decides (`prompt_text`): a prompt that is a single turn goes with the same text.
        holdout: the share of all prompts that is held out, from 0 to 1.
        seed: another seed holds out other prompts.
    """
    return "heldout" if _draw(seed, "split", prompt) < holdout else "train"


def split(groups: Iterable[Group], *, holdout: float, seed: int, side: Side) -> Iterator[Group]:
    """The groups on one side: all groups of a prompt are on the same one, so that no prompt is trained on and held out.

    Plain texts, which have no prompt, go each by what they say themselves.
    """
    return (
        group
        for group in groups
        if side_of(group.prompt or completion_text(group.completions[0]), holdout=holdout, seed=seed) == side
    )


def mix(sizes: Sequence[int], weights: Sequence[float], *, seed: int) -> list[tuple[int, int]]:
    """Which rows of several data sets are drawn, and in what order.

    A weight is the share of a set among all groups drawn, relative to the other weights. Each set is drawn from without
    replacement, its rows in an order of the seed; the sets take turns, so that at every point each has had its share as
    nearly as whole groups allow. It ends where the set whose turn it is has no row left: how many groups are drawn is up to
    the set that is smallest for its weight.

    Args:
        sizes: rows of each set.
        weights: of each set, above 0.
        seed: of the order of rows.

    Returns:
        (set, row) of each group drawn.

    Example:
        >>> [number for number, _ in mix([100, 2], [3, 1], seed=0)]
        [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    """
    orders = [
        iter(random.Random(f"mix {seed} {number}").sample(range(size), size)) for number, size in enumerate(sizes)
    ]
    # Sainte-Laguë: the next seat goes to the party with the least (seats + 1/2) / votes
    due = [(0.5 / weight, number, 0) for number, weight in enumerate(weights)]
    heapq.heapify(due)
    drawn = []
    while due:
        _, number, taken = due[0]
        row = next(orders[number], None)
        if row is None:
            break
        drawn.append((number, row))
        heapq.heapreplace(due, ((taken + 1.5) / weights[number], number, taken + 1))
    return drawn


def choose(group: Group, indices: Sequence[int]) -> Group:
    """The group with some of its completions, in the order given; all that is kept by completion goes with them.

    The winner goes with its completion, and is None where that is not among those chosen. Of the provenance, lists that are not
    one value for each completion are left out.
    """

    def kept(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values[k] for k in indices)

    def listed(name: str) -> Sequence[Any] | None:  # foreign files write there what they like
        value = group.provenance.get(name)
        return value if isinstance(value, list | tuple) and len(value) == group.k else None

    earlier = listed("chosen_completions") or range(group.k)
    provenance = {**group.provenance, "chosen_completions": [earlier[k] for k in indices]}
    for name in BY_COMPLETION:
        provenance.pop(name, None)
        if (values := listed(name)) is not None:
            provenance[name] = [values[k] for k in indices]
    return replace(
        group,
        completions=tuple(group.completions[k] for k in indices),
        rewards=kept(group.rewards),
        winner=next((new for new, old in enumerate(indices) if old == group.winner), None),
        completion_ids=kept(group.completion_ids),
        completion_masks=kept(group.completion_masks),
        sampler_logprobs=kept(group.sampler_logprobs),
        reference_logprobs=kept(group.reference_logprobs),
        scores=None if group.scores is None else {n: tuple(v[k] for k in indices) for n, v in group.scores.items()},
        provenance=provenance,
    )


def subsample(group: Group, *, how: Choice, k: int | None, seed: int) -> Group:
    """A group with at most `k` of its completions, which stay in their order.

    Args:
        group: any group; one with no more than `k` completions stays as it is.
        how: `all` of them; `best_worst`, those with the highest and the lowest rewards, half of `k` each and the odd one of the
            highest, among equals the first; `random`, drawn by the seed and the prompt, the winner always among them.
        k: completions to keep, 2 or more; not read with `all`.
        seed: of `random`.

    Raises:
        DataError: if `best_worst` is asked of a group without rewards that has more than `k` completions.
    """
    if how == "all" or k is None or group.k <= k:
        return group
    if how == "random":
        fixed = [] if group.winner is None else [group.winner]
        others = [i for i in range(group.k) if i not in fixed]
        draw = random.Random(_key(seed, "completions", group.prompt))
        return choose(group, sorted([*fixed, *draw.sample(others, k - len(fixed))]))
    if group.rewards is None:
        raise DataError(
            f"{group.where}: `best_worst` of {group.k} completions needs rewards, which this group lacks; use `random`"
        )
    rewards = group.rewards
    falling = sorted(range(group.k), key=lambda i: -rewards[i])
    best = falling[: k - k // 2]
    worst = sorted((i for i in range(group.k) if i not in best), key=lambda i: rewards[i])[: k // 2]
    return choose(group, sorted([*best, *worst]))


def _key(seed: int, purpose: str, prompt: Prompt) -> bytes:
    return hashlib.sha256(json.dumps([seed, purpose, prompt_text(prompt)]).encode()).digest()


def _draw(seed: int, purpose: str, prompt: Prompt) -> float:
    """A number from 0 to 1, below it, that is the same for the same seed, purpose and prompt."""
    return int.from_bytes(_key(seed, purpose, prompt)[:7], "big") / (1 << 56)
