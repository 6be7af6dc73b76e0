"""A head under an adapter, as a plain head on wider hidden states: what the low rank adds is kept apart from the weight.

LoRA computes z = W h + s B (A h). With h' = [h, s A h] and W' = [W, B] that is W' h', which the tiled head takes as it is.
(The sum W + s B A in bfloat16 would lose whatever is below the precision of W, which is all of it in the first steps.)

Shape legend: M positions, E hidden size, R ranks of all active adapters together, V vocabulary.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exoalign.logprobs.head import Head, head_of


@dataclass(frozen=True)
class AdaptedHead:
    """A plain head [V, E + R], and how hidden states are widened for it: (A [r, E], scaling) of each active adapter."""

    head: Head
    down: tuple[tuple[Tensor, float], ...] = ()

    def states(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., E + R], in the type of the hidden states."""
        if not self.down:
            return hidden
        low = [torch.nn.functional.linear(hidden.to(a.dtype), a) * scaling for a, scaling in self.down]
        return torch.cat([hidden, *(x.to(hidden.dtype) for x in low)], -1)


def adapted_head_of(model: Any) -> AdaptedHead | None:
    """The head of a transformers model that may carry adapters; None where it is computed in a way not known here."""
    layer = _in_use(model.get_output_embeddings())
    if not _is_lora(layer):
        head = head_of(model, layer)
        return None if head is None else AdaptedHead(head)
    head = head_of(model, layer.base_layer)
    active = _active(layer)
    if head is None or layer.merged or any(_is_special(layer, name) for name in active):
        return None
    ups = [layer.lora_B[name] for name in active]
    biases = [up.bias * layer.scaling[name] for up, name in zip(ups, active, strict=True) if up.bias is not None]
    biases += [head.bias] if head.bias is not None else []
    bias = torch.stack(biases).sum(0) if biases else None
    weight = torch.cat([head.weight, *(up.weight for up in ups)], 1)
    return AdaptedHead(
        replace(head, weight=weight, bias=bias),
        tuple((layer.lora_A[name].weight, layer.scaling[name]) for name in active),
    )


def head_state(model: Any) -> object:
    """What `adapted_head_of` decides by, for whoever keeps its answer."""
    layer = model.get_output_embeddings()
    if isinstance(layer, torch.nn.Linear) or not hasattr(layer, "active_adapters"):
        return type(layer)
    special = tuple(name for name in _active(layer) if _is_special(layer, name)) if _is_lora(layer) else ()
    merged = tuple(getattr(layer, "merged_adapters", ()))
    return type(layer), layer.disable_adapters, tuple(layer.active_adapters), merged, special, type(_in_use(layer))


def _in_use(layer: Any) -> Any:
    """The layer that peft's wrapper hands over to: a copy that is trained, or the base when the adapters are off or merged."""
    peft = sys.modules.get("peft")
    if peft is None:
        return layer
    if type(layer) is peft.utils.ModulesToSaveWrapper:
        active = layer.active_adapters
        if layer.disable_adapters or any(name not in layer.modules_to_save for name in active) or not active:
            return layer.original_module
        return layer.modules_to_save[active[0]]
    if _is_lora(layer) and layer.disable_adapters != layer.merged:  # off and merged: its forward would unmerge it
        return layer.base_layer
    return layer


def _is_lora(layer: Any) -> bool:
    return "peft" in sys.modules and type(layer) is sys.modules["peft"].tuners.lora.Linear


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_special(layer: Any, name: str) -> bool:
    """A variant of LoRA (DoRA and others), dropout that is on, or a weight stored the other way round."""
    dropped = layer.training and getattr(layer.lora_dropout[name], "p", 0) > 0
    variant = name in getattr(layer, "lora_variant", {}) or bool(layer.use_dora.get(name))
    return dropped or variant or layer.fan_in_fan_out
