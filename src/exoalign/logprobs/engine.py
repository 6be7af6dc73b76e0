"""Chooses how log-probs of completions are computed: the shared prefix where the model takes it, else padded rows.

The choice is made once for each model by trying both on a few tokens; a model on which they differ gets rows, and one line in
the log says why. Numbers are the same either way, only speed and memory differ.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from exoalign.adapters import KINDS, is_adapted
from exoalign.errors import ModelError, first_line
from exoalign.groups import GroupBatch
from exoalign.logprobs import attention, rows
from exoalign.logprobs.adapted_head import adapted_head_of, head_state
from exoalign.logprobs.head import Head, token_comparison, token_logprobs
from exoalign.logprobs.pack import Pack, pack
from exoalign.logprobs.rows import device_of

logger = logging.getLogger(__name__)

PROBE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
COARSE = 0.5
"""Largest difference in nats between both ways on the probe's completions of 3 tokens; COARSE for weights of 16 bits, whose
rounding alone moves a log-prob by tenths. A layout that is misread moves it by whole nats."""

_verdicts: weakref.WeakKeyDictionary[torch.nn.Module, dict[object, str]] = weakref.WeakKeyDictionary()


def shares_prefix(model: torch.nn.Module) -> bool:
    """Whether the model computes a prompt once for all its completions; decided on the first call, and again after a change."""
    known = _verdicts.setdefault(model, {})
    if _state(model) not in known:
        reason = _examine(model)
        known[_state(model)] = reason
        if reason:
            logger.warning("log-probs go by padded rows, correct but slower: %s", reason)
    return not known[_state(model)]


def completion_logprobs(model: torch.nn.Module, batch: GroupBatch, *, temperature: float = 1.0) -> Tensor:
    """log pi(y_k|x) of whole completions: see `rows.completion_logprobs`, whose fast twin this is.

    Returns:
        [B, K] in nats, differentiable; 0 where a completion is absent.
    """
    if not shares_prefix(model):
        return rows.completion_logprobs(model, batch, temperature=temperature)
    return _shared(model, pack(batch).to(device_of(model)), batch.shape, temperature)


def _shared(model: torch.nn.Module, packed: Pack, shape: tuple[int, int], temperature: float) -> Tensor:
    hidden, head = hidden_states(model, packed)
    return packed.sums(token_logprobs(hidden, head, packed.targets, temperature=temperature), shape)


@torch.no_grad()
def compare_policies(
    policy: torch.nn.Module, reference: torch.nn.Module, batch: GroupBatch, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-ratio and exact per-step KL of each completion: see `rows.compare_policies`, whose fast twin this is."""
    if not (shares_prefix(policy) and shares_prefix(reference)):
        return rows.compare_policies(policy, reference, batch, temperature=temperature)
    packed = pack(batch).to(device_of(policy))
    hidden, head = hidden_states(policy, packed)
    other_hidden, other_head = hidden_states(reference, packed)
    ratio, kl = token_comparison(hidden, head, other_hidden, other_head, packed.targets, temperature=temperature)
    packed = packed.to(torch.device("cpu"))
    return packed.sums(ratio.double().cpu(), batch.shape), packed.sums(kl.double().cpu(), batch.shape)


def within(model: Any) -> Any:
    """The model of transformers itself where peft wraps it: an adapter sits in its layers."""
    return model.get_base_model() if is_adapted(model) else model


def _state(wrapped: Any) -> object:
    """What a verdict holds for: sharding changes the class in place, anyone may set another attention, type or adapter."""
    model = within(wrapped)
    if not isinstance(model, PreTrainedModel):
        return type(model)
    kinds = tuple(settings.peft_type for settings in (getattr(wrapped, "peft_config", None) or {}).values())
    return type(model), head_state(model), model.dtype, model.config._attn_implementation, kinds


def _unknown_adapter(wrapped: Any) -> str:
    """The adapter that may look at more than one token at a time, or nothing."""
    for settings in (getattr(wrapped, "peft_config", None) or {}).values():
        if settings.is_prompt_learning:
            return "an adapter puts tokens of its own before the prompt"
        if settings.peft_type.value not in KINDS or getattr(settings, "alora_invocation_tokens", None):
            return f"an adapter of the type {settings.peft_type.value} may do more than change single layers"
    return ""


def unfit(model: Any) -> str:
    """Why the model, without its adapter, cannot share prompts, as far as that can be told without weights; or nothing."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):  # DistributedDataParallel, whose forward must run
        return f"{name} wraps a model or is none of transformers"
    if not model._can_set_attn_implementation():
        return f"the attention of {name} does not follow the interface of transformers"
    if adapted_head_of(model) is None:
        return f"the head of {name} is no plain linear layer, or has an adapter that is more than plain LoRA"
    return ""


def other_layers(model: Any) -> str:
    """Why the layers cannot share prompts: they look back some other way than all of it or a window; or nothing."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    other = kinds - {"full_attention", "sliding_attention"}
    return f"{type(model).__name__} has layers of {', '.join(sorted(kinds))}" if other else ""


def windows_of(model: Any) -> set[int | None]:
    """The windows of the layers in tokens, None without one, as the configuration has them."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or None
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    return {window if kind == "sliding_attention" else None for kind in kinds}


@torch.no_grad()
def _examine(wrapped: Any) -> str:
    """Why the model cannot share prompts, or nothing where it can: tried on two small groups. One that can is set to it."""
    model = within(wrapped)
    if reason := _unknown_adapter(wrapped) or unfit(model):
        return reason
    name = type(model).__name__
    before = _implementations(model)
    batch = _probe(model)
    packed = pack(batch).to(device_of(model))
    reason = "its examination was broken off"
    try:
        with _plainly(wrapped):
            model.set_attn_implementation({key: _oracle(value) for key, value in before.items()})
            slow = rows.completion_logprobs(wrapped, batch)
            model.set_attn_implementation(attention.NAME)
            difference = float((_shared(model, packed, batch.shape, 1.0) - slow).abs().max())
            reason = _unseen(model, packed) or _other_head(model, packed)
        if not reason and not difference <= PROBE_TOLERANCE.get(model.dtype, COARSE):
            reason = f"{name} gives other log-probs for a packed row (by {difference:.2g} nats)"
    except ModelError:  # rows cannot do it either
        raise
    except Exception as error:  # an architecture may refuse in any way it likes
        reason = f"{name} does not take a packed row ({first_line(error)})"
    finally:
        if reason:
            model.set_attn_implementation(before)
    return reason


def _other_head(model: Any, packed: Pack) -> str:
    """Whether the model finishes its logits some other way than `head_of` read: told even where 16 bits blur the sums."""
    adapted = adapted_head_of(model)
    assert adapted is not None
    ids = packed.input_ids[:, : packed.layout.branches[0].end]
    theirs = model(input_ids=ids, use_cache=False).logits[0].float()
    hidden = adapted.states(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    ours = adapted.head.columns(slice(None), hidden.dtype).logits(hidden)[0]
    if (ours - theirs).abs().max() <= 0.01 * theirs.abs().max():
        return ""
    return f"{type(model).__name__} finishes its logits in a way that is not known here"


def _unseen(model: Any, packed: Pack) -> str:
    """What a probe of a few tokens cannot show: a layer that looks back some other way than our attention was told."""
    if reason := other_layers(model):
        return reason
    expected, told = windows_of(model), packed.layout.windows
    if not told:
        return f"{type(model).__name__} keeps the layout from its attention"
    if told != expected:
        wanted, heard = (", ".join(sorted(map(str, windows))) for windows in (expected, told))
        return f"{type(model).__name__} is set to windows of {wanted} tokens, and its attention is told of {heard}"
    return ""


def _implementations(model: Any) -> dict[str, str]:
    """The attention of the model and of its parts, as set_attn_implementation takes it."""
    parts = {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    set_so = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    return {"": model.config._attn_implementation, **set_so}


def _oracle(implementation: str) -> str:
    """The attention to compare with: kernels that have no float32 stand aside."""
    return "sdpa" if any(part in implementation for part in ("flash", "flex", "/", "|")) else implementation


@contextlib.contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """In eval mode, without the autocast that accelerate wraps a forward in; leaves the model as it was."""
    forward = model.__dict__.get("forward")
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        if "_original_forward" in model.__dict__:
            model.forward = model._original_forward
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        for module, flag in training.items():
            module.training = flag
        if forward is not None:
            model.forward = forward


def _probe(model: Any) -> GroupBatch:
    """Two small groups of arbitrary tokens; prompts of one length, so that no row needs padding before it."""
    adapted = adapted_head_of(model)
    assert adapted is not None
    vocabulary = len(adapted.head.weight)
    ids = torch.randint(vocabulary, (2 * 5 + 2 * 3 * 3,), generator=torch.Generator().manual_seed(0))
    return GroupBatch(
        prompt_ids=ids[:10].view(2, 5),
        prompt_lengths=torch.tensor([5, 5]),
        completion_ids=ids[10:].view(2, 3, 3),
        completion_lengths=torch.tensor([[3, 2, 1], [3, 3, 0]]),
    )


def hidden_states(wrapped: Any, packed: Pack) -> tuple[Tensor, Head]:
    """Hidden states that predict the completion tokens [M, E], and the head; both wider under an adapter on the head."""
    model = within(wrapped)
    adapted = adapted_head_of(model)
    assert adapted is not None
    states = model.base_model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.no_mask,
        use_cache=False,
        layout=packed.layout,
    ).last_hidden_state
    return adapted.states(states[0, packed.predictors]), adapted.head
