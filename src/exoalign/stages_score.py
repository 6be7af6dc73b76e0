"""Scoring as a stage that goes on where it was interrupted: scores are kept chunk by chunk, groups written at the end.

Groups that are scored together are kept together, and which these are does not depend on what is done already: a stage that was
killed writes the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exoalign.config_reward import RewardSection
from exoalign.data.table import write_table
from exoalign.errors import DataError, StoreError
from exoalign.files import write_text
from exoalign.finished import Finished, Key
from exoalign.groups import Group, completion_text, prompt_text
from exoalign.progress import Progress
from exoalign.rewards.compose import Moments, Statistics, compose, fit
from exoalign.rewards.functions import ROW
from exoalign.rewards.scorers import Scorer

GROUPS, ROWS, STATISTICS, SUMMARY = "groups.parquet", "rows.sqlite", "statistics.json", "summary.json"
TOGETHER = 64
"""Groups that a scorer is given at once, if it does not say otherwise."""
KEPT_EVERY = 1.0
"""Seconds between two transactions, at most (of whole calls)."""
MOST_VALUES, SHOWN = 2000, 3


def score(
    groups: Sequence[Group], section: RewardSection, scorers: Sequence[Scorer], folder: Path, *, show: bool = True
) -> str:
    """Scores and a reward for each completion -> groups.parquet, statistics.json, summary.json.

    Args:
        groups: with completions.
        section: how rewards are made of scores.
        scorers: one for each of the section's, in their order.
        folder: where the stage works; what an earlier attempt left there is used.
        show: show progress on stderr.

    Returns:
        A few words on what was done.

    Raises:
        DataError: if there are no groups.
        ExoalignError: as the scorers, naming the row; what was scored before is kept.
        StoreError: if there is no space left, or rows.sqlite is damaged.
    """
    if not groups:
        raise DataError("no groups to score: the data is empty")
    found = scored(groups, scorers, folder / ROWS, show=show)
    statistics = fit([group.scores or {} for group in found])
    rewarded = _rewarded(found, section, statistics)
    write_table(rewarded, folder / GROUPS)
    kept = {"normalise": section.normalise, "columns": statistics}
    write_text(folder / STATISTICS, json.dumps(kept, indent=1))
    write_text(folder / SUMMARY, json.dumps(_summary(rewarded), indent=1))
    values = [value for group in rewarded for value in group.rewards or ()]
    return f"{len(values)} rewards, mean {sum(values) / len(values):.3f}"


def score_alike(
    groups: Sequence[Group],
    section: RewardSection,
    scorers: Sequence[Scorer],
    folder: Path,
    *,
    statistics: Statistics,
    label: str = "score",
    show: bool = True,
) -> list[Group]:
    """Groups with scores and rewards on the scale of the training data's, for an evaluation.

    Where the training data are normalised within each group, these are scaled by all of the training data: within its own group
    every model's mean is 0, and none would be better than another.

    Args:
        groups: samples.
        section, scorers: as `score`.
        folder: its `rows.sqlite` keeps what is done; several calls may share it.
        statistics: of the training data; see `read_statistics`.
        label: of the progress line.
        show: show progress on stderr.

    Raises:
        As `score`.
    """
    fixed = section.model_copy(update={"normalise": "none" if section.normalise == "none" else "global"})
    return _rewarded(scored(groups, scorers, folder / ROWS, label=label, show=show), fixed, statistics)


def read_statistics(folder: Path) -> dict[str, Moments]:
    """The mean and deviation of each column that the stage in this folder found.

    Raises:
        StoreError: if the file is missing or damaged.
    """
    path = folder / STATISTICS
    try:
        columns = json.loads(path.read_text(encoding="utf-8"))["columns"]
        return {str(name): {"mean": float(c["mean"]), "std": float(c["std"])} for name, c in columns.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is missing or damaged ({error}); do the scoring anew") from error


def scored(
    groups: Sequence[Group], scorers: Sequence[Scorer], rows: Path, *, label: str = "score", show: bool
) -> list[Group]:
    """The groups with a column for each scorer; what `rows` has already is not asked for again."""
    made_of = content(groups)
    columns: dict[str, list[Any]] = {}
    for scorer in scorers:
        with (
            Finished(rows, {"groups": made_of, "scorer": scorer.identity()}) as done,
            Progress(f"{label} {scorer.name}", len(groups), enabled=show) as progress,
        ):
            _fill(done, groups, scorer, progress)
            columns[scorer.name] = [values for _, values in done]
    return [
        replace(group, scores={name: column[i] for name, column in columns.items()}) for i, group in enumerate(groups)
    ]


def _fill(done: Finished, groups: Sequence[Group], scorer: Scorer, progress: Progress) -> None:
    """Score what is not done. A row is known by its group alone: its values are those of all completions."""
    size = getattr(scorer, "together", TOGETHER)
    there, waiting, kept = done.keys(), list[tuple[Key, tuple[float, ...]]](), time.monotonic()
    try:
        for start in range(0, len(groups), size):
            some = groups[start : start + size]
            if (start, 0) not in there:  # what is scored together is kept in one transaction
                found = scorer(some)
                waiting += [((start + i, 0), values) for i, (_, values) in enumerate(zip(some, found, strict=True))]
                if time.monotonic() - kept >= KEPT_EVERY:
                    done.add(waiting)
                    waiting, kept = [], time.monotonic()
            progress.advance(len(some))
    finally:
        done.add(waiting)


def content(groups: Sequence[Group]) -> str:
    """What scorers see of the groups, as a checksum: prompts, completions and the rows' other columns."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(json.dumps([group.prompt, group.completions, group.provenance.get(ROW)]).encode())
    return digest.hexdigest()


def _rewarded(groups: Sequence[Group], section: RewardSection, statistics: Statistics) -> list[Group]:
    return [replace(group, rewards=compose(group.scores or {}, section, statistics)) for group in groups]


def _summary(groups: Sequence[Group]) -> dict[str, Any]:
    """The stage's part of the report: each column and the reward, and the completions at both ends."""
    names = list(groups[0].scores or {})
    columns = {"reward": [group.rewards or () for group in groups]}
    if len(names) > 1 or columns["reward"] != [(group.scores or {})[names[0]] for group in groups]:
        columns |= {name: [(group.scores or {})[name] for group in groups] for name in names}
    numbers: list[dict[str, Any]] = [
        {"label": "completions", "value": sum(group.k for group in groups)},
        {"label": "prompts", "value": len(groups)},
    ]
    histograms = []
    for name, column in columns.items():
        flat = np.concatenate(column)
        numbers += [
            {"label": f"{name}: mean", "value": float(flat.mean())},
            {
                "label": f"{name}: spread within a prompt",
                "value": float(np.mean([np.std(values) for values in column])),
                "note": "standard deviation, mean over prompts",
            },
            {
                "label": f"{name}: prompts without spread",
                "value": sum(len(set(values)) == 1 for values in column) / len(column),
                "note": "all their completions are worth the same, so there is nothing to learn from them",
            },
        ]
        step = -(-len(flat) // MOST_VALUES)
        series = [{"name": name, "values": flat[::step].tolist()}]
        histograms.append({"title": name, "x_label": name, "series": series})
    order = sorted(((-(group.rewards or ())[k], i, k) for i, group in enumerate(groups) for k in range(group.k)))
    ends = {"Best completions": order[:SHOWN], "Worst completions": order[::-1][:SHOWN]}
    texts = [{"title": title, "rows": [_shown(groups[i], k) for _, i, k in rows]} for title, rows in ends.items()]
    return {"numbers": numbers, "histograms": histograms, "texts": texts}


def told(group: Group, k: int) -> str:
    """The reward of a completion with all that it is composed of: `reward 1.5: length 3, sentiment 0`."""
    columns = ", ".join(f"{name} {values[k]:.4g}" for name, values in (group.scores or {}).items())
    return f"reward {(group.rewards or ())[k]:.4g}: {columns}"


def _shown(group: Group, k: int) -> dict[str, str]:
    text = f"{prompt_text(group.prompt)}\n\n{completion_text(group.completions[k])}"
    return {"label": f"{told(group, k)} ({group.where}, completion {k + 1})", "text": text}
