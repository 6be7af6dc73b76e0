"""The account of what was read and not used: nothing that stands in a file is lost silently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class SetAside:
    """What became of the rows that became no group: rows read = rows of groups + rows set aside + rows in error.

    Attributes:
        reasons: for each reason why well-formed rows cannot be used, where they stand.
        read: how many rows were read.
        errors: the messages of malformed rows, where these are tolerated (otherwise the first one is raised).
        unread: the columns that are not read, and how many rows have a value in them.
    """

    reasons: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0
    errors: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, where: str) -> None:
        """Count one row."""
        self.reasons.setdefault(reason, []).append(where)

    @property
    def rows(self) -> int:
        """How many rows were set aside."""
        return sum(map(len, self.reasons.values()))

    def lines(self) -> list[str]:
        """A sentence for each reason, and one for the rows in error."""
        lines = [
            f"{len(rows)} row{'s' if len(rows) > 1 else ''} set aside: {reason} ({', '.join(rows[:3])}"
            + (", ..." if len(rows) > 3 else "")
            + ")"
            for reason, rows in self.reasons.items()
        ]
        if self.errors:
            found = f"{len(self.errors)} row{'s' if len(self.errors) > 1 else ''} malformed"
            lines.append(
                "; ".join([f"{found}: {self.errors[0]}", *self.errors[1:3]]) + ("; ..." * (len(self.errors) > 3))
            )
        return lines
