"""Splits groups into passes of bounded size, so that memory grows neither with K nor with the groups of a step.

A group that fits goes through the model whole; one that does not is cut into parts, each its prompt and some of its
completions. `train.gradient` turns such parts into the gradient of the whole group.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from exoalign.errors import DataError
from exoalign.groups import Group, GroupBatch
from exoalign.logprobs.engine import completion_logprobs, shares_prefix
from exoalign.logprobs.rows import device_of

TOKENS = 4096
"""Tokens of one group in a pass where nobody says otherwise."""
TOGETHER = 1024
"""Groups are put together up to so many tokens on a CPU: more are hardly faster, and take memory (docs/log.md)."""


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


def budget_for(groups: Iterable[Group], max_tokens: int | None) -> int:
    """The tokens of a pass: what is asked for, else `TOKENS` and at least what the groups need.

    Raises:
        DataError: naming the group whose prompt and longest completion are more than what is asked for.
    """
    largest, over = 0, None
    for group in groups:
        need = len(group.prompt_ids or ()) + max(len(ids) for ids in group.completion_ids or ((),))
        largest = max(largest, need)
        if over is None and max_tokens is not None and need > max_tokens:
            over = group.where, need
    if over is not None:
        raise DataError(
            f"{over[0]}: its prompt and longest completion are {over[1]} tokens, and max_tokens_per_pass is {max_tokens};"
            f" raise it to at least {largest}, or shorten the group"
        )
    return max(TOKENS, largest) if max_tokens is None else max_tokens


def split(
    prompts: Sequence[int],
    completions: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    shared: bool,
    together: int | None = None,
) -> list[list[Pass]]:
    """Cut up the groups that do not fit into a pass, and put the others together, with about as many tokens in each pass.

    Args:
        prompts: tokens of each prompt.
        completions: tokens of each group's completions, 0 where absent.
        max_tokens: tokens in one pass; a prompt counts once (`shared`), or with padding for each of its completions.
        shared: whether the model computes a prompt once.
        together: groups are put together up to so many tokens; max_tokens when None.

    Returns:
        Lists of passes, each list complete in its groups: a single pass with one group or more, or the parts of one group.

    Raises:
        DataError: if a prompt with one completion is larger than `max_tokens` (`budget_for` says which group).
    """
    sizes = [_size(prompt, row, shared=shared) for prompt, row in zip(prompts, completions, strict=True)]
    longest_first = sorted(range(len(sizes)), key=lambda b: -sizes[b])
    large = [b for b in longest_first if sizes[b] > max_tokens]
    cut = [[Pass([b], part) for part in _parts(prompts[b], completions[b], max_tokens, shared=shared)] for b in large]
    most = min(max_tokens, max_tokens if together is None else together)
    small = longest_first[len(large) :]
    filled = _balanced(small, sizes, most) if shared else _alike(small, prompts, completions, most)
    return [*cut, *([Pass(groups)] for groups in filled)]


def _balanced(order: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """As few passes of at most `most` tokens as can be, each group into the emptiest; one that is larger by itself."""
    alone = [[b] for b in order if sizes[b] >= most]
    small = order[len(alone) :]
    if not small:
        return alone
    for count in range(max(1, -(-sum(sizes[b] for b in small) // most)), len(small) + 1):
        passes: list[list[int]] = [[] for _ in range(count)]
        emptiest = [(0, i) for i in range(count)]
        for b in small:
            filled, i = emptiest[0]
            if filled + sizes[b] > most:
                break
            passes[i].append(b)
            heapq.heapreplace(emptiest, (filled + sizes[b], i))
        else:
            return alone + passes
    raise AssertionError("a pass for each is enough")


def _alike(
    order: Sequence[int], prompts: Sequence[int], completions: Sequence[Sequence[int]], most: int
) -> list[list[int]]:
    """Neighbours in the order of size together, which need little padding: to the longest prompt and completion of the pass."""
    passes: list[list[int]] = []
    rows = prompt = completion = 0
    for b in order:
        count, longest = sum(length > 0 for length in completions[b]), max(completions[b])
        if not passes or (rows + count) * (max(prompt, prompts[b]) + max(completion, longest)) > most:
            passes.append([])
            rows = prompt = completion = 0
        passes[-1].append(b)
        rows, prompt, completion = rows + count, max(prompt, prompts[b]), max(completion, longest)
    return passes


def split_batch(model: torch.nn.Module, batch: GroupBatch, max_tokens: int) -> list[list[Pass]]:
    """`split` for a batch and the way in which the model computes it."""
    prompts, completions = batch.prompt_lengths.tolist(), batch.completion_lengths.tolist()
    return split(prompts, completions, max_tokens, shared=shares_prefix(model), together=fill(model))


def fill(model: torch.nn.Module) -> int | None:
    """Tokens up to which groups are put together on the model's device."""
    return TOGETHER if device_of(model).type == "cpu" else None


@torch.no_grad()
def values_in_passes(
    model: torch.nn.Module,
    batch: GroupBatch,
    values: Callable[[torch.nn.Module, GroupBatch], Tensor],
    *,
    max_tokens: int,
) -> Tensor:
    """What `values` finds for each completion, [B, K], without gradients, in passes of at most `max_tokens` tokens.

    Args:
        model: the model.
        batch: B groups.
        values: (model, some groups, or one with some of its completions) -> a number for each completion, 0 where absent.
        max_tokens: tokens in one pass, a prompt counted once.
    """
    found: Tensor | None = None
    for passes in split_batch(model, batch, max_tokens):
        for part in passes:
            of_part = values(model, part.of(batch))
            found = of_part.new_zeros(batch.shape) if found is None else found
            part.put(of_part, found)
    assert found is not None
    return found


def logprobs_in_passes(
    model: torch.nn.Module, batch: GroupBatch, *, max_tokens: int, temperature: float = 1.0
) -> Tensor:
    """log pi(y_k|x) of whole completions without gradients, in passes of at most `max_tokens` tokens: [B, K], nats."""
    return values_in_passes(model, batch, partial(completion_logprobs, temperature=temperature), max_tokens=max_tokens)


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
