"""PPO and RLOO as trainers: a step against the obvious way, the exact optimum, interruptions, adapters, what is saved."""

import copy
import json
import math
import os
import signal

import enumerable
import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

from exoalign import Group, load_model
from exoalign.errors import ConfigError, Interrupted
from exoalign.files import checksum
from exoalign.train.checkpoints import train_resumably
from exoalign.train.ppo import PpoTrainer
from exoalign.train.rl_arguments import PpoConfig, RlooConfig
from exoalign.train.rloo import RlooTrainer, penalised

KINDS = {"ppo": (PpoTrainer, PpoConfig), "rloo": (RlooTrainer, RlooConfig)}


def build(folder, kind="ppo", *, policy=None, peft_config=None, **settings):
    trainer_type, config = KINDS[kind]
    shared = {
        "seed": 3, "max_new_tokens": enumerable.LENGTH, "per_device_train_batch_size": 4, "k": 4, "max_steps": 8,
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "beta": 0.2,
    }  # fmt: skip
    trainer = trainer_type(
        policy or enumerable.model(),
        config(str(folder), **{**shared, **settings}),
        enumerable.PROMPTS,
        enumerable.score,
        processing_class=enumerable.tokenizer(),
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def single_tokens(model, ids, head=None):
    """log pi(a_t|s_t), and V(s_t), of one completion after the prompt "a", from one forward pass without padding."""
    output = model(input_ids=torch.tensor([[1, *ids]]), output_hidden_states=True)
    logp = torch.log_softmax(output.logits[0], -1)[range(len(ids)), list(ids)]
    return logp, None if head is None else head(output.hidden_states[-1][0, :-1])[:, 0]


@pytest.mark.parametrize("most", [None, 6], ids=["one pass", "parts"])
def test_a_rollout_and_its_second_step_are_those_of_the_obvious_way(tmp_path, most):
    """Token by token in Python: rewards, GAE, whitening, both clipped losses and the step of plain SGD."""
    torch.manual_seed(1)
    trainer = build(
        tmp_path, optim="sgd", learning_rate=0.3, value_learning_rate=0.3, lr_scheduler_type="constant", max_steps=2,
        passes_per_block=2, max_grad_norm=0.0, lam=0.7, gamma=0.9, max_tokens_per_pass=most, value_coefficient=0.5,
    )  # fmt: skip
    with torch.no_grad():  # values that are not all zero
        trainer.value_head.weight.normal_(std=0.3)
    policy, head = enumerable.model(), copy.deepcopy(trainer.value_head)
    trainer.train()
    groups = trainer.block.groups
    rows = [(ids, r) for group in groups for ids, r in zip(group.completion_ids, group.rewards, strict=True)]
    assert len(rows) == 16
    old, advantages = [], []
    with torch.no_grad():
        for ids, reward in rows:
            logp, values = single_tokens(policy, ids, head)  # the policy is the reference still: no KL to pay
            ahead, following, found = 0.0, 0.0, []
            for t in reversed(range(len(ids))):
                delta = (reward if t == len(ids) - 1 else 0.0) + 0.9 * following - float(values[t])
                ahead, following = delta + 0.9 * 0.7 * ahead, float(values[t])
                found.append(ahead)
            old.append((logp, values))
            advantages.append(torch.tensor(found[::-1]))
    everything = torch.cat(advantages)
    mean, deviation = everything.mean(), everything.std(unbiased=False)
    for _ in range(2):
        loss, tokens = 0.0, len(everything)
        for (ids, _), (old_logp, old_values), raw in zip(rows, old, advantages, strict=True):
            logp, values = single_tokens(policy, ids, head)
            target, advantage = raw + old_values, (raw - mean) / deviation
            for t in range(len(ids)):
                ratio = (logp[t] - old_logp[t]).exp()
                loss -= min(ratio * advantage[t], min(max(ratio, 0.8), 1.2) * advantage[t]) / tokens
                clipped = min(max(values[t], old_values[t] - 0.2), old_values[t] + 0.2)
                loss += 0.5 * 0.5 * max((values[t] - target[t]) ** 2, (clipped - target[t]) ** 2) / tokens
        weights = [*policy.parameters(), *head.parameters()]
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= 0.3 * slope
    step = [step for step in trainer.state.log_history if "loss" in step][1]
    assert step["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
    assert step["clipped"] > 0  # so that the clipping was seen at work
    for ours, truth in zip([*trainer.model.transformer.parameters()], policy.transformer.parameters(), strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(trainer.value_head.weight, head.weight, atol=1e-4, rtol=1e-3)


def test_the_first_step_of_a_rollout_is_on_policy(tmp_path):
    trainer = build(tmp_path, learning_rate=3e-3, max_steps=8)
    trainer.train()
    steps = [step for step in trainer.state.log_history if "loss" in step]
    assert [step["step_kl"] > 1e-6 for step in steps] == [False, True, True, True] * 2
    assert abs(steps[0]["policy_loss"]) < 1e-5  # the mean of whitened advantages
    assert steps[0]["sample_kl"] == pytest.approx(0.0, abs=1e-5)
    assert steps[0]["beta"] == 0.2


def test_a_rollout_under_bfloat16_autocast_and_a_value_head_in_float32(tmp_path):
    trainer = build(tmp_path, bf16=True, learning_rate=3e-3, max_steps=4)
    trainer.train()
    first = next(step for step in trainer.state.log_history if "loss" in step)
    assert first["step_kl"] < 1e-9  # the ratio begins at 1 although generation rounds otherwise
    assert trainer.value_head.weight.dtype == torch.float32
    assert trainer.value_head.weight.abs().sum() > 0


def rollout_rewards(tmp_path, **settings):
    """Token rewards of a first rollout, out of its returns (gamma = lam = 1), and the plain rewards of its completions."""
    trainer = build(tmp_path, max_steps=1, lam=1.0, **settings)
    trainer.train()
    lengths = [len(ids) for group in trainer.block.groups for ids in group.completion_ids]
    returns = trainer.block.tensors["returns"].flatten(0, 1)
    tokens = returns - torch.nn.functional.pad(returns[:, 1:], (0, 1))
    plain = torch.tensor([r for group in trainer.block.groups for r in group.rewards])
    return [row[:n] for row, n in zip(tokens, lengths, strict=True)], plain


def test_rewards_whitened_keep_their_mean_and_get_variance_one(tmp_path):
    plain, rewards = rollout_rewards(tmp_path)
    for row, reward in zip(plain, rewards, strict=True):  # no KL yet: the reward at the last token, and nothing before
        assert row.tolist() == pytest.approx([0.0] * (len(row) - 1) + [float(reward)], abs=1e-5)
    whitened, _ = rollout_rewards(tmp_path, whiten_rewards=True)
    assert torch.cat(whitened).mean() == pytest.approx(float(torch.cat(plain).mean()), abs=1e-4)
    assert torch.cat(whitened).var(unbiased=False) == pytest.approx(1.0, abs=1e-4)


def test_rewards_scaled_are_divided_by_their_deviation(tmp_path):
    scaled, rewards = rollout_rewards(tmp_path, scale_rewards=True)
    expected = rewards / rewards.std(unbiased=False)
    assert [float(row.sum()) for row in scaled] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_or_two_towards_the_optimum(kind, tmp_path):
    settings = {"learning_rate": 3e-3, "max_steps": 60, "per_device_train_batch_size": 8, "k": 8}
    trainer = build(tmp_path, kind, **settings)
    before = enumerable.objective(trainer.model, enumerable.model(), 0.2)
    trainer.train()
    after, best = (
        enumerable.objective(trainer.model, enumerable.model(), 0.2),
        enumerable.optimum(enumerable.model(), 0.2),
    )
    assert after > before + 0.5 * (best - before)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.05, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_within_two_percent_of_the_exact_optimum(kind, beta, tmp_path):
    settings = {"learning_rate": 3e-3, "max_steps": 1200, "per_device_train_batch_size": 8, "k": 16, "beta": beta}
    if kind == "rloo":
        settings |= {"max_steps": 500}
    trainer = build(tmp_path, kind, **settings)
    trainer.train()
    best = enumerable.optimum(enumerable.model(), beta)
    reached = enumerable.objective(trainer.model, enumerable.model(), beta)
    before = enumerable.objective(enumerable.model(), enumerable.model(), beta)
    assert reached >= best - 0.02 * abs(best)
    assert reached >= before + 0.95 * (best - before)  # where it began is not far below, so this is the harder claim


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(trainer, folder) -> dict:
    trainer.save_model(str(folder / "model"))
    return {
        "weights": {p.name: checksum(p) for p in sorted((folder / "model").glob("*.safetensors"))},
        "head": None if not hasattr(trainer, "value_head") else trainer.value_head.weight.flatten().tolist(),
        "history": [step for step in trainer.state.log_history if "loss" in step],
    }


@pytest.mark.parametrize(
    ("kind", "step", "lora"),
    [("ppo", 2, False), ("ppo", 4, False), ("ppo", 7, False), ("ppo", 6, True), ("rloo", 3, False)],
)
def test_interrupted_training_ends_in_the_same_bits(kind, step, lora, tmp_path):
    """In the middle of a rollout, between two, and with all that has a state: adapted beta, running scale, value head."""
    settings = {"learning_rate": 0.02, "max_steps": 8}
    if kind == "ppo":
        settings |= {"target_kl": 0.1, "kl_horizon": 50.0, "scale_rewards": True, "resample_every": 1}
    else:
        settings |= {"resample_every": 2}
    if lora:
        pytest.importorskip("peft")
        from exoalign import adapters

        settings["peft_config"] = adapters.lora_config(r=2, alpha=4.0, dropout=0.0, target_modules=["c_attn"])
    torch.manual_seed(7)  # of the adapter
    whole = build(tmp_path / "out", kind, **settings)
    train_resumably(whole, tmp_path / "whole", made_from={})
    torch.manual_seed(7)
    stopped = build(tmp_path / "out", kind, **settings)
    stopped.add_callback(StopAfter(step))
    with pytest.raises(Interrupted):
        train_resumably(stopped, tmp_path / "parts", made_from={})
    torch.manual_seed(7)
    resumed = build(tmp_path / "out", kind, **settings)
    train_resumably(resumed, tmp_path / "parts", made_from={})
    assert resumed.state.global_step == 8
    expected = outcome(whole, tmp_path / "whole")
    assert outcome(resumed, tmp_path / "parts") == expected
    if kind == "ppo":
        assert expected["history"][-1]["beta"] != 0.2
        assert whole.scale.count == 32


def test_the_value_head_is_no_part_of_the_saved_model(tmp_path):
    trainer = build(tmp_path, max_steps=1, learning_rate=0.01)
    trainer.train()
    assert trainer.value_head.weight.abs().sum() > 0
    trainer.save_model(str(tmp_path / "model"))
    enumerable.tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"), device="cpu")
    assert not any("value_head" in name for name in loaded.state_dict())
    torch.testing.assert_close(enumerable.log_probs(loaded), enumerable.log_probs(trainer.model))
    from safetensors import safe_open

    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "value_head" in name]  # noqa: SIM118 - no mapping
    assert trainer.value_head in trainer.model.modules()


def test_an_adapter_and_the_head_are_all_that_learns(tmp_path):
    pytest.importorskip("peft")
    from exoalign import adapters

    policy = enumerable.model()
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    settings = adapters.lora_config(r=2, alpha=4.0, dropout=0.0, target_modules=["c_attn"])
    trainer = build(tmp_path, policy=policy, peft_config=settings, learning_rate=0.05, max_steps=8)
    trainer.train()
    for name, weight in trainer.model.get_base_model().named_parameters():
        if "lora" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer", "")]), name
    with trainer.reference() as reference:
        torch.testing.assert_close(enumerable.log_probs(reference), enumerable.log_probs(enumerable.model()))
    assert trainer.value_head.weight.abs().sum() > 0
    trainer.save_model(str(tmp_path / "model"))
    assert "value_head" not in json.dumps(sorted(path.name for path in (tmp_path / "model").iterdir()))
    from safetensors.torch import load_file

    assert all("lora" in name for name in load_file(tmp_path / "model" / "adapter_model.safetensors"))


def test_a_completion_without_an_end_pays():
    group = Group("a", ("", ""), rewards=(1.0, 1.0), provenance={"finish": ["stop", "length"]})
    assert penalised([group], 0.25)[0].rewards == (1.0, 0.75)
    assert penalised([group], 0.0) == [group]


def test_the_penalty_reaches_the_training(tmp_path):
    trainer = build(tmp_path, max_steps=1, missing_eos_penalty=10.0)
    trainer.train()
    assert min(r for group in trainer.block.groups for r in group.rewards) < -8
    for group in trainer.block.groups:
        for ids, reward in zip(group.completion_ids, group.rewards, strict=True):
            assert (reward < 0) == (ids[-1] != enumerable.END)


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        (PpoConfig, {"beta": 0.0}, "beta is 0.0; expected a positive number"),
        (PpoConfig, {"top_p": 0.9}, "samples of the policy itself"),
        (PpoConfig, {"clip": 0.0}, "clip is 0.0"),
        (PpoConfig, {"lam": 1.5}, "lam is 1.5; expected a number from 0 to 1"),
        (PpoConfig, {"target_kl": -1.0}, "target_kl is -1.0"),
        (PpoConfig, {"value_coefficient": -1.0}, "value_coefficient is -1.0"),
        (PpoConfig, {"missing_eos_penalty": math.inf}, "missing_eos_penalty is inf"),
        (PpoConfig, {"whiten_rewards": True, "scale_rewards": True}, "choose one"),
        (RlooConfig, {"k": 1}, "the mean of the others"),
        (RlooConfig, {"passes_per_block": 4}, "or use PPO"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, settings, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        config(str(tmp_path), **settings)
