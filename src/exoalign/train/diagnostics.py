"""What is logged at each step, and the refusal of weights that could not learn. What the rewards say: `data.doctor.targets`.

Shapes: B groups, K completions; every metric is a mean over groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exoalign.errors import TrainingError


@torch.no_grad()
def step_metrics(
    log_ratios: Tensor,
    log_q: Tensor,
    log_p: Tensor,
    mask: Tensor,
    rewards: Tensor | None,
    winner: Tensor | None,
    proposal: Tensor | None = None,
) -> dict[str, Tensor]:
    """The metrics of B groups, each summed over the groups.

    Args:
        log_ratios, log_q, log_p: [B, K]; log_q and log_p normalised over the real completions.
        mask: [B, K], True at real completions.
        rewards: [B, K] or None.
        winner: [B] or None.
        proposal: c [B, K] or None, where no correction is made.

    Returns:
        policy_ess, target_ess (between 1 and K), policy_entropy, target_entropy (nats), best_log_ratio, worst_log_ratio
        (nats, of the completions with most and least reward), and with rewards policy_reward = E_q[r], target_reward =
        E_p[r], no_spread; with a winner accuracy (1 where the winner's log-ratio is the larger, a tie counts half); with a
        proposal correction_ess, of the weights softmax(c).
    """
    q, p = log_q.exp() * mask, log_p.exp() * mask
    metrics = {
        "policy_ess": (1 / (q * q).sum(1)).sum(),
        "target_ess": (1 / (p * p).sum(1)).sum(),
        "policy_entropy": -torch.special.xlogy(q, q).sum(),
        "target_entropy": -torch.special.xlogy(p, p).sum(),
    }
    if proposal is not None:
        weights = torch.where(mask, proposal, -torch.inf).softmax(-1)
        metrics["correction_ess"] = (1 / (weights * weights).sum(1)).sum()
    if rewards is not None:
        low = rewards.masked_fill(~mask, torch.inf)
        high = rewards.masked_fill(~mask, -torch.inf)
        best, worst = high.argmax(1), low.argmin(1)
        metrics["policy_reward"] = (q * rewards).sum()
        metrics["target_reward"] = (p * rewards).sum()
        metrics["no_spread"] = (high.amax(1) == low.amin(1)).sum()
    else:
        best = torch.zeros(len(q), dtype=torch.long, device=q.device) if winner is None else winner
        worst = 1 - best
    at_best = log_ratios.gather(1, best[:, None]).squeeze(1)
    at_worst = log_ratios.gather(1, worst[:, None]).squeeze(1)
    if rewards is None:
        metrics["accuracy"] = ((at_best > at_worst) + 0.5 * (at_best == at_worst)).sum()
    return {**metrics, "best_log_ratio": at_best.sum(), "worst_log_ratio": at_worst.sum()}


def refuse_lost_updates(model: torch.nn.Module, learning_rate: float) -> None:
    """Refuse to train weights in 16 bits at a learning rate that most of them cannot represent.

    An Adam step moves a weight by about the learning rate; a step below half the distance to the next representable
    number rounds to nothing.

    Raises:
        TrainingError: with the share of weights that would not move.
    """
    lost = total = 0
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            spacing = torch.finfo(weight.dtype).eps * torch.exp2(weight.detach().float().abs().log2().floor())
            lost += int((learning_rate < spacing / 2).sum())
            total += weight.numel()
    if lost > total / 2:
        raise TrainingError(
            f"the weights are 16-bit and learning_rate {learning_rate:g} is below the precision of {lost / total:.0%} of"
            " them: their updates would round to nothing; load the model with dtype=torch.float32 and set bf16=True"
            " (bfloat16 arithmetic over float32 weights)"
        )
