"""Two passes for a group that does not fit: the gradient of the whole, in float64, on several architectures."""

import pytest
import torch
from architectures import GROUPS, TRAJECTORIES, assert_same_gradients, build, one_by_one

from exoalign import collate, exo_rw
from exoalign.errors import TrainingError
from exoalign.train.gradient import accumulate

REWARDS = torch.tensor([[0.3, -1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.1, 0.9, -0.4, 0.7]], dtype=torch.float64)
REFERENCE = torch.linspace(-20.0, -4.0, 12, dtype=torch.float64).view(3, 4)


def losses(logprobs, batch):
    """exo_rw; the batch carries float32, so that its rows are found again by their rewards."""
    rows = [next(b for b in range(3) if torch.equal(REWARDS[b].float(), r)) for r in batch.rewards]
    ratios = torch.where(batch.mask, logprobs - REFERENCE[rows], 0.0)
    return exo_rw(ratios, REWARDS[rows], beta_pi=0.5, beta_r=0.5, mask=batch.mask)


def batch_of(groups):
    batch = collate(groups).as_dict()
    return type(collate(groups))(**{**batch, "rewards": REWARDS.float()})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2", "stablelm"])
@pytest.mark.parametrize("most", [14, 20, 33, 1000])  # groups of 18, 5 and 14 tokens; of trajectories 24, 5 and 14
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("groups", [GROUPS, TRAJECTORIES], ids=["replies", "trajectories"])
def test_the_gradient_is_that_of_the_whole(kind, most, checkpointing, groups):
    model = build(kind)
    batch = batch_of(groups)
    truth = losses(one_by_one(model, groups, 0.7), batch).sum() / 5
    model.zero_grad()
    truth.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():  # GPT-2 drops by default
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in vars(module):
                if "dropout" in name and isinstance(getattr(module, name), float):
                    setattr(module, name, 0.0)
    last = []
    loss = accumulate(
        model, batch, losses, total=5, max_tokens=most, temperature=0.7, bf16=False,
        backward=lambda part, is_last: (part.backward(), last.append(is_last)),
    )  # fmt: skip
    assert abs(loss - truth.detach()) <= 1e-6 * abs(truth)  # the sum of the passes is kept in float32
    assert last == [False] * (len(last) - 1) + [True]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same_gradients(found, expected)


def test_dropout_and_two_passes_are_refused():
    with pytest.raises(TrainingError, match="larger than max_tokens_per_pass, so that it goes through the model twice"):
        accumulate(
            build("llama"), batch_of(GROUPS), losses, total=3, max_tokens=14, temperature=1.0, bf16=False,
            repeatable=False, backward=lambda part, is_last: None,
        )  # fmt: skip
