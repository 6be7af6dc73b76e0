"""The work of the stage `judge`: verdicts on completions -> verdicts.jsonl, groups.parquet, metrics.json, summary.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from exoalign.config_judge import JudgeSection
from exoalign.data.table import row_of, write_table
from exoalign.errors import ConfigError, DataError
from exoalign.evaluate.winrate import (
    control_metrics,
    invalid_answers,
    pair_metrics,
    score_metrics,
    warnings_of,
)
from exoalign.files import replacing, write_text
from exoalign.finished import fingerprint_of
from exoalign.groups import Group
from exoalign.progress import Progress
from exoalign.rewards import comparisons, judged_groups
from exoalign.rewards.comparisons import Case, Judged
from exoalign.rewards.judge import Judge
from exoalign.rewards.judge_prompt import JudgePrompt, load_judge_prompt

VERDICTS, GROUPS, METRICS, SUMMARY = (
    "verdicts.jsonl",
    "groups.parquet",
    "metrics.json",
    "summary.json",
)
SHOWN = 3
"""Cases of each outcome in the summary."""


class Judging(NamedTuple):
    """What is judged, by whom.

    Attributes:
        section: the judge.
        prompt: what it is asked.
        groups: the completions.
        against: completions of the same prompts to compare them with, or None: those of each group with each other.
        seed: of the delimiters and the intervals.
    """

    section: JudgeSection
    prompt: JudgePrompt
    groups: Sequence[Group]
    against: Sequence[Group] | None = None
    seed: int = 0

    def made_from(self) -> dict[str, Any]:
        """What the results depend on, as JSON values."""
        return {
            "judge": self.section.identity(),
            "question": self.prompt.text,
            "seed": self.seed,
            "groups": fingerprint_of([row_of(group) for group in self.groups]),
            "against": None if self.against is None else fingerprint_of([row_of(group) for group in self.against]),
        }


def judging(
    section: JudgeSection, groups: Sequence[Group], against: Sequence[Group] | None = None, *, seed: int = 0
) -> Judging:
    """Everything that can be checked before the first question.

    Raises:
        ConfigError: if the judge's prompt cannot be used, or single replies are to be compared with another file.
        DataError: if there are no groups.
    """
    if not groups or (against is not None and not against):
        raise DataError("there are no groups to judge: the data is empty")
    if section.kind == "pointwise" and against is not None:
        raise ConfigError("judge.kind is pointwise: a score is given to each reply alone, so leave the second file out")
    return Judging(section, load_judge_prompt(section.prompt, section.kind), groups, against, seed)


def judge(work: Judging, folder: Path, *, show: bool = True, say: Callable[[str], None] = lambda line: None) -> str:
    """Ask the judge and write what comes of it. What it has answered before, in whatever run, is not asked again.

    Args:
        work: from `judging`.
        folder: to write to.
        show: show progress on stderr.
        say: takes a line for the user.

    Returns:
        A few words on the result.

    Raises:
        JudgeError: if the judge fails or the budget is spent; the answers so far are kept.
    """
    section, prompt = work.section, work.prompt
    cases, partners, notes = _cases(work)
    control = comparisons.controls(cases, section.control)
    asked = comparisons.questions_of([*cases, *control], prompt, seed=work.seed)
    flat = [question for questions in asked for question in questions]
    asker = Judge(section)
    left = len(asker.missing(flat))
    calls = len({question.text for question in flat})
    for line in [
        *asker.notes,
        *notes,
        f"{calls} questions to {section.model}, {calls - left} of them answered already",
    ]:
        say(line)
    with Progress("judge", left, enabled=show) as progress:
        asker.report = progress.advance
        answers = asker.ask(flat)
    judged = list(comparisons.read([*cases, *control], asked, answers, prompt))
    real, constant = judged[: len(cases)], judged[len(cases) :]

    made, left_out = _training_groups(work, real, partners)
    paid = list(dict(zip((question.text for question in flat), answers, strict=True)).values())
    metrics = {
        "kind": section.kind,
        "model": section.model,
        "prompts": len({case.prompt for case in cases}),
        **_results(work, real),
        "invalid_answers": invalid_answers(real),
        "control": control_metrics(constant, real, seed=work.seed),
        "groups": len(made),
        "left_out": left_out,
        "questions": len(flat),
        "calls": calls,
        "cached": 1 - calls / len(flat) if flat else 0.0,
        "prompt_tokens": sum(answer.prompt_tokens for answer in paid),
        "completion_tokens": sum(answer.completion_tokens for answer in paid),
    }
    metrics["warnings"] = [*warnings_of(metrics), *notes]
    _write_verdicts(judged, folder / VERDICTS)
    write_table((_signed(group, work) for group in made), folder / GROUPS)
    write_text(folder / METRICS, json.dumps(metrics, indent=1))
    write_text(folder / SUMMARY, json.dumps(_summary(metrics, real), indent=1))
    return _words(metrics)


def _cases(work: Judging) -> tuple[list[Case], list[Group] | None, list[str]]:
    if work.section.kind == "pointwise":
        return comparisons.singles(work.groups), None, []
    if work.against is None:
        return comparisons.within(work.groups, work.section.pairs), None, []
    return comparisons.between(work.groups, work.against)


def _results(work: Judging, real: Sequence[Judged]) -> dict[str, Any]:
    if work.section.kind == "pointwise":
        return score_metrics(real, seed=work.seed)
    named = work.against is not None or work.section.pairs == "first"
    return pair_metrics(real, work.groups, named=named, seed=work.seed)


def _training_groups(
    work: Judging, real: Sequence[Judged], partners: Sequence[Group] | None
) -> tuple[list[Group], dict[str, int]]:
    if work.section.kind == "pointwise":
        return judged_groups.scores(real, work.groups)
    if work.section.write == "rewards":
        return judged_groups.win_shares(real, work.groups, both=partners is None)
    return judged_groups.winners(real, work.groups, partners)


def _signed(group: Group, work: Judging) -> Group:
    """The group, which says who judged it."""
    judge = {"model": work.section.model, "kind": work.section.kind, "question": fingerprint_of(work.prompt.text)[:16]}
    return replace(group, provenance={**group.provenance, "judge": judge})


def _write_verdicts(judged: Sequence[Judged], path: Path) -> None:
    """A line for each question, with what was asked, what came, and what was understood."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in judged:
            case = one.case
            shown = {
                "where": case.where,
                "group": case.group,
                "completions": case.completions,
                "control": case.control or None,
                "outcome": one.outcome if len(case.texts) == 2 else None,
            }
            for order, (question, answer, verdict) in enumerate(
                zip(one.questions, one.answers, one.verdicts, strict=True)
            ):
                line = {
                    **shown,
                    "order": order,
                    "verdict": verdict.choice or verdict.score,
                    "invalid": verdict.why or None,
                    "answer": answer.as_dict(),
                    "question": question.text,
                }
                file.write(json.dumps(line) + "\n")


def _words(metrics: Mapping[str, Any]) -> str:
    head = f"{metrics['prompts']} prompts, {metrics['calls']} calls"
    value = metrics.get("win_rate") or metrics.get("score") or metrics.get("agreement")
    name = next((name for name in ("win_rate", "score", "agreement") if metrics.get(name)), None)
    if name is None or value is None:
        return f"{head}, {metrics['invalid']:.0%} invalid"
    label = name.replace("_", " ")
    inconsistent = f"{metrics['inconsistent']:.0%} inconsistent, " if "inconsistent" in metrics else ""
    return (
        f"{head}, {label} {value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}], {inconsistent}"
        f"{metrics['invalid']:.0%} invalid"
    )


def _summary(metrics: Mapping[str, Any], real: Sequence[Judged]) -> dict[str, Any]:
    """The stage in the report page's words."""
    labels = {
        "win_rate": ("win rate", "inconsistent pairs count one half"),
        "length_controlled": (
            "win rate at equal length",
            "of replies as long as the other's, by a logistic regression",
        ),
        "p_value": ("p", "how often so clear a win rate comes by chance where neither is better"),
        "score": ("score", ""),
        "agreement": ("agreement with the data's preferences", ""),
        "first_place": ("verdicts for the reply that stood first", "0.5 where the judge has no bias for a place"),
        "inconsistent": ("inconsistent pairs", "the two orders contradict each other"),
        "invalid": ("invalid", "answers that are no verdict; left out"),
        "calls": ("calls", ""),
        "cached": ("share of questions asked before", ""),
        "prompt_tokens": ("tokens of questions", ""),
        "completion_tokens": ("tokens of answers", ""),
    }
    numbers = [
        {"label": label, "value": metrics[key], **({"note": note} if note else {})}
        for key, (label, note) in labels.items()
        if metrics.get(key) is not None
    ]
    for name, control in metrics["control"].items():
        if control["win_rate"] is not None:
            note = "how often a reply that says nothing is preferred to a real one"
            numbers.append({"label": f"constant reply ({name})", "value": control["win_rate"], "note": note})
    texts = []
    for title in ("left", "right", "tie", "inconsistent", "invalid"):
        chosen = [one for one in real if len(one.case.texts) == 2 and one.outcome == title][:SHOWN]
        rows = [row for one in chosen for row in _rows(one)]
        if rows:
            texts.append({"title": f"judged: {title}", "rows": rows})
    scored = [
        (verdict.score, one.case.texts[0]) for one in real for verdict in one.verdicts if verdict.score is not None
    ]
    histograms = []
    if scored:
        values = [score for score, _ in scored]
        step = -(-len(values) // 2000)
        histograms.append(
            {"title": "scores", "x_label": "score", "series": [{"name": "judge", "values": values[::step]}]}
        )
    return {"numbers": numbers, "histograms": histograms, "texts": texts}


def _rows(one: Judged) -> list[dict[str, str]]:
    said = " | ".join(answer.text or "" for answer in one.answers)
    return [
        {"label": "prompt", "text": one.case.prompt},
        {"label": "left", "text": one.case.texts[0]},
        {"label": "right", "text": one.case.texts[1]},
        {"label": "answers", "text": said},
    ]
