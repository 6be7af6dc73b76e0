"""Groups with token ids -> `GroupBatch`: padded tensors on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from exoalign.errors import DataError
from exoalign.groups import Group, GroupBatch


def collate(
    groups: Sequence[Group], *, pad_id: int = 0, proposals: Sequence[Sequence[float] | None] | None = None
) -> GroupBatch:
    """Pad B groups of ragged K into one batch.

    Args:
        groups: groups with token ids; rewards, winner and reference log-probs are taken where all groups have them, masks
            where any group has them.
        pad_id: the id that fills the unused places. It is masked everywhere and has no influence.
        proposals: for each group c = log pi_ref - log mu of its completions in nats, or None where mu is pi_ref; the batch has
            a proposal where any group has.

    Raises:
        DataError: if there is no group, or one has no token ids.
    """
    if not groups:
        raise DataError("no groups to make a batch of; expected at least one")
    for group in groups:
        if group.prompt_ids is None or group.completion_ids is None:
            raise DataError(f"{group.where}: has no token ids; call exoalign.tokenize first")
    b, k = len(groups), max(group.k for group in groups)
    prompts = [group.prompt_ids or () for group in groups]
    completions = [group.completion_ids or () for group in groups]
    prompt_ids = torch.full((b, max(map(len, prompts))), pad_id)
    completion_ids = torch.full((b, k, max(len(ids) for replies in completions for ids in replies)), pad_id)
    completion_lengths = torch.zeros((b, k), dtype=torch.long)
    completion_masks = None
    if any(group.completion_masks is not None for group in groups):
        completion_masks = torch.zeros(completion_ids.shape, dtype=torch.bool)
    for i, (prompt, replies) in enumerate(zip(prompts, completions, strict=True)):
        prompt_ids[i, : len(prompt)] = torch.tensor(prompt)
        for j, ids in enumerate(replies):
            completion_ids[i, j, : len(ids)] = torch.tensor(ids)
            completion_lengths[i, j] = len(ids)
            if completion_masks is not None:
                masks = groups[i].completion_masks
                completion_masks[i, j, : len(ids)] = True if masks is None else torch.tensor(masks[j])

    def per_completion(rows: list[tuple[float, ...] | None]) -> torch.Tensor | None:
        if any(row is None for row in rows):
            return None
        return torch.tensor([[*(row or ()), *[0.0] * (k - len(row or ()))] for row in rows])

    proposal = None
    if proposals is not None and any(row is not None for row in proposals):
        rows = [(0.0,) * group.k if row is None else row for group, row in zip(groups, proposals, strict=True)]
        proposal = torch.tensor([[*row, *[0.0] * (k - len(row))] for row in rows])
    winners = [group.winner for group in groups]
    return GroupBatch(
        prompt_ids=prompt_ids,
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        completion_ids=completion_ids,
        completion_lengths=completion_lengths,
        completion_masks=completion_masks,
        rewards=per_completion([group.rewards for group in groups]),
        winner=None if None in winners else torch.tensor(winners),
        reference_logprobs=per_completion([group.reference_logprobs for group in groups]),
        proposal=proposal,
    )
