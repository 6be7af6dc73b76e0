"""The baselines are what the field calls them: TRL's own loss code on the same random numbers, value and gradient.

`DPOTrainer._compute_loss` runs as it is; only the network is replaced, by one whose log-probs are given.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from exoalign import dpo_pref, exo_pref, ipo

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'exoalign[bench]'")
PAIRS, TOKENS, BETA, EPSILON = 16, 7, 0.3, 1e-3


class Given:
    """Stands where TRL has its network: its log-probs are a leaf whose gradient is compared."""

    training = True

    def __init__(self, log_probs):
        self.log_probs = log_probs

    def __call__(self, **inputs):
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def of_trl(loss_type, log_probs, reference, *, smoothing=0.0):
    """TRL's loss of the pairs whose chosen halves stand first: [2 B, T] -> a number."""
    from accelerate import Accelerator

    model = Given(log_probs)
    trainer = SimpleNamespace(
        model=model,
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = reference.chunk(2)
    ones = torch.ones(2 * PAIRS, TOKENS + 1, dtype=torch.long)
    inputs = {
        "input_ids": ones,
        "attention_mask": ones,
        "completion_mask": ones,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return trl.DPOTrainer._compute_loss(trainer, model, inputs, False)


def random_numbers():
    generator = torch.Generator().manual_seed(0)
    log_probs = -4 * torch.rand(2 * PAIRS, TOKENS, generator=generator, dtype=torch.float64)
    reference = -4 * TOKENS * torch.rand(2 * PAIRS, generator=generator, dtype=torch.float64)
    return log_probs, reference


@pytest.mark.parametrize(
    ("loss_type", "smoothing", "ours"),
    [
        ("sigmoid", 0.0, lambda rho: dpo_pref(rho, beta_pi=BETA)),
        ("exo_pair", EPSILON, lambda rho: exo_pref(rho, beta_pi=BETA, epsilon=EPSILON)),
        # TRL's IPO takes the mean log-ratio a token, where the paper's eq. 17 has the whole completion's.
        ("ipo", 0.0, lambda rho: ipo(rho / (TOKENS + 1), beta_pi=BETA)),
    ],
)
def test_the_loss_and_its_gradient_are_those_of_trl(loss_type, smoothing, ours):
    log_probs, reference = random_numbers()
    theirs = log_probs.clone().requires_grad_()
    expected = of_trl(loss_type, theirs, reference, smoothing=smoothing)
    expected.backward()
    mine = log_probs.clone().requires_grad_()
    found = ours(torch.stack((mine.sum(1) - reference).chunk(2), dim=1)).mean()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9)
    assert theirs.grad.abs().max() > 1e-4
