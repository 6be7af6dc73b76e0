"""Shared-prefix packing: one row that holds each group's prompt once, then its completions, with no padding.

Every completion keeps the positions it would have had right after the prompt and attends to the prompt and to itself. Its
last token is left out: nothing is predicted from it. The first token of every completion is predicted from the prompt's last.

Shape legend: B groups, K completions, N packed tokens, M completion tokens (all that are predicted), C completions of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exoalign.groups import GroupBatch


@dataclass(frozen=True)
class Span:
    """Where one group stands in the row: the prompt's tokens, and [start, end) of each completion that has more than one."""

    start: int
    end: int
    completions: tuple[tuple[int, int], ...]

    @property
    def stop(self) -> int:
        """One past the group's last token."""
        return self.completions[-1][1] if self.completions else self.end


@dataclass(frozen=True)
class Layout:
    """The structure of a packed row, handed through the model to its attention.

    `blocks` caches what the attention derives from it for group number i and a window, once a pass for all layers.
    """

    spans: tuple[Span, ...]
    blocks: dict[tuple[int, int | None], Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Pack:
    """A packed row: `input_ids`, `position_ids` [1, N]; `predictors`, `targets`, `owner` [M]; `layout`.

    Token m of the completions is `targets[m]`, predicted from the hidden state at `predictors[m]`, and belongs to the
    completion with the flat index `owner[m]` = b * K + k.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    owner: Tensor
    layout: Layout

    @property
    def no_mask(self) -> Tensor:
        """[1, 1, 1, 1]: transformers takes a mask of four dimensions as it is and makes none of N x N."""
        return self.input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool)

    def to(self, device: torch.device) -> Pack:
        """The same on another device."""
        return Pack(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.owner.to(device),
            self.layout,
        )


def pack(batch: GroupBatch) -> Pack:
    """Pack the real completions of a batch into one row, on the CPU."""
    k = batch.shape[1]
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    spans = []
    for b, prompt, completions in _tokens(batch):
        start = len(ids)
        ids += prompt
        positions += range(len(prompt))
        end, bounds = len(ids), []
        for j, completion in completions:
            s = len(ids)
            ids += completion[:-1]
            positions += range(len(prompt), len(prompt) + len(completion) - 1)
            if len(completion) > 1:
                bounds.append((s, len(ids)))
            predictors += [end - 1, *range(s, len(ids))]
            targets += completion
            owner += [b * k + j] * len(completion)
        spans.append(Span(start, end, tuple(bounds)))
    return Pack(
        torch.tensor([ids], dtype=torch.long),
        torch.tensor([positions], dtype=torch.long),
        torch.tensor(predictors, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(owner, dtype=torch.long),
        Layout(tuple(spans)),
    )


def _tokens(batch: GroupBatch) -> Iterator[tuple[int, list[int], list[tuple[int, list[int]]]]]:
    """(b, prompt, [(k, completion)]) of every group that has a completion."""
    lengths = batch.completion_lengths.tolist()
    for b, n in enumerate(batch.prompt_lengths.tolist()):
        if any(lengths[b]):
            completions = batch.completion_ids[b].tolist()
            yield b, batch.prompt_ids[b, :n].tolist(), [(j, completions[j][:m]) for j, m in enumerate(lengths[b]) if m]
