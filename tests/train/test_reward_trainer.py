"""Training reward models: steps by hand, ragged groups, passes, and that something is learnt."""

import copy

import pytest
import torch

from exoalign import Group
from exoalign.errors import ConfigError
from exoalign.logprobs.engine import shares_prefix
from exoalign.models import load_tokenizer
from exoalign.rewards.inputs import RewardInputs, laid_out
from exoalign.rewards.load import load_reward_model
from exoalign.rewards.padding import set_padding
from exoalign.train.reward import LABELS, RewardConfig, RewardTrainer, ordered_rightly

BY_HAND = {
    "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "max_steps": 1,
    "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none", "use_cpu": True,
}  # fmt: skip
PAIRS = [
    Group("A film: ", ("good", "dull and long"), winner=0, rewards=(0.5, 0.0)),
    Group("A play: ", ("no", "great"), winner=1, rewards=(0.0, 2.0)),
]
RANKED = [
    Group("A film: ", ("good", "dull", "so so"), rewards=(2.0, 0.0, 1.0)),
    Group("A play: ", ("no", "great", "no!", "fine"), rewards=(0.0, 2.0, 0.0, 1.0)),
]
LABELLED = [Group("", ("good",), rewards=(1.0,)), Group("", ("a bore",), rewards=(0.0,))]


@pytest.fixture
def made(tiny_folder):
    """(kind) -> a reward model to begin with and its tokenizer."""

    def make(kind="ranking"):
        model = load_reward_model(str(tiny_folder), fresh_labels=LABELS[kind], device="cpu")
        tokenizer = load_tokenizer(str(tiny_folder))
        set_padding(model, tokenizer)
        return model, tokenizer

    return make


def trainer_for(made, groups, out, *, kind="ranking", peft_config=None, **settings):
    model, tokenizer = made(kind)
    inputs = RewardInputs(tokenizer, max_tokens=400)
    data = [laid_out(group, inputs, tokenizer.pad_token_id) for group in groups]
    arguments = RewardConfig(str(out), kind=kind, **{**BY_HAND, **settings})
    return RewardTrainer(model, arguments, data, processing_class=tokenizer, peft_config=peft_config)


def logits_of(model, tokenizer, group):
    """Of each whole text by itself."""
    texts = [group.prompt + completion for completion in group.completions]
    return torch.stack([model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in texts])


def pair_loss(logits, group, *, margin, centring):
    won, lost = (logits[k, 0] for k in (group.winner, 1 - group.winner))
    m = abs(group.rewards[0] - group.rewards[1]) if margin else 0.0
    return -torch.log(torch.sigmoid(won - lost - m)) + centring * (won + lost) ** 2


def ranking_loss(logits, group):
    r, total = logits[:, 0], 0.0
    for k, mine in enumerate(group.rewards):
        against = [k, *(j for j, other in enumerate(group.rewards) if other < mine)]
        total = total - torch.log(torch.exp(r[k]) / torch.exp(r[against]).sum())
    return total


def label_loss(logits, group):
    return -torch.log_softmax(logits[0], -1)[int(group.rewards[0])]


def assert_step_by_hand(trainer, groups, loss):
    expected = copy.deepcopy(trainer.model)
    expected.set_attn_implementation("sdpa")
    total = sum(loss(logits_of(expected, trainer.processing_class, group), group) for group in groups) / len(groups)
    total.backward()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total.item(), abs=1e-5)
    moved = 0
    for (name, weight), before in zip(trainer.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight.data, before.data - 0.1 * before.grad, atol=2e-6, rtol=1e-4, msg=name)
        moved += not torch.equal(weight.data, before.data)
    assert moved > 10


@pytest.mark.parametrize(("margin", "centring"), [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_a_step_on_pairs(made, tmp_path, margin, centring):
    trainer = trainer_for(made, PAIRS, tmp_path, margin=margin, centring=centring)
    assert shares_prefix(trainer.model)
    assert_step_by_hand(trainer, PAIRS, lambda x, group: pair_loss(x, group, margin=margin, centring=centring))


@pytest.mark.parametrize("tokens", [None, 16], ids=["one pass", "parts"])
def test_a_step_on_ragged_rankings_with_ties_in_one_pass_or_in_parts(made, tmp_path, tokens):
    trainer = trainer_for(made, RANKED, tmp_path, max_tokens_per_pass=tokens)
    assert_step_by_hand(trainer, RANKED, ranking_loss)


def test_a_step_on_labelled_texts(made, tmp_path):
    assert_step_by_hand(trainer_for(made, LABELLED, tmp_path, kind="classifier"), LABELLED, label_loss)


def test_rows_take_the_same_step(made, tmp_path, monkeypatch):
    from exoalign.logprobs import engine

    fast = trainer_for(made, RANKED, tmp_path / "a")
    fast.train()
    slow = trainer_for(made, RANKED, tmp_path / "b")
    monkeypatch.setattr(engine, "_examine", lambda model: "rows for this test")
    slow.train()
    for (name, ours), theirs in zip(fast.model.named_parameters(), slow.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4, msg=name)


def test_an_adapter_is_trained_with_its_head_and_the_layers_stay(made, tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    trainer = trainer_for(made, PAIRS, tmp_path, peft_config=lora, max_steps=3)
    assert shares_prefix(trainer.model)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    assert any("score" in name for name in moved)
    rewards = logits_of(trainer.model, trainer.processing_class, PAIRS[0])
    merged = trainer.model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, trainer.processing_class, PAIRS[0]), rewards, atol=1e-5, rtol=1e-4)


def test_a_preference_is_learnt(made, tmp_path):
    words = ["tree", "house", "river", "stone", "cloud", "field", "night", "glass"]
    groups = [Group(f"Name a thing like {word}: ", (f"{word}!", f"{word}?"), winner=0) for word in words]
    trainer = trainer_for(
        made, groups, tmp_path, optim="adamw_torch", learning_rate=3e-3, max_steps=12, per_device_train_batch_size=8
    )
    trainer.train()
    log = [step for step in trainer.state.log_history if "loss" in step]
    assert log[0]["loss"] == pytest.approx(0.693, abs=0.15)  # log 2: rewards begin near 0
    assert log[-1]["loss"] < 0.35
    assert log[-1]["accuracy"] == 1.0
    ahead = logits_of(trainer.model, trainer.processing_class, Group("Name a thing like water: ", ("water!", "water?")))
    assert ahead[0, 0] > ahead[1, 0]


def test_how_many_pairs_are_ordered_rightly_by_hand():
    values = torch.tensor([[3.0, 1.0, 2.0, 99.0], [1.0, 1.0, 0.0, 0.0]])
    order = torch.tensor([[2.0, 1.0, 0.0, 5.0], [1.0, 0.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    # first: (0,1) right, (0,2) right, (1,2) wrong; second: (0,1) tied, (0,2) right, (3,1) wrong, (3,2) tied
    assert ordered_rightly(values, order, mask).tolist() == pytest.approx([2 / 3, 2 / 4])
    assert ordered_rightly(values, torch.zeros(2, 4), mask).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "rank"}, "kind is 'rank'; expected one of ranking, classifier"),
        ({"kind": "classifier", "margin": True}, "margin and centring have no effect with kind: classifier"),
        ({"centring": -1.0}, "centring is -1.0; expected a number of at least 0"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig(str(tmp_path), **settings)
