"""Training adapters: gradients by hand, what the reference is, and what is saved."""

import copy

import pytest
import torch
from test_align import arguments, exo_rw_by_hand, mean_loss, rewarded, sequence_logprob
from transformers import AutoTokenizer

from exoalign import ExoTrainer, load_model, tokenize
from exoalign.errors import ConfigError, ModelError, TrainingError
from exoalign.logprobs.engine import shares_prefix
from exoalign.models import fingerprint

peft = pytest.importorskip("peft")
BY_HAND = {
    "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "beta_r": 0.3,
    "per_device_train_batch_size": 2,
}  # fmt: skip


def lora(**settings):
    return peft.LoraConfig(**{"r": 3, "target_modules": "all-linear", **settings})


def grown(model, seed=0):
    """The adapter's weights drawn at random, as if it had been trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture
def sft(tiny_model, tiny_tokenizer, tmp_path):
    """A folder with an SFT adapter on the tiny model."""
    grown(peft.get_peft_model(tiny_model, lora(task_type="CAUSAL_LM"))).save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def assert_a_step_by_hand(model, reference, groups):
    """SGD moved every trained weight of `model` by the gradient of the loss of `reference` against itself as a constant."""
    expected = copy.deepcopy(reference)
    mean_loss(expected, reference, groups, exo_rw_by_hand).backward()
    moved = 0
    for (name, weight), before in zip(model.named_parameters(), expected.parameters(), strict=True):
        if before.requires_grad:
            torch.testing.assert_close(weight.data, before.data - 0.1 * before.grad, atol=2e-6, rtol=1e-4, msg=name)
            moved += not torch.equal(weight.data, before.data)
        else:
            assert torch.equal(weight.data, before.data), name
    assert moved


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]], ids=str)
def test_one_step_with_a_fresh_adapter(tiny_model, tiny_tokenizer, tmp_path, targets):
    groups = tokenize(rewarded(2), tiny_tokenizer)
    base = copy.deepcopy(tiny_model)
    trainer = ExoTrainer(
        tiny_model, arguments(tmp_path, **BY_HAND), groups, processing_class=tiny_tokenizer,
        peft_config=lora(target_modules=targets),
    )  # fmt: skip
    start = copy.deepcopy(trainer.model)
    trainer.train()
    assert shares_prefix(trainer.model)
    assert_a_step_by_hand(trainer.model, start, groups)
    assert trainer.state.log_history[0]["best_log_ratio"] == pytest.approx(0, abs=1e-6)
    for group in trainer.train_dataset:
        assert group.provenance["reference"]["weights"] == fingerprint(base)
        by_hand = [float(sequence_logprob(base, group.prompt_ids, ids)) for ids in group.completion_ids]
        assert group.reference_logprobs == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("given", ["model", "folder"])
def test_an_sft_adapter_is_trained_further_and_is_the_reference(given, sft, tiny_folder, tiny_tokenizer, tmp_path):
    groups = tokenize(rewarded(2), tiny_tokenizer)
    start = load_model(str(sft), device="cpu")
    args = arguments(tmp_path, **BY_HAND)
    model = load_model(str(sft), device="cpu") if given == "model" else str(sft)
    trainer = ExoTrainer(model, args, groups, processing_class=tiny_tokenizer)
    trainer.train()
    assert_a_step_by_hand(trainer.model, start, groups)
    base = load_model(str(tiny_folder), device="cpu")
    for group in trainer.train_dataset:
        assert group.provenance["reference"]["weights"] == fingerprint(start)
        by_hand = [float(sequence_logprob(start, group.prompt_ids, ids)) for ids in group.completion_ids]
        assert group.reference_logprobs == pytest.approx(by_hand, abs=1e-4)
        of_base = [float(sequence_logprob(base, group.prompt_ids, ids)) for ids in group.completion_ids]
        assert max(abs(a - b) for a, b in zip(by_hand, of_base, strict=True)) > 0.1


def test_the_reference_is_no_second_model(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """What reference log-probs are computed with is the policy itself, its adapter off."""
    from exoalign.train import reference

    seen, of = [], reference.logprobs_of
    monkeypatch.setattr(
        reference,
        "logprobs_of",
        lambda groups, model, **k: seen.append((model, model.get_model_status().enabled)) or of(groups, model, **k),
    )
    trainer = ExoTrainer(
        tiny_model, arguments(tmp_path), rewarded(1), processing_class=tiny_tokenizer, peft_config=lora()
    )
    trainer.train()
    assert seen == [
        (trainer.model, False),
        (trainer.model, True),
    ]  # the reference, and the check of the policy against it
    assert trainer.model.get_base_model() is tiny_model
    assert all(p.requires_grad == ("lora_" in name) for name, p in trainer.model.named_parameters())


def test_the_reference_of_full_training_serves_an_adapter_too(tiny_model, tiny_tokenizer, tmp_path):
    full = ExoTrainer(tiny_model, arguments(tmp_path), rewarded(2), processing_class=tiny_tokenizer)
    full.prepare_reference()
    computed = []
    trainer = ExoTrainer(
        tiny_model, arguments(tmp_path), full.train_dataset, processing_class=tiny_tokenizer, peft_config=lora(),
        report=computed.append,
    )  # fmt: skip
    trainer.train()
    assert computed == []


def test_the_reference_of_another_adapter_is_refused(sft, tiny_tokenizer, tmp_path):
    first = ExoTrainer(str(sft), arguments(tmp_path), rewarded(2), processing_class=tiny_tokenizer)
    first.prepare_reference()
    other = grown(load_model(str(sft), device="cpu"), seed=1)
    again = ExoTrainer(other, arguments(tmp_path), first.train_dataset, processing_class=tiny_tokenizer)
    with pytest.raises(TrainingError, match="weights was"):
        again.train()


def test_an_adapter_on_an_adapter_is_refused(sft, tiny_tokenizer, tmp_path):
    with pytest.raises(ModelError, match="leave peft_config out to go on training the adapter that is there, or merge"):
        ExoTrainer(str(sft), arguments(tmp_path), rewarded(2), processing_class=tiny_tokenizer, peft_config=lora())


def test_an_adapter_loaded_for_inference_is_refused(sft, tiny_model, tiny_tokenizer, tmp_path):
    model = peft.PeftModel.from_pretrained(tiny_model, str(sft))
    with pytest.raises(
        TrainingError, match="no weight of the model is trainable; load its adapter with is_trainable=True"
    ):
        ExoTrainer(model, arguments(tmp_path), rewarded(2), processing_class=tiny_tokenizer)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]], ids=str)
def test_under_bfloat16_policy_and_reference_agree_at_step_0(targets, tiny_model, tiny_tokenizer, tmp_path):
    args = arguments(tmp_path, bf16=True, num_train_epochs=8, beta_r=0.3, per_device_train_batch_size=2)
    trainer = ExoTrainer(
        tiny_model, args, rewarded(2), processing_class=tiny_tokenizer, peft_config=lora(target_modules=targets)
    )
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert first["best_log_ratio"] == pytest.approx(0, abs=0.05)
    assert last["loss"] < 0.8 * first["loss"]
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_settings_that_do_not_fit_are_refused(tiny_model, tiny_tokenizer, tmp_path):
    for settings, kind, message in [
        (lora(target_modules=["nowhere"]), ModelError, "no module 'nowhere'"),
        ({"r": 8}, ConfigError, "peft_config is dict"),
    ]:
        with pytest.raises(kind, match=message):
            ExoTrainer(
                tiny_model, arguments(tmp_path), rewarded(2), processing_class=tiny_tokenizer, peft_config=settings
            )


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant, tiny_folder, tiny_tokenizer, tmp_path):
    def trained(**settings):
        torch.manual_seed(0)
        model = load_model(str(tiny_folder), device="cpu")
        args = arguments(tmp_path, **BY_HAND, **settings)
        trainer = ExoTrainer(model, args, rewarded(2), processing_class=tiny_tokenizer, peft_config=lora())
        trainer.train()
        return {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}

    ours = trained(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for name, expected in trained().items():
        torch.testing.assert_close(ours[name], expected, atol=1e-7, rtol=1e-5, msg=name)


def test_the_adapters_dropout_is_off_like_any_other(tiny_model, tiny_tokenizer, tmp_path):
    args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=2)
    trainer = ExoTrainer(
        tiny_model, args, rewarded(2), processing_class=tiny_tokenizer, peft_config=lora(lora_dropout=0.5)
    )
    assert [m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)] == [0.0] * 14
    args = arguments(tmp_path, disable_dropout=False)
    model = ExoTrainer(
        trainer.model.unload(), args, rewarded(2), processing_class=tiny_tokenizer, peft_config=lora(lora_dropout=0.5)
    ).model
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.5] * 14


def test_a_base_in_bfloat16_is_no_reason_to_refuse(tiny_folder, tiny_tokenizer, tmp_path):
    """Its weights do not move, and the adapter's are float32."""
    model = load_model(str(tiny_folder), dtype=torch.bfloat16, device="cpu")
    trainer = ExoTrainer(
        model, arguments(tmp_path, learning_rate=1e-6), rewarded(2), processing_class=tiny_tokenizer, peft_config=lora()
    )
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_it_learns_and_what_is_saved_is_an_adapter_that_peft_loads(tiny_model, tiny_tokenizer, tmp_path):
    args = arguments(
        tmp_path / "run", beta_r=0.2, num_train_epochs=15, per_device_train_batch_size=4, max_grad_norm=0.0
    )
    trainer = ExoTrainer(
        tiny_model, args, rewarded(4), eval_dataset=rewarded(2), processing_class=tiny_tokenizer,
        peft_config=lora(r=8, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"]),
    )  # fmt: skip
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert last["target_reward"] - last["policy_reward"] < 0.3 * (first["target_reward"] - first["policy_reward"])
    trainer.save_model(str(tmp_path / "saved"))
    names = {file.name for file in (tmp_path / "saved").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == tiny_tokenizer.chat_template
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    ours = load_model(str(tmp_path / "saved"), device="cpu")
    group = trainer.train_dataset[0]
    for model in (theirs, ours):
        for ids in group.completion_ids:
            expected = sequence_logprob(trainer.model, group.prompt_ids, ids)
            assert float(sequence_logprob(model, group.prompt_ids, ids)) == pytest.approx(float(expected), abs=1e-5)
