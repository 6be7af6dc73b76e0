"""Reward functions: `(prompts, completions) -> list[float]`, by a short name or as `module:function`."""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from exoalign.errors import RewardError
from exoalign.groups import Group, completion_text, prompt_text


class RewardFunction(Protocol):
    """Any callable that scores completions; higher is better."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Sequence[float]:
        """One finite number for each completion; `prompts[i]` is the prompt of `completions[i]`."""
        ...


def sentiment(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """VADER's compound sentiment in [-1, 1], from most negative to most positive (Hutto and Gilbert 2014)."""
    analyser = _vader()
    return [float(analyser.polarity_scores(text)["compound"]) for text in completions]


def length(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Number of words, separated by white space."""
    return [float(len(text.split())) for text in completions]


SHIPPED: dict[str, RewardFunction] = {"sentiment": sentiment, "length": length}


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


def score(
    groups: Sequence[Group],
    function: RewardFunction,
    *,
    name: str = "the reward function",
    report: Callable[[int], None] | None = None,
) -> list[Group]:
    """Give every completion its reward, one call a group.

    Args:
        groups: groups with completions.
        function: the reward function.
        name: how errors call it.
        report: called with the number of groups done.

    Returns:
        The groups with `rewards`.

    Raises:
        RewardError: naming the row, if the function raises, or returns another count than asked for or a value that is
            no finite number.
    """
    scored = []
    for group in groups:
        prompts = [prompt_text(group.prompt)] * group.k
        try:
            returned: Any = function(prompts, [completion_text(c) for c in group.completions])
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"{name} raised {type(error).__name__} at {group.where} ({prompts[0][:60]!r}): {error}"
            ) from error
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
        scored.append(replace(group, rewards=tuple(_number(v, k, group, name) for k, v in enumerate(values))))
        if report:
            report(1)
    return scored


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
