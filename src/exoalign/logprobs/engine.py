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
from exoalign.kl_estimators import k3_terms
from exoalign.logprobs import attention, readout, rows
from exoalign.logprobs.adapted_head import adapted_head_of, head_state
from exoalign.logprobs.head import Head, token_comparison, token_logprobs
from exoalign.logprobs.pack import Pack, pack
from exoalign.logprobs.rows import device_of

logger = logging.getLogger(__name__)

PROBE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
COARSE = 0.5
"""Largest difference in nats between both ways on the probe's completions of 3 tokens; COARSE for weights of 16 bits, whose
rounding alone moves a log-prob by tenths. A layout that is misread moves it by whole nats. (Of a reward model: in hidden states
as a share of the largest. A head that has learnt nothing yet, and is near 0, would show no difference in rewards.)"""

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


def completion_scores(model: torch.nn.Module, batch: GroupBatch) -> Tensor:
    """What a reward model says of whole completions: see `readout.row_scores`, whose fast twin this is.

    Returns:
        [B, K, C], differentiable; 0 where a completion is absent.
    """
    if not shares_prefix(model):
        return readout.row_scores(model, batch)
    packed = pack(batch).to(device_of(model))
    head = readout.score_head(within(model))
    assert head is not None
    scores = readout.apply_head(head, _states(within(model), packed))
    return readout.spread(scores[packed.term], packed.owner, batch.shape)


@torch.no_grad()
def compare_policies(
    policy: torch.nn.Module, reference: torch.nn.Module, batch: GroupBatch, *, temperature: float = 1.0
) -> rows.Comparison:
    """How far the policy is from the reference on each completion: see `rows.compare_policies`, whose fast twin this is."""
    if not (shares_prefix(policy) and shares_prefix(reference)):
        return rows.compare_policies(policy, reference, batch, temperature=temperature)
    packed = pack(batch).to(device_of(policy))
    hidden, head = hidden_states(policy, packed)
    other_hidden, other_head = hidden_states(reference, packed)
    ratio, kl = token_comparison(hidden, head, other_hidden, other_head, packed.targets, temperature=temperature)
    packed, ratio = packed.to(torch.device("cpu")), ratio.double().cpu()
    values = ratio, kl.double().cpu(), torch.from_numpy(k3_terms(ratio.numpy()))
    return rows.Comparison(*(packed.sums(of_tokens, batch.shape) for of_tokens in values))


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
    if readout.score_head(model) is None and adapted_head_of(model) is None:
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
            slow = _rowwise(wrapped, batch)
            model.set_attn_implementation(attention.NAME)
            difference = float((_together(model, packed, batch.shape) - slow).abs().max())
            reason = _unseen(model, packed) or _other_head(model, packed)
        scale, what = 1.0, "log-probs for a packed row (by {:.2g} nats)"
        if readout.score_head(model) is not None:
            scale, what = float(slow.abs().max()), "hidden states for a packed row (by {:.2g})"
        if not reason and not difference <= PROBE_TOLERANCE.get(model.dtype, COARSE) * scale:
            reason = f"{name} gives other {what.format(difference)}"
    except ModelError:  # rows cannot do it either
        raise
    except Exception as error:  # an architecture may refuse in any way it likes
        reason = f"{name} does not take a packed row ({first_line(error)})"
    finally:
        if reason:
            model.set_attn_implementation(before)
    return reason


def _rowwise(wrapped: Any, batch: GroupBatch) -> Tensor:
    """What the probe compares, by rows: log-probs, or the hidden states that a reward model reads."""
    if readout.score_head(within(wrapped)) is not None:
        return readout.row_states(within(wrapped), batch)
    return rows.completion_logprobs(wrapped, batch)


def _together(model: Any, packed: Pack, shape: tuple[int, int]) -> Tensor:
    """What the probe compares, from one packed row."""
    if readout.score_head(model) is not None:
        return readout.spread(_states(model, packed)[packed.term], packed.owner, shape)
    return _shared(model, packed, shape, 1.0)


def _other_head(model: Any, packed: Pack) -> str:
    """Whether the model finishes its logits some other way than `head_of` read: told even where 16 bits blur the sums."""
    ids = packed.input_ids[:, : packed.layout.branches[0].end]
    theirs = model(input_ids=ids, use_cache=False).logits[0].float()
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    score, adapted = readout.score_head(model), adapted_head_of(model)
    if score is not None:
        ours = readout.apply_head(score, states[-1])
    else:
        assert adapted is not None
        hidden = adapted.states(states)
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
    adapted, score = adapted_head_of(model), readout.score_head(model) is not None
    vocabulary = len(model.get_input_embeddings().weight) if adapted is None else len(adapted.head.weight)
    ids = torch.randint(vocabulary, (2 * 5 + 2 * 3 * 3,), generator=torch.Generator().manual_seed(0))
    if score and (pad_id := readout.pad_id_of(model)) is not None:
        ids[ids == pad_id] = (pad_id + 1) % vocabulary  # transformers would look for the last token before it
    lengths = torch.tensor([[3, 2, 1], [3, 3, 0]])
    return GroupBatch(
        prompt_ids=ids[:10].view(2, 5),
        prompt_lengths=torch.tensor([5, 5]),
        completion_ids=ids[10:].view(2, 3, 3),
        completion_lengths=lengths,
        completion_masks=torch.arange(3) == lengths[..., None] - 1 if score else None,
    )


def hidden_states(wrapped: Any, packed: Pack) -> tuple[Tensor, Head]:
    """Hidden states that predict the completion tokens [M, E], and the head; both wider under an adapter on the head."""
    model = within(wrapped)
    adapted = adapted_head_of(model)
    assert adapted is not None
    return adapted.states(_states(model, packed)), adapted.head


def _states(model: Any, packed: Pack) -> Tensor:
    """Hidden states at the predictors [M, E], of transformers' own model."""
    states: Tensor = model.base_model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.no_mask,
        use_cache=False,
        layout=packed.layout,
    ).last_hidden_state
    return states[0, packed.predictors]
