"""docs/measures.md: its code runs, its numbers are those that the code counts; the examples in docstrings hold."""

import copy
import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

from exoalign.groups import Group

PAGE = (Path(__file__).parents[1] / "docs" / "measures.md").read_text()


@pytest.mark.parametrize(
    "name",
    ["estimators", "kl_estimators", "evaluate.best_of_n", "evaluate.diversity", "evaluate.frontier"],
)
def test_the_examples_hold(name):
    found = doctest.testmod(importlib.import_module(f"exoalign.{name}"))
    assert found.attempted
    assert not found.failed


def samples(rewards):
    ids = (((5,), (6, 7)), ((8, 9, 1), (2,)))
    return [
        Group(f"p{i}", ("a b", "b c"), rewards=row, prompt_ids=(3, i), completion_ids=ids[i])
        for i, row in enumerate(rewards)
    ]


def test_the_code_runs(tiny_model, capsys):
    policy = copy.deepcopy(tiny_model)
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.3)
    base = [(0.0, 1.0), (2.0, 4.0)]
    space = {
        "reference": tiny_model,
        "checkpoints": {0: (tiny_model, samples(base)), 10: (policy, samples([(1.0, 1.0), (4.0, 4.0)]))},
        "base_samples": samples(base),
        "seed": 0,
    }
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(code, space)
    assert set(eval(capsys.readouterr().out)) == {"mean", "low", "high"}
    exo, best = space["found"]["frontiers"]
    assert (exo["method"], best["method"]) == ("exo_rw", "best_of_n")
    assert exo["reward"][0] == best["reward"][0] == 1.75  # of the base
    assert best["reward"][-1] == pytest.approx(2.5)
    assert exo["reward"][-1] == pytest.approx(2.5, abs=0.1)  # always the best of two; either prompt has the other's KL


def test_every_number_of_a_point_is_explained():
    for name in ("kl", "kl_k3", "kl_exact", "distinct_2", "self_bleu", "length", "length_reward"):
        assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE), name
    for name in ("kl_bound", "area", "area_seeds", "area_with_seeds", "up_to", "reached", "difference"):
        assert f"`{name}`" in PAGE, name
