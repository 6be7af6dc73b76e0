"""The account of what was read and not used: nothing that stands in a file is lost silently."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from exoalign.errors import DataError

FIRST = 5
"""How many rows are remembered of each kind."""
# The place comes first, and a file may be called anything
_NOT_FINITE = re.compile(r"(?::\d+|, row \d+)[^:]*: .*\bexpected (?:a )?finite (?:number|value)", re.DOTALL)


@dataclass
class Tally:
    """How many rows, and where the first of them stand."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count one row."""
        self.count += 1
        if len(self.first) < FIRST:
            self.first.append(where)

    def __str__(self) -> str:
        return ", ".join(self.first[:3]) + (", ..." if self.count > 3 else "")


@dataclass
class SetAside:
    """What became of the rows that became no group: rows read = rows of groups + rows set aside + rows in error.

    Attributes:
        reasons: for each reason why well-formed rows cannot be used, how many they are and where the first stand.
        read: how many rows were read.
        errors: `malformed` and `not_finite` rows (a number is NaN or infinite), with their messages in place of where they
            stand, if they are tolerated (otherwise the first one is raised).
        unread: the columns that are not read, and how many rows have a value in them.
    """

    reasons: dict[str, Tally] = field(default_factory=dict)
    read: int = 0
    errors: dict[str, Tally] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, where: str) -> None:
        """Count one row."""
        self.reasons.setdefault(reason, Tally()).add(where)

    def refuse(self, error: DataError, *, tolerate: bool) -> None:
        """Count one malformed row.

        Raises:
            DataError: the error, unless it is tolerated.
        """
        if not tolerate:
            raise error
        kind = "not_finite" if _NOT_FINITE.search(str(error)) else "malformed"
        self.errors.setdefault(kind, Tally()).add(str(error))

    @property
    def rows(self) -> int:
        """How many rows were set aside."""
        return sum(tally.count for tally in self.reasons.values())

    @property
    def malformed(self) -> int:
        """How many rows were in error."""
        return sum(tally.count for tally in self.errors.values())

    def lines(self) -> list[str]:
        """A sentence for each reason, and one for the rows in error."""
        lines = [f"{_rows(tally.count)} set aside: {reason} ({tally})" for reason, tally in self.reasons.items()]
        if self.errors:
            first = [message for tally in self.errors.values() for message in tally.first]
            more = "; ..." * (self.malformed > 3)
            lines.append(f"{_rows(self.malformed)} malformed: {'; '.join(first[:3])}{more}")
        return lines


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"
