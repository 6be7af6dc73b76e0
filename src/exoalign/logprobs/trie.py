"""What the completions of a group have in common: a trie of their tokens, branching only where that spares work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SAVED = 8
"""A stem is split off where it saves at least so many tokens: it costs a call of the attention in every layer."""
CALL = 2048
"""What one more call of the attention costs, in pairs of a query and a key: the padding that it must at least spare."""


@dataclass
class Node:
    """Tokens that the completions `members` share; what follows them are the `children`, none at the end of a completion."""

    tokens: list[int]
    members: list[int]
    children: list[Node] = field(default_factory=list)


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """The number of tokens that all of them begin with."""
    low, high = min(sequences), max(sequences)  # the two that differ first, if any do
    for i, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return i
    return len(low)


def trie(completions: Mapping[int, list[int]]) -> list[Node]:
    """The trie's top nodes: stems of several completions where they pay, and completions by themselves.

    Nodes stand in the order of their first member. Time is linear in the tokens but for sorting the completions.
    """
    order = sorted(completions, key=lambda k: completions[k])
    top = Node([], order)
    kept = [(0, len(order), 0, top)]  # stems around the place: members [start, stop) of the order share so many tokens
    around = []  # of each completion, the deepest
    stems = sorted(_runs([completions[k] for k in order]), key=lambda run: (run[0], -run[1]))
    for i, k in enumerate(order):
        while kept[-1][1] <= i:
            kept.pop()
        while stems and stems[0][0] == i:
            start, stop, length = stems.pop(0)
            _, _, shared, parent = kept[-1]
            if (stop - start - 1) * (length - shared) >= SAVED:
                node = Node(completions[k][shared:length], order[start:stop])
                parent.children.append(node)
                kept.append((start, stop, length, node))
        around.append(kept[-1])
    for k, (_, _, shared, parent) in zip(order, around, strict=True):
        if len(completions[k]) > shared:
            parent.children.append(Node(completions[k][shared:], [k]))
    _sort(top)
    return top.children


def _sort(node: Node) -> None:
    pending = [node]
    while pending:
        node = pending.pop()
        node.members.sort()
        node.children.sort(key=lambda child: child.members[0])
        pending += node.children


def _runs(ordered: Sequence[list[int]]) -> Iterator[tuple[int, int, int]]:
    """(start, stop, length): every longest run of two and more neighbours that begin with the same `length` tokens."""
    open_runs: list[tuple[int, int]] = []
    for i in range(1, len(ordered) + 1):
        common = common_prefix(ordered[i - 1 : i + 1]) if i < len(ordered) else 0
        start = i - 1
        while open_runs and open_runs[-1][1] > common:
            start, length = open_runs.pop()
            yield start, i, length
        if common and (not open_runs or open_runs[-1][1] < common):
            open_runs.append((start, common))


def batches(lengths: Sequence[int], depth: int) -> list[list[int]]:
    """Which segments after `depth` tokens are attended to together, padded to the longest: indices, shortest batch first.

    They are split where a further call costs less than the padding that it spares.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    stops = [n for n in range(1, len(order) + 1) if n == len(order) or lengths[order[n]] > lengths[order[n - 1]]]
    best = {0: (0, 0)}  # of the first n: the least cost, and where their last batch begins
    for stop in stops:
        longest = lengths[order[stop - 1]]
        pairs = longest * (depth + longest)
        best[stop] = min((cost + (stop - start) * pairs + CALL, start) for start, (cost, _) in best.items())
    found, stop = [], len(order)
    while stop:
        start = best[stop][1]
        found.append(sorted(order[start:stop]))
        stop = start
    return found[::-1]
