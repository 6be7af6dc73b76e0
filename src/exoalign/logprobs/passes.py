"""Splits groups into passes of bounded size, so that memory grows neither with K nor with the groups of a step.

A group that fits goes through the model whole; one that does not is cut into parts, each its prompt and some of its
completions. `train.gradient` turns such parts into the gradient of the whole group.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exoalign.errors import DataError
from exoalign.groups import Group, GroupBatch
from exoalign.logprobs.engine import completion_logprobs, shares_prefix

TOKENS = 4096
"""Tokens in a pass where nobody says otherwise: more are no faster on a CPU (docs/performance.md)."""


@dataclass(frozen=True)
class Pass:
    """What goes through the model at once: whole `groups` of a batch, or some `completions` of one."""

    groups: list[int]
    completions: list[int] | None = None

    def of(self, batch: GroupBatch) -> GroupBatch:
        """This pass's share of the batch."""
        return batch.take(self.groups, self.completions)

    def put(self, found: Tensor, values: Tensor) -> None:
        """Write what this pass found to its places in [B, K] values."""
        if self.completions is None:
            values[self.groups] = found
        else:
            values[self.groups[0], self.completions] = found[0]


def budget_for(groups: Sequence[Group], max_tokens: int | None) -> int:
    """The tokens of a pass: what is asked for, else as many as are of use and at least what the groups need.

    Raises:
        DataError: naming the group whose prompt and longest completion are more than what is asked for.
    """
    needs = [len(g.prompt_ids or ()) + max(len(ids) for ids in g.completion_ids or ((),)) for g in groups]
    if max_tokens is None:
        return max([TOKENS, *needs])
    for group, need in zip(groups, needs, strict=True):
        if need > max_tokens:
            raise DataError(
                f"{group.where}: its prompt and longest completion are {need} tokens, and max_tokens_per_pass is {max_tokens};"
                f" raise it to at least {max(needs)}, or shorten the group"
            )
    return max_tokens


def split(
    prompts: Sequence[int], completions: Sequence[Sequence[int]], max_tokens: int, *, shared: bool
) -> list[list[Pass]]:
    """Fill passes with groups, longest first, and cut up the groups that do not fit into one.

    Args:
        prompts: tokens of each prompt.
        completions: tokens of each group's completions, 0 where absent.
        max_tokens: tokens in one pass; a prompt counts once (`shared`), or with padding for each of its completions.
        shared: whether the model computes a prompt once.

    Returns:
        Lists of passes, each list complete in its groups: a single pass with one group or more, or the parts of one group.

    Raises:
        DataError: if a prompt with one completion is larger than `max_tokens` (`budget_for` says which group).
    """
    sizes = [_size(prompt, row, shared=shared) for prompt, row in zip(prompts, completions, strict=True)]
    done: list[list[Pass]] = []
    together: list[int] = []
    filled = 0
    for b in sorted(range(len(sizes)), key=lambda b: -sizes[b]):
        if sizes[b] > max_tokens:
            done.append([Pass([b], part) for part in _parts(prompts[b], completions[b], max_tokens, shared=shared)])
            continue
        if together and filled + sizes[b] > max_tokens:
            done.append([Pass(together)])
            together, filled = [], 0
        together.append(b)
        filled += sizes[b]
    return [*done, [Pass(together)]] if together else done


def split_batch(model: torch.nn.Module, batch: GroupBatch, max_tokens: int) -> list[list[Pass]]:
    """`split` for a batch and the way in which the model computes it."""
    prompts, completions = batch.prompt_lengths.tolist(), batch.completion_lengths.tolist()
    return split(prompts, completions, max_tokens, shared=shares_prefix(model))


@torch.no_grad()
def logprobs_in_passes(
    model: torch.nn.Module, batch: GroupBatch, *, max_tokens: int, temperature: float = 1.0
) -> Tensor:
    """log pi(y_k|x) of whole completions without gradients, in passes of at most `max_tokens` tokens: [B, K], nats."""
    values: Tensor | None = None
    for passes in split_batch(model, batch, max_tokens):
        for part in passes:
            found = completion_logprobs(model, part.of(batch), temperature=temperature)
            values = found.new_zeros(batch.shape) if values is None else values
            part.put(found, values)
    assert values is not None
    return values


def _size(prompt: int, completions: Sequence[int], *, shared: bool) -> int:
    """Tokens that a prompt and these completions put into a pass."""
    real = [length for length in completions if length]
    if shared or not real:
        return prompt + sum(real)
    return len(real) * (prompt + max(real))


def _parts(prompt: int, completions: Sequence[int], max_tokens: int, *, shared: bool) -> list[list[int]]:
    """The real completions of a group in parts that fit with the prompt, longest first, each into the first with room."""
    parts: list[list[int]] = []
    for k in sorted((k for k, length in enumerate(completions) if length), key=lambda k: -completions[k]):
        if prompt + completions[k] > max_tokens:
            raise DataError(
                f"a prompt of {prompt} tokens and a completion of {completions[k]} do not fit into max_tokens_per_pass ="
                f" {max_tokens}"
            )
        for part in parts:
            if _size(prompt, [completions[j] for j in (*part, k)], shared=shared) <= max_tokens:
                part.append(k)
                break
        else:
            parts.append([k])
    return parts
