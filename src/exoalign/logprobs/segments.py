"""Attention over a packed row on a CPU without masks, padding of keys or copies of the prompt: segment by segment.

What a token sees is its own segment causally, and each ancestor whole. So there is one causal call for the segments of a
branch, and one call without a mask for each ancestor, in which the tokens of all its descendants are queries; two softmaxes
over parts of the keys are joined by their normalisers,

    o = sum_i exp(lse_i - lse) o_i,    lse = log sum_i exp(lse_i),

and the flash backward of each part, given o and lse of the whole, is its exact share of the gradient (FlashAttention,
arXiv 2205.14135, sections 3.1 and B.4). Query heads that share a key-value head are folded into its queries.

Shape legend: H heads, G key-value heads, N packed tokens, D head size, C children of a branch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALL = 256 * 256
"""Pairs of a query and a key of one head up to which products beat the flash backward in bfloat16 (docs/log.md)."""
HELD = 8 * SMALL
"""Such pairs that are held at once: their float32 scores stay in the processor's cache."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Own:
    """A branch's children as a causal batch: tokens [start, end) of the row as [C, L]; ragged ones through an index.

    `index` [C, L] of the tokens in the row, None where all have one length; `real` [end - start], where the tokens stand in
    the flattened [C * L].
    """

    start: int
    end: int
    count: int
    index: Tensor | None
    real: Tensor | None

    def gather(self, x: Tensor) -> Tensor:
        """[H, N, ...] -> [C, H, L, ...]."""
        if self.index is not None:
            return x[:, self.index].transpose(0, 1)
        return x[:, self.start : self.end].unflatten(1, (self.count, -1)).transpose(0, 1)

    def put(self, found: Tensor, x: Tensor) -> None:
        """[C, H, L, ...] -> its place in [H, N, ...]."""
        flat = found.transpose(0, 1).flatten(1, 2)
        x[:, self.start : self.end] = flat if self.real is None else flat[:, self.real]


@dataclass(frozen=True)
class Calls:
    """The calls of a layout: `own`, and `above` as (first query, end of queries, first key, end of keys)."""

    own: tuple[Own, ...]
    above: tuple[tuple[int, int, int, int], ...]


Bounds = tuple[int, int]


def calls_of(branches: Sequence[tuple[Sequence[Bounds], Sequence[Bounds]]]) -> Calls:
    """The calls of branches (ancestors, children): see `pack.Branch`. Neighbouring queries of the same keys go together."""
    own, above = [], list[tuple[int, int, int, int]]()
    last: dict[Bounds, int] = {}  # of an ancestor, its last call
    for ancestors, children in branches:
        start, end = children[0][0], children[-1][1]
        own.append(_own(start, end, children))
        for bounds in ancestors:
            i = last.get(bounds)
            if i is not None and above[i][1] == start:
                above[i] = (above[i][0], end, *bounds)
            else:
                last[bounds] = len(above)
                above.append((start, end, *bounds))
    return Calls(tuple(own), tuple(above))


def _own(start: int, end: int, children: Sequence[Bounds]) -> Own:
    if len({b - a for a, b in children}) == 1:
        return Own(start, end, len(children), None, None)
    lengths = torch.tensor([b - a for a, b in children])
    starts = torch.tensor([a for a, _ in children])
    step = torch.arange(int(lengths.max()))
    real = step < lengths[:, None]
    index = torch.where(real, starts[:, None] + step, starts[:, None])
    return Own(start, end, len(children), index, real.flatten().nonzero().squeeze(1))


def segment_attention(query: Tensor, key: Tensor, value: Tensor, calls: Calls, scale: float | None) -> Tensor:
    """query [H, N, D]; key, value [G, N, D] -> [H, N, D], differentiable."""
    out: Tensor = _Segments.apply(query, key, value, calls, scale)
    return out


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: Calls, scale: float | None) -> Tensor:
        heads, kv_heads = len(query), len(key)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        for own in calls.own:
            q, k, v = own.gather(query), *(_repeated(own.gather(x), heads) for x in (key, value))
            found, normaliser = _forward(q, k, v, 0.0, True, scale=scale)
            own.put(found, out)
            own.put(normaliser, lse)
        for start, end, k_start, k_end in calls.above:
            q = _folded(query[:, start:end], kv_heads)
            found, normaliser = _forward(q, key[None, :, k_start:k_end], value[None, :, k_start:k_end], scale=scale)
            _join(
                out[:, start:end],
                lse[:, start:end],
                found.reshape(heads, end - start, -1),
                normaliser.reshape(heads, -1),
            )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.calls, ctx.scale = calls, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        heads, kv_heads = len(query), len(key)
        grad = grads[0]
        d_query, d_key, d_value = (torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value))
        for own in ctx.calls.own:
            q, k, v = own.gather(query), *(_repeated(own.gather(x), heads) for x in (key, value))
            above = own.gather(grad)
            if own.real is not None:  # padding has no gradient
                keep = torch.zeros(own.index.numel(), dtype=torch.bool)
                keep[own.real] = True
                above = above * keep.view(own.count, 1, -1, 1)
            found = _backward(above, q, k, v, own.gather(out), own.gather(lse), causal=True, scale=ctx.scale)
            own.put(found[0], d_query)
            for d, x in zip(found[1:], (d_key, d_value), strict=True):
                own.put(d.unflatten(1, (kv_heads, -1)).sum(2) if heads > kv_heads else d, x)
        for start, end, k_start, k_end in ctx.calls.above:
            g, q, o = (_folded(x[:, start:end], kv_heads) for x in (grad, query, out))
            k, v = key[None, :, k_start:k_end], value[None, :, k_start:k_end]
            normaliser = lse[:, start:end].reshape(1, kv_heads, -1)
            dq, dk, dv = _backward(g, q, k, v, o, normaliser, causal=False, scale=ctx.scale)
            d_query[:, start:end] += dq.reshape(heads, end - start, -1)
            d_key[:, k_start:k_end] += dk[0]
            d_value[:, k_start:k_end] += dv[0]
        return d_query, d_key, d_value, None, None


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool, scale: float | None
) -> Sequence[Tensor]:
    """Gradients towards q, k, v [C, H, L, D] of attention whose whole output and normaliser are `out` and `lse`."""
    pairs = q.shape[2] * k.shape[2]
    if q.dtype != torch.bfloat16 or pairs > SMALL:
        found: Sequence[Tensor] = _flash_backward(grad, q, k, v, out, lse, 0.0, causal, scale=scale)
        return found
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    flat = [x.flatten(0, 1) for x in (grad, q, k, v, out, lse)]
    parts = [
        _by_products(*(x[i : i + HELD // pairs] for x in flat), causal=causal, scale=scale)
        for i in range(0, len(flat[0]), HELD // pairs)
    ]
    return [torch.cat(d).view_as(x) for d, x in zip(zip(*parts, strict=True), (q, k, v), strict=True)]


def _by_products(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a few heads [h, L, D], written out; scores and their gradients are float32."""
    weights = torch.bmm(q.float(), k.float().transpose(1, 2)).mul_(scale).sub_(lse[..., None]).exp_()
    weights = weights.tril_() if causal else weights
    mean = (grad.float() * out.float()).sum(-1, keepdim=True)
    scores = torch.bmm(grad.float(), v.float().transpose(1, 2)).sub_(mean).mul_(weights).to(q.dtype)
    d_value = torch.bmm(weights.to(q.dtype).transpose(1, 2), grad)
    return torch.bmm(scores, k).mul_(scale), torch.bmm(scores.transpose(1, 2), q).mul_(scale), d_value


def _join(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Join a softmax over further keys to the one that stands in `out` [H, n, D] and `lse` [H, n]."""
    joined = torch.logaddexp(lse, more_lse)
    out.copy_(torch.lerp(more.to(lse.dtype), out.to(lse.dtype), torch.exp(lse - joined)[..., None]))
    lse.copy_(joined)


def _folded(x: Tensor, kv_heads: int) -> Tensor:
    """[H, n, D] -> [1, G, H / G * n, D]: the query heads of a key-value head as further queries."""
    return x.reshape(1, kv_heads, -1, x.shape[-1])


def _repeated(x: Tensor, heads: int) -> Tensor:
    """[C, G, L, D] -> [C, H, L, D]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)
