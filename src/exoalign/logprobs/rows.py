"""The obvious way: one padded row for each prompt and completion. It is the oracle for every faster way.

A prompt stands left-padded and its completion right-padded, so that all completions of a batch begin in one column and the
model's own head runs on the completion columns only (`logits_to_keep`). Final soft-capping and logit scaling are the model's.
In float64 it wants a model on `sdpa`: the softmax of transformers' `eager` attention stays in float32, where padding that sees
nothing becomes NaN.

Shape legend: B groups, K completions, R rows (the real completions), P prompt tokens, L completion tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exoalign.errors import ModelError
from exoalign.groups import GroupBatch
from exoalign.kl_estimators import k3_terms


@dataclass(frozen=True)
class Rows:
    """The real completions of a batch, one row each.

    `input_ids`, `attention_mask`, `position_ids` [R, P + L]; `targets` and `mask` [R, L], True at tokens that count in the
    sums; `owner` [R] is the flat index b * K + k that a row belongs to.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    targets: Tensor
    mask: Tensor
    owner: Tensor


def rows_of(batch: GroupBatch, device: torch.device) -> Rows:
    """Lay out the real completions of a batch as rows, on `device`."""
    present = batch.mask.flatten().nonzero().squeeze(1)
    prompt_lengths = batch.prompt_lengths.repeat_interleave(batch.shape[1])[present]
    completion_lengths = batch.completion_lengths.flatten()[present]
    targets = batch.completion_ids.flatten(0, 1)[present]
    p, length = batch.prompt_ids.shape[1], targets.shape[1]
    # a right-padded prompt of n tokens moves to the right edge: column j takes token j - (p - n)
    columns = torch.arange(p, device=prompt_lengths.device) - (p - prompt_lengths)[:, None]
    prompts = batch.prompt_ids.repeat_interleave(batch.shape[1], 0)[present].gather(1, columns.clamp(min=0))
    real = torch.arange(length, device=targets.device) < completion_lengths[:, None]
    attention = torch.cat([columns >= 0, real], 1)
    mask = real if batch.completion_masks is None else real & batch.completion_masks.flatten(0, 1)[present]
    return Rows(
        input_ids=torch.cat([prompts, targets], 1).to(device),
        attention_mask=attention.long().to(device),
        position_ids=(attention.long().cumsum(1) - 1).clamp(min=0).to(device),
        targets=targets.to(device),
        mask=mask.to(device),
        owner=present.to(device),
    )


def row_logits(model: torch.nn.Module, rows: Rows) -> Tensor:
    """Logits that predict the completion tokens: [R, L, V], in the precision of the model's head."""
    length = rows.targets.shape[1]
    arguments = {"logits_to_keep": length + 1} if _keeps_logits(model) else {}
    output = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        position_ids=rows.position_ids,
        use_cache=False,
        **arguments,
    )
    logits: Tensor = output.logits
    return logits[:, -length - 1 : -1]


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / T)[target]: [R, L, V], [R, L] -> [R, L] in float32 at least, nats."""
    scaled = _scaled(logits, temperature)
    return scaled.gather(-1, targets[..., None]).squeeze(-1) - scaled.logsumexp(-1)


def completion_logprobs(model: torch.nn.Module, batch: GroupBatch, *, temperature: float = 1.0) -> Tensor:
    """log pi(y_k|x) of whole completions at a temperature, summed over their tokens (of a trajectory: those that count).

    Args:
        model: a causal language model.
        batch: B groups.
        temperature: logits are divided by it; the same for policy and reference.

    Returns:
        [B, K] in nats, float32 (float64 for a float64 model), differentiable; 0 where a completion is absent.
    """
    b, k = batch.shape
    rows = rows_of(batch, device_of(model))
    tokens = token_logprobs(row_logits(model, rows), rows.targets, temperature)
    sums = torch.where(rows.mask, tokens, 0.0).sum(1)
    return sums.new_zeros(b * k).index_put((rows.owner,), sums).view(b, k)


class Comparison(NamedTuple):
    """How far a policy is from its reference on each completion: `kl_estimators` says what each is.

    All [B, K], over tokens that count, in nats a completion, float64, 0 where absent.

    Attributes:
        log_ratio: log pi_theta(y|x) - log pi_ref(y|x).
        kl: sum over the completion's steps of the exact KL(pi_theta(.|prefix) ‖ pi_ref(.|prefix)) over the vocabulary.
        k3: sum over its tokens of (r - 1) - log r, r = pi_ref / pi_theta.
    """

    log_ratio: Tensor
    kl: Tensor
    k3: Tensor


@torch.no_grad()
def compare_policies(
    policy: torch.nn.Module, reference: torch.nn.Module, batch: GroupBatch, *, temperature: float = 1.0
) -> Comparison:
    """How far the policy is from the reference on each completion; the means over samples of pi_theta estimate the KL.

    Args:
        policy, reference: causal language models with one vocabulary.
        batch: B groups.
        temperature: logits of both are divided by it.
    """
    b, k = batch.shape
    rows = rows_of(batch, device_of(policy))
    log_p, log_ref = (torch.log_softmax(_scaled(row_logits(m, rows), temperature), -1) for m in (policy, reference))
    tokens = (log_p - log_ref).gather(-1, rows.targets[..., None]).squeeze(-1)
    steps = torch.nn.functional.kl_div(log_ref, log_p, reduction="none", log_target=True).sum(-1)
    tokens, steps = (torch.where(rows.mask, values, 0.0).double().cpu() for values in (tokens, steps))

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(b * k).index_put((rows.owner.cpu(),), values.sum(1)).view(b, k)

    return Comparison(sums(tokens), sums(steps), sums(torch.from_numpy(k3_terms(tokens.numpy()))))


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / T in float32 at least: float64 stays."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits / temperature if temperature != 1.0 else logits


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def _keeps_logits(model: torch.nn.Module) -> bool:
    inner: Any = getattr(model, "module", model)  # DistributedDataParallel
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # an adapter of peft hands all on
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise ModelError(f"{type(inner).__name__} has an encoder and a decoder; expected a causal language model")
    names = inspect.signature(inner.forward).parameters
    if "logits_to_keep" not in names and "input_ids" not in names:
        raise ModelError(f"{type(inner).__name__} does not take input_ids; expected a causal language model")
    return "logits_to_keep" in names
