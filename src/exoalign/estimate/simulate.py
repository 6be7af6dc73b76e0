"""One training pass on tensors without data: the real code runs, every tensor it would hold is counted, nothing is computed.

The model is copied with PyTorch's fake tensors in place of its weights, so that kernels, autocast and what autograd saves are
those of the device, whatever the architecture, and 70B take no more memory here than 1B.

Shape legend: C completions of a pass, M completion tokens, E hidden size.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from exoalign.errors import ModelError
from exoalign.groups import GroupBatch
from exoalign.logprobs import attention, rows
from exoalign.logprobs.head import head_of, token_logprobs
from exoalign.logprobs.pack import pack
from exoalign.models import autocast


@dataclass(frozen=True)
class PassShape:
    """What goes through the model at once: one group, its prompt and as many of its completions as fit, in tokens."""

    prompt: int
    completions: int
    completion: int

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
        temporary: what comes on top at the highest point: the head's chunks of logits, gradients on their way.
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
    forward: int
    head: int
    backward: int
    shared: bool

    @property
    def peak(self) -> int:
        """Bytes at the highest point of the pass, gradients of earlier passes present."""
        return self.weights + self.gradients + self.activations + self.temporary


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
    shares = _takes_packed_rows(model)
    try:
        return _simulate(model, shape, bf16=bf16, device=device, checkpointing=checkpointing, shared=shares)
    except Exception as error:  # an architecture may depend on the numbers themselves, in any way it likes
        first = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"{type(model).__name__} does not run on tensors without data ({type(error).__name__}: {first})"
        ) from error


def _simulate(
    model: Any, shape: PassShape, *, bf16: bool, device: torch.device, checkpointing: bool, shared: bool
) -> Simulated:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter of peft
    prepare = _packed_pass if shared else _rows_pass
    forward, finish = prepare(model, shape)
    live = _Live()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = _without_data(model, device)
        if shared:
            fake.set_attn_implementation(attention.NAME)
        fake.train()
        if checkpointing:
            enable = getattr(fake, "activation_checkpointing_enable", None) or fake.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        trainable = [p for p in fake.parameters() if p.requires_grad]
        with live:
            for t in (*fake.parameters(), *fake.buffers()):
                live.add(t)
            weights = live.bytes
            for p in trainable:
                p.grad = torch.empty_like(p)
            before = live.bytes
            with autocast(device, bf16=bf16):
                states = forward(fake)
                activations, body = live.bytes - before, live.flops
                total = finish(fake, states)
                head = live.flops - body
            total.backward()
    return Simulated(
        weights=weights,
        gradients=before - weights,
        trainable=sum(p.numel() for p in trainable),
        activations=activations,
        temporary=live.peak - before - activations,
        forward=body,
        head=head,
        backward=live.flops - body - head,
        shared=shared,
    )


_Pass = tuple[Callable[[Any], Tensor], Callable[[Any, Tensor], Tensor]]


def _packed_pass(model: Any, shape: PassShape) -> _Pass:
    """Forward of the body and of the head, as `engine` runs them, on a packed row."""
    packed, head = pack(_group(shape)), head_of(model)
    assert head is not None
    for window in _windows(model):  # their sizes depend on numbers, so they are made of real ones
        attention._block_of(packed.layout, 0, window, torch.device("cpu"))

    def body(fake: Any) -> Tensor:
        row = packed.to(_device(fake))
        output = fake.base_model(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            attention_mask=row.no_mask,
            use_cache=False,
            layout=row.layout,
        )
        states: Tensor = output.last_hidden_state[0, row.predictors]
        return states

    def finish(fake: Any, states: Tensor) -> Tensor:
        layer = fake.get_output_embeddings()
        ours = replace(head, weight=layer.weight, bias=layer.bias)
        return token_logprobs(states, ours, packed.targets.to(states.device)).sum()

    return body, finish


def _rows_pass(model: Any, shape: PassShape) -> _Pass:
    """The same on padded rows; the logits of all completion tokens belong to the head."""
    laid = rows.rows_of(_group(shape), torch.device("cpu"))

    def body(fake: Any) -> Tensor:
        device = _device(fake)
        return rows.row_logits(fake, rows.Rows(*(getattr(laid, n).to(device) for n in laid.__dataclass_fields__)))

    def finish(fake: Any, logits: Tensor) -> Tensor:
        return rows.token_logprobs(logits, laid.targets.to(logits.device), 1.0).sum()

    return body, finish


def _group(shape: PassShape) -> GroupBatch:
    c, length = shape.completions, shape.completion
    return GroupBatch(
        prompt_ids=torch.zeros(1, shape.prompt, dtype=torch.long),
        prompt_lengths=torch.tensor([shape.prompt]),
        completion_ids=torch.zeros(1, c, length, dtype=torch.long),
        completion_lengths=torch.full((1, c), length),
    )


def _without_data(model: Any, device: torch.device) -> Any:
    """A copy of the model whose weights and buffers hold no data: inside a fake mode."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *model.buffers()):
        empty = torch.empty(t.shape, dtype=t.dtype, device=device)
        memo[id(t)] = torch.nn.Parameter(empty, t.requires_grad) if isinstance(t, torch.nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def _takes_packed_rows(model: Any) -> bool:
    """What `engine` asks before its numeric probe, which needs weights."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    can_set = getattr(inner, "_can_set_attn_implementation", lambda: False)
    kinds = set(getattr(inner.config.get_text_config(), "layer_types", None) or ())
    return bool(can_set()) and head_of(inner) is not None and not kinds - {"full_attention", "sliding_attention"}


def _windows(model: Any) -> set[int | None]:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or None
    return {None, window}


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


class _Live(TorchDispatchMode):
    """Bytes of all tensors that are alive, their highest sum, and the operations run so far."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed; views of it are no more."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.flops += _operations(func, args, kwargs or {}, out)
        return out


def _operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    # the CPU's attention is not in PyTorch's register: forward two products, backward five
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return 2 * _product(args[0], args[1])
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return 5 * _product(args[1], args[2])
    return 0


def _product(query: Tensor, key: Tensor) -> int:
    """Operations of query @ key.T: [B, H, L, D], [B, G, S, D]."""
    return 2 * math.prod(query.shape) * key.shape[2]
