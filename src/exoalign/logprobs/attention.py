"""Attention over a packed row (see `pack`): each segment sees its ancestors and itself, and nothing else is computed.

Registered with transformers as `exoalign`. Without a `layout` among the forward arguments it attends as `sdpa` does, or as
`eager` where scores are capped or share the softmax with a sink, so that a model set to it generates and evaluates as ever.
With one, a segment without ancestors is one causal call, and segments that continue one path are one batched call, padded to
the longest, against the path's keys and their own. On a GPU the whole row is one call of FlexAttention (see `flex`).

Shape legend: H heads, G key-value heads, N packed tokens, D head size, C children of a branch, A tokens of their ancestors,
L tokens of the longest child.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from exoalign.logprobs import flex
from exoalign.logprobs.pack import Branch, Layout
from exoalign.logprobs.segments import segment_attention

NAME = "exoalign"


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, H, N, D]; key, value [1, G, N, D] -> [1, N, H, D].

    Args:
        scaling: of the scores; 1 / sqrt(D) when None.
        layout: of the packed row.
        sliding_window: tokens at this distance and beyond are not seen.
        softcap: scores s become softcap * tanh(s / softcap).
        s_aux: [H] attention sinks: a score that takes part in the softmax and adds no value.
        dropout: the share of attention weights that is dropped.

    Raises:
        NotImplementedError: if there is a layout and the model hands over a tensor that has no meaning here, such as a bias.
    """
    plain = softcap is None and s_aux is None
    if layout is None and plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    attend = _sdpa if plain else _written_out
    extra: dict[str, Any] = {"scaling": scaling, "dropout": dropout}
    extra |= {} if plain else {"softcap": softcap, "sinks": s_aux}
    if layout is None:
        return attend(query, key, value, attention_mask, **extra).transpose(1, 2).contiguous(), None
    unknown = [name for name, x in kwargs.items() if isinstance(x, Tensor) and name != "position_ids"]
    if unknown:
        raise NotImplementedError(f"attention with {', '.join(unknown)} cannot share a prompt")
    layout.windows.add(sliding_window)
    if flex.fits(query, dropout=dropout, sinks=s_aux):
        row = flex.attend(query, key, value, layout, sliding_window, scaling=scaling, softcap=softcap)
        return row.transpose(1, 2).contiguous(), None
    unbounded = sliding_window is None or sliding_window >= layout.longest
    alike = query.shape[-1] == value.shape[-1]
    if plain and unbounded and alike and not dropout and query.device.type == "cpu":
        q, k = (x[0].to(value.dtype) for x in (query, key))  # under autocast a rotation may leave float32
        return segment_attention(q, k, value[0], layout.calls, scaling)[None].transpose(1, 2).contiguous(), None
    parts = []
    for number, branch in enumerate(layout.branches):
        block = _block_of(layout, number, sliding_window, query.device)
        if len(branch.children) == 1:
            q, k, v = (x[:, :, branch.start : branch.end] for x in (query, key, value))
            if branch.ancestors:
                k, v = (torch.cat([*_above(branch, x), own], 2) for x, own in ((key, k), (value, v)))
            parts.append(attend(q, k, v, block.mask, **extra))
            continue
        q, k, v = (x[0][:, block.index].transpose(0, 1) for x in (query, key, value))  # [C, H, L, D]
        shared = [[part.expand(len(q), -1, -1, -1) for part in _above(branch, x)] for x in (key, value)]
        k, v = (torch.cat([*above, own], 2) for above, own in zip(shared, (k, v), strict=True))
        out = attend(q, k, v, block.mask, **extra)
        parts.append(out.transpose(0, 1).flatten(1, 2)[:, block.real][None])  # [1, H, tokens, D]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _above(branch: Branch, x: Tensor) -> list[Tensor]:
    """The ancestors' part of x [1, G, N, D], a piece for each."""
    return [x[:, :, start:end] for start, end in branch.ancestors]


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and mask is not None and query.is_cuda:  # no fused kernel there takes both
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        grouped = False
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=grouped,
    )


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The formula itself, for scores that are capped or that share the softmax with a sink; causal without a mask."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = (query @ key.transpose(2, 3)) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:  # the lowest number, so that a query that sees nothing is no NaN
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
    if sinks is None:
        weights = torch.softmax(scores, -1, dtype=wide)
    else:
        sink = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
        weights = torch.softmax(torch.cat([scores, sink], -1), -1, dtype=wide)[..., :-1]
    return torch.dropout(weights.to(value.dtype), dropout, dropout > 0) @ value


@dataclass(frozen=True)
class Block:
    """What the attention of one branch needs, for one window.

    `mask` of what its tokens see, [L, A + L] for one child and [C, 1, L, A + L] for several, None where it is plainly causal;
    `index` [C, L] of the children's tokens in the row; `real` [tokens], where they stand in the flattened [C * L].
    """

    mask: Tensor | None
    index: Tensor
    real: Tensor


def visible(query_position: Tensor, key_position: Tensor, window: int | None) -> Tensor:
    """Whether a token at one position sees one of its own sequence at another: causal, and within the window."""
    seen = key_position <= query_position
    return seen if window is None else seen & (key_position > query_position - window)


def _block_of(layout: Layout, number: int, window: int | None, device: torch.device) -> Block:
    """The block of a branch, made once a pass for all layers with this window."""
    if (number, window) not in layout.blocks:
        layout.blocks[number, window] = _block(layout.branches[number], window, device)
    return layout.blocks[number, window]


def _block(branch: Branch, window: int | None, device: torch.device) -> Block:
    lengths = torch.tensor([end - start for start, end in branch.children])
    starts = torch.tensor([start for start, _ in branch.children])
    longest = int(lengths.max())
    step = torch.arange(longest)
    real = step < lengths[:, None]
    index = torch.where(real, starts[:, None] + step, starts[:, None])
    mask = None
    if branch.ancestors or (window is not None and window < longest):
        position = torch.arange(branch.depth + longest)
        mask = visible(position[branch.depth :, None], position, window).to(device)
        mask = mask if len(lengths) == 1 else mask[None, None].expand(len(lengths), 1, -1, -1)
    return Block(mask, index.to(device), real.flatten().nonzero().squeeze(1).to(device))


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
