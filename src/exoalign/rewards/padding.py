"""The padding token of a reward model that is trained here: one that ends no text.

transformers reads the last token that is not the padding token, so that where the padding token also ends a turn (as in
SmolLM2's tokenizer) a text would be read one token too early, or not at the token that was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exoalign.data.template import chat_template, frame
from exoalign.errors import ModelError
from exoalign.logprobs.readout import score_head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW = "<|padding|>"


def set_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Choose the padding token, write it into both configurations, and return its id.

    In this order: the one there is, a special token that is called so, the one for unknown words, another that the template
    does not use; else a new one, for which the embeddings grow by a row. An encoder reads its first token and keeps its own.

    Args:
        model: a sequence classification model of transformers; changed in place.
        tokenizer: the model's; changed in place.
    """
    tokenizer.padding_side = "right"
    if score_head(model) is None and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    token = _unused(tokenizer, len(model.get_input_embeddings().weight))
    if token is None:
        tokenizer.add_special_tokens({"pad_token": NEW})
        if len(tokenizer) > len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    else:
        tokenizer.pad_token = token
    pad_id = int(tokenizer.pad_token_id)
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad_id
    return pad_id


def _unused(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """A special token that ends no text, or None."""
    special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special and i < rows}
    taken = {*_endings(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id}
    source = str(tokenizer.chat_template or "")
    pads = [i for i, token in special.items() if "pad" in token.lower()]
    others = [i for i, token in special.items() if token not in source]
    for candidate in (tokenizer.pad_token_id, *pads, tokenizer.unk_token_id, *others):
        if candidate is not None and candidate in special and candidate not in taken:
            return special[candidate]
    return None


def _endings(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """What the template and the tokenizer put at the end of texts: people's own words are no special tokens."""
    ends = set(tokenizer("x")["input_ids"][-1:])
    if tokenizer.chat_template:
        try:
            after = frame(chat_template(tokenizer), ("user", "assistant"), False).parts[-1]
        except ModelError:  # a template that wants other turns is told of with the group that has them
            return ends
        ends |= set(tokenizer(after, add_special_tokens=False)["input_ids"][-1:])
    return ends
