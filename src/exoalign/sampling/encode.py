"""Prompts as token ids that a sampler can continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exoalign.data.tokenize import prompt_ids
from exoalign.errors import DataError, ModelError
from exoalign.groups import Prompt, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sources: Sequence[str],
    *,
    context: int | None,
    room: int,
) -> list[list[int]]:
    """Token ids of prompts that fit the context with `room` new tokens.

    Raises:
        DataError: naming the first prompt that has no token or does not fit.
    """
    encoded = []
    for prompt, source in zip(prompts, sources, strict=True):
        try:
            ids = prompt_ids(tokenizer, prompt)
        except (DataError, ModelError) as error:
            raise type(error)(f"{source}: {error}") from error
        if not ids:
            raise DataError(f"{source}: the prompt has no token; expected at least one to sample after")
        if context is not None and len(ids) + room > context:
            raise DataError(
                f"{source}: the prompt has {len(ids)} tokens ({prompt_text(prompt)[:40]!r}): with max_new_tokens {room} that"
                f" is more than the model's context of {context}; shorten the prompt or lower sample.max_new_tokens"
            )
        encoded.append(ids)
    return encoded
