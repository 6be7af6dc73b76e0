"""The gradient of an objective over a batch of groups, in passes of bounded size: see `accumulate`.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from exoalign.errors import TrainingError
from exoalign.groups import GroupBatch
from exoalign.logprobs.engine import completion_logprobs
from exoalign.logprobs.passes import Pass, split_batch
from exoalign.models import autocast


def accumulate(
    model: torch.nn.Module,
    batch: GroupBatch,
    losses: Callable[[Tensor, GroupBatch], Tensor],
    *,
    total: Tensor | int,
    max_tokens: int,
    temperature: float,
    bf16: bool,
    repeatable: bool = True,
    backward: Callable[[Tensor, bool], None],
) -> Tensor:
    """Add the gradient of sum(losses) / total to the model's, with at most `max_tokens` tokens in the model at once.

    A group that is larger goes through the model twice: first all its log-probs without gradients, which fix
    dL / dlog pi(y_k|x), one number for each completion; then, part by part, the gradient of log pi times that number. Their
    sum is the gradient of the whole group.

    Args:
        model: the policy.
        batch: B groups.
        losses: the objective: log-probs [B, K] of a batch -> [B].
        total: groups of the whole optimizer step.
        max_tokens: tokens in one pass, a prompt counted once.
        temperature: as in the objective.
        bf16: compute under bfloat16 autocast.
        repeatable: whether the model gives the same log-probs twice, which it does not with dropout.
        backward: called with what to differentiate and whether it is the last.

    Returns:
        sum(losses) / total, without gradient.

    Raises:
        TrainingError: if a group needs two passes and the model is not repeatable.
        DataError: if a prompt with one completion is larger than `max_tokens`.
    """
    device = batch.prompt_ids.device

    def logprobs(part: Pass) -> Tensor:
        with autocast(device, bf16=bf16):
            return completion_logprobs(model, part.of(batch), temperature=temperature)

    sets = split_batch(model, batch, max_tokens)
    loss = torch.zeros((), device=device)
    for passes in sets:
        whole = batch.take(passes[0].groups)
        if len(passes) == 1:
            part_loss = losses(logprobs(passes[0]), whole).sum() / total
            backward(part_loss, passes is sets[-1])
        else:
            if not repeatable:
                raise TrainingError(
                    "a group is larger than max_tokens_per_pass, so that it goes through the model twice, and with dropout the"
                    " second time is another model: set disable_dropout, or raise max_tokens_per_pass"
                )
            values = _together(passes, [_detached(logprobs, part) for part in passes], batch.shape[1])
            part_loss = losses(values.requires_grad_(), whole).sum() / total
            (coefficients,) = torch.autograd.grad(part_loss, values)
            for part in passes:
                backward((logprobs(part) * coefficients[:, part.completions]).sum(), part is sets[-1][-1])
        loss += part_loss.detach()
    return loss


@torch.no_grad()
def _detached(logprobs: Callable[[Pass], Tensor], part: Pass) -> Tensor:
    return logprobs(part)


def _together(passes: Sequence[Pass], found: Sequence[Tensor], k: int) -> Tensor:
    """The log-probs [1, K] of a group from those of its parts; 0 where a completion is absent."""
    values = found[0].new_zeros(1, k)
    for part, row in zip(passes, found, strict=True):
        values[0, part.completions] = row[0]
    return values
