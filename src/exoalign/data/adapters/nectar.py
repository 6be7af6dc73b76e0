"""Nectar (Zhu et al. 2023): seven replies to a prompt, ranked by GPT-4, 1 for the best.

The prompt is a transcript that ends with "\\n\\nAssistant: ". Its last space moves to the beginning of each reply, where
tokenizers expect it; the text as a whole stays what it was. Ranks that are tied or no whole numbers cannot be ranks of the
common format and become rewards, -rank.
"""

from __future__ import annotations

from exoalign.data.adapters.schema import Adapter, Row

_SCHEMA = {"prompt": str, "answers": [{"answer": str, "rank": float}]}


def _ranked(row: Row, where: str) -> list[Row]:
    prompt = row["prompt"].rstrip(" ")
    space = row["prompt"][len(prompt) :]
    ranks = [answer["rank"] for answer in row["answers"]]
    group = {"prompt": prompt, "completions": [space + answer["answer"] for answer in row["answers"]]}
    if len(set(ranks)) == len(ranks) and all(float(rank).is_integer() for rank in ranks):
        return [{**group, "ranks": [int(rank) for rank in ranks]}]
    return [{**group, "rewards": [-rank for rank in ranks]}]


ADAPTERS = [Adapter("nectar", "berkeley-nest/Nectar", "rankings of seven replies", _SCHEMA, _ranked)]
