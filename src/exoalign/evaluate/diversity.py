"""How different a prompt's completions are from each other, and whether longer ones have more reward. NumPy only.

Words are what stands between white space, as written. All of these depend on how many completions a prompt has and on how long
they are: compare models at the same K, and read them beside the length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from exoalign.errors import DataError
from exoalign.estimators import Interval, cluster_bootstrap, correlation_bootstrap
from exoalign.evaluate.samples import lengths_of, rewards_of
from exoalign.groups import Group, completion_text

ORDERS = 4
"""BLEU looks at n-grams up to so many words."""
SMOOTHING = 0.1
"""What counts as the matches of an order that has none (method 1 of Chen and Cherry, WMT 2014), so that BLEU is not 0 by it."""


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Different n-grams over all n-grams of the texts together (Li et al., arXiv 1510.03055): 1 where none comes twice.

    None where no text has n words.

    >>> distinct_n(["a b c", "a b d"])  # a b, b c, b d of a b, b c, a b, b d
    0.75
    """
    grams = [gram for text in texts for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean over the texts of the BLEU of each with the others as its references (Zhu et al., arXiv 1802.01886).

    1 if all are equal; None for one text alone.

    >>> self_bleu(["the cat sat here", "the cat sat here"])
    1.0
    """
    if len(texts) < 2:
        return None
    words = [text.split() for text in texts]
    return sum(bleu(own, [*words[:i], *words[i + 1 :]]) for i, own in enumerate(words)) / len(words)


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of one text (Papineni et al. 2002): brevity penalty times the geometric mean of the clipped precisions, 0 to 1.

    Orders that the text is too short for are left out, so that a text of two words equals its copy; an order without matches
    counts `SMOOTHING` of them. 0 where no word is shared; two empty texts are equal.
    """
    if not words:
        return float(any(not reference for reference in references))
    logs = []
    for n in range(1, min(ORDERS, len(words)) + 1):
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            allowed |= Counter(_grams(reference, n))  # the most that one reference has
        own = Counter(_grams(words, n))
        matches = (own & allowed).total()
        if n == 1 and not matches:
            return 0.0
        logs.append(math.log((matches or SMOOTHING) / own.total()))
    closest = min((len(reference) for reference in references), key=lambda r: (abs(r - len(words)), r))
    brevity = min(0.0, 1 - closest / len(words))
    return math.exp(brevity + sum(logs) / len(logs))


def diversity_of(
    groups: Sequence[Group], measure: Callable[[Sequence[str]], float | None], *, seed: int = 0
) -> Interval | None:
    """Mean over prompts of a measure of the completions' texts, with its bootstrap interval.

    Prompts of which the measure says nothing (None) are left out; None where it says nothing of any.

    Args:
        groups: one a prompt.
        measure: `distinct_n` or `self_bleu`.
        seed: of the bootstrap.
    """
    values = [measure([completion_text(completion) for completion in group.completions]) for group in groups]
    kept = [[value] for value in values if value is not None]
    return cluster_bootstrap(kept, seed=seed) if kept else None


def length_against_reward(groups: Sequence[Group], *, seed: int = 0) -> Interval | None:
    """Correlation of length in tokens with reward among completions of the same prompt, with its bootstrap interval.

    Within prompts: that some prompts call for long replies and also have high rewards does not count. None where a prompt's
    completions differ in length, or in reward, nowhere.

    Raises:
        DataError: no groups, or one without rewards or token ids.
    """
    if not groups:
        raise DataError("length_against_reward: no groups; expected at least one prompt with its samples")
    lengths, rewards = [lengths_of(group) for group in groups], [rewards_of(group) for group in groups]
    return correlation_bootstrap(lengths, rewards, seed=seed)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
