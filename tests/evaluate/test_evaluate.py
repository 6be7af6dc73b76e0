"""Evaluation numbers by hand."""

import copy
from dataclasses import replace

import pytest
import torch

from exoalign import ExoConfig, Group, collate
from exoalign.errors import DataError
from exoalign.evaluate.compare import kl_of_samples, summarise
from exoalign.evaluate.heldout import accuracy, log_ratios_of, losses_of, spread
from exoalign.logprobs import rows


def samples(rewards, lengths):
    return [
        Group(f"p{i}", ("a", "b"), rewards=r, prompt_ids=(1,), completion_ids=tuple((1,) * n for n in ns))
        for i, (r, ns) in enumerate(zip(rewards, lengths, strict=True))
    ]


def test_summary_by_hand():
    base = samples([(0.0, 1.0), (0.0, 0.0)], [(1, 3), (2, 2)])
    aligned = samples([(1.0, 1.0), (0.5, 0.5)], [(4, 4), (2, 4)])
    metrics = summarise(base, aligned, [[0.5, 1.5], [1.0, 1.0]], [[1.0, 1.0], [2.0, 2.0]], [[0.0, 1.0], [3.0, 0.0]])
    assert metrics["base"]["reward"]["mean"] == 0.25
    assert metrics["aligned"]["reward"]["mean"] == 0.75
    assert metrics["difference"]["reward"] == {"mean": 0.5, "low": 0.5, "high": 0.5}  # 0.5 for either prompt: no spread
    assert metrics["aligned"]["kl"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert metrics["aligned"]["kl_exact"] == {"mean": 1.5, "low": 1.0, "high": 2.0}
    assert metrics["aligned"]["kl_k3"] == {"mean": 1.0, "low": 0.5, "high": 1.5}
    assert metrics["base"]["length"]["mean"] == 2.0
    assert metrics["aligned"]["length"]["mean"] == 3.5
    assert (metrics["prompts"], metrics["completions_per_prompt"]) == (2, 2)


def test_the_length_of_a_trajectory_is_what_the_assistant_wrote():
    (group,) = samples([(0.0, 1.0)], [(2, 5)])
    turns = replace(group, completion_masks=((True, True), (True, False, False, True, True)))
    metrics = summarise([group], [turns], *[[[0, 0]]] * 3)
    assert metrics["base"]["length"]["mean"] == 3.5
    assert metrics["aligned"]["length"]["mean"] == 2.5


def test_samples_of_other_prompts_are_refused():
    base = samples([(0.0, 1.0), (0.0, 0.0)], [(1, 3), (2, 2)])
    with pytest.raises(DataError, match="same prompts"):
        summarise(base, base[::-1], *[[[0, 0]] * 2] * 3)
    with pytest.raises(DataError, match="no rewards"):
        summarise([Group("a", ("x",))], [Group("a", ("x",))], *[[[0]]] * 3)


def test_a_policy_is_at_no_distance_from_itself(tiny_model):
    groups = samples([(0.0, 1.0)], [(2, 3)])
    ratios, exact, k3 = kl_of_samples(tiny_model, tiny_model, groups, temperature=0.8)
    assert ratios == k3 == [[0.0, 0.0]]
    assert exact[0] == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("together", [1, 20, 1000])
def test_each_group_gets_its_own_numbers_whatever_it_is_put_together_with(together, tiny_model, monkeypatch):
    monkeypatch.setattr("exoalign.logprobs.passes.TOGETHER", together)
    reference = copy.deepcopy(tiny_model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
    lengths = [(2, 3, 1), (5,), (1, 4), (7, 2)]
    groups = [
        Group(
            f"p{i}",
            tuple("abc"[: len(ns)]),
            prompt_ids=tuple(range(1, 4 + i)),
            completion_ids=tuple(tuple(range(10 * k, 10 * k + n)) for k, n in enumerate(ns)),
        )
        for i, ns in enumerate(lengths)
    ]
    done = []
    found = kl_of_samples(tiny_model, reference, groups, temperature=0.8, report=done.append)
    assert sum(done) == 4
    for i, group in enumerate(groups):
        alone = rows.compare_policies(tiny_model, reference, collate([group]), temperature=0.8)
        for ours, theirs in zip(found, alone, strict=True):
            assert len(ours[i]) == group.k
            assert ours[i] == pytest.approx(theirs[0].tolist(), abs=1e-4)


def test_groups_are_drawn_evenly_and_by_the_seed_alone():
    groups = [Group(f"{i}", ("a",)) for i in range(1000)]
    some = [int(group.prompt) for group in spread(groups, 100, seed=1)]
    assert [i // 10 for i in some] == list(range(100))  # one of each ten
    assert 30 < sum(i % 2 for i in some) < 70  # of data sets that take turns, both: 50 +- 4 standard deviations
    assert spread(groups, 100, seed=1) == [groups[i] for i in some] != spread(groups, 100, seed=2)
    assert spread(groups, 1000, seed=1) is groups
    assert len({group.prompt for group in spread(groups, 999, seed=1)}) == 999


def test_accuracy_counts_the_best_and_halves_ties():
    groups = [
        Group("a", ("x", "y"), winner=0),
        Group("a", ("x", "y"), winner=1),
        Group("a", ("x", "y"), winner=0),
        Group("a", ("x", "y", "z"), rewards=(0.0, 2.0, 2.0)),
    ]
    ratios = [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0, 5.0]]
    found = accuracy(groups, ratios)
    assert found["mean"] == (1 + 0 + 0.5 + 1) / 4
    assert found["chance"] == (0.5 + 0.5 + 0.5 + 2 / 3) / 4
    flat = Group("a", ("x", "y"), rewards=(1.0, 1.0))  # nothing to rank
    assert accuracy([*groups, flat], [*ratios, [5.0, 0.0]]) == found
    assert accuracy([flat], [[5.0, 0.0]]) is None


def test_losses_at_the_reference_by_hand(tmp_path):
    config = ExoConfig(str(tmp_path), objective="dpo_pref", beta_pi=0.5)
    group = Group("a", ("x", "y"), winner=1, prompt_ids=(1,), completion_ids=((1,), (2,)))
    assert losses_of([group], [[0.0, 0.0]], config.loss)[0] == pytest.approx(0.693147, abs=1e-5)
    # -log sigmoid(0.5 * (2 - 0))
    assert losses_of([group], [[0.0, 2.0]], config.loss)[0] == pytest.approx(0.313262, abs=1e-5)


def test_log_ratios_need_a_reference(tiny_model):
    group = Group("a", ("x", "y"), winner=1, prompt_ids=(1,), completion_ids=((1,), (2,)))
    with pytest.raises(DataError, match="reference"):
        log_ratios_of([group], tiny_model, bf16=False, temperature=1.0)
