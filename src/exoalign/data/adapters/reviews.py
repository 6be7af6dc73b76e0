"""Film reviews: IMDb (Maas et al. 2011) and rt-polarity (Pang and Lee 2005), both `text, label`.

The text is for SFT, which leaves the label out; a classifier learns both. A prompt is the beginning of a review up to the end
of its eighth word, as it stands there, which is about ten tokens: counting tokens would take a tokenizer. Of a sentence it is
four words, so that most of it is still to be written. A shorter text is a prompt as a whole.
"""

from __future__ import annotations

import re

from exoalign.data.adapters.schema import Adapter, Row

_SCHEMA = {"text": str, "label": int}


def _text(row: Row, where: str) -> list[Row]:
    return [{"text": row["text"], "label": row["label"]}]


def _prompts(name: str, hub_id: str, words: int, of: str) -> Adapter:
    """The first so many words."""
    beginning = re.compile(rf"\s*(?:\S+\s+){{0,{words - 1}}}\S+")

    def prompt(row: Row, where: str) -> list[Row]:
        found = beginning.match(row["text"])
        return [{"prompt": found[0] if found else ""}]

    return Adapter(name, hub_id, f"prompts: the first {words} words of {of}", _SCHEMA, prompt, unread=("label",))


_REVIEWS, _SENTENCES = "stanfordnlp/imdb", "cornell-movie-review-data/rotten_tomatoes"
ADAPTERS = [
    Adapter("imdb", _REVIEWS, "text: a review, with its label", _SCHEMA, _text),
    _prompts("imdb_prompts", _REVIEWS, 8, "a review"),
    Adapter("rt_polarity", _SENTENCES, "text: a sentence, with its label", _SCHEMA, _text),
    _prompts("rt_polarity_prompts", _SENTENCES, 4, "a sentence"),
]
