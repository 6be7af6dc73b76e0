"""AlpacaEval (Li et al. 2023): replies of many models to one instruction, each judged against a baseline's reply.

`preference` of an annotation runs from 1 (the baseline's `output_1` is preferred) to 2 (`output_2`), so `preference - 1` is the
probability that the model's reply beats the baseline's: the reward in the K-way file and the rating of an annotation.
"""

from __future__ import annotations

from exoalign.data.adapters.schema import Adapter, Row, user
from exoalign.errors import DataError

_KWAY = {"prompt": str, "completions": [str], "rewards": [float], "generators": [str]}
_ANNOTATION = {"instruction": str, "output_2": str, "preference": float}


def _kway(row: Row, where: str) -> list[Row]:
    return [{"prompt": user(row["prompt"]), "completions": row["completions"], "rewards": row["rewards"]}]


def _annotation(row: Row, where: str) -> list[Row]:
    if not 1 <= row["preference"] <= 2:
        raise DataError(f"{where}: `preference` is {row['preference']}; expected 1 (the baseline) to 2 (the model)")
    rating = row["preference"] - 1
    return [{"prompt": user(row["instruction"]), "completion": row["output_2"], "rating": rating}]


ADAPTERS = [
    Adapter(
        "alpaca_eval",
        "tatsu-lab/alpaca_eval",
        "K-way: the replies of K models to an instruction",
        _KWAY,
        _kway,
        unread=("generators",),
    ),
    Adapter(
        "alpaca_eval_annotations",
        "tatsu-lab/alpaca_eval",
        "ratings: one model's reply and how surely it beats the baseline's (annotations.json of each model)",
        _ANNOTATION,
        _annotation,
    ),
]
