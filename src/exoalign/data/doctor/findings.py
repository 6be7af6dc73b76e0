"""What an examination says: graded findings with their rows and remedies, and the numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from exoalign.data.set_aside import Tally

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: a stable name, e.g. `no_spread`.
        text: what was found, with its numbers.
        remedy: what to do about it.
        grade: error (cannot be trained on, or makes results wrong), warning (costs quality) or note.
        count: how many rows have it; None for what concerns the data set as a whole.
        where: the first of those rows.
    """

    kind: str
    text: str
    remedy: str
    grade: Grade = "warning"
    count: int | None = None
    where: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was found and what to do, for a log."""
        return f"{self.text}; {self.remedy}"


def finding(kind: str, rows: Tally, text: str, remedy: str, grade: Grade = "warning") -> list[Finding]:
    """The finding of these rows, or nothing when there are none."""
    return [Finding(kind, text, remedy, grade, rows.count, tuple(rows.first))] if rows.count else []


@dataclass(frozen=True)
class Examination:
    """What the doctor says of one data set; everything is plain Python, so `as_dict` is JSON.

    Attributes:
        source: the name of the data.
        kind: pairs, kway, ratings, rankings, prompts or text.
        rows: `read`, of them `used`, `set_aside` and `malformed`.
        groups: how many groups (or prompts, or texts) the used rows make.
        prompts: how many different prompts they have.
        k: for each K how many groups have so many completions.
        unit: what `lengths` counts: tokens with a tokenizer, else words.
        lengths: `prompt`, `completion`, `row` -> median, p95, max, total, in `unit`; and in characters under `characters`.
        rewards: median, min, max, and the spread (largest - smallest) within groups; None without rewards.
        length_correlation: rank correlation of reward or choice with length within groups: mean, low, high, groups; or None.
        targets: `beta_r` and `epsilon`: the suggested value, its rule, and ESS and entropy (nats) for several values; or None.
        truncation: what the budgets would cut under each policy; None without budgets.
        histograms: name -> `edges` (one more than counts) and `counts`.
        findings: graded, errors first.
    """

    source: str
    kind: str
    rows: dict[str, int]
    groups: int
    prompts: int
    k: dict[int, int]
    unit: str
    lengths: dict[str, Any]
    rewards: dict[str, Any] | None
    length_correlation: dict[str, Any] | None
    targets: dict[str, Any]
    truncation: dict[str, Any] | None
    histograms: dict[str, dict[str, list[float]]]
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.grade == "error" for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """How many findings of each grade."""
        return {grade: sum(finding.grade == grade for finding in self.findings) for grade in GRADES}

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        values = asdict(self)
        values["k"] = {str(k): count for k, count in self.k.items()}
        values["findings"] = [asdict(finding) | {"where": list(finding.where)} for finding in self.findings]
        return {**values, "counts": self.counts()}

    def place(self, where: str) -> str:
        """A row's place without the name of the file, where that is the one examined."""
        return where.replace(f"{self.source}:", "line ").replace(f"{self.source}, ", "")

    def lines(self) -> list[tuple[str, str]]:
        """The numbers of the overview: name and value."""
        rows = self.rows
        found = [
            (
                "rows",
                f"{rows['read']:,} read: {rows['used']:,} used, {rows['set_aside']:,} set aside,"
                f" {rows['malformed']:,} malformed",
            ),
            ("kind", self.kind),
            ("groups", f"{self.groups:,}, {self.prompts:,} different {'texts' if self.kind == 'text' else 'prompts'}"),
        ]
        if self.k:
            found.append(("completions a group", ", ".join(f"{k}: {count:,}" for k, count in self.k.items())))
        for name in ("prompt", "completion"):
            for unit, lengths in ((self.unit, self.lengths), ("characters", self.lengths["characters"])):
                if (line := lengths[name]) is not None:
                    numbers = f"median {line['median']:,.0f}, 95% within {line['p95']:,.0f}, longest {line['max']:,}"
                    found.append((f"{'text' if self.kind == 'text' else name}, {unit}", numbers))
        if self.rewards:
            spread = self.rewards["spread"]
            found.append(("rewards", "median {median:.3g}, from {min:.3g} to {max:.3g}".format(**self.rewards)))
            text = f"median {spread['median']:.3g}, 90% of groups from {spread['p05']:.3g} to {spread['p95']:.3g}"
            found.append(("spread within groups", text))
        if self.length_correlation:
            text = "{mean:.2f} [{low:.2f}, {high:.2f}] within {groups:,} groups".format(**self.length_correlation)
            found.append(("rank correlation with length", text))
        for name, target in self.targets.items():
            if target:
                value = "none" if target["suggested"] is None else f"{target['suggested']:g}"
                found.append((f"suggested {name}", f"{value} ({target['rule']})"))
        return found

    def target_rows(self) -> list[list[str]]:
        """The target at several beta_r (of pairs without rewards: epsilon) as a table with its head; empty without either."""
        for name, target in self.targets.items():
            if target:
                head = [name, "ESS, median", "(ESS - 1) / (K - 1)", "entropy, nats"]
                rows = [
                    [f"{value[key]:.3g}" for key in (name, "ess", "ess_share", "entropy")] for value in target["values"]
                ]
                return [head, *rows]
        return []

    def truncation_rows(self) -> list[list[str]]:
        """What the budgets cut by policy, as a table with its head; empty without budgets."""
        if not self.truncation:
            return []
        policies = self.truncation["policies"].items()
        rows = [[name, *(f"{cut[key]:,}" for key in ("groups", "completions", "tokens"))] for name, cut in policies]
        return [["policy", "groups over budget", "completions cut", "tokens cut"], *rows]


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def graded(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings, errors first; within a grade in the order given."""
    return tuple(sorted(findings, key=lambda finding: GRADES.index(finding.grade)))
