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
    values: Callable[[torch.nn.Module, GroupBatch], Tensor] | None = None,
    temperature: float = 1.0,
    bf16: bool = False,
    repeatable: bool = True,
    backward: Callable[[Tensor, bool], None],
) -> Tensor:
    """Add the gradient of sum(losses) / total to the model's, with at most `max_tokens` tokens in the model at once.

    A group that is larger goes through the model twice: first all its values v_k without gradients (log pi(y_k|x) where nobody
    says otherwise), which fix dL / dv_k, one number for each completion; then, part by part, the gradient of v_k times that
    number. Their sum is the gradient of the whole group.

    Args:
        model: the policy.
        batch: B groups.
        losses: the objective: values [B, K] of a batch -> [B].
        total: what the sum of the losses is divided by: the groups of the whole optimizer step.
        max_tokens: tokens in one pass, a prompt counted once.
        values: (model, some groups, or one with some of its completions) -> what the objective needs of each completion, 0
            where absent; None computes log-probs.
        temperature, bf16: of the log-probs: as in the objective, and under bfloat16 autocast.
        repeatable: whether the model gives the same values twice, which it does not with dropout.
        backward: called with what to differentiate and whether it is the last.

    Returns:
        sum(losses) / total, without gradient.

    Raises:
        TrainingError: if a group needs two passes and the model is not repeatable.
        DataError: if a prompt with one completion is larger than `max_tokens`.
    """
    device = batch.prompt_ids.device

    def logprobs(model: torch.nn.Module, part: GroupBatch) -> Tensor:
        with autocast(device, bf16=bf16):
            return completion_logprobs(model, part, temperature=temperature)

    def values_of(part: Pass) -> Tensor:
        return (values or logprobs)(model, part.of(batch))

    sets = split_batch(model, batch, max_tokens)
    loss = torch.zeros((), device=device)
    for passes in sets:
        whole = batch.take(passes[0].groups)
        if len(passes) == 1:
            part_loss = losses(values_of(passes[0]), whole).sum() / total
            backward(part_loss, passes is sets[-1])
        else:
            if not repeatable:
                raise TrainingError(
                    "a group is larger than max_tokens_per_pass, so that it goes through the model twice, and with dropout the"
                    " second time is another model: set disable_dropout, or raise max_tokens_per_pass"
                )
            found = _together(passes, [_detached(values_of, part) for part in passes], batch.shape[1])
            part_loss = losses(found.requires_grad_(), whole).sum() / total
            (coefficients,) = torch.autograd.grad(part_loss, found)
            for part in passes:
                backward((values_of(part) * coefficients[:, part.completions]).sum(), part is sets[-1][-1])
        loss += part_loss.detach()
    return loss


@torch.no_grad()
def _detached(values_of: Callable[[Pass], Tensor], part: Pass) -> Tensor:
    return values_of(part)


def _together(passes: Sequence[Pass], found: Sequence[Tensor], k: int) -> Tensor:
    """The values [1, K] of a group from those of its parts; 0 where a completion is absent."""
    values = found[0].new_zeros(1, k)
    for part, row in zip(passes, found, strict=True):
        values[0, part.completions] = row[0]
    return values
