"""Completions of one prompt share its prefill: each distinct prompt goes through the model once, then its cache is copied.

Shape legend: P distinct prompts, R rows (completions), W width of the padded prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Generate = Callable[..., Any]
"""A model's `generate` with the settings that all calls have in common."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
OTHER_TOLERANCE = 0.2
"""Total variation between the two ways' next-token distributions that passes for rounding; bfloat16 rounds roughly."""


def expanded_cache(generate: Generate, input_ids: Tensor, attention: Tensor, rows: Tensor) -> Any:
    """The cache of all tokens of the prompts but the last, for each row that of its prompt.

    Args:
        generate: the model's.
        input_ids: [P, W], padded on the left, at least 2 tokens in each.
        attention: [P, W], 0 at padding.
        rows: [R] index of each row's prompt.

    Raises:
        Exception: of any kind, if the model's cache is not of the kind that can be expanded.
    """
    # generate leaves the new token out of the cache: it holds what went through the model
    done = generate(
        input_ids=input_ids[:, :-1], attention_mask=attention[:, :-1], max_new_tokens=1, return_dict_in_generate=True
    )
    cache = done.past_key_values
    cache.reorder_cache(rows)
    return cache


def shares(generate: Generate, input_ids: Tensor, attention: Tensor, dtype: torch.dtype) -> bool:
    """Whether a model draws from the same distributions with a shared prefill, as tried on some prompts; said if not.

    Recurrent layers, and caches of a model's own, may keep what cannot be copied from row to row.
    """
    few = min(2, len(input_ids))
    rows = torch.arange(few, device=input_ids.device).repeat_interleave(2)
    full = {"input_ids": input_ids[rows], "attention_mask": attention[rows], "max_new_tokens": 3}
    full |= {"return_dict_in_generate": True, "output_logits": True}
    plain = generate(**full)
    try:
        cache = expanded_cache(generate, input_ids[:few], attention[:few], rows)
        shared = generate(**full, past_key_values=cache)
        largest = _largest_difference(plain, shared)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        logger.warning("%s; each completion reads its prompt on its own", _why(error))
        return False
    if largest <= TOLERANCE.get(dtype, OTHER_TOLERANCE):
        return True
    logger.warning("with a shared prefill the model draws otherwise; each completion reads its prompt on its own")
    return False


def _largest_difference(a: Any, b: Any) -> float:
    """Total variation between the distributions of two runs, as long as all rows went the same way."""
    largest = 0.0
    width = a.sequences.shape[1] - len(a.logits)
    for step, (one, other) in enumerate(zip(a.logits, b.logits, strict=True)):
        if not torch.equal(a.sequences[:, : width + step], b.sequences[:, : width + step]):
            break
        apart = (one.double().softmax(-1) - other.double().softmax(-1)).abs().sum(-1) / 2
        largest = max(largest, float(apart.max()))
    return largest


def _why(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"the model's cache cannot be copied ({type(error).__name__}: {first})"


def distinct(prompts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The prompts of a batch's rows, each once, and for each row which of them it is."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]
