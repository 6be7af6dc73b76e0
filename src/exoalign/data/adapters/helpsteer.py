"""HelpSteer and HelpSteer2 (Wang et al. 2023, 2024): replies with marks from 0 to 4 for five properties.

The rating is the mark for helpfulness. A prompt of several turns marks each later one by "<extra_id_1>Assistant\\n" or
"<extra_id_1>User\\n"; it becomes the turns of a conversation.
"""

from __future__ import annotations

import re

from exoalign.data.adapters.schema import Adapter, Row, user

_MARKS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_SCHEMA = {"prompt": str, "response": str, **dict.fromkeys(_MARKS, float)}
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _rating(row: Row, where: str) -> list[Row]:
    first, *parts = _TURN.split(row["prompt"])
    prompt = user(first)
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        prompt.append({"role": speaker.lower(), "content": text})
    return [{"prompt": prompt, "completion": row["response"], "rating": row["helpfulness"]}]


ADAPTERS = [
    Adapter(
        "helpsteer",
        "nvidia/HelpSteer2",
        "ratings of 0 to 4 for helpfulness (nvidia/HelpSteer has the same columns)",
        _SCHEMA,
        _rating,
        unread=_MARKS[1:],
    )
]
