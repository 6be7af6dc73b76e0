"""The head on completion positions only, in tiles of positions and vocabulary: logits are never held but for one tile.

logits z = f(hidden @ weight.T + bias) / T with f the model's own finish: a multiplier (Cohere, Granite, Falcon-H1) and
soft-capping (Gemma 2). Normalisers and means under the softmax are joined from tile to tile by their own normalisers, as in
online softmax (arXiv 1805.02867). The backward pass computes each tile again; with a frozen head the forward pass has the
gradient towards the hidden states ready, because a position's share of the loss is one number.

Shape legend: M positions, m of a tile, E hidden size, V vocabulary, v of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

ROWS, COLUMNS = 1024, 2048
"""Positions and entries of the vocabulary in a tile: its float32 logits stay in the processor's cache."""


@dataclass(frozen=True)
class Head:
    """A model's output layer: weight [V, E], bias [V] or None, and how it finishes its logits."""

    weight: Tensor
    bias: Tensor | None = None
    multiplier: float = 1.0
    softcap: float | None = None

    def columns(self, v: slice, dtype: torch.dtype) -> Head:
        """A part of the vocabulary, with its weights in the type of the hidden states."""
        bias = None if self.bias is None else self.bias[v].to(dtype)
        return replace(self, weight=self.weight[v].to(dtype), bias=bias)

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """[m, E] in the weight's type -> finished logits / T [m, v] in float32 at least, and tanh of the capped ones."""
        return self.finish(torch.nn.functional.linear(hidden, self.weight, self.bias), temperature)

    def target_logits(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """The finished logits of one target each, unrounded: [m, E], [m] -> [m], and tanh of the capped ones."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        z = (hidden.to(wide) * self.weight[targets].to(hidden.dtype).to(wide)).sum(-1)
        return self.finish(z if self.bias is None else z + self.bias[targets].to(hidden.dtype).to(wide), temperature)

    def finish(self, z: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        """The model's own finish of its logits, then the temperature; in place where it can be."""
        z = z if z.dtype == torch.float64 else z.float()
        if self.multiplier != 1.0:
            z = z.mul_(self.multiplier)
        bent = None
        if self.softcap is not None:
            bent = torch.tanh(z / self.softcap)
            z = bent * self.softcap
        return (z.div_(temperature) if temperature != 1.0 else z), bent


def head_of(model: Any, layer: Any = None) -> Head | None:
    """The head of a transformers model (`layer`, where an adapter wraps it), None where it is no plain linear layer.

    The finish is read from the configuration names that transformers' models use; whoever relies on it compares the result
    with the model's own logits (see `engine`).
    """
    layer = model.get_output_embeddings() if layer is None else layer
    # a subclass may compute something else, and so may a sharded or quantised weight; a fake one stands for a plain one
    if type(layer) is not torch.nn.Linear or type(layer.weight) not in (torch.nn.Parameter, FakeTensor):
        return None
    config = model.config.get_text_config()
    multiplier = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        multiplier *= getattr(config, name, None) or 1.0
    multiplier /= getattr(config, "logits_scaling", None) or 1.0
    return Head(layer.weight, layer.bias, multiplier, getattr(config, "final_logit_softcapping", None))


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float = 1.0, tile: tuple[int, int] = (ROWS, COLUMNS)
) -> Tensor:
    """log softmax(logits / T)[target]: hidden [M, E], targets [M] -> [M] in float32 at least, nats, differentiable."""
    hidden = _computed_in(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return _TiledLogProb.apply(hidden, head.weight, head.bias, targets, head, temperature, tile)


@torch.no_grad()
def token_entropy(
    hidden: Tensor, head: Head, *, temperature: float = 1.0, tile: tuple[int, int] = (ROWS, COLUMNS)
) -> Tensor:
    """Entropy of p(.|prefix) over the vocabulary at each position: [M, E] -> [M], nats."""
    hidden = _computed_in(hidden)
    mean = _Mean(hidden, 1)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, v in _tiles(len(hidden), len(head.weight), tile):
            z, _ = head.columns(v, hidden.dtype).logits(hidden[rows], temperature)
            mean.add(rows, z, partial(_dot, z))
    return mean.lse - mean.value[:, 0]


@torch.no_grad()
def token_comparison(
    hidden: Tensor,
    head: Head,
    other_hidden: Tensor,
    other_head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    tile: tuple[int, int] = (ROWS, COLUMNS),
) -> tuple[Tensor, Tensor]:
    """log p(target) - log p_other(target), and KL(p ‖ p_other) over the vocabulary, at each position: [M], [M], nats."""
    hidden, other_hidden = _computed_in(hidden), _computed_in(other_hidden)
    mean, other = _Mean(hidden, 1), _Mean(other_hidden, 0)
    with torch.autocast(hidden.device.type, enabled=False):
        target = head.target_logits(hidden, targets, temperature)[0]
        other_target = other_head.target_logits(other_hidden, targets, temperature)[0]
        for rows, v in _tiles(len(hidden), len(head.weight), tile):
            z, _ = head.columns(v, hidden.dtype).logits(hidden[rows], temperature)
            other_z, _ = other_head.columns(v, other_hidden.dtype).logits(other_hidden[rows], temperature)
            place = _inside(targets[rows], v)
            _put(z, target[rows], place)
            _put(other_z, other_target[rows], place)
            difference = z - other_z
            other.add(rows, other_z)
            mean.add(rows, z, partial(_dot, difference))
    between = mean.lse - other.lse
    return target - other_target - between, mean.value[:, 0] - between


class _Mean:
    """Normaliser `lse` [M] and mean under the softmax `value` [M, n] over tiles of the vocabulary, one after the other."""

    def __init__(self, hidden: Tensor, size: int) -> None:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self.lse = hidden.new_full((len(hidden),), -torch.inf, dtype=wide)
        self.value = hidden.new_zeros((len(hidden), size), dtype=wide)

    def add(self, rows: slice, z: Tensor, sums: Callable[[Tensor], Tensor] | None = None) -> None:
        """Logits z [m, v] of a tile, and what gives [m, n] sums for its weights exp(z - maximum), which take z's place."""
        top = z.amax(-1, keepdim=True)
        weights = (z - top).exp_() if sums is not None else z.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        lse = (top + total.log()).squeeze(1)
        joined = torch.logaddexp(self.lse[rows], lse)
        if sums is not None:
            kept, new = (torch.exp(x - joined)[:, None] for x in (self.lse[rows], lse))
            self.value[rows] = kept * self.value[rows] + (new / total) * sums(weights)
        self.lse[rows] = joined


def _computed_in(hidden: Tensor) -> Tensor:
    """Hidden states in the type that the head's product runs in: autocast's, where it is on."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):  # autocast leaves float64 alone
        return hidden
    return hidden.to(torch.get_autocast_dtype(device))


class _TiledLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        temperature: float,
        tile: tuple[int, int],
    ) -> Tensor:
        ctx.settings = head.multiplier, head.softcap, temperature, tile
        frozen = not any(ctx.needs_input_grad[1:3])
        ready = frozen and ctx.needs_input_grad[0]
        mean = _Mean(hidden, hidden.shape[1] if ready else 0)
        target, bent_target = head.target_logits(hidden, targets, temperature)
        for rows, v in _tiles(len(hidden), len(weight), tile):
            part = head.columns(v, hidden.dtype)
            z, bent = part.logits(hidden[rows], temperature)
            place = _inside(targets[rows], v)
            _put(z, target[rows], place)
            mean.add(rows, z, partial(_other_weights, part.weight, bent, place) if ready else None)
        if ready:
            share = -torch.expm1(target - mean.lse)  # 1 - p(target)
            share = share if bent_target is None else share * (1 - bent_target * bent_target)
            slope = weight[targets].to(share.dtype).mul_(share[:, None]).sub_(mean.value)
            ctx.save_for_backward(slope.mul_(head.multiplier / temperature).to(hidden.dtype))
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, target, mean.lse)
        ctx.ready = ready
        return target - mean.lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.ready:
            (slope,) = ctx.saved_tensors
            return (slope * grads[0][:, None]).to(slope.dtype), None, None, None, None, None, None
        hidden, weight, bias, targets, target, lse = ctx.saved_tensors
        multiplier, softcap, temperature, tile = ctx.settings
        head = Head(weight, bias, multiplier, softcap)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        scale = (grads[0] * (multiplier / temperature))[:, None]  # d loss / d (hidden @ weight.T), but for the softmax
        scaled = (hidden * -scale).to(hidden.dtype)
        d_hidden = torch.zeros_like(hidden, dtype=lse.dtype) if needs_hidden else None
        d_weight = torch.empty_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=lse.dtype) if needs_bias else None
        for v, tiles in _by_columns(len(hidden), len(weight), tile):
            part = head.columns(v, hidden.dtype)
            sums: Tensor | None = None  # of the tiles of these columns, in float32 at least where there are several
            for rows in tiles:
                z, bent = part.logits(hidden[rows], temperature)
                at, hit = _inside(targets[rows], v)
                _put(z, target[rows], (at, hit))
                p = z.sub_(lse[rows, None]).exp_()
                p[at] -= hit.to(p.dtype)
                p = (p if bent is None else p.mul_(1 - bent * bent)).to(hidden.dtype)
                if d_hidden is not None:
                    d_hidden[rows] -= p @ part.weight
                if needs_weight:
                    product = p.T @ scaled[rows]
                    sums = product if sums is None else sums.to(lse.dtype).add_(product)
                if d_bias is not None:
                    d_bias[v] -= (p * scale[rows]).sum(0)
            if d_weight is not None:
                d_weight[v] = 0.0 if sums is None else sums
        if d_hidden is not None:
            d_hidden = d_hidden.mul_(scale).to(hidden.dtype)
        d_bias = d_bias if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None


def _dot(values: Tensor, weights: Tensor) -> Tensor:
    """sum_v w_v value_v over a tile: [m, v] -> [m, 1]."""
    return (weights * values).sum(-1, keepdim=True)


_Place = tuple[tuple[Tensor, Tensor], Tensor]


def _other_weights(weight: Tensor, bent: Tensor | None, place: _Place, weights: Tensor) -> Tensor:
    """sum_v w_v weight_v over a tile without the targets, capped logits by their slope: [m, v] -> [m, E]."""
    at, hit = place
    weights[at] *= ~hit
    weights = weights if bent is None else weights.mul_(1 - bent * bent)
    return (weights.to(weight.dtype) @ weight).to(weights.dtype)


def _inside(targets: Tensor, v: slice) -> _Place:
    """For each position a place in a tile of columns v, and [m] whether it is the target's (else any place serves)."""
    column = targets - v.start
    hit = (column >= 0) & (column < v.stop - v.start)
    return (torch.arange(len(targets), device=targets.device), column.clamp(0, v.stop - v.start - 1)), hit


def _put(z: Tensor, target: Tensor, place: _Place) -> None:
    """Write the targets' unrounded logits [m] into a tile [m, v], so that no token comes out above probability 1."""
    at, hit = place
    z[at] = torch.where(hit, target, z[at])


def _tiles(positions: int, vocabulary: int, tile: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """(positions, columns) of all tiles."""
    for v, rows in _by_columns(positions, vocabulary, tile):
        yield from ((r, v) for r in rows)


def _by_columns(positions: int, vocabulary: int, tile: tuple[int, int]) -> Iterator[tuple[slice, list[slice]]]:
    """Columns, each with the positions of its tiles."""
    rows = [slice(start, min(start + tile[0], positions)) for start in range(0, positions, tile[0])]
    for start in range(0, vocabulary, tile[1]):
        yield slice(start, min(start + tile[1], vocabulary)), rows
