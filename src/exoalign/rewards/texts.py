"""Reward functions that look at the words alone: patterns, repetition, readability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exoalign.errors import RewardError

METRICS = (
    "automated_readability_index",
    "coleman_liau_index",
    "dale_chall_readability_score",
    "flesch_kincaid_grade",
    "flesch_reading_ease",
    "gunning_fog",
    "linsear_write_formula",
    "mcalpine_eflaw",
    "smog_index",
    "spache_readability",
)


def regex(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    pattern: str,
    whole: bool = False,
    count: bool = False,
    seconds: float = 1.0,
) -> list[float]:
    """Whether a pattern occurs in the completion: 1 or 0.

    Args:
        prompts: not read.
        completions: what is searched.
        pattern: of the module `regex`, whose syntax is that of `re` and more; flags stand in it, as `(?i)` does.
        whole: the whole completion must match, as where a format is checked.
        count: how many times the pattern occurs (without overlap) instead.
        seconds: how long one completion may be searched: some patterns take a time exponential in the text's length.

    Raises:
        RewardError: if the pattern is none, or took longer.
    """
    import regex as engine

    if whole and count:
        raise RewardError("`whole` and `count` exclude each other: a whole completion matches once or not at all")
    try:
        compiled = engine.compile(pattern)
    except (engine.error, TypeError) as error:
        raise RewardError(f"pattern {pattern!r} is no regular expression: {error}") from error
    try:
        if count:
            return [float(sum(1 for _ in compiled.finditer(text, timeout=seconds))) for text in completions]
        search = compiled.fullmatch if whole else compiled.search
        return [float(search(text, timeout=seconds) is not None) for text in completions]
    except TimeoutError as error:
        raise RewardError(
            f"pattern {pattern!r} was searched for {seconds:g} s without an end; repetitions within repetitions, as in"
            " (a+)+, take that long: write it without, or raise `seconds`"
        ) from error


def repetition(prompts: Sequence[str], completions: Sequence[str], *, n: int = 3) -> list[float]:
    """The share of word n-grams that occurred before in the completion, negative: from 0 (none) to -1.

    Args:
        prompts: not read.
        completions: texts, of which words are separated by white space and compared without regard to case.
        n: words of an n-gram.

    Raises:
        RewardError: if n is no number above 0.
    """
    if not isinstance(n, int) or n < 1:
        raise RewardError(f"`n` is {n!r}; expected a whole number of words, 1 or more")
    return [_repeated(text.casefold().split(), n) for text in completions]


def _repeated(words: list[str], n: int) -> float:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    repeated = len(grams) - len(set(grams))
    return -repeated / len(grams) if repeated else 0.0


def readability(
    prompts: Sequence[str], completions: Sequence[str], *, metric: str = "flesch_reading_ease"
) -> list[float]:
    """How easily the completion reads, by a formula of the package `textstat`.

    Args:
        prompts: not read.
        completions: English texts.
        metric: `flesch_reading_ease`, which is high where a text is easy; the grades (`flesch_kincaid_grade`, `gunning_fog`,
            ...) are high where it is hard: give them a negative weight.

    Raises:
        RewardError: for an unknown formula, or where the package or its dictionary of syllables is missing.
    """
    if metric not in METRICS:
        raise RewardError(f"`metric` is {metric!r}; expected one of {', '.join(METRICS)}")
    try:
        import textstat
    except ImportError as error:
        raise RewardError("readability needs textstat; run: pip install 'exoalign[rewards]'") from error
    formula: Any = getattr(textstat, metric)
    try:
        formula("syllables")  # here, before hours of sampling: completions may all be empty where it is tried first
        return [float(formula(text)) for text in completions]
    except LookupError as error:
        raise RewardError(
            f"{metric} needs a dictionary of syllables; run: python -m nltk.downloader cmudict (or take"
            " automated_readability_index, which counts letters)"
        ) from error
