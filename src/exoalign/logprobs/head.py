"""The head on completion positions only, a chunk of them at a time: no logits of the whole sequence are ever held.

logits z = f(hidden @ weight.T + bias) with f the model's own finish: a multiplier (Cohere, Granite, Falcon-H1) and soft-capping
(Gemma 2); log-probs are taken at a temperature. The backward pass computes each chunk's logits again.

Shape legend: M positions, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class Head:
    """A model's output layer: weight [V, E], bias [V] or None, and how it finishes its logits."""

    weight: Tensor
    bias: Tensor | None = None
    multiplier: float = 1.0
    softcap: float | None = None

    def to(self, dtype: torch.dtype) -> Head:
        """The same with its weights in the type of the hidden states."""
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """[m, E] in the weight's type -> finished logits / T [m, V] in float32 at least, and tanh of the capped ones."""
        z = torch.nn.functional.linear(hidden, self.weight, self.bias)
        z = z if z.dtype == torch.float64 else z.float()
        if self.multiplier != 1.0:
            z = z * self.multiplier
        bent = None
        if self.softcap is not None:
            bent = torch.tanh(z / self.softcap)
            z = bent * self.softcap
        return (z / temperature if temperature != 1.0 else z), bent


def head_of(model: Any, layer: Any = None) -> Head | None:
    """The head of a transformers model (`layer`, where an adapter wraps it), None where it is no plain linear layer.

    The finish is read from the configuration names that transformers' models use; whoever relies on it compares the result
    with the model's own logits (see `engine`).
    """
    layer = model.get_output_embeddings() if layer is None else layer
    # a subclass may compute something else, and so may a sharded or quantised weight
    if type(layer) is not torch.nn.Linear or type(layer.weight) is not torch.nn.Parameter:
        return None
    config = model.config.get_text_config()
    multiplier = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        multiplier *= getattr(config, name, None) or 1.0
    multiplier /= getattr(config, "logits_scaling", None) or 1.0
    return Head(layer.weight, layer.bias, multiplier, getattr(config, "final_logit_softcapping", None))


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """log softmax(logits / T)[target]: hidden [M, E], targets [M] -> [M] in float32 at least, nats, differentiable."""
    hidden = _computed_in(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedLogProb.apply(hidden, head.weight, head.bias, targets, head, temperature, chunk)


@torch.no_grad()
def token_kl(
    hidden: Tensor, head: Head, other_hidden: Tensor, other_head: Head, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """KL(p(.|prefix) ‖ p_other(.|prefix)) over the vocabulary at each position: [M, E] x 2 -> [M], nats."""
    hidden, other_hidden = _computed_in(hidden), _computed_in(other_hidden)
    head, other_head = head.to(hidden.dtype), other_head.to(other_hidden.dtype)
    steps = []
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(len(hidden), chunk):
            log_p = torch.log_softmax(head.logits(hidden[rows], temperature)[0], -1)
            log_other = torch.log_softmax(other_head.logits(other_hidden[rows], temperature)[0], -1)
            steps.append(torch.nn.functional.kl_div(log_other, log_p, reduction="none", log_target=True).sum(-1))
    return torch.cat(steps)


def _computed_in(hidden: Tensor) -> Tensor:
    """Hidden states in the type that the head's product runs in: autocast's, where it is on."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):  # autocast leaves float64 alone
        return hidden
    return hidden.to(torch.get_autocast_dtype(device))


class _ChunkedLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        out, normalisers = [], []
        cast = head.to(hidden.dtype)
        for rows in _chunks(len(hidden), chunk):
            z, _ = cast.logits(hidden[rows], temperature)
            normalisers.append(z.logsumexp(-1))
            out.append(z.gather(1, targets[rows, None]).squeeze(1) - normalisers[-1])
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers))
        ctx.finish = head.multiplier, head.softcap, temperature, chunk
        return torch.cat(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        multiplier, softcap, temperature, chunk = ctx.finish
        head = Head(weight, bias, multiplier, softcap).to(hidden.dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = _sum_like(weight) if needs_weight else None
        d_bias = _sum_like(bias) if needs_bias else None
        for rows in _chunks(len(hidden), chunk):
            z, bent = head.logits(hidden[rows], temperature)
            d = -torch.exp(z - normaliser[rows, None])  # d log p / d z, but for the target
            d[torch.arange(len(d), device=d.device), targets[rows]] += 1
            d *= grads[0][rows, None] * (multiplier / temperature)
            if bent is not None:
                d *= 1 - bent * bent
            d = d.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = d @ head.weight
            if d_weight is not None:
                d_weight += d.T @ hidden[rows]
            if d_bias is not None:
                d_bias += d.sum(0)
        d_weight, d_bias = (x if x is None else x.to(weight.dtype) for x in (d_weight, d_bias))
        return d_hidden, d_weight, d_bias, None, None, None, None


def _sum_like(weight: Tensor) -> Tensor:
    """Zeros that chunks are summed in: in float32 at least, so that a bfloat16 sum is rounded once and not at every chunk."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, start + size)
