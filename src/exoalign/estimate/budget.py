"""How many tokens may go through a model at once."""

from __future__ import annotations

from typing import Any

import torch

from exoalign.errors import ModelError
from exoalign.estimate.memory import memory_for
from exoalign.estimate.simulate import PassShape, Simulated, simulate
from exoalign.models import default_device

SHARE = 0.75
"""Of what weights, gradients and optimizer leave over, a pass takes so much: other processes and the next stage need theirs."""
MOST_TOKENS = {"cpu": 4096}
MOST_TOKENS_ELSEWHERE = 16384
"""Beyond so many tokens a pass gains no more speed."""
BASELINE = 600_000_000
"""Python with PyTorch and transformers loaded, in main memory."""
ADAM_BYTES = 8
"""AdamW keeps two numbers of float32 for each trainable weight."""


def largest_pass(
    model: Any,
    *,
    bf16: bool,
    memory: int | None = None,
    prompt: int = 512,
    completion: int = 256,
    checkpointing: bool | None = None,
    optimizer_bytes: int = ADAM_BYTES,
    device: torch.device | None = None,
) -> int:
    """The most tokens (prompts once, and completions) that one forward and backward can hold.

    A pass of one completion and one of as many as are of use are simulated, without computing anything; what fits in between
    lies on a straight line.

    Args:
        model: a causal language model with its adapters, weights on any device or on none (meta); it is left as it is.
            Weights that do not require gradients count as frozen.
        bf16: matrix products under bfloat16 autocast.
        memory: bytes that the process may hold; what the device has for it when None.
        prompt: the longest prompt, tokens.
        completion: the longest completion, tokens.
        checkpointing: activations are recomputed; what the model is set to when None.
        optimizer_bytes: of the optimizer's state for each trainable weight.
        device: that trains; the accelerator if there is one, else the CPU, when None.

    Returns:
        Tokens: at least the prompt and one completion, even where these do not fit, and at most `MOST_TOKENS`.

    Raises:
        ModelError: if the model cannot run on tensors without data, or the memory of the device is not known.
    """
    device = device or default_device()
    memory = memory or memory_for(device)
    if memory is None:
        raise ModelError(f"the memory of {device.type} is not known; set align.max_tokens_per_pass")
    if checkpointing is None:
        checkpointing = recomputes(model)

    def run(completions: int) -> tuple[int, Simulated]:
        shape = PassShape(prompt, completions, completion)
        return shape.tokens, simulate(model, shape, bf16=bf16, device=device, checkpointing=checkpointing)

    step = max(completion - 1, 1)
    most = MOST_TOKENS.get(device.type, MOST_TOKENS_ELSEWHERE)
    least, small = run(1)
    high, large = run(max((most - prompt) // step, 1))
    kept = small.weights + small.gradients + optimizer_bytes * small.trainable
    kept += BASELINE if device.type == "cpu" else 0
    room = SHARE * (memory - kept)
    if large.taken <= room:
        return high
    tokens = _between(least, small, high, large, room)
    if tokens > least:  # the first took the temporary bytes of the largest pass for granted
        middle, found = run((tokens - prompt) // step)
        if found.taken <= room:
            tokens = max(tokens, _between(middle, found, high, large, room))
    return tokens


def recomputes(model: Any) -> bool:
    """Whether the model is set to compute activations again in the backward (the name has changed in transformers)."""
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(model, name):
            return bool(getattr(model, name))
    return False


def _between(low: int, small: Simulated, high: int, large: Simulated, room: float) -> int:
    """Tokens that fit: activations grow evenly, and temporary bytes are no more than the larger pass has."""
    slope = (large.activations + large.fragments - small.activations - small.fragments) / max(high - low, 1)
    return max(int(low + (room - large.temporary - small.activations - small.fragments) / max(slope, 1.0)), low)
