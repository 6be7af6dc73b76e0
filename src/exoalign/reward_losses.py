"""The losses that reward models learn by, as pure functions: what people preferred in, one number for each group out.

Shapes: B groups (prompts), K completions of each. `values` are the model's rewards r_k [B, K]; losses are [B]. `mask` is True
for the real completions of a ragged group: what stands under False, NaN included, reaches neither the loss nor the gradient.
Arithmetic is in float32 at least.

    bradley_terry    -log sigmoid(r_w - r_l - m)                              pairs, m a margin from the data or 0
    plackett_luce    -sum_k log(exp r_k / (exp r_k + sum_{j worse than k} exp r_j))      rankings, ties allowed
    cross_entropy    -y log sigmoid(r) - (1 - y) log(1 - sigmoid(r))          a class for each completion, r its log-odds
    centring         (sum_k r_k)^2                                            pulls the rewards of a group around 0

Sources: Bradley and Terry 1952; the margin is that of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, equation 2). Plackett
1975 and Luce 1959. Centring is Eisenstein et al. 2023 (arXiv 2312.09244, section 2), which is TRL's
`center_rewards_coefficient`. Departure: Plackett and Luce know no ties. Here items that are tied are not compared with each
other: the k-th factor's denominator holds k itself and what is strictly worse. Without ties that is their likelihood, with
K = 2 Bradley and Terry's; and a group in which all are tied has loss 0 and gradient 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bradley_terry(values: Tensor, winner: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
    """-log sigmoid(r_w - r_l - m) of pairs.

    Args:
        values: r [B, 2].
        winner: [B] int64, the column of the winner; None means column 0.
        margin: m [B], by how much the winner is better, at least 0; None for 0.

    Returns:
        [B].

    Raises:
        ValueError: if there are not two completions in each group.

    >>> loss = bradley_terry(torch.tensor([[1.0, 0.0]]))
    >>> print(f"{loss.item():.4f}")  # log(1 + exp(-1))
    0.3133
    """
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"bradley_terry: values of shape {list(values.shape)}; expected [B, 2], a winner and a loser")
    values = _wide(values)
    difference = values[:, 0] - values[:, 1]
    if winner is not None:
        difference = torch.where(winner == 0, difference, -difference)  # r_w - r_l
    if margin is not None:
        difference = difference - margin.to(difference.dtype)
    return torch.nn.functional.softplus(-difference)  # -log sigmoid(d) = log(1 + exp(-d))


def plackett_luce(values: Tensor, rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """-log of the likelihood of the order that `rewards` say, best first; tied completions are not compared.

    Args:
        values: r [B, K].
        rewards: [B, K], of which only the order counts, larger is better; no gradient flows to them.
        mask: [B, K] bool, True for real completions; None if all are.

    Returns:
        [B], 0 where all completions of a group are tied.

    Raises:
        ValueError: if the shapes differ.

    >>> loss = plackett_luce(torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]]))
    >>> print(f"{loss.item():.4f}")  # all 3! orders are equally likely: log 6
    1.7918
    """
    if values.shape != rewards.shape or values.ndim != 2:
        raise ValueError(
            f"plackett_luce: values of shape {list(values.shape)} and rewards of {list(rewards.shape)}; expected [B, K] both"
        )
    values = _masked(_wide(values), mask)
    worse = rewards[:, None, :] < rewards[:, :, None]  # [B, k, j]: j is worse than k
    if mask is not None:
        worse = worse & mask[:, :, None] & mask[:, None, :]
    itself = torch.eye(values.shape[1], dtype=torch.bool, device=values.device)
    against = torch.where(worse | itself, values[:, None, :], -torch.inf)
    return (against.logsumexp(-1) - values).sum(-1)  # sum_k log(exp r_k + sum_{j worse} exp r_j) - r_k


def cross_entropy(values: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """-y log sigmoid(r) - (1 - y) log(1 - sigmoid(r)), the mean over a group's completions.

    Args:
        values: r [B, K], log-odds of the label 1.
        labels: y [B, K], 0 or 1.
        mask: [B, K] bool, True for real completions; None if all are.

    Returns:
        [B].

    >>> loss = cross_entropy(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    >>> print(f"{loss.item():.4f}")  # as a pair whose rewards differ by 1
    0.3133
    """
    values = _masked(_wide(values), mask)
    each = torch.nn.functional.binary_cross_entropy_with_logits(values, labels.to(values.dtype), reduction="none")
    if mask is None:
        return each.mean(-1)
    return torch.where(mask, each, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def centring(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(sum_k r_k)^2: rewards are known but for a constant of each prompt, and this one wants the constant to be 0.

    Args:
        values: r [B, K].
        mask: [B, K] bool, True for real completions; None if all are.

    Returns:
        [B].

    >>> centring(torch.tensor([[2.0, -1.0]])).item()
    1.0
    """
    return _masked(_wide(values), mask).sum(-1).square()


def _wide(values: Tensor) -> Tensor:
    """float32 at least: float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else torch.where(mask, values, 0.0)
