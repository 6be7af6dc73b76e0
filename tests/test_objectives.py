"""The objectives that are no part of `losses`: values by hand, gradients against what they stand for."""

import pytest
import torch

from exoalign import ConfigError, ExoConfig, Group, ipo, sft_best
from exoalign.data.collate import collate


def test_ipo_is_the_squared_distance_from_its_margin():
    # rho_w - rho_l = 1.5 and -1.5; 1 / (2 beta) = 1: (0.5)^2 and (-2.5)^2
    log_ratios = torch.tensor([[1.0, -0.5], [1.0, -0.5]])
    assert ipo(log_ratios, torch.tensor([0, 1]), beta_pi=0.5).tolist() == [0.25, 6.25]
    assert ipo(log_ratios[:1], beta_pi=0.5).tolist() == [0.25]


@pytest.mark.parametrize(("shape", "beta", "words"), [((1, 3), 0.5, r"\[B, 2\], found \[1, 3\]"), ((1, 2), 0.0, "0")])
def test_ipo_refuses_what_it_has_no_meaning_for(shape, beta, words):
    with pytest.raises(ValueError, match=words):
        ipo(torch.zeros(shape), beta_pi=beta)


def test_sft_best_looks_at_the_first_best_completion_alone():
    log_ratios = torch.tensor([[0.5, -2.0, 4.0], [1.0, 2.0, 3.0]], requires_grad=True)
    rewards = torch.tensor([[1.0, 1.0, 9.0], [0.0, 3.0, 2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    loss = sft_best(log_ratios, rewards, mask=mask)
    assert loss.tolist() == [-0.5, -2.0]
    loss.sum().backward()
    assert log_ratios.grad.tolist() == [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]


def test_sft_best_of_an_empty_group_is_0():
    mask = torch.zeros(1, 2, dtype=torch.bool)
    assert sft_best(torch.ones(1, 2), torch.ones(1, 2), mask=mask).tolist() == [0.0]


def test_every_objective_takes_the_batch_that_it_needs():
    rewarded = collate([Group("a", ("b", "c"), rewards=(1.0, 0.0), prompt_ids=(1,), completion_ids=((2,), (3,)))])
    chosen = collate([Group("a", ("b", "c"), winner=0, prompt_ids=(1,), completion_ids=((2,), (3,)))])
    rho = torch.tensor([[1.0, 0.0]])
    assert ExoConfig("out", objective="ipo", beta_pi=0.25).loss(rho, chosen).tolist() == [1.0]  # (1 - 2)^2
    assert ExoConfig("out", objective="sft_best").loss(rho, rewarded).tolist() == [-1.0]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_an_anchor_out_of_range_is_refused(weight):
    with pytest.raises(ConfigError, match="nll_weight is"):
        ExoConfig("out", nll_weight=weight)
