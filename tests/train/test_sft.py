"""Supervised fine-tuning against transformers' own loss of `labels`, on a padded batch and row by row."""

import copy
import math
import types

import pytest
import torch

from exoalign import Group, collate
from exoalign.data.examples import stream_example_ids, with_prompt_learnt
from exoalign.data.set_aside import SetAside
from exoalign.data.texts import example_row
from exoalign.errors import DataError
from exoalign.logprobs.engine import shares_prefix
from exoalign.train.sft import SftConfig, SftTrainer

SYSTEM = {"role": "system", "content": "You answer every question in a single word and never explain it."}
ROWS = [
    {"text": "A long text, which is several times as long as any of the others in this batch of rows."},
    {"prompt": "Q: sky?\nA:", "completion": " blue"},
    {"prompt": "Q: grass?\nA:", "chosen": " green, mostly", "rejected": " no"},
    {"text": "ab"},
    *[
        {
            "messages": [
                SYSTEM,
                {"role": "user", "content": f"What is {word}?"},
                {"role": "assistant", "content": "Unknown."},
                {"role": "user", "content": "And otherwise?"},
                {"role": "assistant", "content": word * 3},
            ]
        }
        for word in ("snow", "rain")
    ],
]


@pytest.fixture
def examples(tiny_tokenizer):
    aside = SetAside()
    rows = [example_row(row, f"row {i}", aside) for i, row in enumerate(ROWS)]
    pairs = [group if group.k == 1 else Group(group.prompt, group.completions[:1]) for group in rows]
    return list(stream_example_ids(pairs, tiny_tokenizer))


def arguments(folder, **settings) -> SftConfig:
    settings = {"learning_rate": 0.1, "save_strategy": "no", "disable_tqdm": True, "seed": 1, **settings}
    return SftConfig(str(folder), **settings)


def labels_of(example):
    """ids and labels of one row, as transformers wants them: -100 where nothing is learnt."""
    (ids,), masks = example.completion_ids, example.completion_masks
    mask = masks[0] if masks else [True] * len(ids)
    learnt = [i if counts else -100 for i, counts in zip(ids, mask, strict=True)]
    return [*example.prompt_ids, *ids], [*([-100] * len(example.prompt_ids)), *learnt]


def padded(examples):
    """ids, mask and labels of a batch that is padded to its longest row."""
    rows = [labels_of(example) for example in examples]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return {"input_ids": ids, "attention_mask": mask}, labels


def transformers_loss(model, examples):
    """The mean over all counted tokens, as transformers computes it: in float32 whatever the model is."""
    inputs, labels = padded(examples)
    return model(**inputs, labels=labels).loss


def padded_batch(model, examples):
    """The same in the model's own precision."""
    inputs, labels = padded(examples)
    logits = model(**inputs).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def row_by_row(model, examples):
    """The same from unpadded rows, each by itself."""
    total = tokens = 0
    for example in examples:
        ids, labels = labels_of(example)
        logp = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        for t, label in enumerate(labels):
            if label != -100:
                total, tokens = total - logp[t - 1, label], tokens + 1
    return total / tokens


@pytest.fixture
def exact_model(tiny_model):
    """The tiny model in float64 throughout: transformers runs the norms in float32 whatever the weights are."""

    def norm(self, x):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight

    for module in tiny_model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = types.MethodType(norm, module)
    return tiny_model.double()


@pytest.mark.parametrize("loss_on", ["completions", "all"])
@pytest.mark.parametrize("passes", [None, "each its own"])
def test_packed_rows_have_the_loss_and_gradient_of_rows_alone_and_of_transformers(
    exact_model, tiny_tokenizer, examples, tmp_path, loss_on, passes
):
    model = exact_model
    if loss_on == "all":
        examples = [with_prompt_learnt(example) for example in examples]
    most = None if passes is None else max(len(labels_of(example)[0]) for example in examples)
    args = arguments(tmp_path, max_tokens_per_pass=most)
    trainer = SftTrainer(model, args, examples, processing_class=tiny_tokenizer)
    inputs = collate(examples).as_dict()
    loss = trainer.compute_loss(model, inputs).detach()
    trainer.training_step(model, inputs)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    for truth, tolerance in ((row_by_row, 1e-9), (padded_batch, 1e-9), (transformers_loss, 1e-6)):
        model.zero_grad()
        expected = truth(model, examples)
        expected.backward()
        assert float(loss) == pytest.approx(float(expected.detach()), abs=tolerance)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(found[name], weight.grad, atol=tolerance, rtol=0, msg=name)


def test_what_stands_beside_an_example_in_a_pass_changes_nothing(exact_model, tiny_tokenizer, examples, tmp_path):
    """Contamination would show here whatever the loss weighs: each row's log-prob with all the others, and alone."""
    trainer = SftTrainer(exact_model, arguments(tmp_path), examples, processing_class=tiny_tokenizer)
    assert shares_prefix(exact_model)
    together = trainer.values(exact_model, collate(examples))[:, 0]
    alone = torch.cat([trainer.values(exact_model, collate([example]))[:, 0] for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)
    others = [examples[0], *reversed(examples[1:])]
    again = trainer.values(exact_model, collate(others))[:, 0]
    torch.testing.assert_close(again[[0, 5, 4, 3, 2, 1]], alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("batch", "accumulation"), [(6, 1), (1, 6), (2, 3), (4, 2)], ids=str)
def test_every_token_of_a_step_weighs_the_same(tiny_model, tiny_tokenizer, examples, tmp_path, batch, accumulation):
    """Rows of 2 to 86 tokens: a mean of the batches' means would be another gradient."""
    expected = copy.deepcopy(tiny_model)
    transformers_loss(expected, examples).backward()
    args = arguments(
        tmp_path, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant",
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer = SftTrainer(tiny_model, args, examples, processing_class=tiny_tokenizer)
    trainer.train()
    assert trainer.state.global_step == 1
    for (name, moved), weight in zip(tiny_model.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(moved.data, weight[1].data - 0.1 * weight[1].grad, atol=2e-6, rtol=1e-4, msg=name)


def test_loss_and_perplexity_of_each_step_are_logged(tiny_model, tiny_tokenizer, examples, tmp_path):
    expected = float(transformers_loss(tiny_model, examples).detach())
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3, num_train_epochs=2)
    trainer = SftTrainer(tiny_model, args, examples, processing_class=tiny_tokenizer)
    trainer.train()
    first, second = [step for step in trainer.state.log_history if "loss" in step]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert first["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert second["loss"] < first["loss"]


def test_the_loss_of_an_evaluation_is_that_of_its_tokens(tiny_model, tiny_tokenizer, examples, tmp_path):
    args = arguments(tmp_path, per_device_eval_batch_size=6)
    trainer = SftTrainer(tiny_model, args, examples, examples, processing_class=tiny_tokenizer)
    expected = float(transformers_loss(tiny_model, examples).detach())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_group_of_several_completions_is_refused(tiny_model, tiny_tokenizer, examples, tmp_path):
    several = [Group("p", ("a", "b"), provenance={"source": "rows.jsonl:9"})]
    for data in ((several, None), (examples, several)):
        with pytest.raises(DataError, match=r"rows\.jsonl:9: 2 completions, expected 1; choose the one to learn"):
            SftTrainer(tiny_model, arguments(tmp_path), *data, processing_class=tiny_tokenizer)
