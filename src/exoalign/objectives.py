"""The table of objectives: those of `losses`, and the baselines that are one line on the same log-ratios.

Shapes: B groups, K completions; rho = `log_ratios` [B, K], losses [B].

    ipo        (rho_w - rho_l - 1 / (2 beta_pi))^2     Azar et al. 2023, arXiv 2310.12036, eq. 17 (tau is beta_pi here)
    sft_best   -rho of the completion with most reward: the gradient of -log pi_theta(y_best|x), "Preferred-SFT" on one's own
               samples (also RAFT, Dong et al. 2023, arXiv 2304.06767)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exoalign.losses import dpo_pref, dpo_rw, exo_pref, exo_rw


def ipo(log_ratios: Tensor, winner: Tensor | None = None, *, beta_pi: float) -> Tensor:
    """IPO: the squared distance of rho_w - rho_l from 1 / (2 beta_pi), [B]; unlike DPO it does not push it to infinity.

    Args:
        log_ratios: rho [B, 2].
        winner: [B] int64, the column of the winner; None means column 0.
        beta_pi: strength of the KL penalty (tau in the paper), above 0.

    Raises:
        ValueError: on another K than 2, or a beta_pi that is not above 0.

    >>> ipo(torch.tensor([[1.0, 0.0]]), beta_pi=0.25)  # (1 - 2)^2
    tensor([1.])
    """
    if log_ratios.ndim != 2 or log_ratios.shape[1] != 2:
        raise ValueError(f"ipo compares pairs, K = 2: expected shape [B, 2], found {list(log_ratios.shape)}")
    if not beta_pi > 0:
        raise ValueError(f"beta_pi: expected a finite number above 0, found {beta_pi!r}")
    ahead = log_ratios[:, 0] - log_ratios[:, 1]
    if winner is not None:
        ahead = torch.where(winner == 0, ahead, -ahead)
    return (ahead - 1 / (2 * beta_pi)).square()  # eq. 17


def sft_best(log_ratios: Tensor, rewards: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """-rho of the completion with most reward, [B]: as -log pi_theta(y_best|x), but for a constant; the first of equals.

    Args:
        log_ratios: rho [B, K].
        rewards: [B, K].
        mask: [B, K] bool, True for real completions; None if all are. A group without any has loss 0.

    >>> sft_best(torch.tensor([[0.5, -2.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([2.])
    """
    best = best_of(rewards, mask)
    found = -log_ratios.gather(1, best[:, None]).squeeze(1)
    return found if mask is None else torch.where(mask.any(1), found, 0.0)


def best_of(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """The column of the completion with most reward, the first of equals: [B, K] -> [B] int64."""
    return (rewards if mask is None else rewards.masked_fill(~mask, -torch.inf)).argmax(1)


@dataclass(frozen=True)
class Objective:
    """One row of `OBJECTIVES`.

    Attributes:
        function: log-ratios [B, K] and what it `needs` -> [B].
        needs: what a group must have besides its completions.
        reads: the settings and tensors that it takes by name, of beta_pi, beta_r, epsilon, mask and proposal.
        default_epsilon: where it reads epsilon.
        divergence: which way it looks at the target.
        description: a few words.
    """

    function: Callable[..., Tensor]
    needs: Literal["rewards", "winner"]
    reads: tuple[str, ...]
    divergence: Literal["reverse KL", "forward KL", "squared error"]
    description: str
    default_epsilon: float | None = None


_REWARDS = ("beta_pi", "beta_r", "mask", "proposal")
OBJECTIVES: dict[str, Objective] = {
    "exo_rw": Objective(exo_rw, "rewards", _REWARDS, "reverse KL", "EXO on K rewarded completions"),
    "exo_pref": Objective(exo_pref, "winner", ("beta_pi", "epsilon"), "reverse KL", "EXO on preference pairs", 1e-3),
    "dpo_rw": Objective(dpo_rw, "rewards", _REWARDS, "forward KL", "DPO on K rewarded completions"),
    "dpo_pref": Objective(dpo_pref, "winner", ("beta_pi", "epsilon"), "forward KL", "DPO on preference pairs", 0.0),
    "ipo": Objective(ipo, "winner", ("beta_pi",), "squared error", "IPO on preference pairs"),
    "sft_best": Objective(sft_best, "rewards", ("mask",), "forward KL", "SFT on the best of K completions"),
}
