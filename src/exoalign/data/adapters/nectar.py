"""Nectar (Zhu et al. 2023): seven replies to a prompt, ranked by GPT-4, 1 for the best.

The prompt is a transcript that ends with "\\n\\nAssistant: ". Its last space moves to the beginning of each reply, where
tokenizers expect it; the text as a whole stays what it was. The ranks become rewards, 1 for the best to 0 for the last, as the
format of ranks has them too: that format refuses ties, and here they only give equal rewards.
"""

from __future__ import annotations

from exoalign.data.adapters.schema import Adapter, Row

_SCHEMA = {"prompt": str, "answers": [{"answer": str, "rank": float}]}


def _ranked(row: Row, where: str) -> list[Row]:
    prompt = row["prompt"].rstrip(" ")
    space = row["prompt"][len(prompt) :]
    ranks = [answer["rank"] for answer in row["answers"]]
    last = max(len(ranks), 2)
    return [
        {
            "prompt": prompt,
            "completions": [space + answer["answer"] for answer in row["answers"]],
            "rewards": [(last - rank) / (last - 1) for rank in ranks],
        }
    ]


ADAPTERS = [
    Adapter("nectar", "berkeley-nest/Nectar", "K-way: seven replies, rewards from their ranks", _SCHEMA, _ranked)
]
