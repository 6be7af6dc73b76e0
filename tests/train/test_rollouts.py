"""Training on the policy's own samples: its plan, what a block holds, and that an interruption changes nothing."""

import copy
import os
import signal

import pytest
import torch
from tiny_online import PROMPTS, build_online, low_words, tiny_policy, words
from transformers import GPT2LMHeadModel, TrainerCallback

from exoalign.errors import ConfigError, DataError, Interrupted, TrainingError
from exoalign.files import checksum
from exoalign.train.checkpoints import train_resumably
from exoalign.train.online import OnlineConfig, OnlineExoTrainer
from exoalign.train.rollout_block import GROUPS
from exoalign.train.schedule import Schedule

STEPS = 8


class SignalAt(TrainerCallback):
    """SIGTERM in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(trainer, folder) -> dict:
    trainer.save_model(str(folder / "model"))
    return {
        "weights": {p.name: checksum(p) for p in sorted((folder / "model").glob("*.safetensors"))},
        "history": [sorted(step.items()) for step in trainer.state.log_history if "loss" in step],
        "block": trainer.block.groups,
        "findings": trainer.findings,
    }


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_interrupted_at_any_step_it_ends_with_the_same_bits(tmp_path, lora):
    settings = {"lora": lora, "beta_r": 0.02}
    alone = build_online(tmp_path / "out", **settings)
    train_resumably(alone, tmp_path / "alone", made_from={}, minutes=60.0)
    expected = outcome(alone, tmp_path / "alone")
    assert len(expected["history"]) == STEPS
    assert [found.kind for found in expected["findings"]] == ["sharp"]
    folder = tmp_path / "run"
    for step in (1, 2, 3, 6):  # in the middle of a block, and between two
        trainer = build_online(tmp_path / "out", **settings)
        trainer.add_callback(SignalAt(step))
        with pytest.raises(Interrupted, match=f"after step {step} of 8"):
            train_resumably(trainer, folder, made_from={}, minutes=60.0)
        assert (folder / "checkpoints" / f"checkpoint-{step}" / GROUPS).exists() == (step % 2 == 1)
    last = build_online(tmp_path / "out", **settings)
    train_resumably(last, folder, made_from={}, minutes=60.0)
    assert outcome(last, folder) == expected


def sequence_logprob(model, prompt, completion) -> float:
    """One unpadded row, the textbook way."""
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([[*prompt, *completion]])).logits[0].double(), -1)
    return float(sum(logp[len(prompt) + t - 1, token] for t, token in enumerate(completion)))


class Watched(OnlineExoTrainer):
    """Keeps for each step the model as it was, the groups it trained on, and its block."""

    def get_batch_samples(self, *args):
        found = super().get_batch_samples(*args)
        rows = self.schedule.rows_of(self.state.global_step)
        self.seen = [
            *getattr(self, "seen", []),
            (copy.deepcopy(self.model).eval(), [self.block.groups[i] for i in rows]),
        ]
        return found


@pytest.mark.parametrize("correction", ["auto", "off"])
def test_each_step_is_the_corrected_loss_of_its_blocks_groups(tmp_path, correction):
    """Log mu is of the model at the block's first step, log pi_ref of the initial one, the loss by hand."""
    trainer = build_online(tmp_path, kind=Watched, correction=correction, temperature=1.0)
    initial = copy.deepcopy(trainer.model).eval()
    trainer.train()
    losses = [step["loss"] for step in trainer.state.log_history if "loss" in step]
    assert len(losses) == len(trainer.seen) == STEPS
    for step, (model, groups) in enumerate(trainer.seen):
        drew, expected = trainer.seen[step - step % 2][0], 0.0
        for group in groups:
            ids = group.completion_ids
            now, mu, reference = (
                torch.tensor([sequence_logprob(m, group.prompt_ids, y) for y in ids]) for m in (model, drew, initial)
            )
            assert torch.allclose(torch.tensor(group.sampler_logprobs), mu.float(), atol=1e-4)
            assert torch.allclose(torch.tensor(group.reference_logprobs), reference.float(), atol=1e-4)
            c = reference - mu if correction == "auto" else torch.zeros(4)
            q = (0.5 * (now - reference) + c).softmax(0)
            p = (torch.tensor(group.rewards) / 0.1 + c).softmax(0)
            expected += float((q * (q / p).log()).sum()) / len(groups)
        assert losses[step] == pytest.approx(expected, abs=1e-4)
    moved = [step["sample_kl"] for step in trainer.state.log_history if "loss" in step]
    assert abs(moved[0]) < 1e-5 < abs(moved[-1])


def test_what_is_sampled_depends_on_seed_and_block_alone(tmp_path):
    one, other = build_online(tmp_path), build_online(tmp_path)
    torch.rand(5)
    before = torch.get_rng_state()
    block = one.make_block(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert block.groups == other.make_block(1).groups
    assert block.groups != other.make_block(2).groups
    assert block.groups != build_online(tmp_path, seed=4).make_block(1).groups
    assert [g.where for g in block.groups] == [PROMPTS[i].source for i in one.schedule.prompts_of(1)]
    assert block.groups[0].provenance["row"] == dict(PROMPTS[one.schedule.prompts_of(1)[0]].row)


# The plan.


def test_each_prompt_is_sampled_once_an_epoch_in_another_order():
    plan = Schedule.for_epochs(10, 2, 3, 1, 2.0, seed=1)
    assert (plan.steps, plan.blocks) == (10, 4)
    asked = [i for block in range(4) for i in plan.prompts_of(block)]
    assert sorted(asked[:10]) == sorted(asked[10:]) == list(range(10))
    assert asked[:10] != asked[10:]
    assert [len(plan.prompts_of(block)) for block in range(4)] == [6, 6, 6, 2]
    assert asked != [i for block in range(4) for i in Schedule.for_epochs(10, 2, 3, 1, 2.0, seed=2).prompts_of(block)]


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("plan", [(10, 2, 3), (3, 4, 2), (8, 2, 8)], ids=str)
def test_each_pass_trains_on_all_groups_of_its_block_once(plan, passes):
    found = Schedule.for_epochs(*plan, passes, 1.5, seed=0)
    first = 0
    for block in range(found.blocks):
        of_a_pass, count = found.steps_of_a_pass(block), len(found.prompts_of(block))
        orders = []
        for number in range(passes):
            steps = range(first + number * of_a_pass, first + (number + 1) * of_a_pass)
            assert {found.block_of(step) for step in steps} == {block}
            orders.append([row for step in steps for row in found.rows_of(step)])
            assert sorted(orders[-1]) == list(range(count))
        assert orders[0] == list(range(count))
        assert passes == 1 or count < 4 or orders[1] != orders[0]
        first += of_a_pass * passes
    assert first == found.steps


def test_a_number_of_steps_cuts_the_last_block_short():
    plan = Schedule(10, 2, 3, 2, 8, seed=0)  # 6 steps of the first block, 2 of the second: one step twice
    assert (plan.blocks, plan.steps_of_a_pass(1), len(plan.prompts_of(1))) == (2, 1, 2)
    assert sorted(plan.rows_of(6)) == sorted(plan.rows_of(7)) == [0, 1]


def test_tensors_that_a_subclass_adds_are_kept_beside_the_groups_and_reach_its_steps(tmp_path):
    seen = []

    class WithTensors(OnlineExoTrainer):
        def experience(self, groups):
            assert not any(group.rewards is None or group.reference_logprobs is None for group in groups)
            return {"number": torch.tensor([float(group.prompt_ids[0]) for group in groups])}

        def inputs_of(self, groups, tensors):
            assert tensors["number"].tolist() == [float(group.prompt_ids[0]) for group in groups]
            seen.append(tensors["number"])
            return super().inputs_of(groups, tensors)

    settings = {"kind": WithTensors, "passes_per_block": 2, "num_train_epochs": 1}
    trainer = build_online(tmp_path / "out", **settings)
    trainer.add_callback(SignalAt(3))
    with pytest.raises(Interrupted):
        train_resumably(trainer, tmp_path / "run", made_from={}, minutes=60.0)
    again = build_online(tmp_path / "out", **settings)
    train_resumably(again, tmp_path / "run", made_from={}, minutes=60.0)
    alone = build_online(tmp_path / "out", **settings)
    train_resumably(alone, tmp_path / "alone", made_from={}, minutes=60.0)
    assert outcome(again, tmp_path / "run") == outcome(alone, tmp_path / "alone")
    assert len(seen) == 2 * 16  # 8 steps x 2 accumulated


# What it refuses.


def test_a_damaged_or_missing_answer_of_the_score_function_is_told(tmp_path):
    trainer = build_online(tmp_path)
    trainer.score = lambda groups: low_words(groups)[:1]
    with pytest.raises(TrainingError, match="returned 1 groups for 4; expected each"):
        trainer.train()
    trainer = build_online(tmp_path)
    trainer.score = list
    with pytest.raises(TrainingError, match=r"prompts.txt:\d: the score function gave it no rewards"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, "k is 1; expected at least 2"),
        ({"resample_every": 0}, "resample_every is 0; expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0 and top_k 0; expected above 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a positive number"),
        ({"objective": "exo_pref"}, "exo_pref, which learns from pairs.*use exo_rw or dpo_rw"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        OnlineConfig(str(tmp_path), **settings)


def test_no_prompts_and_prompts_without_room_are_refused(tmp_path):
    with pytest.raises(DataError, match="no prompts to sample after"):
        OnlineExoTrainer(tiny_policy(), OnlineConfig(str(tmp_path)), [], low_words, processing_class=words())
    with pytest.raises(ConfigError, match="auto_find_batch_size would change which prompts a step has"):
        build_online(tmp_path, auto_find_batch_size=True)
    with pytest.raises(DataError, match=r"prompts.txt:1: the prompt has 3 tokens.*context of 64"):
        build_online(tmp_path, max_new_tokens=62)


def test_another_reference_may_be_given(tmp_path):
    torch.manual_seed(5)
    other = GPT2LMHeadModel(tiny_policy().config)
    trainer = OnlineExoTrainer(
        tiny_policy(),
        OnlineConfig(str(tmp_path), max_new_tokens=4, use_cpu=True),
        PROMPTS,
        low_words,
        processing_class=words(),
        ref_model=other,
    )
    group = trainer.make_block(0).groups[0]
    expected = [sequence_logprob(other.eval(), group.prompt_ids, y) for y in group.completion_ids]
    assert list(group.reference_logprobs) == pytest.approx(expected, abs=1e-4)
