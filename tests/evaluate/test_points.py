"""A point by hand, and the way from a model's samples over points to a frontier."""

import copy
import json

import pytest
import torch

from exoalign.errors import DataError
from exoalign.evaluate.best_of_n import best_of_n
from exoalign.evaluate.compare import kl_of_samples
from exoalign.evaluate.frontier import Point, frontiers
from exoalign.evaluate.points import point_of
from exoalign.groups import Group

SETTINGS = {"step": 10, "seconds": 2.5, "tokens": 1000}


def groups_of(rewards):
    texts = (("a b", "a b"), ("a b", "c d"))
    ids = (((1,), (1, 2, 3)), ((4, 5), (6, 7, 8, 9)))
    return [
        Group(f"p{i}", t, rewards=r, prompt_ids=(1,), completion_ids=c)
        for i, (t, r, c) in enumerate(zip(texts, rewards, ids, strict=True))
    ]


def test_by_hand():
    groups = groups_of([(0.0, 1.0), (2.0, 3.0)])
    point = point_of(groups, [[0.0, 1.0], [2.0, 3.0]], [[1.0, 2.0], [0.5, 0.5]], [[1.0, 1.0]] * 2, **SETTINGS)
    assert point == {
        **SETTINGS,
        "reward": {"mean": 1.5, "low": 0.5, "high": 2.5},
        "kl": {"mean": 1.5, "low": 0.5, "high": 2.5},
        "kl_exact": {"mean": 1.0, "low": 0.5, "high": 1.5},
        "kl_k3": {"mean": 1.0, "low": 1.0, "high": 1.0},
        "length": {"mean": 2.5, "low": 2.0, "high": 3.0},
        "distinct_2": {"mean": 0.75, "low": 0.5, "high": 1.0},
        "self_bleu": {"mean": 0.5, "low": 0.0, "high": 1.0},
        "length_reward": {"mean": 1.0, "low": 1.0, "high": 1.0},
        "prompts": {"reward": [0.5, 2.5], "kl": [1.5, 0.5]},
    }
    json.dumps(point)


def test_one_completion_has_no_self_bleu():
    group = Group("p", ("a b",), rewards=(1.0,), prompt_ids=(1,), completion_ids=((1, 2),))
    point = point_of([group], [[0.0]], [[0.0]], [[0.0]], **SETTINGS)
    assert point["self_bleu"] is point["length_reward"] is None
    assert point["distinct_2"]["mean"] == 1.0


def test_numbers_of_other_samples_are_refused():
    groups = groups_of([(0.0, 1.0), (2.0, 3.0)])
    good = [[0.0, 1.0]] * 2
    with pytest.raises(DataError, match="exact KL are not of the groups' completions"):
        point_of(groups, good, [[0.0], [0.0, 1.0]], good, **SETTINGS)
    with pytest.raises(DataError, match="k3 are not of"):
        point_of(groups, good, good, good[:1], **SETTINGS)
    with pytest.raises(DataError, match="no groups"):
        point_of([], [], [], [], **SETTINGS)


def test_from_a_model_to_a_frontier(tiny_model):
    groups = groups_of([(0.0, 1.0), (2.0, 3.0)])
    policies = [copy.deepcopy(tiny_model) for _ in range(2)]
    for factor, policy in zip((1.2, 1.5), policies, strict=True):
        with torch.no_grad():
            policy.lm_head.weight.mul_(factor)
    points = [
        point_of(groups, *kl_of_samples(policy, tiny_model, groups, temperature=1.0), **SETTINGS) for policy in policies
    ]
    assert 0 < points[0]["kl_exact"]["mean"] < points[1]["kl_exact"]["mean"]
    assert all(point["kl_k3"]["mean"] > 0 for point in points)
    methods = {"exo_rw": {0: points}, "best_of_n": {0: best_of_n(groups, seconds=1.0, tokens=10)}}
    found = frontiers(
        {
            name: {
                seed: [Point(p["prompts"]["reward"], p["prompts"]["kl"]) for p in of_seed]
                for seed, of_seed in m.items()
            }
            for name, m in methods.items()
        },
        [0.5, 2.5],
    )
    assert [f["method"] for f in found["frontiers"]] == ["exo_rw", "best_of_n"]
    # the groups' rewards are those of the base: nothing is gained, while the best of two gains a half
    assert found["frontiers"][0]["area"]["mean"] == pytest.approx(0.0)
    assert found["frontiers"][1]["reward"][-1] == pytest.approx(2.0)
