"""Verdicts as numbers: win rate, scores, whether the judge contradicts itself, prefers a place, is fooled by a constant reply.

Intervals are 95% bootstrap intervals over prompts (of a win rate Wilson's where each prompt has one pair). An inconsistent
pair counts half a win, and has a number of its own beside it; an invalid one counts nowhere but there. Needs no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from exoalign.estimators import cluster_bootstrap
from exoalign.evaluate.against import by_verdicts
from exoalign.groups import Group
from exoalign.rewards.comparisons import CONTROLS, Judged
from exoalign.rewards.verdicts import SHARE

FOOLED = 0.1
"""Share of comparisons that a constant reply may win before it is a warning; invalid answers and a preferred place likewise."""

_Case = TypeVar("_Case")


def interval_by_prompt(
    cases: Iterable[_Case], prompt: Callable[[_Case], str], values: Callable[[_Case], Sequence[float]], *, seed: int
) -> dict[str, float] | None:
    """Mean of the values and its interval, prompts being the unit; None where there are no values."""
    clusters: dict[str, list[float]] = {}
    for case in cases:
        clusters.setdefault(prompt(case), []).extend(values(case))
    kept = [cluster for cluster in clusters.values() if cluster]
    return cluster_bootstrap(kept, seed=seed).as_dict() if kept else None


def pair_metrics(judged: Sequence[Judged], groups: Sequence[Group], *, named: bool, seed: int) -> dict[str, Any]:
    """What pairs say.

    Args:
        judged: the pairs.
        groups: the groups that their numbers name.
        named: whether left and right are two sides by themselves (two files, or the first and the others), so that the left
            one has a win rate; otherwise the order within a group says nothing.
        seed: of the bootstrap.

    Returns:
        {"pairs", "outcomes": counts, "agreement": with the data's winners or rewards, "inconsistent", "invalid": shares of the
        pairs, "first_place": share of verdicts for the reply that stood first}, and if named {"win_rate", "length_controlled":
        that at equal length, "p_value": of a win rate of one half by chance}.
    """
    outcomes = Counter(case.outcome for case in judged)

    def interval(values: Callable[[Judged], Sequence[float]]) -> dict[str, float] | None:
        return interval_by_prompt(judged, lambda case: case.case.prompt, values, seed=seed)

    found: dict[str, Any] = {
        "pairs": len(judged),
        "same_text": sum(not case.verdicts for case in judged),
        "outcomes": {name: outcomes[name] for name in (*SHARE, "invalid")},
    }
    if named:
        rated = by_verdicts(judged, seed=seed) if any(map(_shares, judged)) else None
        names = {"win_rate": "rate", "length_controlled": "length_controlled", "p_value": "p_value"}
        found |= {name: None if rated is None else rated[key] for name, key in names.items()}
    found["agreement"] = interval(lambda case: _agreement(case, groups[case.case.group]))
    return {
        **found,
        "inconsistent": outcomes["inconsistent"] / len(judged),
        "invalid": outcomes["invalid"] / len(judged),
        "first_place": interval(
            lambda case: [float(v.choice == "first") for v in case.verdicts if v.choice in _PLACES]
        ),
    }


_PLACES = ("first", "second")


def score_metrics(judged: Sequence[Judged], *, seed: int) -> dict[str, Any]:
    """What single replies' scores say: {"replies", "score", "invalid": share}."""
    scores = interval_by_prompt(judged, lambda case: case.case.prompt, _scores, seed=seed)
    return {
        "replies": len(judged),
        "score": scores,
        "invalid": sum(not _scores(case) for case in judged) / len(judged),
    }


def control_metrics(control: Sequence[Judged], judged: Sequence[Judged], *, seed: int) -> dict[str, Any]:
    """How often each constant reply beats the first real one of its prompt: {name: {"win_rate", "cases", "invalid"}}.

    With scores it wins where its score is higher, and half where it is the same.
    """
    real = {case.case.group: case for case in reversed(judged) if case.case.completions == (0,)}

    def shares(case: Judged) -> list[float]:
        if len(case.case.texts) == 2:
            return _shares(case)
        return [
            float(ours > theirs) + 0.5 * (ours == theirs)
            for ours in _scores(case)
            for theirs in _scores(real[case.case.group])
        ]

    found = {}
    for name in CONTROLS:
        cases = [case for case in control if case.case.control == name]
        if cases:
            found[name] = {
                "win_rate": interval_by_prompt(cases, lambda case: case.case.prompt, shares, seed=seed),
                "cases": len(cases),
                "invalid": sum(not shares(case) for case in cases),
            }
    return found


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What the reader of the results should mind."""
    found = []
    if metrics["invalid"] > FOOLED:
        reasons = ", ".join(f"{count} {reason}" for reason, count in metrics["invalid_answers"].items())
        found.append(f"{metrics['invalid']:.0%} of the verdicts are invalid and left out (answers: {reasons})")
    place = metrics.get("first_place")
    if place is not None and (place["low"] > 0.5 + FOOLED or place["high"] < 0.5 - FOOLED):
        found.append(
            f"{place['mean']:.0%} of the verdicts are for the reply that stood first: the judge looks at the place, and both"
            " orders of a pair then contradict each other"
        )
    for name, control in metrics["control"].items():
        if control["win_rate"] is None:
            found.append(f"the control {name!r} has no valid verdict: it is not known how easily the judge is fooled")
        elif control["win_rate"]["mean"] > FOOLED:
            rate = control["win_rate"]
            found.append(
                f"a constant reply ({name}) wins {rate['mean']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}] of its comparisons"
                " with real replies: the judge is easily fooled, and its verdicts say little"
            )
    return found


def invalid_answers(judged: Iterable[Judged]) -> dict[str, int]:
    """How many answers are invalid, by reason, the most frequent first."""
    counts = Counter(verdict.why for case in judged for verdict in case.verdicts if verdict.why)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _shares(case: Judged) -> list[float]:
    return [SHARE[case.outcome]] if case.outcome in SHARE else []


def _scores(case: Judged) -> list[float]:
    return [verdict.score for verdict in case.verdicts if verdict.score is not None]


def _agreement(case: Judged, group: Group) -> list[float]:
    """The share of a pair that the judge decides as the data does; nothing where either says nothing, or it is of two files."""
    left, right = case.case.completions
    if left == right or not _shares(case):
        return []
    if group.winner in (left, right):
        better = 1.0 if group.winner == left else 0.0
    elif group.rewards is not None and group.rewards[left] != group.rewards[right]:
        better = float(group.rewards[left] > group.rewards[right])
    else:
        return []
    return [1.0 - abs(_shares(case)[0] - better)]
