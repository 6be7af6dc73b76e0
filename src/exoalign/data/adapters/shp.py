"""Stanford Human Preferences (Ethayarajh et al. 2022): two comments below a post, and which of them readers preferred.

`labels` is 1 where A is preferred, else 0. The scores are the comments' votes; a row whose label goes against them is refused.
"""

from __future__ import annotations

from exoalign.data.adapters.schema import FIRST_OR_SECOND, Adapter, Row, user
from exoalign.errors import DataError

_SCHEMA = {
    "history": str,
    "human_ref_A": str,
    "human_ref_B": str,
    "labels": FIRST_OR_SECOND,
    "score_A": float,
    "score_B": float,
}


def _pair(row: Row, where: str) -> list[Row]:
    chosen, rejected = "AB" if row["labels"] == 1 else "BA"
    if row[f"score_{chosen}"] < row[f"score_{rejected}"]:
        raise DataError(
            f"{where}: `labels` is {row['labels']}, so {chosen} is preferred, and `score_A` {row['score_A']}, `score_B`"
            f" {row['score_B']} say that it lost; mend the label or the scores, or leave the row out"
        )
    return [
        {
            "prompt": user(row["history"]),
            "chosen": row[f"human_ref_{chosen}"],
            "rejected": row[f"human_ref_{rejected}"],
            "score_chosen": row[f"score_{chosen}"],
            "score_rejected": row[f"score_{rejected}"],
        }
    ]


ADAPTERS = [
    Adapter("shp", "stanfordnlp/SHP", "pairs of replies to a post, with their votes", _SCHEMA, _pair, folders=True)
]
