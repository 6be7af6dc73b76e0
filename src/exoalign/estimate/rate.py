"""How fast this machine multiplies matrices of a model's sizes, measured in less than a second."""

from __future__ import annotations

import time
from typing import Any

import torch

from exoalign.models import autocast

SECONDS = 0.3
LARGEST = 4096
"""Sides beyond this run no faster, and only cost memory."""


def product_rate(model: Any, *, bf16: bool, device: torch.device, rows: int) -> float:
    """Floating-point operations a second of [rows, E] x [E, I] under the training's precision.

    Args:
        model: gives hidden and intermediate size, E and I.
        bf16: bfloat16 autocast over float32 weights.
        device: that trains.
        rows: tokens of a pass.
    """
    config = model.config.get_text_config()
    inner = min(int(getattr(config, "hidden_size", 1024)), LARGEST)
    outer = min(int(getattr(config, "intermediate_size", None) or 4 * inner), LARGEST)
    dtype = torch.bfloat16 if bf16 else torch.float32
    left = torch.randn(min(rows, LARGEST), inner, device=device, dtype=dtype)
    right = torch.randn(inner, outer, device=device, dtype=dtype)
    operations, count = 2 * left.shape[0] * inner * outer, 0
    with torch.no_grad(), autocast(device, bf16=bf16):
        left @ right
        _wait(device)
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            left @ right
            _wait(device)
            count += 1
        spent = time.perf_counter() - began
    return operations * count / spent


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
