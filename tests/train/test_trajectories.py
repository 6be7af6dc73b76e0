"""Training on trajectories of three turns: the loss and its gradient are those of the assistant's tokens, by enumeration."""

import copy
from dataclasses import replace

import pytest
import torch
from architectures import in_float64

from exoalign import ExoConfig, ExoTrainer, Group, Message, collate, exo_rw
from exoalign.errors import TrainingError
from exoalign.train.gradient import accumulate

BETAS = {"beta_pi": 0.5, "beta_r": 0.7}


def turn(tokenizer, role, text):
    """(ids, mask) of a turn as ChatML writes it: what the assistant said and the token that ends its turn count."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    head, said, after = (
        [*tokenizer(part, add_special_tokens=False)["input_ids"]] for part in (f"{role}\n", text, "\n")
    )
    wrote = role == "assistant"
    return [start, *head, *said, end, *after], [False] * (1 + len(head)) + [wrote] * (len(said) + 1) + [False] * len(
        after
    )


def trajectory(tokenizer, *texts):
    """(turns, ids, mask) of assistant, user, assistant, ...; the prompt has the head of the first turn."""
    turns = tuple(Message(("assistant", "user")[i % 2], text) for i, text in enumerate(texts))
    ids, mask = [], []
    for role, text in turns:
        for values, more in zip((ids, mask), turn(tokenizer, role, text), strict=True):
            values += more
    head = 1 + len("assistant\n")  # one token a byte
    return turns, tuple(ids[head:-1]), tuple(mask[head:-1])


def group_of(tokenizer, question, *conversations, rewards):
    ids, _ = turn(tokenizer, "user", question)
    start, *_ = tokenizer.convert_tokens_to_ids(["<|im_start|>"])
    head = tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    turns, completions, masks = zip(*(trajectory(tokenizer, *texts) for texts in conversations), strict=True)
    return Group(
        (Message("user", question),),
        turns,
        rewards=rewards,
        prompt_ids=(*ids, start, *head),
        completion_ids=completions,
        completion_masks=masks,
        provenance={"source": f"{question}.jsonl:1"},
    )


@pytest.fixture
def groups(tiny_tokenizer):
    """K of 3 and 2; two begin with the same turns, one has one turn, one has five."""
    return [
        group_of(
            tiny_tokenizer,
            "Tea?",
            ("Yes.", "Why so?", "It warms."),
            ("Yes.", "Why so?", "No idea."),
            ("No.",),
            rewards=(1.0, -0.5, 0.2),
        ),
        group_of(
            tiny_tokenizer,
            "Rain?",
            ("Soon.", "When?", "At 5."),
            ("Ask.", "You!", "Me?", "Yes!", "Then no."),
            rewards=(0.3, 0.9),
        ),
    ]


def assistant_logprob(model, group, k):
    """One sequence in float64: sum over the assistant's tokens of the log softmax of all logits before each."""
    ids = torch.tensor([[*group.prompt_ids, *group.completion_ids[k]]])
    log_p = torch.log_softmax(model(ids).logits[0], -1)
    total = 0.0
    for t, (token, counts) in enumerate(zip(group.completion_ids[k], group.completion_masks[k], strict=True)):
        if counts:
            total = total + log_p[len(group.prompt_ids) + t - 1, token]
    return total


def loss_by_hand(model, reference, groups):
    """KL(q || p), q ~ exp(beta_pi * log-ratio), p ~ exp(r / beta_r), as a mean over the groups."""
    total = 0.0
    for group in groups:
        with torch.no_grad():
            before = torch.stack([assistant_logprob(reference, group, k) for k in range(group.k)])
        rho = torch.stack([assistant_logprob(model, group, k) for k in range(group.k)]) - before
        log_q = torch.log_softmax(BETAS["beta_pi"] * rho, 0)
        log_p = torch.log_softmax(torch.tensor(group.rewards, dtype=torch.float64) / BETAS["beta_r"], 0)
        total = total + (log_q.exp() * (log_q - log_p)).sum()
    return total / len(groups)


def test_what_counts_is_what_the_assistant_wrote(groups, tiny_tokenizer):
    for group in groups:
        for turns, ids, mask in zip(group.completions, group.completion_ids, group.completion_masks, strict=True):
            wrote = tiny_tokenizer.decode([i for i, counts in zip(ids, mask, strict=True) if counts])
            assert wrote == "".join(f"{text}<|im_end|>" for role, text in turns if role == "assistant")


@pytest.mark.parametrize("together", [True, False], ids=["one pass", "two passes"])
def test_a_step_moves_by_the_gradient_of_the_assistants_tokens(tiny_model, tiny_tokenizer, groups, tmp_path, together):
    # two steps: in the first every log-ratio is 0, in the second none is
    need = max(len(g.prompt_ids) + max(map(len, g.completion_ids)) for g in groups)
    assert all(len(g.prompt_ids) + sum(map(len, g.completion_ids)) > need for g in groups)
    args = ExoConfig(
        str(tmp_path), objective="exo_rw", **BETAS, optim="sgd", learning_rate=0.05, lr_scheduler_type="constant",
        max_grad_norm=0.0, per_device_train_batch_size=2, num_train_epochs=2, save_strategy="no", disable_tqdm=True,
        max_tokens_per_pass=None if together else need, logging_steps=1,
    )  # fmt: skip
    expected = copy.deepcopy(tiny_model).double()
    reference, losses = copy.deepcopy(expected), []
    for _ in range(2):
        loss = loss_by_hand(expected, reference, groups)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(expected.parameters(), gradients, strict=True):
                weight -= 0.05 * gradient
    trainer = ExoTrainer(tiny_model, args, groups, processing_class=tiny_tokenizer)
    trainer.train()
    assert trainer.state.global_step == 2
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, abs=2e-4)  # the log has 4 digits
    for group, done in zip(groups, trainer.train_dataset, strict=True):
        truth = [assistant_logprob(reference, group, k).item() for k in range(group.k)]
        assert list(done.reference_logprobs) == pytest.approx(truth, rel=1e-5)
    for (name, moved), weight in zip(tiny_model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.data, weight.data.float(), atol=2e-6, rtol=1e-4, msg=name)


def test_the_gradient_of_a_step_in_float64(tiny_model, groups):
    """To rounding, not only to float32: the loss of the package's own parts against the sum over the assistant's tokens."""
    model = in_float64(tiny_model.double())
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    expected = torch.autograd.grad(loss_by_hand(model, reference, groups), list(model.parameters()))
    before = torch.zeros(2, 3, dtype=torch.float64)
    rewards = torch.zeros(2, 3, dtype=torch.float64)
    for b, group in enumerate(groups):
        rewards[b, : group.k] = torch.tensor(group.rewards, dtype=torch.float64)
        for k in range(group.k):
            before[b, k] = assistant_logprob(reference, group, k).detach()

    def losses(logprobs, part):
        rows = [0 if part.completion_lengths[i].bool().all() else 1 for i in range(len(logprobs))]  # K tells them apart
        ratios = torch.where(part.mask, logprobs - before[rows], 0.0)
        return exo_rw(ratios, rewards[rows], mask=part.mask, **BETAS)

    need = max(len(g.prompt_ids) + max(map(len, g.completion_ids)) for g in groups)
    for most in (need, 10_000):
        model.zero_grad()
        accumulate(
            model, collate(groups), losses, total=2, max_tokens=most, temperature=1.0, bf16=False,
            backward=lambda loss, last: loss.backward(),
        )  # fmt: skip
        for weight, truth in zip(model.parameters(), expected, strict=True):
            assert (weight.grad - truth).norm() <= 1e-9 * truth.norm()


def test_an_error_names_the_group_whose_tokens_count_so(tiny_model, tiny_tokenizer, groups, tmp_path):
    """The same tokens under another mask are another group."""
    first = groups[1]
    whole = tuple((True,) * len(ids) for ids in first.completion_ids)
    second = replace(first, completion_masks=None, provenance={"source": "plain.jsonl:2"})
    third = replace(first, completion_masks=whole, provenance={"source": "whole.jsonl:3"})
    args = ExoConfig(str(tmp_path), objective="exo_rw", save_strategy="no")
    broken = {"reference_logprobs": torch.full((1, 2), torch.nan)}
    for data, culprit in (([first, second], second), ([second, first], first), ([first, third], third)):
        trainer = ExoTrainer(tiny_model, args, data, processing_class=tiny_tokenizer)
        with pytest.raises(TrainingError, match=rf"^{culprit.where}".replace("?", r"\?")):
            trainer.compute_loss(tiny_model, {**collate([culprit]).as_dict(), **broken})
