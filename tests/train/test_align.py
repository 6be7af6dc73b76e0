"""The trainer against gradients computed by hand, its metrics, its refusals and what it saves."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from exoalign import ExoConfig, ExoTrainer, Group, collate, load_model, tokenize
from exoalign.errors import ConfigError, DataError, TrainingError

WORDS = ["good", "bad", "fine", "poor", "great", "awful", "nice", "dull"]


def rewarded(n: int, k: int = 3) -> list[Group]:
    """n groups of ragged K (k, and every third k - 1) with distinct rewards."""
    return [
        Group(
            f"Film {i}:",
            tuple(f" {WORDS[(i + j) % 8]}{j}" for j in range(k - (i % 3 == 2))),
            rewards=tuple(math.sin(1 + i + 2 * j) for j in range(k - (i % 3 == 2))),
        )
        for i in range(n)
    ]


def pairs(n: int) -> list[Group]:
    return [Group(f"Film {i}:", (f" {WORDS[i % 8]} one", f" other {WORDS[i % 7]}"), winner=i % 2) for i in range(n)]


def arguments(folder, **settings) -> ExoConfig:
    settings = {"learning_rate": 0.01, "save_strategy": "no", "disable_tqdm": True, "seed": 1, **settings}
    return ExoConfig(str(folder), **settings)


def sequence_logprob(model, prompt, completion, temperature=1.0):
    """One unpadded row, the textbook way."""
    ids = torch.tensor([[*prompt, *completion]])
    logp = torch.log_softmax(model(ids).logits[0].double() / temperature, -1)
    return sum(logp[len(prompt) + t - 1, token] for t, token in enumerate(completion))


def budget(groups, passes):
    """Tokens with which every group makes a pass of its own, or (each K is 2 at least) several."""
    if passes is None:
        return None
    size = max if passes == "parts" else sum
    return max(len(group.prompt_ids) + size(map(len, group.completion_ids)) for group in groups)


def mean_loss(model, reference, groups, loss, temperature=1.0):
    total = 0.0
    for group in groups:
        rho = torch.stack(
            [
                sequence_logprob(model, group.prompt_ids, ids, temperature)
                - sequence_logprob(reference, group.prompt_ids, ids, temperature).detach()
                for ids in group.completion_ids
            ]
        )
        total = total + loss(rho, group)
    return total / len(groups)


def exo_rw_by_hand(rho, group, beta_pi=0.5, beta_r=0.3):
    q = torch.softmax(beta_pi * rho, 0)
    p = torch.softmax(torch.tensor(group.rewards, dtype=torch.float64) / beta_r, 0)
    return (q * (q / p).log()).sum()


def dpo_by_hand(rho, group, beta_pi=0.5):
    difference = rho[group.winner] - rho[1 - group.winner]
    return -torch.nn.functional.logsigmoid(beta_pi * difference)


@pytest.mark.parametrize("passes", [None, "one group", "parts"])
@pytest.mark.parametrize(("batch", "accumulation"), [(6, 1), (1, 6), (2, 3), (4, 2)], ids=str)
def test_one_step_is_the_gradient_of_the_mean_over_groups(
    tiny_model, tiny_tokenizer, tmp_path, batch, accumulation, passes
):
    """6 groups in one step: however they are cut into passes (4 + 2 is uneven), SGD moves by lr * the same gradient."""
    groups = tokenize(rewarded(6), tiny_tokenizer)
    expected = copy.deepcopy(tiny_model)
    mean_loss(expected, tiny_model, groups, exo_rw_by_hand).backward()
    args = arguments(
        tmp_path, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, lr_scheduler_type="constant", beta_r=0.3,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        max_tokens_per_pass=budget(groups, passes),
    )  # fmt: skip
    trainer = ExoTrainer(tiny_model, args, groups, processing_class=tiny_tokenizer)
    trainer.train()
    assert trainer.state.global_step == 1
    for (name, moved), weight in zip(tiny_model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.data, weight.data - 0.1 * weight.grad, atol=2e-6, rtol=1e-4, msg=name)


def test_the_temperature_reaches_policy_and_reference(tiny_model, tiny_tokenizer, tmp_path):
    groups = tokenize(rewarded(2), tiny_tokenizer)
    expected = copy.deepcopy(tiny_model)
    mean_loss(expected, tiny_model, groups, exo_rw_by_hand, temperature=0.7).backward()
    args = arguments(
        tmp_path, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, lr_scheduler_type="constant", beta_r=0.3,
        per_device_train_batch_size=2, temperature=0.7,
    )  # fmt: skip
    ExoTrainer(tiny_model, args, groups, processing_class=tiny_tokenizer).train()
    for moved, weight in zip(tiny_model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.data, weight.data - 0.1 * weight.grad, atol=2e-6, rtol=1e-4)


def test_dpo_pref_is_dpo(tiny_model, tiny_tokenizer, tmp_path):
    groups = tokenize(pairs(4), tiny_tokenizer)
    expected = copy.deepcopy(tiny_model)
    mean_loss(expected, tiny_model, groups, dpo_by_hand).backward()
    args = arguments(
        tmp_path, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, lr_scheduler_type="constant",
        objective="dpo_pref", per_device_train_batch_size=4,
    )  # fmt: skip
    ExoTrainer(tiny_model, args, groups, processing_class=tiny_tokenizer).train()
    for moved, weight in zip(tiny_model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.data, weight.data - 0.1 * weight.grad, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "make", "by_hand"),
    [
        ("exo_rw", rewarded, exo_rw_by_hand),
        ("sft_best", rewarded, lambda rho, group: -rho[max(range(group.k), key=group.rewards.__getitem__)]),
        ("dpo_pref", pairs, dpo_by_hand),
    ],
)
@pytest.mark.parametrize("passes", [None, "parts"])
def test_the_anchor_holds_the_best_completion(tiny_model, tiny_tokenizer, tmp_path, objective, make, by_hand, passes):
    groups = tokenize(make(4), tiny_tokenizer)
    expected = copy.deepcopy(tiny_model)

    def anchored(rho, group):
        best = group.winner if group.rewards is None else max(range(group.k), key=group.rewards.__getitem__)
        # log pi = rho + log pi_ref, whose second term has no gradient
        return by_hand(rho, group) - 0.7 * rho[best] / len(group.completion_ids[best])

    mean_loss(expected, tiny_model, groups, anchored).backward()
    args = arguments(
        tmp_path, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, lr_scheduler_type="constant", beta_r=0.3,
        objective=objective, per_device_train_batch_size=4, nll_weight=0.7, max_tokens_per_pass=budget(groups, passes),
    )  # fmt: skip
    ExoTrainer(tiny_model, args, groups, processing_class=tiny_tokenizer).train()
    for moved, weight in zip(tiny_model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.data, weight.data - 0.1 * weight.grad, atol=2e-6, rtol=1e-4)


def test_the_first_step_logs_what_can_be_computed_by_hand(tiny_model, tiny_tokenizer, tmp_path):
    groups = [
        Group("a", (" x", " y"), rewards=(1.0, 0.0)),  # p = (e/(1+e), 1/(1+e)) at beta_r = 1
        Group("b", (" x", " y"), rewards=(2.0, 2.0)),  # no spread: p = q = (1/2, 1/2)
    ]
    args = arguments(tmp_path, beta_r=1.0, beta_pi=0.5, per_device_train_batch_size=2)
    trainer = ExoTrainer(tiny_model, args, groups, processing_class=tiny_tokenizer)
    trainer.train()
    step = trainer.state.log_history[0]
    p = math.e / (1 + math.e)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert step["policy_ess"] == pytest.approx(2.0)
    assert step["target_ess"] == pytest.approx((1 / (p * p + (1 - p) ** 2) + 2) / 2)
    assert step["policy_entropy"] == pytest.approx(math.log(2))
    assert step["target_entropy"] == pytest.approx((entropy + math.log(2)) / 2)
    assert step["policy_reward"] == pytest.approx((0.5 + 2.0) / 2)
    assert step["target_reward"] == pytest.approx((p + 2.0) / 2)
    assert step["no_spread"] == 0.5
    assert step["best_log_ratio"] == step["worst_log_ratio"] == 0.0  # policy and reference are one, bit for bit
    kl = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert step["loss"] == pytest.approx(kl / 2, rel=1e-5)


@pytest.mark.parametrize("objective", ["exo_rw", "dpo_rw"])
def test_it_learns_from_rewards(tiny_model, tiny_tokenizer, tmp_path, objective):
    args = arguments(
        tmp_path, objective=objective, beta_r=0.2, num_train_epochs=15, per_device_train_batch_size=4, max_grad_norm=0.0
    )
    trainer = ExoTrainer(tiny_model, args, rewarded(4), processing_class=tiny_tokenizer)
    trainer.train()
    first, last = (s for s in (trainer.state.log_history[0], trainer.state.log_history[-2]))
    assert last["target_reward"] - last["policy_reward"] < 0.1 * (first["target_reward"] - first["policy_reward"])
    assert last["best_log_ratio"] > last["worst_log_ratio"] + 1


@pytest.mark.parametrize("objective", ["exo_pref", "dpo_pref"])
def test_it_learns_from_pairs(tiny_model, tiny_tokenizer, tmp_path, objective):
    args = arguments(tmp_path, objective=objective, num_train_epochs=10, per_device_train_batch_size=4)
    trainer = ExoTrainer(tiny_model, args, pairs(4), processing_class=tiny_tokenizer)
    trainer.train()
    losses = [s["loss"] for s in trainer.state.log_history if "loss" in s]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.state.log_history[0]["accuracy"] == 0.5  # policy and reference are one: all ties
    assert trainer.state.log_history[-2]["accuracy"] == 1.0


def test_same_seed_same_bits(tiny_folder, tiny_tokenizer, tmp_path):
    def weights():
        model = load_model(str(tiny_folder), device="cpu")
        args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=2)
        ExoTrainer(model, args, rewarded(6), processing_class=tiny_tokenizer).train()
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(), weights(), strict=True))


def test_bfloat16_autocast_keeps_float32_weights_and_agrees_at_step_0(tiny_model, tiny_tokenizer, tmp_path):
    args = arguments(tmp_path, bf16=True, per_device_train_batch_size=1)
    trainer = ExoTrainer(tiny_model, args, rewarded(2), processing_class=tiny_tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["best_log_ratio"] == 0.0
    assert all(p.dtype == torch.float32 for p in tiny_model.parameters())
    assert trainer.train_dataset[0].provenance["reference"]["precision"] == "bfloat16"


def test_pure_bfloat16_weights_are_refused_where_they_cannot_move(tiny_folder, tiny_tokenizer, tmp_path):
    model = load_model(str(tiny_folder), dtype=torch.bfloat16, device="cpu")
    with pytest.raises(TrainingError, match=r"learning_rate 1e-06 .* 9\d%|learning_rate 1e-06 .* 100%"):
        ExoTrainer(model, arguments(tmp_path, learning_rate=1e-6), rewarded(2), processing_class=tiny_tokenizer)
    ExoTrainer(model, arguments(tmp_path, learning_rate=0.1), rewarded(2), processing_class=tiny_tokenizer)


class Poison(TrainerCallback):
    """Makes a weight NaN after step 2."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            next(model.parameters()).data.fill_(float("nan"))


def test_nan_stops_and_names_the_step(tiny_model, tiny_tokenizer, tmp_path):
    args = arguments(tmp_path, num_train_epochs=4, per_device_train_batch_size=2)
    trainer = ExoTrainer(tiny_model, args, rewarded(2), processing_class=tiny_tokenizer, callbacks=[Poison()])
    with pytest.raises(TrainingError, match="step 3"):
        trainer.train()


def test_nan_after_the_last_step_is_no_success(tiny_model, tiny_tokenizer, tmp_path):
    args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=2)
    trainer = ExoTrainer(tiny_model, args, rewarded(2), processing_class=tiny_tokenizer, callbacks=[Poison()])
    with pytest.raises(TrainingError, match="after step 2 a weight is not finite"):
        trainer.train()


def test_a_stale_reference_is_refused_with_what_differs(tiny_model, tiny_tokenizer, tmp_path):
    first = ExoTrainer(tiny_model, arguments(tmp_path), rewarded(2), processing_class=tiny_tokenizer)
    first.prepare_reference()
    stored = first.train_dataset

    colder = ExoTrainer(tiny_model, arguments(tmp_path, temperature=0.7), stored, processing_class=tiny_tokenizer)
    with pytest.raises(TrainingError, match=r"temperature was 1\.0 and is 0\.7"):
        colder.train()

    next(tiny_model.parameters()).data.mul_(1.5)
    other = ExoTrainer(tiny_model, arguments(tmp_path), stored, processing_class=tiny_tokenizer)
    with pytest.raises(TrainingError, match="weights was"):
        other.train()

    nameless = [replace(group, provenance={}) for group in stored]
    unknown = ExoTrainer(tiny_model, arguments(tmp_path), nameless, processing_class=tiny_tokenizer)
    with pytest.raises(TrainingError, match="without saying of which model"):
        unknown.train()


def test_a_stored_reference_is_used_again(tiny_model, tiny_tokenizer, tmp_path):
    first = ExoTrainer(tiny_model, arguments(tmp_path), rewarded(3), processing_class=tiny_tokenizer)
    first.prepare_reference()
    computed = []
    again = ExoTrainer(
        tiny_model, arguments(tmp_path, beta_r=2.0), first.train_dataset, processing_class=tiny_tokenizer,
        report=computed.append,
    )  # fmt: skip
    again.train()
    assert computed == []
    assert [g.reference_logprobs for g in again.train_dataset] == [g.reference_logprobs for g in first.train_dataset]


def test_another_reference_is_the_users_word(tiny_model, tiny_tokenizer, tmp_path):
    reference = copy.deepcopy(tiny_model)
    next(tiny_model.parameters()).data.mul_(1.1)
    args = arguments(tmp_path, per_device_train_batch_size=2)
    trainer = ExoTrainer(tiny_model, args, rewarded(2), processing_class=tiny_tokenizer, ref_model=reference)
    trainer.train()
    assert trainer.state.log_history[0]["best_log_ratio"] != 0.0


def test_what_is_saved_is_a_standard_folder_without_pickles(tiny_model, tiny_tokenizer, tmp_path):
    trainer = ExoTrainer(tiny_model, arguments(tmp_path / "run"), rewarded(2), processing_class=tiny_tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    names = {file.name for file in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for a, b in zip(loaded.parameters(), tiny_model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == tiny_tokenizer.chat_template


def test_ten_lines_with_a_folder(tiny_folder, tmp_path):
    groups = [Group("A film review:", (" A joy.", " A bore."), rewards=(1.0, -1.0))]
    trainer = ExoTrainer(
        model=str(tiny_folder), args=arguments(tmp_path, objective="exo_rw", eval_strategy="epoch"),
        train_dataset=groups, eval_dataset=groups,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "aligned"))
    assert (tmp_path / "aligned" / "model.safetensors").is_file()
    evaluated = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert 0 < evaluated[0] < trainer.state.log_history[0]["loss"]


def test_dropout_is_off(tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=128))
    args = arguments(tmp_path, per_device_train_batch_size=2)
    trainer = ExoTrainer(model, args, rewarded(2), processing_class=tiny_tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["best_log_ratio"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "rewards", "kind"),
    [
        ({"beta_r": 0.01}, (1.0, 0.0, -1.0), "sharp"),
        ({"beta_r": 20.0, "beta_pi": 0.1}, (1.0, 0.0, -1.0), "flat"),
        ({"beta_r": 1.0, "beta_pi": 50.0}, (1.0, 0.0, -1.0), "still"),
        ({}, (1.0, 1.0, 1.0), "no_spread"),
    ],
)
def test_known_failures_are_warned_of(tiny_model, tiny_tokenizer, tmp_path, caplog, settings, rewards, kind):
    groups = [Group("a", (" x", " y", " z"), rewards=rewards)] * 2
    trainer = ExoTrainer(tiny_model, arguments(tmp_path, **settings), groups, processing_class=tiny_tokenizer)
    trainer.train()
    assert [finding.kind for finding in trainer.findings] == [kind]
    assert trainer.findings[0].text in caplog.text


@pytest.mark.parametrize(
    ("groups", "objective", "message"),
    [
        ([], "exo_rw", "no groups"),
        ([Group("a", (" x", " y"))], "exo_rw", "needs `rewards`"),
        ([Group("a", (" x",), rewards=(1.0,))], "exo_rw", "at least 2"),
        ([Group("a", (" x", " y"), rewards=(1.0, 0.0))], "exo_pref", "needs `winner`"),
        ([Group("a", (" x", " y", " z"), winner=0)], "exo_pref", "found 3 completions, expected 2"),
        ([Group("a" * 600, (" x", " y"), rewards=(1.0, 0.0))], "exo_rw", "context is 512"),
    ],
)
def test_groups_that_do_not_fit_are_refused(tiny_model, tiny_tokenizer, tmp_path, groups, objective, message):
    with pytest.raises(DataError, match=message):
        ExoTrainer(tiny_model, arguments(tmp_path, objective=objective), groups, processing_class=tiny_tokenizer)


def test_held_out_groups_are_checked_as_well(tiny_model, tiny_tokenizer, tmp_path):
    """exo_pref takes column 0 where no winner is given: a group without one must not come so far."""
    args = arguments(tmp_path, objective="exo_pref")
    unranked = [Group("a", (" x", " y"), rewards=(0.0, 1.0))]
    with pytest.raises(DataError, match="needs `winner`"):
        ExoTrainer(tiny_model, args, pairs(2), eval_dataset=unranked, processing_class=tiny_tokenizer)
    with pytest.raises(DataError, match="needs `winner` for every group"):
        args.loss(torch.zeros(1, 2), collate(tokenize(unranked, tiny_tokenizer)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "exo"}, "objective is 'exo'; expected one of exo_rw"),
        ({"beta_pi": 0.0}, "beta_pi is 0.0; expected a positive number"),
        ({"beta_r": float("nan")}, "beta_r is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"objective": "exo_pref", "epsilon": 0.0}, "no mass on the loser"),
        ({"epsilon": 0.5}, "epsilon is 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        arguments(tmp_path, **settings)
