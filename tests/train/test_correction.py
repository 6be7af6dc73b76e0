"""The proposal correction: proved where all sequences are enumerated, and as the trainer applies it.

The proof: V symbols x L positions, float64. The policy is a product over positions, so it cannot represent pi*, and its optimum
is the one nearest to pi* in KL(pi || pi*), found with everything enumerated. (A policy that can represent pi* ends there with
and without the correction: q = p on any K completions is the same equation either way.)
"""

import itertools
import logging
import math
import pickle

import pytest
import torch

from exoalign import ExoConfig, ExoTrainer, Group, collate
from exoalign.errors import ConfigError, DataError
from exoalign.groups import GroupBatch
from exoalign.losses import exo_rw
from exoalign.models import fingerprint
from exoalign.train.correction import CollapseWatch, CorrectedCollate, Correction, correction_for, proposal_of

V, L, BETA = 4, 3, 0.5
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=L)))  # [N, L]


def autoregressive(tables: list[torch.Tensor]) -> torch.Tensor:
    """log-probs [N] of all sequences; tables[i] is [V, ..., V]: log-probs of symbol i (last) after each prefix."""
    return sum(table[tuple(SEQUENCES[:, : i + 1].T)] for i, table in enumerate(tables))


def task(seed: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The reference's tables, the rewards [N], and the log-probs [N] of some other model."""
    g = torch.Generator().manual_seed(seed)
    tables = [torch.randn([V] * (i + 1), generator=g, dtype=torch.float64).mul(0.7).log_softmax(-1) for i in range(L)]
    rewards, other = torch.randn(2, V**L, generator=g, dtype=torch.float64)
    return tables, rewards, (0.5 * other).log_softmax(-1)


def factorised(theta: torch.Tensor) -> torch.Tensor:
    """log pi of all sequences, [N], theta [L, V] being the logits of each position."""
    logits = theta.log_softmax(-1)
    return sum(logits[i, SEQUENCES[:, i]] for i in range(L))


def fitted(loss, steps: int = 1000) -> torch.Tensor:
    """log pi [N] of the factorised policy that minimises loss(log pi), from the uniform one."""
    theta = torch.zeros(L, V, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(factorised(theta)).backward()
        optimizer.step()
        schedule.step()
    return factorised(theta.detach())


def optimum(reference, rewards, support=slice(None)) -> torch.Tensor:
    """The factorised policy nearest to pi* ∝ pi_ref exp(r / beta) on the support, by the textbook's reverse KL."""
    target = (reference + rewards / BETA)[support].log_softmax(0)

    def kl(log_pi):
        here = log_pi[support].log_softmax(0)
        return (here.exp() * (here - target)).sum()

    return fitted(kl)


def learnt(reference, rewards, mu, *, k: int, groups: int, correct: bool) -> torch.Tensor:
    """What exo_rw learns from groups of K samples of mu (a function of the policy's log-probs [N]) at each step."""
    g = torch.Generator().manual_seed(7)

    def loss(log_pi):
        log_mu = mu(log_pi.detach())
        drawn = torch.multinomial(log_mu.exp().expand(groups, -1), k, replacement=True, generator=g)
        proposal = (reference - log_mu)[drawn] if correct else None
        ratios = (log_pi - reference)[drawn]
        return exo_rw(ratios, rewards[drawn], beta_pi=1.0, beta_r=BETA, proposal=proposal).mean()

    return fitted(loss)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Total variation."""
    return float((a.exp() - b.exp()).abs().sum() / 2)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_on_another_models_samples_the_optimum_stays_with_it_and_moves_without(seed):
    tables, rewards, other = task(seed)
    reference = autoregressive(tables)
    best = optimum(reference, rewards)
    few, many, without = (
        distance(learnt(reference, rewards, lambda _: other, k=k, groups=2, correct=correct), best)
        for k, correct in ((32, True), (1024, True), (1024, False))
    )
    assert many < 0.01 < few  # unbiased in the limit of large K
    assert without > 0.1


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_online_the_optimum_stays_with_it_and_moves_without(seed):
    tables, rewards, _ = task(seed)
    reference = autoregressive(tables)
    best = optimum(reference, rewards)
    corrected, without = (
        distance(learnt(reference, rewards, lambda now: now, k=32, groups=8, correct=correct), best)
        for correct in (True, False)
    )
    assert corrected < 0.01
    assert without > 0.04


@pytest.mark.parametrize("seed", [1, 4])
def test_truncated_samples_give_the_optimum_on_what_can_be_drawn(seed):
    """Temperature 2.5 and top-p 0.8 after each prefix: what is kept has another mass after each."""
    tables, rewards, _ = task(seed)
    reference = autoregressive(tables)
    mu = autoregressive([nucleus((table / 2.5).log_softmax(-1), 0.8) for table in tables])
    support = torch.isfinite(mu)
    assert V < int(support.sum()) < V**L
    best = optimum(reference, rewards, support)[support].log_softmax(0)
    corrected, without = (
        distance(
            learnt(reference, rewards, lambda _: mu, k=512, groups=4, correct=correct)[support].log_softmax(0), best
        )
        for correct in (True, False)
    )
    assert corrected < 0.01
    assert without > 0.04


def nucleus(log_p: torch.Tensor, top_p: float) -> torch.Tensor:
    """The fewest likeliest symbols that hold `top_p`, renormalised."""
    values, order = log_p.exp().sort(-1, descending=True)
    kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, values.cumsum(-1) - values < top_p)
    return log_p.masked_fill(~kept, -math.inf).log_softmax(-1)


# What the trainer makes of it.


def drawn(i: int = 0, sampler: dict | None = None, **changes) -> Group:
    """A group of K = 3 that says how it was drawn."""
    values = {
        "rewards": (1.0, 0.0, 0.5),
        "prompt_ids": (1, 2, 3 + i),
        "completion_ids": ((20 + i, 21), (30 + i, 31, 32), (40, 41 + i)),
        "sampler_logprobs": (-9.0, -12.0, -8.0 - i),
        "provenance": {"source": f"data:{i}", **({} if sampler is None else {"sampler": sampler})},
        **changes,
    }
    return Group(f"Film {i}", (" good", " bad", " so so"), **values)


def test_a_batch_has_the_proposal_of_the_groups_that_have_one_and_keeps_it():
    groups = [drawn(0), drawn(1), drawn(2)]
    assert collate(groups, proposals=[None, None, None]).proposal is None
    batch = collate(groups, proposals=[None, (0.5, -1.0, 2.0), None])
    assert batch.proposal.tolist() == [[0.0] * 3, [0.5, -1.0, 2.0], [0.0] * 3]
    assert batch.take([1], [2, 0]).proposal.tolist() == [[2.0, 0.5]]
    assert GroupBatch(**batch.as_dict()).proposal is not None


SAME = {"backend": "transformers", "fingerprint": "of the reference", "temperature": 0.8, "top_p": 1.0, "top_k": 0}


@pytest.mark.parametrize(
    ("sampler", "corrected"),
    [
        (SAME, False),
        ({**SAME, "top_p": 0.9}, True),
        ({**SAME, "top_k": 5}, True),
        ({**SAME, "temperature": 1.0}, True),
        ({**SAME, "fingerprint": "of another model"}, True),
        ({"backend": "transformers", "online_block": 3, "temperature": 0.8}, True),  # of a policy as it trained
        (None, True),  # nobody says whose log-probs these are
    ],
)
def test_auto_corrects_what_the_reference_did_not_draw(sampler, corrected):
    auto = Correction("auto", 0.8, frozenset({"of the reference"}))
    group = drawn(sampler=sampler, reference_logprobs=(-10.0, -12.5, -7.0))
    assert auto.of(group) == ((-1.0, -0.5, 1.0) if corrected else None)
    assert auto.of(drawn(sampler=sampler, sampler_logprobs=None)) is None
    assert Correction("off").of(group) is None
    assert Correction("on").of(group) == (-1.0, -0.5, 1.0)


def test_the_reference_is_known_by_its_fingerprint_in_either_precision(tiny_model):
    half = fingerprint(tiny_model, torch.bfloat16)
    assert half != fingerprint(tiny_model)
    groups = [drawn(sampler={**SAME, "fingerprint": print_}) for print_ in (fingerprint(tiny_model), half)]
    correction = correction_for(groups, tiny_model, mode="auto", temperature=0.8)
    assert not any(map(correction.applies, groups))
    assert correction.applies(drawn(sampler={**SAME, "fingerprint": "0"}))
    assert fingerprint(tiny_model.bfloat16()) == half
    assert correction_for([drawn(sampler_logprobs=None)], tiny_model, mode="auto", temperature=0.8) is None
    assert pickle.loads(pickle.dumps(CorrectedCollate(correction))).correction == correction


def trainer_on(groups, folder, tiny_folder, **settings) -> ExoTrainer:
    arguments = {"learning_rate": 0.0, "save_strategy": "no", "disable_tqdm": True, "num_train_epochs": 1, **settings}
    return ExoTrainer(str(tiny_folder), ExoConfig(str(folder), **arguments), groups)


def test_the_trainer_corrects_both_softmaxes(tmp_path, tiny_folder):
    """Before the first step rho = 0: q = softmax(c), p = softmax(r / beta_r + c); one of two groups is corrected."""
    groups = [drawn(0, {**SAME, "temperature": 0.5}), drawn(1, sampler_logprobs=None)]
    trainer = trainer_on(groups, tmp_path, tiny_folder, beta_r=0.5, per_device_train_batch_size=2)
    trainer.train()
    assert trainer.corrected == 1
    reference = trainer.train_dataset[0].reference_logprobs
    c = torch.tensor([theirs - mu for theirs, mu in zip(reference, groups[0].sampler_logprobs, strict=True)])
    expected, ess = 0.0, 0.0
    for weights in (c, torch.zeros(3)):
        q, p = weights.softmax(0), (torch.tensor(groups[0].rewards) / 0.5 + weights).softmax(0)
        expected += float((q * (q / p).log()).sum()) / 2
        ess += float(1 / (weights.softmax(0) ** 2).sum()) / 2
    history = trainer.state.log_history[0]
    assert history["loss"] == pytest.approx(expected, abs=1e-5)
    assert history["correction_ess"] == pytest.approx(ess, abs=1e-4)
    off = trainer_on(groups, tmp_path, tiny_folder, correction="off")
    off.train()
    assert "correction_ess" not in off.state.log_history[0]


def test_on_without_sampler_log_probs_names_the_group(tmp_path, tiny_folder):
    trainer = trainer_on([drawn(0), drawn(1, sampler_logprobs=None)], tmp_path, tiny_folder, correction="on")
    with pytest.raises(DataError, match=r"data:1: has no sampler_logprobs.*set correction to auto or off"):
        trainer.train()
    with pytest.raises(ConfigError, match="correction is 'yes'; expected auto, on or off"):
        ExoConfig(str(tmp_path), correction="yes")
    with pytest.raises(ConfigError, match="on with exo_pref, whose target is a preference"):
        ExoConfig(str(tmp_path), objective="exo_pref", correction="on")
    with pytest.raises(DataError, match="data:0: has no reference_logprobs"):
        proposal_of(drawn(0))


def test_a_collapse_is_told_once_with_the_setting_to_change(tmp_path, tiny_folder, caplog):
    """c = (0, 0, 60 at most): one completion has all the weight."""
    groups = [drawn(i, sampler_logprobs=(-60.0, -60.0, 0.0)) for i in range(12)]
    trainer = trainer_on(groups, tmp_path, tiny_folder, per_device_train_batch_size=1)
    with caplog.at_level(logging.WARNING, logger="exoalign"):
        trainer.train()
    (finding,) = [found for found in trainer.findings if found.kind == "correction"]
    assert finding.text.startswith("the correction collapses: in steps 1 to 10 its effective sample size is 1")
    assert "of K = 3" in finding.text
    assert "align.correction to off" in finding.remedy
    assert caplog.text.count("the correction collapses") == 1


def test_a_collapse_takes_ten_steps_and_both_effective_sample_sizes():
    def look(c, q, n):
        steps = [{"correction_ess": c, "policy_ess": q, "step": i + 1} for i in range(n)]
        return CollapseWatch(8, "").look(steps)

    assert look(1.9, 1.9, 10)  # K / 4 = 2
    assert [look(1.9, 1.9, 9), look(2.1, 1.0, 10), look(1.0, 2.1, 10)] == [[], [], []]
    watch, step = CollapseWatch(4, ""), {"correction_ess": 1.0, "policy_ess": 1.0, "step": 1}
    assert [len(watch.look([step] * n)) for n in (4, 9, 10, 30)] == [0, 0, 1, 0]
