"""The hooks of `GroupTrainer`, with a loss that is none of the objectives, and the arguments that a recipe may give."""

import copy

import pytest
import torch

from exoalign import ExoConfig, Group, tokenize
from exoalign.errors import ConfigError, TrainingError
from exoalign.train.arguments import GroupConfig, arguments_of
from exoalign.train.group_trainer import GroupTrainer

GROUPS = [
    Group("Film:", (" good", " not so good", " bad")),
    Group("Book:", (" fine",)),
    Group("Play:", (" a bore", " a joy")),
]


class PerToken(GroupTrainer):
    """-log p, averaged over all tokens of the step: not over groups."""

    def losses(self, model, values, batch):
        if model.training:
            self.note(completions=batch.mask.sum())
        return -torch.where(batch.mask, values, 0.0).sum(1)

    def count(self, batch):
        return int(batch.completion_lengths.sum())


class Lengths(PerToken):
    """Values that are no log-probs: a weight times the completion's length."""

    values_are = "weighted lengths"

    def values(self, model, batch):
        return batch.completion_lengths * next(model.parameters()).flatten()[0]


def arguments(folder, **settings) -> GroupConfig:
    return GroupConfig(
        str(folder), optim="sgd", learning_rate=0.1, max_grad_norm=0.0, lr_scheduler_type="constant", seed=1,
        save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "accumulation"), [(3, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("most", [None, 22], ids=["one pass", "parts"])  # 5 + 5 + 12 + 4 tokens
def test_a_step_divides_by_what_it_counts(tiny_model, tiny_tokenizer, tmp_path, batch, accumulation, most):
    groups = tokenize(GROUPS, tiny_tokenizer)
    expected, total, tokens = copy.deepcopy(tiny_model), 0.0, 0
    for group in groups:
        for ids in group.completion_ids:
            logp = torch.log_softmax(expected(torch.tensor([[*group.prompt_ids, *ids]])).logits[0], -1)
            total = total - sum(logp[len(group.prompt_ids) + t - 1, token] for t, token in enumerate(ids))
            tokens += len(ids)
    (total / tokens).backward()
    args = arguments(
        tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_tokens_per_pass=most
    )
    trainer = PerToken(tiny_model, args, groups, processing_class=tiny_tokenizer)
    trainer.train()
    assert trainer.state.global_step == 1
    for moved, weight in zip(tiny_model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.data, weight.data - 0.1 * weight.grad, atol=2e-6, rtol=1e-4)
    step = trainer.state.log_history[0]
    assert step["loss"] == pytest.approx(float(total.detach() / tokens), rel=1e-5)
    assert step["completions"] == pytest.approx(6 / tokens)
    assert trainer.evaluate(groups)["eval_loss"] < step["loss"]


def test_other_values_than_log_probs(tiny_model, tiny_tokenizer, tmp_path):
    """d/dw of sum(-length * w) / sum(length) is -1: the weight moves by the learning rate."""
    weight = next(tiny_model.parameters())
    before = weight.flatten()[0].item()
    args = arguments(tmp_path, per_device_train_batch_size=3)
    trainer = Lengths(tiny_model, args, GROUPS, processing_class=tiny_tokenizer)
    trainer.train()
    assert weight.flatten()[0].item() == pytest.approx(before + 0.1)
    weight.data.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"the loss at step 2 is -inf and the weighted lengths are \[inf"):
        trainer.compute_loss(tiny_model.train(), trainer.data_collator(trainer.train_dataset))


def test_groups_alone_have_no_loss(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(TypeError, match="abstract"):
        GroupTrainer(tiny_model, arguments(tmp_path), GROUPS, processing_class=tiny_tokenizer)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"weight_decai": 0.1},
            r"sft\.trainer\.weight_decai is no argument of the trainer; did you mean weight_decay\?",
        ),
        ({"beta_pi": 0.1}, r"sft\.trainer\.beta_pi is no argument"),  # of the objectives alone
        (
            {"learning_rate": 0.1},
            r"sft\.trainer\.learning_rate: the recipe sets this itself \(sft, model, seed or out\)",
        ),
        ({"hub_token": "secret"}, r"sft\.trainer\.hub_token: .* set HF_TOKEN in the environment"),
        ({"label_smoothing_factor": 0.1}, r"sft\.trainer\.label_smoothing_factor has no effect"),
        ({"save_total_limit": 1}, r"sft\.trainer\.save_total_limit: leave it out: the last two checkpoints are kept"),
        ({"save_only_model": True}, r"sft\.trainer\.save_only_model: leave it out: .* cannot go on from a checkpoint"),
        ({"ignore_data_skip": True}, "groups that it has seen"),
        ({"save_strategy": "often"}, r"sft\.trainer: often is not a valid SaveStrategy"),
        ({"max_tokens_per_pass": 1}, "max_tokens_per_pass is 1; expected at least"),
    ],
)
def test_the_users_arguments_are_checked(tmp_path, trainer, message):
    with pytest.raises(ConfigError, match=message) as caught:
        arguments_of(GroupConfig, {"output_dir": str(tmp_path), "learning_rate": 1e-3}, trainer, section="sft")
    assert "secret" not in str(caught.value)


def test_ours_before_the_users_before_the_defaults(tmp_path):
    ours = {"output_dir": str(tmp_path), "learning_rate": 1e-3, "beta_r": 0.7}
    found = arguments_of(ExoConfig, ours, {"warmup_steps": 3, "save_strategy": "steps"}, section="align")
    assert (found.learning_rate, found.beta_r, found.warmup_steps) == (1e-3, 0.7, 3)
    assert (found.save_strategy, found.disable_tqdm, found.lr_scheduler_type) == ("steps", True, "cosine")
