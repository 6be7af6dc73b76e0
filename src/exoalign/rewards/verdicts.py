"""What a judge's answer means. An answer that says nothing clear is `invalid`, with the reason: never a tie, never a guess."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from exoalign.rewards.judge_client import Answer

Choice = Literal["first", "second", "tie"]
Outcome = Literal["left", "right", "tie", "inconsistent", "invalid"]
"""Of a pair asked in both orders: one is better in both, neither in both, they contradict each other, or one is no verdict."""

SHARE: dict[Outcome, float] = {"left": 1.0, "right": 0.0, "tie": 0.5, "inconsistent": 0.5}
"""What an outcome counts in the win rate of the left reply; an invalid one does not count."""
_TOGETHER: dict[tuple[Choice, Choice], Outcome] = {
    ("first", "second"): "left",
    ("second", "first"): "right",
    ("tie", "tie"): "tie",
}

_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_AROUND = r"(?:[\s\"'`*_\[\](){}<>.:!#]|[-–—](?=\s))*"  # of a bare verdict: quotes, emphasis, brackets, a full stop
_BEHIND = r"(?=[\"'`*_\])}>]*(?:[.;:!](?:\D|$)|\s*$|\s[-–—]\s))"  # of one in a text: its line, sentence or clause ends
_CHOICE = r"(?:(?:reply|response|summary|answer|option)\s+)?(a|b|tie)"
_CHOICES: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie"}
_NUMBER = r"([+-]?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?"


class Verdict(NamedTuple):
    """One answer, read.

    Attributes:
        choice: of a pairwise question, by position; None if invalid.
        score: of a pointwise one; None if invalid.
        why: why it is invalid, else empty.
    """

    choice: Choice | None = None
    score: float | None = None
    why: str = ""


def read_choice(answer: Answer) -> Verdict:
    """The verdict of a pairwise answer: `Verdict: A` wherever it stands, or a line of its own that is nothing but A, B or tie.

    >>> read_choice(Answer("Verdict: B")).choice
    'second'
    >>> read_choice(Answer("A good question.")).why
    'no verdict in it'
    """
    found, why = _only(answer, "verdict", _CHOICE)
    return Verdict(why=why) if found is None else Verdict(choice=_CHOICES[found[1].lower()])


def read_score(answer: Answer, low: int, high: int) -> Verdict:
    """The score of a pointwise answer, from `low` to `high`: `Score: 7` wherever it stands, or a line that is a bare number.

    >>> read_score(Answer("Score: 7/10"), 1, 10).score
    7.0
    >>> read_score(Answer("11"), 1, 10).why
    'out of the scale'
    """
    found, why = _only(answer, "score", _NUMBER)
    if found is None:
        return Verdict(why=why)
    if not low <= float(found[1]) <= high or (found[2] is not None and int(found[2]) != high):
        return Verdict(why="out of the scale")
    return Verdict(score=float(found[1]))


def outcome_of(forward: Verdict, backward: Verdict) -> Outcome:
    """Of (left, right) and (right, left), what both verdicts say together.

    >>> outcome_of(Verdict("first"), Verdict("second"))
    'left'
    >>> outcome_of(Verdict("first"), Verdict("first"))
    'inconsistent'
    """
    if forward.choice is None or backward.choice is None:
        return "invalid"
    return _TOGETHER.get((forward.choice, backward.choice), "inconsistent")


def _only(answer: Answer, label: str, value: str) -> tuple[re.Match[str] | None, str]:
    """The one verdict of an answer, or why there is none."""
    if answer.refusal or answer.finish == "content_filter":
        return None, "refused"
    text = _THOUGHTS.sub("", answer.text or "").strip()
    if not text:
        return None, "cut off" if answer.finish == "length" else "empty"
    labelled = rf"\b{label}{_AROUND}{value}(?!\w|\.\d)"
    found = list(re.finditer(rf"{labelled}(?P<alone>{_BEHIND})?", text, re.IGNORECASE | re.MULTILINE))
    if not found:
        lines = (re.fullmatch(rf"{_AROUND}{value}{_AROUND}", line, re.IGNORECASE) for line in text.splitlines())
        found = [line for line in lines if line is not None]
    if not found:
        return None, "cut off" if answer.finish == "length" else "no verdict in it"
    if len({match[1].lower() for match in found}) > 1:
        return None, "contradicts itself"
    if any(match.groupdict().get("alone", "") is None for match in found):  # `Verdict: A or B`
        return None, "no verdict in it"
    return found[0], ""
