"""Reward functions: `(prompts, completions, **arguments) -> list[float]`, by a short name or as `module:function`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from exoalign.errors import RewardError
from exoalign.groups import Group, completion_text, prompt_text
from exoalign.rewards.instructions import if_verifiable
from exoalign.rewards.texts import readability, regex, repetition


class RewardFunction(Protocol):
    """Any callable that scores completions; higher is better.

    It may take arguments besides, by name, which the recipe gives; and `rows`, by name, if it names it: for each completion the
    other columns of its prompt's row (a reference answer, say), empty where the prompts had none.
    """

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Sequence[float]:
        """One finite number for each completion; `prompts[i]` is the prompt of `completions[i]`."""
        ...


def sentiment(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """VADER's compound sentiment in [-1, 1], from most negative to most positive (Hutto and Gilbert 2014)."""
    analyser = _vader()
    return [float(analyser.polarity_scores(text)["compound"]) for text in completions]


def length(prompts: Sequence[str], completions: Sequence[str], *, target: float | None = None) -> list[float]:
    """Number of words, separated by white space; with a `target` the distance from it, negative: 0 is best."""
    counts = [float(len(text.split())) for text in completions]
    return counts if target is None else [0.0 - abs(count - target) for count in counts]


SHIPPED: dict[str, Callable[..., Sequence[float]]] = {
    "sentiment": sentiment,
    "length": length,
    "regex": regex,
    "repetition": repetition,
    "readability": readability,
    "if_verifiable": if_verifiable,
}
ROW = "row"
"""Where a group's provenance keeps the other columns of its prompt's row."""


def resolve_reward(name: str) -> RewardFunction:
    """The reward function of that name.

    Args:
        name: a shipped one, or `module:function`, looked for in the working directory too.

    Raises:
        RewardError: if it cannot be found.
    """
    if name in SHIPPED:
        if name == "sentiment":
            _vader()  # fails here, before hours of sampling, if it is not installed
        return SHIPPED[name]
    module, colon, function = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, SHIPPED, n=1)
        hint = f"did you mean {near[0]}?" if near else "for your own write module:function"
        raise RewardError(f"reward.function is {name!r}; shipped are {', '.join(SHIPPED)}; {hint}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module is a program and raises what it likes
        raise RewardError(
            f"reward.function {name!r}: module {module} cannot be imported from {folder}: {type(error).__name__}: {error}"
        ) from error
    for part in function.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RewardError(f"reward.function {name!r}: module {module} has no {function}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise RewardError(f"reward.function {name!r} is {type(found).__name__}; expected a function")
    return found


def check_arguments(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a reward function does not take, before anything is scored.

    Args:
        name: how errors call the function.
        function: the function.
        arguments: by name.

    Raises:
        RewardError: for an argument that it does not know, with the nearest one, and for one that is missing; of a function
            that ships also for a value that it cannot use.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # one in C may have none
        return
    kinds = inspect.Parameter
    positional = [p for p, v in parameters.items() if v.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)][
        :2
    ]
    own = {
        p: v
        for p, v in parameters.items()
        if v.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY) and p not in (*positional, "rows")
    }
    takes = f"it takes {', '.join(own) or 'no arguments'}"
    if all(v.kind is not kinds.VAR_KEYWORD for v in parameters.values()):
        for argument in arguments:
            if argument not in own:
                near = difflib.get_close_matches(argument, own, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else f"; {takes}"
                raise RewardError(f"{name} has no argument `{argument}`{hint}")
    for argument, parameter in own.items():
        if parameter.default is kinds.empty and argument not in arguments:
            raise RewardError(f"{name} needs the argument `{argument}`; {takes}")
    if function in SHIPPED.values():
        try:
            _called(function, [], [], [], arguments)
        except RewardError as error:
            raise RewardError(f"{name}: {error}") from error


def scores_of(
    groups: Sequence[Group],
    function: Callable[..., Any],
    *,
    name: str = "the reward function",
    arguments: Mapping[str, Any] | None = None,
    report: Callable[[int], None] | None = None,
) -> list[tuple[float, ...]]:
    """What a reward function says of every completion, one call a group.

    Args:
        groups: groups with completions.
        function: the reward function.
        name: how errors call it.
        arguments: given to it by name.
        report: called with the number of groups done.

    Raises:
        RewardError: naming the row, if the function raises, or returns another count than asked for or a value that is
            no finite number.
    """
    scored = []
    for group in groups:
        prompts = [prompt_text(group.prompt)] * group.k
        completions = [completion_text(c) for c in group.completions]
        rows = [group.provenance.get(ROW) or {}] * group.k
        try:
            returned: Any = _called(function, prompts, completions, rows, arguments or {})
        except (Exception, SystemExit) as error:
            did = "" if isinstance(error, RewardError) else f"raised {type(error).__name__} "
            raise RewardError(f"{name} {did}at {group.where} ({prompts[0][:60]!r}): {error}") from error
        try:
            values = [*returned] if not isinstance(returned, (str, dict)) else None
        except Exception:
            values = None
        if values is None:
            raise RewardError(
                f"{name} returned {type(returned).__name__} at {group.where}; expected a list of {group.k} numbers"
            )
        if len(values) != group.k:
            raise RewardError(f"{name} returned {len(values)} values at {group.where} for {group.k} completions")
        scored.append(tuple(_number(v, k, group, name) for k, v in enumerate(values)))
        if report:
            report(1)
    return scored


def score(
    groups: Sequence[Group],
    function: RewardFunction,
    *,
    name: str = "the reward function",
    report: Callable[[int], None] | None = None,
) -> list[Group]:
    """Give every completion its reward: the groups with what `scores_of` finds, as `rewards`.

    Raises:
        RewardError: as `scores_of`.
    """
    found = scores_of(groups, function, name=name, report=report)
    return [replace(group, rewards=rewards) for group, rewards in zip(groups, found, strict=True)]


def _called(
    function: Callable[..., Any],
    prompts: list[str],
    completions: list[str],
    rows: list[Any],
    arguments: Mapping[str, Any],
) -> Any:
    return function(prompts, completions, **arguments, **({"rows": rows} if _wants_rows(function) else {}))


def _wants_rows(function: Callable[..., Any]) -> bool:
    try:
        return "rows" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _number(value: Any, k: int, group: Group, name: str) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except Exception:  # None, a tensor of many numbers, an integer that no float can hold, ...
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(
            f"{name} returned {repr(value)[:60]} at {group.where}, completion {k + 1} ({group.completions[k][:60]!r});"
            " expected a finite number"
        )
    return number


@lru_cache(maxsize=1)
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise RewardError("the sentiment reward needs VADER; run: pip install 'exoalign[sentiment]'") from error
    return SentimentIntensityAnalyzer()
