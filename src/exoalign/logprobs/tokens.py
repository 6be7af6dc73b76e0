"""Log-probs and values of single tokens, with the prompt computed once: what PPO needs. `row_tokens` is the slow twin.

The value V(s_t) of the prefix before token t is read off the hidden state that predicts token t.

Shape legend: B groups, K completions, L tokens of the longest completion, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exoalign.groups import GroupBatch
from exoalign.logprobs import rows
from exoalign.logprobs.engine import hidden_states, shares_prefix
from exoalign.logprobs.head import token_logprobs
from exoalign.logprobs.pack import pack
from exoalign.logprobs.readout import apply_head
from exoalign.logprobs.rows import device_of


def completion_tokens(
    model: torch.nn.Module, batch: GroupBatch, value_head: torch.nn.Linear | None = None, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """log pi(a_t|s_t) and V(s_t) at each token of the completions.

    Args:
        model: a causal language model.
        batch: B groups; under masks, only tokens that count have a place.
        value_head: E -> 1 on the model's last hidden state, with its own weights; None leaves the values out.
        temperature: logits are divided by it, as at sampling.

    Returns:
        log-probs in nats and values, both [B, K, L], differentiable, 0 where there is no token.
    """
    if not shares_prefix(model):
        return row_tokens(model, batch, value_head, temperature=temperature)
    packed = pack(batch).to(device_of(model))
    hidden, head = hidden_states(model, packed)
    places = token_mask(batch).to(hidden.device)
    found = token_logprobs(hidden, head, packed.targets, temperature=temperature)[packed.term]
    logprobs = _spread(found, places)
    if value_head is None:
        return logprobs, None
    states = hidden[:, : value_head.in_features]  # an adapter on the head has widened them
    return logprobs, _spread(apply_head(value_head, states).squeeze(-1)[packed.term], places)


def row_tokens(
    model: torch.nn.Module, batch: GroupBatch, value_head: torch.nn.Linear | None = None, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """The same from one padded row for each completion, and the model's own logits."""
    laid_out = rows.rows_of(batch, device_of(model))
    output = model(
        input_ids=laid_out.input_ids,
        attention_mask=laid_out.attention_mask,
        position_ids=laid_out.position_ids,
        use_cache=False,
        output_hidden_states=value_head is not None,
    )
    predictors = slice(-laid_out.targets.shape[1] - 1, -1)
    found = rows.token_logprobs(output.logits[:, predictors], laid_out.targets, temperature)
    places = token_mask(batch).to(found.device)
    logprobs = _spread(found[laid_out.mask], places)
    if value_head is None:
        return logprobs, None
    values = apply_head(value_head, output.hidden_states[-1][:, predictors]).squeeze(-1)
    return logprobs, _spread(values[laid_out.mask], places)


def token_mask(batch: GroupBatch) -> Tensor:
    """[B, K, L] bool, True at the tokens that count."""
    real = torch.arange(batch.completion_ids.shape[-1], device=batch.completion_lengths.device)
    real = real < batch.completion_lengths[..., None]
    return real if batch.completion_masks is None else real & batch.completion_masks


def _spread(found: Tensor, places: Tensor) -> Tensor:
    """[S] numbers of the tokens, completion after completion, at their places [B, K, L]."""
    return found.new_zeros(places.shape).masked_scatter(places, found)
