"""Losses of reward models against values by hand and against the probabilities of all outcomes, enumerated."""

import doctest
import itertools
import math

import pytest
import torch

from exoalign import reward_losses
from exoalign.reward_losses import bradley_terry, centring, cross_entropy, plackett_luce


def t(*rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(reward_losses).failed == 0


class TestBradleyTerry:
    def test_by_hand(self):
        values = t([2.0, 0.5], [0.5, 2.0])
        expected = [-math.log(sigmoid(1.5)), -math.log(sigmoid(-1.5))]
        assert bradley_terry(values).tolist() == pytest.approx(expected, rel=1e-12)
        assert bradley_terry(values, torch.tensor([0, 1])).tolist() == pytest.approx([expected[0]] * 2, rel=1e-12)

    def test_a_margin_is_taken_off_the_lead_of_whoever_won(self):
        values, margin = t([2.0, 0.5], [0.5, 2.0]), torch.tensor([1.0, 0.25])
        expected = [-math.log(sigmoid(0.5)), -math.log(sigmoid(1.25))]
        assert bradley_terry(values, torch.tensor([0, 1]), margin).tolist() == pytest.approx(expected, rel=1e-12)

    def test_both_outcomes_have_probability_one_together(self):
        values = t([0.3, -1.2], [4.0, 1.0])
        both = sum(torch.exp(-bradley_terry(values, torch.tensor([w, w]))) for w in (0, 1))
        torch.testing.assert_close(both, torch.ones(2, dtype=torch.float64))

    def test_a_constant_changes_nothing_and_far_apart_nothing_overflows(self):
        values = t([0.3, -1.2])
        assert bradley_terry(values + 7.0).item() == pytest.approx(bradley_terry(values).item(), rel=1e-12)
        assert bradley_terry(t([-500.0, 500.0], dtype=torch.float32)).item() == pytest.approx(1000.0)

    def test_the_gradient(self):
        values = t([0.3, -1.2], [1.0, 0.0]).requires_grad_()
        margin = torch.tensor([0.5, 0.0])
        assert torch.autograd.gradcheck(lambda v: bradley_terry(v, torch.tensor([1, 0]), margin), values)

    def test_three_completions_are_no_pair(self):
        with pytest.raises(ValueError, match=r"shape \[1, 3\]; expected \[B, 2\]"):
            bradley_terry(t([1.0, 2.0, 3.0]))


def likelihood(values, order):
    """The probability of drawing `order` one by one, each among those left with chances exp(r)."""
    left, found = list(order), 1.0
    for k in order:
        found *= math.exp(values[k]) / sum(math.exp(values[j]) for j in left)
        left.remove(k)
    return found


class TestPlackettLuce:
    def test_every_order_of_four_has_the_probability_of_drawing_it(self):
        values = [0.2, -0.7, 1.1, 0.0]
        total = 0.0
        for order in itertools.permutations(range(4)):
            rewards = t([float(-order.index(k)) for k in range(4)])
            found = plackett_luce(t(values), rewards).item()
            assert found == pytest.approx(-math.log(likelihood(values, order)), rel=1e-12)
            total += math.exp(-found)
        assert total == pytest.approx(1.0, rel=1e-12)

    def test_tied_items_are_not_compared(self):
        # items 0 and 1 tie above 2: each of them against 2 alone
        r = [0.5, -0.3, 0.9]
        expected = -math.log(sigmoid(r[0] - r[2])) - math.log(sigmoid(r[1] - r[2]))
        assert plackett_luce(t(r), t([1.0, 1.0, 0.0])).item() == pytest.approx(expected, rel=1e-12)

    def test_a_group_of_ties_has_neither_loss_nor_gradient(self):
        values = t([0.5, -0.3, 0.9]).requires_grad_()
        loss = plackett_luce(values, t([2.0, 2.0, 2.0]))
        loss.sum().backward()
        assert loss.item() == 0.0
        assert values.grad.tolist() == [[0.0] * 3]

    def test_two_are_bradley_and_terry(self):
        values = t([0.3, -1.2], [0.1, 0.4])
        pairs = bradley_terry(values, torch.tensor([1, 0]))
        torch.testing.assert_close(plackett_luce(values, t([0.0, 3.0], [9.0, -1.0])), pairs)

    def test_what_the_mask_hides_counts_nowhere(self):
        values = t([0.5, -0.3, math.nan, 0.9], [1.0, 2.0, 3.0, 4.0]).requires_grad_()
        mask = torch.tensor([[True, True, False, True], [True, True, True, True]])
        loss = plackett_luce(values, t([1.0, 0.0, 5.0, 2.0], [0.0, 1.0, 2.0, 3.0]), mask)
        loss.sum().backward()
        alone = plackett_luce(t([0.5, -0.3, 0.9]), t([1.0, 0.0, 2.0]))
        assert loss[0].item() == pytest.approx(alone.item(), rel=1e-12)
        assert values.grad[0, 2].item() == 0.0
        assert torch.isfinite(values.grad).all()

    def test_permuting_completions_and_stretching_rewards_change_nothing(self):
        values, rewards = t([0.5, -0.3, 0.9]), t([1.0, 0.0, 2.0])
        loss = plackett_luce(values, rewards).item()
        order = [2, 0, 1]
        assert plackett_luce(values[:, order], rewards[:, order]).item() == pytest.approx(loss, rel=1e-12)
        assert plackett_luce(values, rewards * 100 - 3).item() == loss

    def test_the_gradient(self):
        values, rewards = t([0.5, -0.3, 0.9, 0.1]).requires_grad_(), t([1.0, 0.0, 2.0, 1.0])
        assert torch.autograd.gradcheck(lambda v: plackett_luce(v, rewards), values)

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match=r"values of shape \[1, 2\] and rewards of \[1, 3\]"):
            plackett_luce(t([1.0, 2.0]), t([1.0, 2.0, 3.0]))


class TestCrossEntropy:
    def test_by_hand_as_the_mean_of_a_group(self):
        expected = (-math.log(sigmoid(0.7)) - math.log(1 - sigmoid(-0.2))) / 2
        found = cross_entropy(t([0.7, -0.2, 9.9]), t([1.0, 0.0, 1.0]), torch.tensor([[True, True, False]]))
        assert found.item() == pytest.approx(expected, rel=1e-12)

    def test_it_is_the_cross_entropy_of_two_logits_that_differ_by_the_reward(self):
        logits = t([0.3, 1.4], [-0.2, -2.0])
        labels = torch.tensor([0, 1])
        theirs = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        ours = cross_entropy((logits[:, 1] - logits[:, 0])[:, None], labels[:, None])
        torch.testing.assert_close(ours, theirs)

    def test_the_gradient(self):
        values = t([0.5, -0.3]).requires_grad_()
        assert torch.autograd.gradcheck(lambda v: cross_entropy(v, t([1.0, 0.0])), values)


class TestCentring:
    def test_by_hand(self):
        values = t([2.0, -0.5, 7.0], [1.0, -1.0, 0.0])
        assert centring(values, torch.tensor([[True, True, False], [True, True, True]])).tolist() == [2.25, 0.0]

    def test_its_gradient_pulls_all_alike(self):
        values = t([2.0, -0.5]).requires_grad_()
        centring(values).sum().backward()
        assert values.grad.tolist() == [[3.0, 3.0]]  # d/dr (sum r)^2 = 2 sum r
