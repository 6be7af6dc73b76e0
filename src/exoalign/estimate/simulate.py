"""One training pass on tensors without data: the real code runs, every tensor it would hold is counted, nothing is computed.

The model is copied with PyTorch's fake tensors in place of its weights, so that kernels, autocast and what autograd saves are
those of the device, whatever the architecture, and 70B take no more memory here than 1B. Where all layers are alike, a few of
them are run and the rest is drawn on as a straight line.

Shape legend: C completions of a pass, M completion tokens, E hidden size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exoalign.errors import ModelError, first_line
from exoalign.estimate.live import Live
from exoalign.groups import GroupBatch
from exoalign.logprobs import attention, rows
from exoalign.logprobs.engine import hidden_states, other_layers, unfit, windows_of, within
from exoalign.logprobs.head import Head, token_logprobs
from exoalign.logprobs.pack import pack
from exoalign.models import autocast

DEPTHS = 3, 6
"""Layers that are run of a model whose layers are alike."""

FRAGMENTS = 0.45
"""Bytes in fragments for each byte in small blocks, as measured (docs/estimate.md)."""


@dataclass(frozen=True)
class PassShape:
    """What goes through the model at once: a prompt and some completions, in tokens; of each `counted` count (None: all)."""

    prompt: int
    completions: int
    completion: int
    counted: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the packed row: the prompt once, and each completion without its last."""
        return self.prompt + self.completions * max(self.completion - 1, 0)


@dataclass(frozen=True)
class Simulated:
    """What one pass takes: bytes and floating-point operations (a multiplication and an addition are two).

    Attributes:
        weights: of the model, weights tied together once, and its buffers.
        gradients: of the trainable weights.
        trainable: the number of trainable weights.
        activations: what is kept from the forward for the backward, copies of weights in bfloat16 among it.
        temporary: what comes on top at the highest point: the head's tiles of logits, gradients on their way.
        small: of both, what lies in main memory in blocks of less than `live.MAPPED` bytes.
        forward: operations of the forward without the head.
        head: operations of the head forward.
        backward: operations of the backward, both.
        shared: whether the prompt is computed once for all its completions; False: padded rows.
    """

    weights: int
    gradients: int
    trainable: int
    activations: int
    temporary: int
    small: int
    forward: int
    head: int
    backward: int
    shared: bool

    @property
    def fragments(self) -> int:
        """Bytes that the C library holds on top, between blocks that are in use."""
        return round(FRAGMENTS * self.small)

    @property
    def taken(self) -> int:
        """Bytes that the pass takes at its highest point, on top of weights, gradients and the optimizer's state."""
        return self.activations + self.temporary + self.fragments


def simulate(model: Any, shape: PassShape, *, bf16: bool, device: torch.device, checkpointing: bool) -> Simulated:
    """Forward and backward of one group on fake tensors.

    Args:
        model: a causal language model, on any device, the meta device too; it is left as it is.
        shape: the group.
        bf16: matrix products under bfloat16 autocast.
        device: whose kernels are taken.
        checkpointing: activations are computed again in the backward instead of kept.

    Raises:
        ModelError: if the model cannot run on tensors without data.
    """
    model = within(model)
    layers = _layers_alike(model)
    depths = [None] if layers is None else list(DEPTHS)
    torchs = logging.getLogger("torch._subclasses.fake_tensor")  # tells at length what is told below in a line
    level = torchs.level
    try:
        torchs.setLevel(logging.CRITICAL)
        runs = [
            _run(model, shape, bf16=bf16, device=device, checkpointing=checkpointing, layers=layers, depth=depth)
            for depth in depths
        ]
    except Exception as error:  # an architecture may depend on the numbers themselves, in any way it likes
        raise ModelError(
            f"{type(model).__name__} does not run on tensors without data ({first_line(error)})"
        ) from error
    finally:
        torchs.setLevel(level)
    return replace(
        runs[0] if layers is None else _drawn_on(runs[0], runs[1], len(layers)),
        weights=_bytes(model.parameters()) + _bytes(model.buffers()),
        gradients=_bytes(p for p in model.parameters() if p.requires_grad),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _drawn_on(few: Simulated, more: Simulated, layers: int) -> Simulated:
    """A pass of all layers, from passes of some of them."""
    further = (layers - DEPTHS[1]) / (DEPTHS[1] - DEPTHS[0])

    def line(less: int, more: int) -> int:
        return round(more + further * (more - less))

    return replace(
        more,
        activations=line(few.activations, more.activations),
        small=line(few.small, more.small),
        forward=line(few.forward, more.forward),
        backward=line(few.backward, more.backward),
    )


def _layers_alike(model: Any) -> torch.nn.ModuleList | None:
    """The model's layers, where there are many and none differs from another."""
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", 0)
    found = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if len(found) != 1 or count <= DEPTHS[1] or len(set(getattr(config, "layer_types", None) or ())) > 1:
        return None
    kinds = {
        (type(m), tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters())) for m in found[0]
    }
    return found[0] if len(kinds) == 1 else None


def _run(
    model: Any,
    shape: PassShape,
    *,
    bf16: bool,
    device: torch.device,
    checkpointing: bool,
    layers: torch.nn.ModuleList | None,
    depth: int | None,
) -> Simulated:
    from torch._subclasses.fake_tensor import FakeTensorMode

    shared = not (unfit(model) or other_layers(model))  # what needs no weights of what `engine` asks
    prepare = _packed_pass if shared else _rows_pass
    forward, finish = prepare(model, shape)
    live = Live()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = _without_data(model, device, layers, depth)
        if shared:
            fake.set_attn_implementation(attention.NAME)
        fake.train()
        if checkpointing:
            enable = getattr(fake, "activation_checkpointing_enable", None) or fake.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        with live:
            for p in fake.parameters():  # gradients of an earlier pass are there
                live.add(p)
                if p.requires_grad:
                    p.grad = torch.empty_like(p)
            for t in fake.buffers():
                live.add(t)
            before, small = live.bytes, live.small
            with autocast(device, bf16=bf16):
                states = forward(fake)
                activations, body = live.bytes - before, live.flops
                total = finish(fake, states)
                head = live.flops - body
            total.backward()
    return Simulated(
        weights=0,
        gradients=0,
        trainable=0,
        activations=activations,
        temporary=live.peak - before - activations,
        small=live.small_at_peak - small if device.type == "cpu" else 0,
        forward=body,
        head=head,
        backward=live.flops - body - head,
        shared=shared,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


_Pass = tuple[Callable[[Any], Any], Callable[[Any, Any], Tensor]]


def _packed_pass(model: Any, shape: PassShape) -> _Pass:
    """Forward of the body and of the head, as `engine` runs them, on a packed row."""
    packed = pack(_group(shape))
    assert packed.layout.calls  # made of real numbers, like the blocks: their sizes depend on them
    for number in range(len(packed.layout.branches)):
        for window in {None, *windows_of(model)}:  # the sizes of a block depend on numbers, so it is made of real ones
            attention._block_of(packed.layout, number, window, torch.device("cpu"))

    def body(fake: Any) -> tuple[Tensor, Head]:
        return hidden_states(fake, packed.to(rows.device_of(fake)))

    def finish(fake: Any, found: tuple[Tensor, Head]) -> Tensor:
        states, head = found
        return token_logprobs(states, head, packed.targets.to(states.device)).sum()

    return body, finish


def _rows_pass(model: Any, shape: PassShape) -> _Pass:
    """The same on padded rows; the logits of all completion tokens belong to the head."""
    laid = rows.rows_of(_group(shape), torch.device("cpu"))

    def body(fake: Any) -> Tensor:
        device = rows.device_of(fake)
        return rows.row_logits(fake, rows.Rows(*(getattr(laid, n).to(device) for n in laid.__dataclass_fields__)))

    def finish(fake: Any, logits: Tensor) -> Tensor:
        return rows.token_logprobs(logits, laid.targets.to(logits.device), 1.0).sum()

    return body, finish


def _group(shape: PassShape) -> GroupBatch:
    c, length = shape.completions, shape.completion
    ids = torch.arange(1, c + 1)[None, :, None]  # no two alike, so that none is shared
    counts = torch.arange(length) >= length - (shape.counted or length)
    return GroupBatch(
        prompt_ids=torch.zeros(1, shape.prompt, dtype=torch.long),
        prompt_lengths=torch.tensor([shape.prompt]),
        completion_ids=ids.expand(1, c, length),
        completion_lengths=torch.full((1, c), length),
        completion_masks=counts.expand(1, c, length),
    )


def _without_data(model: Any, device: torch.device, layers: torch.nn.ModuleList | None, depth: int | None) -> Any:
    """A copy of the model, with so many of its layers, whose weights hold no data: inside a fake mode."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *model.buffers()):
        empty = torch.empty(t.shape, dtype=t.dtype, device=device)
        memo[id(t)] = torch.nn.Parameter(empty, t.requires_grad) if isinstance(t, torch.nn.Parameter) else empty
    if layers is not None:
        memo[id(layers)] = torch.nn.ModuleList(copy.deepcopy(layer, memo) for layer in layers[:depth])
    return copy.deepcopy(model, memo)
