"""Which groups go through the reference together: the same ones, to the same bits, whether a run was killed on the way or not.

What a pass holds decides how its sums are rounded. So passes are planned as if nothing were known; those that an earlier run
has computed whole are left out, and only what other runs left in parts is put together anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from exoalign.groups import Group
from exoalign.logprobs.engine import shares_prefix
from exoalign.logprobs.passes import budget_for, fill, split

WINDOW = 512
"""Groups whose passes are planned together: enough to find some of one length, and planning stays linear in the data."""


def planned(
    groups: Sequence[Group],
    missing: Sequence[int],
    known: Collection[int],
    model: torch.nn.Module,
    max_tokens: int | None,
) -> Iterator[dict[int, Group]]:
    """Groups by their index that fill a pass together, or one group that fills several.

    Args:
        groups: groups with token ids.
        missing: the groups without reference log-probs.
        known: those among them whose log-probs are in the cache.
        model: the reference.
        max_tokens: tokens in one pass; None takes as many as are of use.
    """
    rest = list[int]()
    for chosen in _together(groups, missing, known, model, max_tokens):
        unknown = [i for i in chosen if i not in known]
        if len(unknown) == len(chosen):
            yield chosen
        else:
            rest += unknown
    yield from _together(groups, rest, (), model, max_tokens)


def _together(
    groups: Sequence[Group],
    chosen: Sequence[int],
    known: Collection[int],
    model: torch.nn.Module,
    max_tokens: int | None,
) -> Iterator[dict[int, Group]]:
    """The passes of the chosen groups, but for windows that are known whole."""
    for start in range(0, len(chosen), WINDOW):
        indices = chosen[start : start + WINDOW]
        if all(i in known for i in indices):
            continue
        window = [(i, groups[i]) for i in indices]
        some = [group for _, group in window]
        sets = split(
            [len(group.prompt_ids or ()) for group in some],
            [[len(ids) for ids in group.completion_ids or ()] for group in some],
            budget_for(some, max_tokens),
            shared=shares_prefix(model),
            together=fill(model),
        )
        yield from (dict(window[i] for i in passes[0].groups) for passes in sets)
