"""Rows of each kind into groups: what their values must be, and when well-formed ones cannot be used.

Scores of a pair are `score_chosen, score_rejected`, or `chosen_score, rejected_score`, or their difference as `margin`. A
prompt and what answers it may be conversations: lists of `{"role", "content"}`. Other columns are left out of the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from exoalign.data.conversations import (
    completion_of,
    conversation_of,
    fault_of,
    prompt_of,
    shared_text,
    shared_turns,
    type_name,
)
from exoalign.data.hh import ASSISTANT, split_transcripts
from exoalign.data.kinds import GROUPS, columns_of, kind_of, need
from exoalign.data.set_aside import SetAside
from exoalign.errors import DataError
from exoalign.groups import Completion, Group, Prompt

_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


def format_row(row: Mapping[str, Any], where: str, aside: SetAside) -> Group | None:
    """Turn a row that holds a whole group into it.

    Args:
        row: a row of pairs, kway or rankings.
        where: "file:line", kept as the group's source.
        aside: takes the row if it is well-formed and cannot be used.

    Returns:
        The group, or None where the row was set aside.

    Raises:
        DataError: naming the place, if the row is malformed or of another kind.
    """
    kind = kind_of(row, where)
    if kind == "pairs":
        return _pair(row, where, aside)
    if kind in ("kway", "rankings"):
        return _many(row, where, aside, "rewards" if kind == "kway" else "ranks")
    if kind == "ratings":
        raise DataError(f"{where}: one rated completion is no group; read the whole file, which groups them by prompt")
    raise DataError(f"{where}: columns {columns_of(row)}; {GROUPS}")


def rated(row: Mapping[str, Any], where: str) -> tuple[Prompt, Completion, float]:
    """The prompt, completion and rating of a row of ratings; a `label` counts 1 if true and 0 if false.

    Raises:
        DataError: naming the place, if the row is malformed.
    """
    need(row, where, "prompt", "completion")
    prompt = prompt_of(row["prompt"], where)
    completion = completion_of(row["completion"], prompt, where, "completion")
    if "rating" in row:
        return prompt, completion, _number(row["rating"], where, "rating")
    label = row["label"]
    if label not in (0, 1):  # also True and False
        raise DataError(f"{where}: `label` is {_shown(label)}; expected true or false; for numbers call it `rating`")
    return prompt, completion, float(label)


def _pair(row: Mapping[str, Any], where: str, aside: SetAside) -> Group | None:
    need(row, where, "chosen", "rejected")
    rewards = _pair_rewards(row, where)
    if "prompt" in row:
        prompt = prompt_of(row["prompt"], where)
        chosen, rejected = (completion_of(row[side], prompt, where, side) for side in ("chosen", "rejected"))
    else:
        parts = _implicit(row["chosen"], row["rejected"], where)
        if parts is None:
            aside.add("chosen and rejected do not share everything before their last reply", where)
            return None
        prompt, chosen, rejected = parts
    fault = fault_of((chosen, rejected)) or ("chosen and rejected are the same text" if chosen == rejected else None)
    if fault is not None:
        aside.add(fault, where)
        return None
    return Group(prompt, (chosen, rejected), rewards=rewards, winner=0, provenance={"source": where})


def _implicit(chosen: Any, rejected: Any, where: str) -> tuple[Prompt, Completion, Completion] | None:
    """The pair without `prompt`, or None where the sides do not begin alike."""
    for side, value in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, str | list):
            raise DataError(f"{where}: `{side}` is {type_name(value)}; expected text or a list of messages")
    if isinstance(chosen, list) and isinstance(rejected, list):
        return shared_turns(conversation_of(chosen, where, "chosen"), conversation_of(rejected, where, "rejected"))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise DataError(
            f"{where}: `chosen` is {type_name(chosen)} and `rejected` is {type_name(rejected)}; expected both as text or"
            " both as messages"
        )
    if ASSISTANT in chosen and ASSISTANT in rejected:
        return split_transcripts(chosen, rejected)
    if ASSISTANT in chosen or ASSISTANT in rejected:
        raise DataError(
            f"{where}: no `prompt`, and only one of `chosen` and `rejected` is a transcript"
            ' ("\\n\\nHuman: ... \\n\\nAssistant: ..."); add a `prompt` column'
        )
    return shared_text(chosen, rejected)


def _pair_rewards(row: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    rewards = None
    if row.get("margin") is not None:
        rewards = (_number(row["margin"], where, "margin"), 0.0)
        if rewards[0] < 0:
            raise DataError(
                f"{where}: `margin` is {rewards[0]:g}, so the rejected side wins; swap the sides or leave it out"
            )
    for names in _SCORES:
        if all(row.get(name) is None for name in names):  # Parquet has null where a row has no score
            continue
        need(row, where, *names)
        first, second = (_number(row[name], where, name) for name in names)
        if first < second:
            raise DataError(
                f"{where}: `{names[0]}` {first:g} is less than `{names[1]}` {second:g}, so the rejected side wins; swap the"
                " sides or mend the scores"
            )
        rewards = (first, second)
    return rewards


def _many(row: Mapping[str, Any], where: str, aside: SetAside, column: str) -> Group | None:
    need(row, where, "prompt", column)
    prompt, values, numbers = prompt_of(row["prompt"], where), row["completions"], row[column]
    if not isinstance(values, list):
        raise DataError(f'{where}: `completions` is no list of texts or conversations; expected ["...", "..."]')
    for i, value in enumerate(values):
        if not isinstance(value, str | list):
            raise DataError(
                f"{where}: completions[{i}] is {type_name(value)}; expected text or a list of messages; leave the"
                " completion out with its number, or the row"
            )
    if len(values) < 2:
        raise DataError(f"{where}: found {len(values)} completion(s), expected at least 2; leave the row out")
    if not isinstance(numbers, list) or not all(_is_number(number) for number in numbers):
        found = f"holds {_shown(next(n for n in numbers if not _is_number(n)))}" if isinstance(numbers, list) else None
        raise DataError(
            f"{where}: `{column}` {found or f'is {type_name(numbers)}'}; expected a list with a number for each completion"
        )
    completions = tuple(completion_of(value, prompt, where, f"completions[{i}]") for i, value in enumerate(values))
    if len(numbers) != len(values):
        raise DataError(
            f"{where}: {len(numbers)} {column} for {len(values)} completions; expected one for each; mend the row"
        )
    rewards = tuple(_number(number, where, f"{column}[{i}]") for i, number in enumerate(numbers))
    if column == "ranks":
        rewards = _rewards_of_ranks(rewards, where)
    fault = fault_of(completions) or unusable(completions)
    if fault is not None:
        aside.add(fault, where)
        return None
    return Group(prompt, completions, rewards=rewards, provenance={"source": where})


def unusable(completions: tuple[Completion, ...]) -> str | None:
    """Why completions hold no preference, or None."""
    if len(completions) == 1:
        return "a prompt with a single completion"
    return "all completions are the same text" if len(set(completions)) == 1 else None


def _rewards_of_ranks(ranks: tuple[float, ...], where: str) -> tuple[float, ...]:
    k, seen = len(ranks), list[float]()
    for i, rank in enumerate(ranks):
        if rank in seen:
            raise DataError(
                f"{where}: ranks[{seen.index(rank)}] and ranks[{i}] are both {rank:g}; expected no ties; break the tie, or"
                " give `rewards`, which may be equal"
            )
        seen.append(rank)
    if set(seen) != set(range(1, k + 1)):
        raise DataError(
            f"{where}: `ranks` are {', '.join(f'{r:g}' for r in ranks)}; expected 1 (best) to {k}, each once"
        )
    return tuple((k - rank) / (k - 1) for rank in ranks)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any, where: str, name: str) -> float:
    if not _is_number(value):
        raise DataError(f"{where}: `{name}` is {_shown(value)}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} is {number}; expected a finite number; mend it or leave the row out")
    return number


def _shown(value: Any) -> str:
    """A value as a file of JSON has it: only text stands in quotes."""
    if value is None or isinstance(value, list | dict):
        return type_name(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value[:40]!r}" if isinstance(value, str) else str(value)[:40]
