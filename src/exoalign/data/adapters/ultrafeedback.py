"""UltraFeedback (Cui et al. 2023): four scored replies to an instruction; and H4's binarised form, conversations of two.

The reward is `overall_score`, 1 to 10. A pair whose scores are equal keeps its order: the order is the data set's own. Both of
its conversations hold the prompt, which the reader splits off.
"""

from __future__ import annotations

from exoalign.data.adapters.schema import TURNS, Adapter, Row, user

_FOUR = {"instruction": str, "completions": [{"response": str, "overall_score": float}]}
_TWO = {"chosen": TURNS, "rejected": TURNS, "score_chosen": float, "score_rejected": float}


def _four(row: Row, where: str) -> list[Row]:
    replies = row["completions"]
    return [
        {
            "prompt": user(row["instruction"]),
            "completions": [reply["response"] for reply in replies],
            "rewards": [reply["overall_score"] for reply in replies],
        }
    ]


def _two(row: Row, where: str) -> list[Row]:
    pair = {name: [{key: turn[key] for key in TURNS[0]} for turn in row[name]] for name in ("chosen", "rejected")}
    return [{**pair, "score_chosen": row["score_chosen"], "score_rejected": row["score_rejected"]}]


ADAPTERS = [
    Adapter("ultrafeedback", "openbmb/UltraFeedback", "K-way: four replies and their overall scores", _FOUR, _four),
    Adapter(
        "ultrafeedback_binarized",
        "HuggingFaceH4/ultrafeedback_binarized",
        "pairs of conversations with scores (splits train_prefs and test_prefs)",
        _TWO,
        _two,
    ),
]
