"""Counts the bytes of all tensors that are alive, and the operations that are run, while a piece of code runs."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

MAPPED = 32 << 20
"""The C library gives blocks of this size back when they are freed; smaller ones it keeps, in fragments."""

GROUPED = torch.ops.aten._grouped_mm.default


class Live(TorchDispatchMode):
    """Bytes of all tensors that are alive, their highest sum, and the operations run so far."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.small = self.small_at_peak = self.flops = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed; views of it are no more."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self._change(size)
            if self.bytes > self.peak:
                self.peak, self.small_at_peak = self.bytes, self.small
            weakref.finalize(storage, self._change, -size).atexit = False

    def _change(self, size: int) -> None:
        self.bytes += size
        self.small += size if abs(size) < MAPPED else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _grouped_product(*args) if func is GROUPED else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.flops += _operations(func, args, kwargs or {}, out)
        return out


def _grouped_product(left: Tensor, right: Tensor, ends: Tensor | None = None, *_: Any) -> Tensor:
    """An empty result of the experts' matrix product, for which PyTorch knows no sizes but in bfloat16.

    [M, K] x [G, K, N] -> [M, N]; [K, M] x [M, N] -> [G, K, N]; [G, M, K] x [K, N] -> [M, N]; all others as `bmm`.
    """
    if left.dim() == 2 and right.dim() == 2 and ends is not None:
        return left.new_empty(len(ends), left.shape[0], right.shape[1])
    experts = [left.shape[0]] if left.dim() == right.dim() == 3 else []
    return left.new_empty(*experts, left.shape[-2], right.shape[-1])


def _operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if func is GROUPED:  # each token by one expert's matrix
        left, right = args[:2]
        return 2 * math.prod(left.shape[-2:]) * right.shape[-1]
    # the CPU's attention is not in PyTorch's register: forward two products, backward five
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return 2 * _product(args[0], args[1])
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return 5 * _product(args[1], args[2])
    return 0


def _product(query: Tensor, key: Tensor) -> int:
    """Operations of query @ key.T: [B, H, L, D], [B, G, S, D]."""
    return 2 * math.prod(query.shape) * key.shape[2]
