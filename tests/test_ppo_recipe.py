"""Recipes whose objective is `ppo` or `rloo`: a run, what it was trained with, and what is refused."""

import json

import pytest

from exoalign import PpoConfig, RlooConfig, load_model, run, stages
from exoalign.config_ppo import PpoSection
from exoalign.errors import ConfigError
from exoalign.recipe import build_recipe


@pytest.fixture
def recipe(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 4), ("heldout", 2)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": f"{name} {i}:"}) for i in range(count)))
    values = {
        "out": "out",
        "model": {"path": str(tiny_folder), "precision": "float32"},
        "prompts": {"train": "train.jsonl", "evaluation": "heldout.jsonl"},
        "sample": {"max_new_tokens": 6, "temperature": 0.8},
        "reward": {"function": "length"},
        "align": {"objective": "ppo", "groups_per_step": 2, "beta_pi": 0.5, "beta_r": 0.25, "online": {"k": 2}},
        "evaluate": {"k": 2},
    }
    return lambda *overrides: build_recipe(json.loads(json.dumps(values)), overrides)


@pytest.mark.parametrize(("objective", "steps", "logged"), [("ppo", 8, "value_loss"), ("rloo", 2, "log_ratio")])
def test_a_run(recipe, tmp_path, objective, steps, logged):
    result = run(recipe(f"align.objective={objective}"), show=False)
    assert [stage["name"] for stage in result["stages"]] == ["align", "evaluate"]
    history = json.loads((tmp_path / "out/align/history.json").read_text())["steps"]
    assert [step["step"] for step in history] == list(range(1, steps + 1))
    assert {logged, "sample_reward", "sample_kl"} <= set(history[0])
    assert load_model(str(tmp_path / "out/align/model"), device="cpu")
    assert result["metrics"]["prompts"] == 2
    assert (tmp_path / "out/report/index.html").is_file()


def test_all_settings_reach_the_trainer(recipe):
    overrides = {
        "epochs": 2, "clip": 0.1, "value_clip": 0.3, "value_coefficient": 0.5, "value_learning_rate": 0.01, "gamma": 0.9,
        "lam": 0.8, "whiten_advantages": False, "whiten_rewards": True, "scale_rewards": False, "target_kl": 3.0,
        "kl_horizon": 50.0, "missing_eos_penalty": 1.5,
    }  # fmt: skip
    assert set(overrides) == set(PpoSection.model_fields)
    asked = [f"align.ppo.{name}={json.dumps(value)}" for name, value in overrides.items()]
    found = stages.training_arguments(recipe(*asked, "align.trainer.adam_epsilon=1e-6"), bf16=False)
    assert isinstance(found, PpoConfig)
    for name, value in overrides.items():
        assert getattr(found, "passes_per_block" if name == "epochs" else name) == value
    assert found.adam_epsilon == 1e-6
    assert found.beta == 0.125  # beta_pi * beta_r
    assert (found.k, found.temperature, found.max_new_tokens) == (2, 0.8, 6)


def test_the_section_s_defaults_are_the_trainer_s(recipe, tmp_path):
    trainer = PpoConfig(str(tmp_path))
    for name, value in PpoSection().model_dump().items():
        assert getattr(trainer, "passes_per_block" if name == "epochs" else name) == value, name
    found = stages.training_arguments(recipe("align.objective=rloo"), bf16=False)
    assert isinstance(found, RlooConfig)
    assert found.beta == 0.125


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["align.online=null"],
            "`objective` is ppo, which learns from samples of the policy as it trains: give an `onl",
        ),
        (["align.objective=rloo", "align.ppo.lam=1"], "`ppo` has no effect with rloo"),
        (["align.objective=exo_rw", "align.ppo.lam=1"], "`ppo` has no effect with exo_rw"),
        (["align.epsilon=0.1"], "`epsilon` has no effect with ppo"),
        (["align.correction=on"], "`correction` has no effect with ppo"),
        (["align.ppo.lam=1.5"], "`align.ppo.lam` is 1.5; input should be less than or equal to 1"),
        (["align.ppo.whiten_rewards=true", "align.ppo.scale_rewards=true"], "choose one"),
        (["align.ppo.kl_horizon=10"], "`kl_horizon` has no effect without `target_kl`"),
        (["align.trainer.clip=0.3"], "align.trainer.clip: the recipe sets this itself"),
        (["sample.top_p=0.9"], "the policy gradient is that of samples of the policy itself"),
    ],
)
def test_what_does_not_go_is_refused_before_any_work(recipe, overrides, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(recipe(*overrides), show=False)
    assert message in str(caught.value)
    assert not (tmp_path / "out" / "align").exists()
