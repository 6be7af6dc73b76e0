"""`Scorer`: anything that gives every completion of a group a number, in a column of its own. `compose` makes rewards of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from exoalign.groups import Group


class Scorer(Protocol):
    """A reward function with its arguments, a reward model, a server: higher is better.

    Attributes:
        name: of its column.
    """

    name: str

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on, as JSON values: arguments, checksums of code and weights, an address, ..."""
        ...

    def __call__(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """A finite number for each completion of each group, groups in their order.

        Raises:
            RewardError: naming the row where a number cannot be had.
        """
        ...
