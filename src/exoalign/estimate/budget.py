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
TRIALS = 3
"""Passes that are simulated in search of the largest, besides the smallest and the largest of use."""
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

    Passes are simulated, without computing anything: of as many completions as are of use, of one, and between them where a
    straight line says that the memory ends.

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

    def taken(completions: int) -> tuple[int, Simulated]:
        shape = PassShape(prompt, completions, completion)
        found = simulate(model, shape, bf16=bf16, device=device, checkpointing=checkpointing)
        return found.taken, found

    step = max(completion - 1, 1)
    low, high = 1, max((MOST_TOKENS.get(device.type, MOST_TOKENS_ELSEWHERE) - prompt) // step, 1)
    above, found = taken(high)
    kept = found.weights + found.gradients + optimizer_bytes * found.trainable
    kept += BASELINE if device.type == "cpu" else 0
    room = SHARE * (memory - kept)
    if above <= room:
        return prompt + high * step
    below, _ = taken(low)
    for _ in range(TRIALS):
        guess = low + int(0.98 * (high - low) * (room - below) / max(above - below, 1))
        if not low < guess < high:
            break
        bytes_there, _ = taken(guess)
        if bytes_there <= room:
            low, below = guess, bytes_there
        else:
            high, above = guess, bytes_there
    return prompt + low * step


def recomputes(model: Any) -> bool:
    """Whether the model is set to compute activations again in the backward (the name has changed in transformers)."""
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(model, name):
            return bool(getattr(model, name))
    return False
