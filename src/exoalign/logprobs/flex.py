"""The attention of a packed row by FlexAttention, for GPUs: one kernel a layer, which skips what sees nothing of each other.

The mask is a function of two token numbers, from three numbers for each token. A segment's tokens carry its place in a walk
through the forest, `enter`, and the place where the walk has left everything below it, `leave`: one segment is an ancestor of
another, or the same, if the other's `enter` lies in its own [enter, leave). With the positions, which grow along every path,
that is all that a token needs to know of another.

The mask function is proved equal to the dense mask by enumeration, and FlexAttention's own plain form to the attention used on
CPUs. The compiled kernels have not been run: no GPU was at hand.

Shape legend: H heads, G key-value heads, N packed tokens, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from exoalign.logprobs.pack import Layout
from exoalign.logprobs.segments import Bounds

WHOLE_ROW = -1
"""Stands for a branch number in `Layout.blocks`."""
LEAST_HEAD_SIZE = 16
"""Smaller heads have no kernel."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Places(NamedTuple):
    """Where each token stands: its `position` on its path, and its segment's `enter` and `leave`, all [N]."""

    position: Tensor
    enter: Tensor
    leave: Tensor


def fits(query: Tensor, *, dropout: float, sinks: Tensor | None) -> bool:
    """Whether this attention is for the tensors at hand; sinks take part in the softmax, and dropout in none of its kernels."""
    kernel = query.is_cuda and query.dtype != torch.float64 and query.shape[-1] >= LEAST_HEAD_SIZE
    return kernel and sinks is None and dropout == 0.0


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    window: int | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """query [1, H, N, D]; key, value [1, G, N, D] -> [1, H, N, D], differentiable on a GPU only."""
    if (WHOLE_ROW, window) not in layout.blocks:  # once a pass for all layers with this window
        layout.blocks[WHOLE_ROW, window] = block_mask(layout, window, query.device)
    return _kernel(query.is_cuda)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=layout.blocks[WHOLE_ROW, window],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of the row see each other wholly, in part or not at all."""
    where = places(layout, device)
    n = len(where.position)
    return create_block_mask(
        visible_in_row(where, window), None, None, n, n, device=device, _compile=device.type == "cuda"
    )


def visible_in_row(where: Places, window: int | None) -> MaskFunction:
    """The mask function: whether token number `query` of the row sees token number `key`."""
    position, enter, leave = where

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        on_path = (enter[key] <= enter[query]) & (enter[query] < leave[key])
        seen = on_path & (position[key] <= position[query])
        return seen if window is None else seen & (position[key] > position[query] - window)

    return visible


def places(layout: Layout, device: torch.device) -> Places:
    """The places of all tokens of a row."""
    parents = {child: (branch.ancestors or (None,))[-1] for branch in layout.branches for child in branch.children}
    below = dict.fromkeys(parents, 1)  # segments in the subtree
    for child, parent in reversed(parents.items()):  # children come after their parents
        if parent is not None:
            below[parent] += below[child]
    following: dict[Bounds | None, int] = {None: 0}  # where the walk enters the next child of each
    tokens: list[list[int]] = [[], [], []]
    depths = {child: branch.depth for branch in layout.branches for child in branch.children}
    for child, parent in parents.items():
        enter = following[parent]
        following[parent] += below[child]
        following[child] = enter + 1
        length = child[1] - child[0]
        tokens[0] += range(depths[child], depths[child] + length)
        tokens[1] += [enter] * length
        tokens[2] += [enter + below[child]] * length
    return Places(*(torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in tokens))


@functools.cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@functools.cache
def _kernel(compiled: bool) -> Any:
    """FlexAttention, compiled where it is to be fast: without that it computes all N x N scores."""
    return torch.compile(flex_attention) if compiled else flex_attention
