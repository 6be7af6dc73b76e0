"""What evaluation reads of rewarded samples."""

from __future__ import annotations

from exoalign.errors import DataError
from exoalign.groups import Group


def rewards_of(group: Group) -> tuple[float, ...]:
    """The reward of each completion.

    Raises:
        DataError: if there are none.
    """
    if group.rewards is None:
        raise DataError(f"{group.where}: has no rewards; score the samples first")
    return group.rewards


def lengths_of(group: Group) -> list[float]:
    """How many tokens of each completion count.

    Raises:
        DataError: if there are no token ids.
    """
    if group.completion_ids is None:
        raise DataError(f"{group.where}: has no token ids; sample it, or tokenise it first")
    return [float(n) for n in group.counted_tokens]
