"""A data set into a file of another format: read, converted, written and accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exoalign.data.convert import Account, check_kind, to_rows
from exoalign.data.formats import PromptRow, Record, TextRow, open_records
from exoalign.data.sources import Source
from exoalign.data.write import check_target, write_rows
from exoalign.errors import DataError
from exoalign.groups import Group


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        out: the file that was written.
        kind: what its rows are.
        rows: how many rows were read.
        items: how many usable groups, prompts or texts they made.
        noun: which of the three.
        written: how many rows were written.
        account: what was left out, with reasons.
    """

    out: Path
    kind: str
    rows: int
    items: int
    noun: str
    written: int
    account: Account

    def as_dict(self) -> dict[str, Any]:
        """For JSON: counts, and for each reason where the first three rows stand."""
        reasons = self.account.aside.reasons.items()
        return {
            "out": str(self.out),
            "kind": self.kind,
            "rows_read": self.rows,
            self.noun: self.items,
            "rows_written": self.written,
            "set_aside": {reason: {"rows": rows.count, "first": rows.first[:3]} for reason, rows in reasons},
            "not_written": {what: n for what, n in self.account.unwritten.items() if n},
        }

    def lines(self) -> list[str]:
        """For people: a sentence for each fact."""
        return [
            f"{self.out} ({self.kind}): rows read {self.rows}, {self.noun} {self.items}, rows written {self.written}",
            *self.account.aside.lines(),
            *(f"not written: {what} ({n})" for what, n in self.account.unwritten.items() if n),
        ]


_NOUNS = {Group: "groups", PromptRow: "prompts", TextRow: "texts"}


def convert_file(
    source: Source,
    out: Path,
    kind: str,
    *,
    pairs: str = "best_worst",
    limit: int | None = None,
    force: bool = False,
) -> Converted:
    """Read a data set, and write it as rows of one kind.

    Args:
        source: what to read.
        out: the file to write; its ending says the form: .jsonl, .jsonl.gz, .parquet or .csv.
        kind: a key of `exoalign.data.convert.KINDS`.
        pairs: for pairs out of K completions: `best_worst` or `all`.
        limit: how many groups, prompts or texts are read at most.
        force: overwrite `out`.

    Raises:
        DataError: for a row that is malformed or cannot become that kind, for an `out` that cannot be written, and where no
            row is left to write. `out` is then what it was before.
    """
    check_kind(kind, pairs)
    check_target(out, force=force)
    account = Account()
    items, noun, all_read = 0, "", False

    def counted() -> Iterator[Record]:
        nonlocal items, noun, all_read
        for item in open_records(source, account.aside, tolerate=False, limit=limit)[1]:
            items += 1
            noun = _NOUNS[type(item)]
            yield item
        all_read = True

    try:
        written = write_rows(to_rows(counted(), kind, account, pairs=pairs), out)
    except DataError as error:  # where nothing is left to write, the reasons say why
        raise DataError("\n".join([str(error), *(account.aside.lines() if all_read else [])])) from error
    account.unwritten.update({f"column {name}": number for name, number in account.aside.unread.items()})
    return Converted(out, kind, account.aside.read, items, noun, written, account)
