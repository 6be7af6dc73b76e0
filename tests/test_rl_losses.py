"""The pure functions of PPO and RLOO, each against numbers worked out by hand, and what must not reach them."""

import doctest
import math

import pytest
import torch

from exoalign import rl_losses
from exoalign.rl_losses import (
    KlController,
    RewardScale,
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    last_token,
    leave_one_out,
    token_rewards,
    whiten,
)

NAN = math.nan
MASK = torch.tensor([[True, True, True], [True, False, False]])


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def same(found, expected) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), atol=1e-12, rtol=1e-12)


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(rl_losses).failed == 0


def test_the_reward_comes_at_the_last_token_and_the_kl_at_each():
    found = token_rewards(tensor(2.0, -1.0), tensor([0.1, -0.2, 0.3], [0.5, NAN, NAN]), MASK, beta=0.5)
    same(found, [[-0.05, 0.1, 2.0 - 0.15], [-1.0 - 0.25, 0.0, 0.0]])
    # their sum is r - beta * log-ratio, the completion's share of J
    same(found.sum(-1), [2.0 - 0.5 * 0.2, -1.0 - 0.5 * 0.5])


def test_rewards_are_data():
    log_ratios = tensor([0.1, 0.2]).requires_grad_()
    assert not token_rewards(tensor(1.0), log_ratios, torch.tensor([[True, True]]), beta=1.0).requires_grad


def test_an_absent_completion_has_no_last_token():
    assert last_token(torch.tensor([[False, False], [True, True]])).tolist() == [[False, False], [False, True]]


def test_gae_by_hand():
    """gamma 0.9, lam 0.5, V = (1, 2, 3), r = (0, 0, 4), and a second completion of one token.

    delta_3 = 4 - 3 = 1;  delta_2 = 0.9 * 3 - 2 = 0.7;  delta_1 = 0.9 * 2 - 1 = 0.8
    A_3 = 1;  A_2 = 0.7 + 0.45 * 1 = 1.15;  A_1 = 0.8 + 0.45 * 1.15 = 1.3175
    """
    rewards, values = tensor([0.0, 0.0, 4.0], [5.0, NAN, NAN]), tensor([1.0, 2.0, 3.0], [2.0, NAN, NAN])
    advantages, returns = generalised_advantages(rewards, values, MASK, gamma=0.9, lam=0.5)
    same(advantages, [[1.3175, 1.15, 1.0], [3.0, 0.0, 0.0]])
    same(returns, [[2.3175, 3.15, 4.0], [5.0, 0.0, 0.0]])


def test_gae_between_its_two_ends():
    """lam = 1 is the return less the value, lam = 0 the error of one step, whatever the value says."""
    rewards, values = tensor([1.0, 2.0, 4.0]), tensor([0.3, -0.2, 0.9])
    advantages, returns = generalised_advantages(rewards, values, MASK[:1], gamma=1.0, lam=1.0)
    same(returns, [[7.0, 6.0, 4.0]])
    same(advantages, [[6.7, 6.2, 3.1]])
    advantages, _ = generalised_advantages(rewards, values, MASK[:1], gamma=1.0, lam=0.0)
    same(advantages, [[1 - 0.2 - 0.3, 2 + 0.9 + 0.2, 4 - 0.9]])


def test_whitening_counts_only_real_tokens():
    """Of (1, 2, 3, 6) the mean is 3 and the variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    x = tensor([1.0, 2.0, 3.0], [6.0, NAN, NAN])
    scale = 1 / math.sqrt(3.5 + 1e-8)
    expected = tensor([-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]) * scale
    same(whiten(x, MASK), expected)
    same(whiten(x, MASK, shift_mean=False), torch.where(MASK, expected + 3.0, 0.0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    # -min(w A, clip(w) A); the slope is with respect to log w: -w A where w A is the smaller, else 0
    [
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # good, and made likely enough
        (0.5, 2.0, -1.0, -1.0),  # good, and made unlikely: pulled back
        (1.5, -2.0, 3.0, 3.0),  # bad, and made likely: pushed down
        (0.5, -2.0, 1.6, 0.0),  # bad, and made unlikely enough
    ],
)
def test_the_policy_loss_is_clipped_on_one_side(ratio, advantage, loss, slope):
    logprobs = tensor([math.log(ratio) - 1.0, NAN]).requires_grad_()
    mask = torch.tensor([[True, False]])
    found = clipped_policy_loss(logprobs, tensor([-1.0, NAN]), tensor([advantage, NAN]), mask, clip=0.2)
    same(found.detach(), [[loss, 0.0]])
    found.sum().backward()
    same(logprobs.grad, [[slope, 0.0]])


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.1, 1.0, 2.0, 0.405, -0.9),  # within the range: (1.1 - 2)^2 / 2
        (1.5, 1.0, 2.0, 0.32, 0.0),  # as good as 1.2 counts: (1.2 - 2)^2 / 2, and no wish to go on
        (1.5, 1.0, 0.0, 1.125, 1.5),  # the worse of both counts: 1.5^2 / 2
    ],
)
def test_the_value_loss_is_the_worse_of_two(value, old, target, loss, slope):
    values = tensor([value, NAN]).requires_grad_()
    found = clipped_value_loss(
        values, tensor([old, NAN]), tensor([target, NAN]), torch.tensor([[True, False]]), clip=0.2
    )
    same(found.detach(), [[loss, 0.0]])
    found.sum().backward()
    same(values.grad, [[slope, 0.0]])


def test_leave_one_out_by_hand_and_with_ragged_groups():
    """(1, 2, 6): less the means 4, 3.5, 1.5 of the others. (1, 5): -4 and 4. One alone: 0."""
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    found = leave_one_out(tensor([1.0, 2.0, 6.0], [1.0, 5.0, NAN], [3.0, NAN, NAN]), mask)
    same(found, [[-3.0, -1.5, 4.5], [-4.0, 4.0, 0.0], [0.0, 0.0, 0.0]])


def test_a_constant_added_to_the_rewards_changes_no_leave_one_out_advantage():
    rewards, mask = torch.randn(3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(leave_one_out(rewards + 7.0, mask), leave_one_out(rewards, mask))


def test_the_controller_moves_towards_its_target():
    fixed = KlController(0.1)
    fixed.update(100.0, completions=64)
    assert fixed.beta == 0.1
    adaptive = KlController(0.1, target=5.0, horizon=1000)
    adaptive.update(5.5, completions=100)  # e = 0.1, so 1 + 0.1 * 100 / 1000
    assert adaptive.beta == pytest.approx(0.1 * 1.01)
    adaptive.update(0.0, completions=100)  # e is clipped at -0.2
    assert adaptive.beta == pytest.approx(0.1 * 1.01 * 0.98)


def test_the_scale_of_rewards_is_that_of_all_so_far():
    scale = RewardScale()
    assert scale.deviation == 1.0
    scale.update([4.0, 4.0])
    assert scale.deviation == 1.0  # no spread yet
    scale.update([1.0, 7.0])  # of (4, 4, 1, 7) the variance is 18 / 4
    assert scale.deviation == pytest.approx(math.sqrt(4.5))


class Enumerated:
    """2 symbols x 2 positions: a policy with a logit vector for each prefix, all 4 sequences, and J in plain sums."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.first = torch.randn(2, dtype=torch.float64).requires_grad_()
        self.second = torch.randn(2, 2, dtype=torch.float64).requires_grad_()  # after each first symbol
        self.sequences = torch.tensor([[a, b] for a in range(2) for b in range(2)])
        other = torch.randn(2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
        self.reference = self.tokens(*other)
        self.rewards = torch.randn(4, dtype=torch.float64)

    def tokens(self, first=None, second=None) -> torch.Tensor:
        """log pi(a_t|s_t) [4, 2]."""
        first, second = (self.first, self.second) if first is None else (first, second)
        a, b = self.sequences.T
        return torch.stack([torch.log_softmax(first, -1)[a], torch.log_softmax(second, -1)[a, b]], 1)

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (self.first, self.second))])

    def objective(self, beta: float) -> torch.Tensor:
        logp = self.tokens().sum(-1)
        return (logp.exp() * (self.rewards - beta * (logp - self.reference.sum(-1)))).sum()


@pytest.mark.parametrize("sampler", ["the policy", "another"])
def test_rloo_s_gradient_is_that_of_j_in_the_mean_over_all_samples(sampler):
    task, beta = Enumerated(), 0.3
    truth = task.gradient(-task.objective(beta))
    logp = task.tokens().sum(-1)
    mu = logp.detach() if sampler == "the policy" else torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # all draws of K = 2
    weights = mu[pairs].sum(-1).exp()
    rest = task.rewards[pairs], task.reference.sum(-1)[pairs], mu[pairs], torch.ones(16, 2, dtype=torch.bool)
    losses = rl_losses.rloo_loss(logp[pairs], *rest, beta=beta)
    same(task.gradient((weights * losses).sum()), truth)


def test_ppo_s_first_gradient_is_that_of_j_whatever_the_values_say():
    """On fresh samples, lam = gamma = 1: the value is a baseline, and the mean over all samples is exact."""
    task, beta = Enumerated(), 0.3
    truth = task.gradient(-task.objective(beta))
    tokens, mask = task.tokens(), torch.ones(4, 2, dtype=torch.bool)
    old = tokens.detach()
    rewards = token_rewards(task.rewards, old - task.reference, mask, beta=beta)
    first = torch.full((4,), 0.7, dtype=torch.float64)  # a value may know the prefix and nothing more
    values = torch.stack([first, torch.tensor([-1.0, 2.0], dtype=torch.float64)[task.sequences[:, 0]]], 1)
    advantages, _ = generalised_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    losses = clipped_policy_loss(tokens, old, advantages, mask, clip=0.2).sum(-1)
    same(task.gradient((old.sum(-1).exp() * losses).sum()), truth)
