"""The work that is measured: real rows as token ids, so that both sides train on the same tokens.

Each case says the precision and how many groups make the optimizer step that is timed; every round takes the next groups of the
data. A group of K completions is, for a trainer that knows pairs only, K // 2 disjoint pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exoalign import Group, load_tokenizer, read_groups, tokenize


@dataclass(frozen=True)
class Case:
    """What is trained on, and how."""

    what: str
    groups: Callable[[Any, Path, int], list[Group]]
    precision: str  # of the weights, or "autocast": float32 weights, bfloat16 arithmetic
    objective: str
    groups_per_step: int
    unit: str


def hh_pairs(tokenizer: Any, data: Path, count: int) -> list[Group]:
    """Preference pairs of hh-rlhf whose prompt and longer reply are at most 512 tokens."""
    groups, _ = read_groups(str(data / "hh_harmless_train.jsonl.gz"), limit=4 * count)
    fitting = [g for g in tokenize(groups, tokenizer) if _longest(g) <= 512]
    return fitting[:count]


def long_prompts(
    tokenizer: Any, data: Path, count: int, *, k: int = 8, prompt: int = 512, reply: int = 64
) -> list[Group]:
    """Prompts and K completions of fixed length, cut from the running text of hh-rlhf; rewards in order."""
    groups, _ = read_groups(str(data / "hh_harmless_train.jsonl.gz"), limit=2000)
    text = [token for g in tokenize(groups, tokenizer) for ids in (g.prompt_ids, *g.completion_ids) for token in ids]
    length, made = prompt + k * reply, []
    for i in range(count):
        part = text[(i * length) % (len(text) - length) :][:length]
        replies = tuple(tuple(part[prompt + j * reply :][:reply]) for j in range(k))
        made.append(
            Group(
                f"text {i}", tuple(f"reply {j}" for j in range(k)), rewards=tuple(j / k for j in range(k)),
                prompt_ids=tuple(part[:prompt]), completion_ids=replies,
            )
        )  # fmt: skip
    return made


def alpaca(tokenizer: Any, data: Path, count: int) -> list[Group]:
    """Short instructions with the long, ragged replies of 7 or 8 models, cut at 256 tokens."""
    groups, _ = read_groups(str(data / "alpaca_eval_k8.jsonl.gz"), limit=count)
    return [
        replace(g, completion_ids=tuple(ids[:256] for ids in g.completion_ids)) for g in tokenize(groups, tokenizer)
    ]


def _longest(group: Group) -> int:
    return len(group.prompt_ids) + max(map(len, group.completion_ids))


CASES = {
    "hh_bf16": Case("HH pairs, bfloat16 weights", hh_pairs, "bfloat16", "exo_pref", 8, "pairs"),
    "hh_fp32": Case("HH pairs, float32", hh_pairs, "float32", "exo_pref", 8, "pairs"),
    "hh_autocast": Case("HH pairs, float32 weights, bfloat16 autocast", hh_pairs, "autocast", "exo_pref", 8, "pairs"),
    "k8_long_prompt": Case(
        "K = 8, prompts of 512, completions of 64, bfloat16 weights",
        long_prompts,
        "bfloat16",
        "exo_rw",
        1,
        "completions",
    ),
    "alpaca_k8": Case(
        "alpaca_eval, K = 8, cut at 256, bfloat16 weights", alpaca, "bfloat16", "exo_rw", 2, "completions"
    ),
}


def rows_of(case: Case, model: str, data: Path, number: int) -> list[Group]:
    """The case's groups of round `number`, with token ids.

    Raises:
        SystemExit: if the data is not there.
    """
    if not data.is_dir():
        raise SystemExit(f"{data}: no such folder; give the folder with hh_harmless_train.jsonl.gz as --data")
    first = number * case.groups_per_step
    groups = case.groups(load_tokenizer(model), data, first + case.groups_per_step)[first:]
    if len(groups) < case.groups_per_step:
        raise SystemExit(f"{data}: too few rows for round {number + 1}")
    return groups
