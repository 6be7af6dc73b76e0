"""Film reviews: IMDb (Maas et al. 2011) and rt-polarity (Pang and Lee 2005), both `text, label`.

The text is for SFT, which leaves the label out; a classifier learns both. A prompt is the beginning of a review up to the end
of its eighth word, as it stands there, which is about ten tokens: counting tokens would take a tokenizer. A shorter review is a
prompt as a whole.
"""

from __future__ import annotations

import re

from exoalign.data.adapters.schema import Adapter, Row

WORDS = 8
_SCHEMA = {"text": str, "label": int}
_BEGINNING = re.compile(rf"\s*(?:\S+\s+){{0,{WORDS - 1}}}\S+")


def _text(row: Row, where: str) -> list[Row]:
    return [{"text": row["text"], "label": row["label"]}]


def _prompt(row: Row, where: str) -> list[Row]:
    beginning = _BEGINNING.match(row["text"])
    return [{"prompt": beginning[0] if beginning else ""}]


_SENTENCES = "cornell-movie-review-data/rotten_tomatoes"
ADAPTERS = [
    Adapter("imdb", "stanfordnlp/imdb", "text: a review, with its label", _SCHEMA, _text),
    *(
        Adapter(
            f"{name}_prompts",
            hub_id,
            f"prompts: the first {WORDS} words of a review",
            _SCHEMA,
            _prompt,
            unread=("label",),
        )
        for name, hub_id in (("imdb", "stanfordnlp/imdb"), ("rt_polarity", _SENTENCES))
    ),
    Adapter("rt_polarity", _SENTENCES, "text: a sentence, with its label", _SCHEMA, _text),
]
