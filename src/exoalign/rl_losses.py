"""What the baselines PPO and RLOO compute from a rollout: pure functions, an equation and its source each.

Both maximise J = E[r] - beta KL(pi_theta || pi_ref) by the policy gradient, with the same beta as beta_pi * beta_r of the
objectives in `losses`.

    PPO                     Schulman et al. 2017, arXiv 1707.06347
    GAE                     Schulman et al. 2015, arXiv 1506.02438
    PPO on language models  Ziegler et al. 2019, arXiv 1909.08593; Huang et al. 2024, "The N+ Implementation Details of RLHF
                            with PPO", arXiv 2403.17031, and its code (vwxyzjn/summarize_from_feedback_details, `ppo.py`)
    RLOO                    Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740

Shapes: B groups, K completions, L tokens of the longest completion. Per-token tensors are [..., L], with `mask` True at the
tokens of a completion, which stand at its beginning: a completion's tokens have no gap. What stands under False, NaN included,
reaches neither a result nor a gradient. The prefix before token t is the state s_t, token t the action a_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to a variance that is divided by, as in the code of arXiv 2403.17031."""


def token_rewards(rewards: Tensor, log_ratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """r_t = -beta (log pi_theta(a_t|s_t) - log pi_ref(a_t|s_t)) + [t is the last token] r, [..., L].

    The KL is paid token by token and the reward at the end (1909.08593; 2403.17031). Summed over a completion it is
    r - beta * log-ratio, whose mean over samples is J.

    Args:
        rewards: r of each completion [...].
        log_ratios: of each token [..., L], of the policy that sampled: no gradient goes through rewards.
        mask: [..., L].
        beta: strength of the KL penalty.

    >>> token_rewards(torch.tensor([1.0]), torch.tensor([[0.5, -0.5, 9.0]]), torch.tensor([[True, True, False]]), beta=0.1)
    tensor([[-0.0500,  1.0500,  0.0000]])
    """
    paid = torch.where(mask, -beta * log_ratios.detach(), 0.0)
    return paid + torch.where(last_token(mask), rewards.detach().to(paid.dtype)[..., None], 0.0)


def last_token(mask: Tensor) -> Tensor:
    """True at the last token of each completion: [..., L] -> [..., L].

    >>> last_token(torch.tensor([[True, True, False]]))
    tensor([[False,  True, False]])
    """
    after = torch.nn.functional.pad(mask[..., 1:], (0, 1), value=False)
    return mask & ~after


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE (1506.02438, equation 16), backwards over the tokens:

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t),    V after the last token = 0
        A_t = delta_t + gamma lam A_{t+1}
        R_t = A_t + V(s_t)                            what the value is fitted to (2403.17031)

    With gamma = lam = 1 the return R_t is the sum of the rewards from t on.

    Returns:
        advantages, returns: both [..., L], 0 under the mask.

    >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    >>> generalised_advantages(rewards, values, torch.tensor([[True, True]]), gamma=1.0, lam=0.5)
    (tensor([[0.1250, 0.7500]]), tensor([[0.6250, 1.0000]]))
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantage = following = torch.zeros_like(values[..., 0])
    found = []
    for t in reversed(range(values.shape[-1])):
        delta = rewards[..., t] + gamma * following - values[..., t]
        advantage = delta + gamma * lam * advantage
        following = values[..., t]
        found.append(advantage)
    advantages = torch.where(mask, torch.stack(found[::-1], -1), 0.0)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(variance) over all tokens under the mask; without `shift_mean` the mean stays what it was.

    Advantages are shifted, rewards are not, so that their sign stays (2403.17031, its code's `masked_whiten`; the variance is
    the biased one, and has 1e-8 added).

    >>> whiten(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[True, True, False]]))
    tensor([[-1.,  1.,  0.]])
    """
    real = x[mask]
    mean, variance = real.mean(), real.var(unbiased=False)
    whitened = (x - mean) * torch.rsqrt(variance + EPSILON) + (0.0 if shift_mean else mean)
    return torch.where(mask, whitened, 0.0)


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float
) -> Tensor:
    """-min(w_t A_t, clip(w_t, 1 - clip, 1 + clip) A_t), w_t = pi_theta(a_t|s_t) / pi_old(a_t|s_t) (1707.06347, equation 7).

    Returns:
        [..., L], 0 under the mask.

    >>> old, one = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> clipped_policy_loss(torch.tensor([[0.5]]), old, torch.tensor([[2.0]]), one, clip=0.2)  # -min(2 e^0.5, 2 * 1.2)
    tensor([[-2.4000]])
    """
    ratio = torch.exp(_hidden(logprobs - old_logprobs, mask))
    advantages = _hidden(advantages, mask).detach()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2 (2403.17031: the value function is clipped, too).

    Returns:
        [..., L], 0 under the mask.

    >>> one = torch.ones(1, 1, dtype=torch.bool)
    >>> clipped_value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), one, clip=0.2)  # 0.8^2 / 2
    tensor([[0.3200]])
    """
    values, old_values, returns = (_hidden(x, mask) for x in (values, old_values.detach(), returns.detach()))
    clipped = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def approximate_kl(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """(log pi_theta - log pi_old)^2 / 2 of each token, [..., L]: how far the policy went since the rollout (2403.17031).

    >>> approximate_kl(torch.tensor([[0.2]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    tensor([[0.0200]])
    """
    return 0.5 * _hidden(logprobs - old_logprobs, mask) ** 2


def leave_one_out(rewards: Tensor, mask: Tensor) -> Tensor:
    """A_k = r_k - mean of r_j over the other completions of the group, [B, K] (Kool et al.; 2402.14740); 0 under the mask.

    The baseline of a completion does not depend on it, so the gradient stays unbiased. A group with one completion has no
    other: its advantage is 0.

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[True, True, True]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    rewards = _hidden(rewards, mask)
    count = mask.sum(-1, keepdim=True)
    others = (rewards.sum(-1, keepdim=True) - rewards) / (count - 1).clamp(min=1)
    return torch.where(mask & (count > 1), rewards - others, 0.0)


def rloo_loss(
    logprobs: Tensor,
    rewards: Tensor,
    reference_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    beta: float,
) -> Tensor:
    """-mean_k w_k A_k log pi_theta(y_k|x), whose gradient estimates that of -J without bias (2402.14740): [B].

        R_k = r_k - beta (log pi_theta(y_k|x) - log pi_ref(y_k|x)),    A = leave-one-out of R,    w_k = pi_theta / mu

    A and w are data: no gradient flows to them. w is 1 where the policy itself drew the completions (mu = pi_theta).

    Args:
        logprobs: log pi_theta of whole completions [B, K].
        rewards, reference_logprobs, sampler_logprobs: r, log pi_ref and log mu [B, K].
        mask: [B, K], True at real completions.
        beta: strength of the KL penalty.

    >>> logp, both = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> rloo_loss(logp, torch.tensor([[1.0, 0.0]]), logp, logp, both, beta=1.0)  # A = (1, -1), so (1 - 2) / 2
    tensor([-0.5000])
    """
    now = logprobs.detach()
    advantages = leave_one_out(rewards - beta * _hidden(now - reference_logprobs, mask), mask)
    weights = _hidden(now - sampler_logprobs, mask).exp()
    return -_hidden(weights * advantages * logprobs, mask).sum(-1) / mask.sum(-1).clamp(min=1)


@dataclass
class KlController:
    """The strength of the KL penalty: fixed, or adapted so that the KL stays near a target (1909.08593, section 2.2).

        e = clip(KL / target - 1, -0.2, 0.2),    beta <- beta (1 + e n / horizon)

    after each rollout of n completions. With a target the optimum is no more that of the beta it began with.

    Attributes:
        beta: now.
        target: of the KL in nats a completion; None leaves beta as it is.
        horizon: completions over which beta changes by a factor of about e^0.2 at most.

    >>> controller = KlController(0.1, target=6.0, horizon=100)
    >>> controller.update(12.0, completions=10)  # e = 0.2
    >>> print(f"{controller.beta:.4f}")
    0.1020
    """

    beta: float
    target: float | None = None
    horizon: float = 10_000.0

    def update(self, kl: float, *, completions: int) -> None:
        """Take note of a rollout's mean KL in nats a completion."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * completions / self.horizon


@dataclass
class RewardScale:
    """What rewards are divided by: the standard deviation of all rewards so far, without shifting them.

    Reward scaling of arXiv 2005.12729, there by the deviation of discounted sums. Here a completion has one reward, and the KL
    penalty is to be divided by the same number, so that the optimum stays.

    Attributes:
        count, mean, squares: rewards so far, their mean, and the sum of their squared distances from it (Welford).

    >>> scale = RewardScale()
    >>> scale.update([1.0, 3.0])
    >>> scale.deviation
    1.0
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, rewards: list[float]) -> None:
        """Take note of a rollout's rewards."""
        for reward in rewards:
            self.count += 1
            step = reward - self.mean
            self.mean += step / self.count
            self.squares += step * (reward - self.mean)

    @property
    def deviation(self) -> float:
        """The standard deviation, 1 before there is any spread."""
        return (self.squares / self.count) ** 0.5 if self.squares > 0 else 1.0


def _hidden(x: Tensor, mask: Tensor) -> Tensor:
    """Zeros under the mask, where then no gradient goes to."""
    return torch.where(mask, x, 0.0)
