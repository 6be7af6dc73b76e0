"""Shared-prefix packing: one row that holds what several completions begin with once, and has no padding.

The row is a forest of segments. A segment sees its ancestors and, causally, itself, at the positions that continue theirs. A
group's prompt is a segment whose children are the completions; a stem that several completions begin with is split off where
that saves tokens, and so is a prefix of all prompts of the row, such as a system prompt. The last token of a completion is left
out, unless another goes on there: nothing is predicted from it. The first token of a segment is predicted from the last of its
parent. A group's own segments do not depend on what it is packed with, only the prefix of all prompts does.

Tokens of a completion that do not count (`completion_masks`: a user's turn in a trajectory) are seen by those after them and
predicted from nowhere; those after the last that counts are left out.

Shape legend: B groups, K completions, N packed tokens, M predicted tokens, S terms: the tokens that count, of all completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, compress
from typing import Any

import torch
from torch import Tensor

from exoalign.groups import GroupBatch
from exoalign.logprobs.segments import Bounds, Calls, calls_of
from exoalign.logprobs.trie import Node, batches, common_prefix, trie

SYSTEM = 16
"""A prefix of all prompts is shared from so many tokens on: a beginning-of-text token or two words are not worth a segment."""


@dataclass(frozen=True)
class Branch:
    """Segments that continue one path, attended to in one call; each is [start, end) of the row.

    `ancestors` from the root on; their lengths add up to the position of each child's first token. The children stand next to
    each other; there is one where there are no ancestors.
    """

    ancestors: tuple[Bounds, ...]
    children: tuple[Bounds, ...]

    @property
    def start(self) -> int:
        """The first child's first token."""
        return self.children[0][0]

    @property
    def end(self) -> int:
        """One past the last child's last token."""
        return self.children[-1][1]

    @property
    def depth(self) -> int:
        """Tokens of all ancestors together."""
        return _length(self.ancestors)


@dataclass(frozen=True)
class Layout:
    """The structure of a packed row, handed through the model to its attention: branches in the order of the row.

    `blocks` caches what the attention derives from it for branch number i and a window, once a pass for all layers; `windows`
    are those that the attention was told of.
    """

    branches: tuple[Branch, ...]
    blocks: dict[tuple[int, int | None], Any] = field(default_factory=dict, repr=False, compare=False)
    windows: set[int | None] = field(default_factory=set, repr=False, compare=False)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest path from a root to a leaf."""
        return max(branch.depth + max(end - start for start, end in branch.children) for branch in self.branches)

    @cached_property
    def calls(self) -> Calls:
        """What a kernel without masks computes, once a pass for all layers."""
        return calls_of([(branch.ancestors, branch.children) for branch in self.branches])


@dataclass(frozen=True)
class Pack:
    """A packed row: `input_ids`, `position_ids` [1, N]; `predictors`, `targets` [M]; `term`, `owner` [S]; `layout`.

    Predicted token m is `targets[m]`, predicted from the hidden state at `predictors[m]`. It may belong to several completions:
    the one with the flat index `owner[s]` = b * K + k has the token `term[s]`, so that a completion's log-prob is the sum of
    the log-probs of its terms (`sums`). Where a token counts for some of those that share it, only these have it as a term.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    term: Tensor
    owner: Tensor
    layout: Layout

    @property
    def no_mask(self) -> Tensor:
        """[1, 1, 1, 1]: transformers takes a mask of four dimensions as it is and makes none of N x N."""
        return self.input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool)

    def sums(self, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """Summed over each completion's tokens: [M] -> [B, K], 0 where a completion is absent."""
        b, k = shape
        return tokens.new_zeros(b * k).index_add(0, self.owner, tokens[self.term]).view(b, k)

    def to(self, device: torch.device) -> Pack:
        """The same on another device."""
        return Pack(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.term.to(device),
            self.owner.to(device),
            self.layout,
        )


def pack(batch: GroupBatch) -> Pack:
    """Pack the real completions of a batch into one row, on the CPU."""
    row = _Row()
    groups = list(_tokens(batch))
    prompts = [prompt for _, prompt, _, _ in groups]
    # the last token of a prompt stays with its group, so that no prompt is empty
    shared = min(common_prefix(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
    system: tuple[Bounds, ...] = ()
    if shared >= SYSTEM:
        system = (row.add((), [prompts[0][:shared]])[0],)
    for b, prompt, completions, masks in groups:
        path = (*system, row.add(system, [prompt[len(prompts[0][:shared]) if system else 0 :]])[0])
        row.add_completions(path, completions, masks, b * batch.shape[1])
    return row.packed()


@dataclass
class _Row:
    """A row in the making."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    term: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def add(self, ancestors: tuple[Bounds, ...], children: Sequence[Sequence[int]]) -> list[Bounds]:
        """Append a branch of segments with these tokens."""
        depth = _length(ancestors)
        bounds = []
        for tokens in children:
            bounds.append((len(self.ids), len(self.ids) + len(tokens)))
            self.ids += tokens
            self.positions += range(depth, depth + len(tokens))
        self.branches.append(Branch(ancestors, tuple(bounds)))
        return bounds

    def add_completions(
        self, path: tuple[Bounds, ...], completions: dict[int, list[int]], masks: dict[int, list[bool]], first: int
    ) -> None:
        """Append the completions of one prompt, {k: tokens}; k has the flat index first + k. Masks: see `_tokens`."""
        terms: dict[int, list[int]] = {k: [] for k in completions}
        prompt = _length(path)
        pending = [(path, trie(completions))]
        while pending:
            path, nodes = pending.pop(0)
            depth, predictor = _length(path), path[-1][1] - 1
            inputs = [(node, node.tokens if node.children else node.tokens[:-1]) for node in nodes]
            bounds: dict[int, Bounds] = {}
            inner = [(node, tokens) for node, tokens in inputs if tokens]
            for some in batches([len(tokens) for _, tokens in inner], depth):
                placed = self.add(path, [inner[i][1] for i in some])
                bounds |= {id(inner[i][0]): b for i, b in zip(some, placed, strict=True)}
            for node in nodes:
                start, end = bounds.get(id(node), (0, 0))
                here = slice(depth - prompt, depth - prompt + len(node.tokens))
                counts = {k: masks[k][here] for k in node.members if k in masks}
                self._predict(node, [predictor, *range(start, end)], counts, terms)
                if node.children:
                    pending.append(((*path, (start, end)), node.children))
        for k, ms in terms.items():
            self.term += ms
            self.owner += [first + k] * len(ms)

    def _predict(
        self, node: Node, predictors: list[int], counts: Mapping[int, list[bool]], terms: dict[int, list[int]]
    ) -> None:
        """Predict the tokens that count for any completion, and make them terms of those that each counts for."""
        every = [True] * len(node.tokens)
        wanted = every if len(counts) < len(node.members) else list(map(any, zip(*counts.values(), strict=True)))
        numbers = list(accumulate(wanted, initial=len(self.targets)))
        self.targets += compress(node.tokens, wanted)
        self.predictors += compress(predictors, wanted)
        for k in node.members:
            terms[k] += compress(numbers, counts.get(k, every))

    def packed(self) -> Pack:
        def tensor(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long)

        return Pack(
            tensor(self.ids)[None],
            tensor(self.positions)[None],
            tensor(self.predictors),
            tensor(self.targets),
            tensor(self.term),
            tensor(self.owner),
            Layout(tuple(self.branches)),
        )


def _length(segments: Sequence[Bounds]) -> int:
    return sum(end - start for start, end in segments)


_Group = tuple[int, list[int], dict[int, list[int]], dict[int, list[bool]]]


def _tokens(batch: GroupBatch) -> Iterator[_Group]:
    """(b, prompt, {k: completion}, {k: which count}) of every group that has a completion.

    Completions go up to their last token that counts; those of which all count are not among the masks.
    """
    lengths = batch.completion_lengths.tolist()
    for b, n in enumerate(batch.prompt_lengths.tolist()):
        ids, masks = batch.completion_ids[b].tolist(), dict[int, list[bool]]()
        completions = {k: ids[k][:length] for k, length in enumerate(lengths[b]) if length}
        if batch.completion_masks is not None:
            given = batch.completion_masks[b].tolist()
            masks = {k: _up_to_the_last(given[k][: len(tokens)]) for k, tokens in completions.items()}
            completions = {k: completions[k][: len(mask)] for k, mask in masks.items() if mask}
        if completions:
            prompt = batch.prompt_ids[b, :n].tolist()
            yield b, prompt, completions, {k: mask for k, mask in masks.items() if not all(mask)}


def _up_to_the_last(mask: list[bool]) -> list[bool]:
    """The mask without its end that does not count."""
    while mask and not mask[-1]:
        mask.pop()
    return mask
