"""How long prompts and completions are, and what budgets would cut of them.

Shapes: G groups, C completions of all groups, in order.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exoalign.data.doctor.findings import Finding, Grade, counted

BINS = 30
MANY = 0.05
"""Cutting more than this share of the groups is a warning, less a note."""


@dataclass(frozen=True)
class Limits:
    """The most tokens that a prompt, a completion, and a prompt with its longest completion may have; None for no limit."""

    prompt: int | None = None
    completion: int | None = None
    context: int | None = None


class Lengths:
    """Lengths in one unit (tokens, words or characters), of prompts [G] and completions [C]."""

    def __init__(self) -> None:
        self._prompts, self._completions, self._k = array("q"), array("q"), array("q")

    def add(self, prompt: int | None, completions: list[int]) -> None:
        """Count one group; a text has no prompt, a prompt no completions."""
        self._prompts.append(-1 if prompt is None else prompt)
        self._completions.extend(completions)
        self._k.append(len(completions))

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(prompt lengths [G], -1 where there is none; completion lengths [C]; K of each group [G])."""
        prompts, completions, k = (np.array(a, dtype=np.int64) for a in (self._prompts, self._completions, self._k))
        return prompts, completions, k

    def summary(self) -> dict[str, dict[str, float] | None]:
        """Median, 95th percentile, maximum and sum for `prompt`, `completion` and `row` (prompt and longest completion)."""
        prompts, completions, k = self.arrays()
        rows = np.maximum(prompts, 0) + _by_group(completions, k, np.maximum)
        return {"prompt": summary(prompts[prompts >= 0]), "completion": summary(completions), "row": summary(rows)}

    def truncation(self, max_prompt: int | None, max_completion: int | None) -> dict[str, Any]:
        """What budgets would cut, by policy: groups, completions and (this unit's) tokens.

        `error` stops at the first of its `groups`; `drop` loses those groups whole; `truncate_prompt_left` cuts prompts only,
        `truncate_completion_right` completions only.
        """
        prompts, completions, k = self.arrays()
        over_prompt = np.maximum(prompts - (prompts.max(initial=0) if max_prompt is None else max_prompt), 0)
        over = np.maximum(completions - (completions.max(initial=0) if max_completion is None else max_completion), 0)
        cut_of_group = _by_group(over, k, np.add)
        touched = (over_prompt > 0) | (cut_of_group > 0)
        whole = np.maximum(prompts, 0) + _by_group(completions, k, np.add)
        return {
            "max_prompt_tokens": max_prompt,
            "max_completion_tokens": max_completion,
            "policies": {
                "error": {"groups": int(touched.sum()), "completions": 0, "tokens": 0},
                "drop": {
                    "groups": int(touched.sum()),
                    "completions": int(k[touched].sum()),
                    "tokens": int(whole[touched].sum()),
                },
                "truncate_prompt_left": {
                    "groups": int((over_prompt > 0).sum()),
                    "completions": 0,
                    "tokens": int(over_prompt.sum()),
                },
                "truncate_completion_right": {
                    "groups": int((cut_of_group > 0).sum()),
                    "completions": int((over > 0).sum()),
                    "tokens": int(over.sum()),
                },
            },
        }


def truncation_findings(cut: dict[str, Any], groups: int, where: Sequence[str]) -> list[Finding]:
    """Whether the budgets are too small for the data; `where` the first groups over them stand."""
    touched = cut["policies"]["drop"]["groups"]
    if not touched:
        return []
    left, right = (cut["policies"][name] for name in ("truncate_prompt_left", "truncate_completion_right"))
    prompts, completions = counted(left["groups"], "prompt"), counted(right["completions"], "completion")
    text = (
        f"{touched} of {counted(groups, 'group')} over the budgets: {prompts} by {counted(left['tokens'], 'token')} in all,"
        f" {completions} by {right['tokens']}"
    )
    remedy = "raise the budgets, drop these rows or truncate; the policy `error` stops at the first of them"
    grade: Grade = "warning" if touched > MANY * groups else "note"
    return [Finding("over_budget", text, remedy, grade, touched, tuple(where))]


def summary(values: NDArray[Any]) -> dict[str, float] | None:
    """Median, 95th percentile (linear between neighbours), maximum and sum; None without values."""
    if not values.size:
        return None
    median, p95 = np.percentile(values, [50, 95])
    return {"median": float(median), "p95": float(p95), "max": values.max().item(), "total": values.sum().item()}


def histogram(values: ArrayLike, *, whole: bool = False) -> dict[str, list[float]]:
    """Counts in equal bins (of a whole width where `whole`), the last holding all above the 99.5th percentile.

    Without values, or with a range beyond the largest number, both lists are empty.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size or not np.isfinite(float(numbers.max()) - float(numbers.min())):
        return {"edges": [], "counts": []}
    low, high, top = (float(x) for x in np.percentile(numbers, [0, 99.5, 100]))
    width = (high - low) / BINS or (top - low) / BINS or 1.0
    if whole:
        width = float(np.ceil(width))
    count = min(BINS, int((top - low) // width) + 1)
    edges = low + width * np.arange(count + 1)
    counts = np.histogram(np.minimum(numbers, edges[-1]), edges)[0]
    edges[-1] = max(edges[-1], top)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _by_group(values: NDArray[np.int64], k: NDArray[np.int64], function: np.ufunc) -> NDArray[np.int64]:
    """`function` over the completions of each group, 0 for a group without: [G]."""
    result = np.zeros(len(k), dtype=np.int64)
    held = k > 0
    if values.size:
        result[held] = function.reduceat(values, (np.cumsum(k) - k)[held])
    return result
