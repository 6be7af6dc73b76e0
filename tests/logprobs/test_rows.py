"""The oracle of all faster ways is itself held against one unpadded sequence at a time, through the plain model in float64."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from architectures import (
    GROUPS,
    MIXTURES,
    MODELS,
    PAD,
    UNFIT,
    VOCABULARY,
    assert_same,
    assert_same_gradients,
    build,
    encoder_decoder,
    gradients,
    group_of,
    one_by_one,
    sequence_logprob,
)

from exoalign import GroupBatch, collate
from exoalign.errors import ModelError
from exoalign.logprobs.rows import compare_policies, completion_logprobs, token_logprobs

ALL = pytest.mark.parametrize("kind", MODELS)


class TestCompletionLogprobs:
    @ALL
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_values_and_gradients_are_those_of_single_sequences(self, kind, temperature):
        model = build(kind)
        truth = one_by_one(model, GROUPS, temperature)
        expected = gradients(model, truth)
        values = completion_logprobs(model, collate(GROUPS, pad_id=PAD), temperature=temperature)
        assert values.dtype == torch.float64
        assert_same(values.detach(), truth.detach())
        assert_same_gradients(gradients(model, values), expected)

    @pytest.mark.parametrize("kind", [*MIXTURES, *UNFIT])
    def test_in_float32_where_a_model_takes_no_float64(self, kind):
        model = build(kind, dtype=torch.float32)
        truth = one_by_one(model, GROUPS, 0.7)
        expected = gradients(model, truth)
        values = completion_logprobs(model, collate(GROUPS, pad_id=PAD), temperature=0.7)
        assert_same(values.detach(), truth.detach(), 1e-5)
        assert_same_gradients(gradients(model, values), expected, 1e-4)

    @ALL
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        # nats a token: some ten roundings at unit roundoff 6e-8 and 4e-3, on logits of up to 10
        [(torch.float32, 1e-5), (torch.bfloat16, 0.06)],
        ids=["float32", "bfloat16"],
    )
    def test_at_lower_precision_it_errs_little_and_no_more_than_single_sequences(self, kind, dtype, tolerance):
        model = build(kind, dtype=dtype)
        exact = build(kind)
        exact.load_state_dict(model.state_dict())  # the rounded weights, in float64
        with torch.no_grad():
            truth = one_by_one(exact, GROUPS)
            values = completion_logprobs(model, collate(GROUPS, pad_id=PAD))
            naive = one_by_one(model, GROUPS)
        assert values.dtype == torch.float32
        tokens = collate(GROUPS).completion_lengths.clamp(min=1)
        errors, naive_errors = (((v.double() - truth).abs() / tokens).max() for v in (values, naive))
        assert errors <= tolerance
        assert errors <= 2 * naive_errors + tolerance / 10

    def test_one_token_is_the_log_softmax_at_the_last_token_of_the_prompt(self):
        model = build("llama")
        logits = model(input_ids=torch.tensor([[3, 1, 4]])).logits[0, -1].detach()
        # T = 2: log(exp(z_5 / 2) / sum_v exp(z_v / 2))
        expected = math.log(math.exp(logits[5] / 2) / sum(math.exp(z / 2) for z in logits))
        value = completion_logprobs(model, collate([group_of((3, 1, 4), (5,))]), temperature=2.0)
        assert value.shape == (1, 1)
        assert value.item() == pytest.approx(expected, rel=1e-12)

    def test_a_temperature_divides_the_logits(self):
        # z = (log 4, 0), T = 2: softmax(log 2, 0) = (2/3, 1/3)
        logits = torch.tensor([[[math.log(4), 0.0]] * 2], dtype=torch.float64)
        values = token_logprobs(logits, torch.tensor([[0, 1]]), 2.0)
        assert values.tolist() == [pytest.approx([math.log(2 / 3), math.log(1 / 3)], rel=1e-14)]

    def test_bfloat16_logits_are_normalised_in_float32(self):
        # 512 equal logits: log(1/512) = -6.2383, which bfloat16 (3 digits) cannot hold
        values = token_logprobs(torch.zeros(1, 1, 512, dtype=torch.bfloat16), torch.tensor([[3]]), 1.0)
        assert values.item() == pytest.approx(-math.log(512), abs=1e-6)

    def test_absent_completions_are_exactly_zero_without_a_gradient(self):
        model = build("llama")
        batch = collate(GROUPS, pad_id=PAD)
        values = completion_logprobs(model, batch)
        assert batch.mask.tolist() == [[True, True, True, False], [True, False, False, False], [True] * 4]
        assert values[~batch.mask].tolist() == [0.0] * 4
        assert (values[batch.mask] < 0).all()
        (values * ~batch.mask).sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())

    @ALL
    def test_what_fills_the_padding_changes_nothing(self, kind):
        model = build(kind)
        with torch.no_grad():
            first, second = (completion_logprobs(model, collate(GROUPS, pad_id=pad)) for pad in (0, PAD))
        assert_same(first, second, rtol=1e-12)

    def test_only_real_completions_go_through_the_model_and_each_once(self):
        model, seen = build("llama"), []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        completion_logprobs(model, collate(GROUPS, pad_id=PAD))
        assert seen == [8]

    def test_permuted_completions_give_permuted_results(self):
        model, order = build("llama"), [2, 0, 3, 1]
        group = GROUPS[2]
        permuted = replace(group, completion_ids=tuple(group.completion_ids[i] for i in order))
        with torch.no_grad():
            values = completion_logprobs(model, collate([group]))
            assert_same(completion_logprobs(model, collate([permuted])), values[:, order], rtol=1e-12)

    def test_one_group_of_eight_equals_eight_groups_of_one(self):
        model = build("llama")
        completions = [tuple((7 * k + j) % VOCABULARY for j in range(1 + k % 5)) for k in range(8)]
        values = [
            completion_logprobs(model, collate(groups)).flatten()
            for groups in ([group_of((3, 1), *completions)], [group_of((3, 1), ids) for ids in completions])
        ]
        assert_same(values[0].detach(), values[1].detach(), rtol=1e-12)
        first, second = (gradients(model, v) for v in values)
        assert_same_gradients(first, second)

    @ALL
    def test_the_companions_of_a_group_change_nothing(self, kind):
        model = build(kind)
        with torch.no_grad():
            together = completion_logprobs(model, collate(GROUPS, pad_id=PAD))
            for group, row in zip(GROUPS, together, strict=True):
                assert_same(completion_logprobs(model, collate([group]))[0], row[: group.k])

    def test_a_model_that_cannot_keep_some_logits_gives_the_same(self):
        class Wrapped(torch.nn.Module):  # as an adapter or an older architecture: all logits, always
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask, position_ids, use_cache):
                return self.model(input_ids, attention_mask, position_ids, use_cache=use_cache)

        model, batch = build("llama"), collate(GROUPS, pad_id=PAD)
        with torch.no_grad():
            assert_same(completion_logprobs(Wrapped(model), batch), completion_logprobs(model, batch), rtol=1e-12)

    @pytest.mark.parametrize("wrapped", [False, True], ids=["model", "adapter"])
    def test_the_head_runs_on_the_completion_columns_only(self, wrapped):
        class Adapter(torch.nn.Module):  # as peft's: it takes whatever its model takes
            def __init__(self, model):
                super().__init__()
                self.model = model

            def get_base_model(self):
                return self.model

            def forward(self, *args, **kwargs):
                return self.model(*args, **kwargs)

        model, heads = build("llama"), []
        model.lm_head.register_forward_hook(lambda module, args, output: heads.append(tuple(output.shape)))
        completion_logprobs(Adapter(model) if wrapped else model, collate([group_of(tuple(range(20)), (1, 2, 3))]))
        assert heads == [(1, 4, VOCABULARY)]  # 3 tokens, and the logits after the last, which predict nothing

    def test_what_is_no_language_model_is_refused_by_name(self):
        with pytest.raises(ModelError, match=r"Linear does not take input_ids; expected a causal language model"):
            completion_logprobs(torch.nn.Linear(2, 2), collate(GROUPS))

    def test_an_encoder_with_a_decoder_is_refused_by_name(self):
        with pytest.raises(
            ModelError, match=r"T5ForConditionalGeneration has an encoder and a decoder; expected a causal"
        ):
            completion_logprobs(encoder_decoder(), collate(GROUPS))


# Everything of a tiny policy: 5 tokens, at most 3 of them, and token 0 ends a completion before.
STOP, LONGEST, TINY = 0, 3, 5
PROMPT = (1, 4)


def every_completion():
    """All that a sampler can draw: 4 * 4 * 5 of three tokens, and those that stop at the first or second."""
    ended = [(*body, STOP) for n in range(LONGEST - 1) for body in itertools.product(range(1, TINY), repeat=n)]
    full = [(*body, last) for body in itertools.product(range(1, TINY), repeat=LONGEST - 1) for last in range(TINY)]
    return tuple(ended + full)


@pytest.fixture(scope="module")
def policies():
    """Two unlike policies and the one group of all completions."""
    models = [build("llama", seed=seed, vocab_size=TINY) for seed in (1, 2)]
    return *models, collate([group_of(PROMPT, *every_completion())])


def step_distributions(model, prefix, temperature):
    logits = model(input_ids=torch.tensor([prefix])).logits[0, -1].tolist()
    weights = [math.exp(z / temperature) for z in logits]
    return [w / sum(weights) for w in weights]


class TestComparePolicies:
    @ALL
    def test_the_log_ratio_is_the_difference_of_the_log_probs(self, kind):
        policy, reference = build(kind, seed=1), build(kind, seed=2)
        batch = collate(GROUPS, pad_id=PAD)
        log_ratio, kl, k3 = compare_policies(policy, reference, batch, temperature=0.7)
        difference = one_by_one(policy, GROUPS, 0.7) - one_by_one(reference, GROUPS, 0.7)
        assert_same(log_ratio, difference.detach())
        for values in (log_ratio, kl, k3):
            assert values[~batch.mask].tolist() == [0.0] * 4
        assert (kl[batch.mask] > 0).all()
        assert (k3[batch.mask] > 0).all()

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_the_kl_of_the_steps_is_the_sum_over_the_vocabulary(self, policies, temperature):
        policy, reference, _ = policies
        completions = ((2, 3, 1), (0,), (4, 0))
        found = compare_policies(policy, reference, collate([group_of(PROMPT, *completions)]), temperature=temperature)
        expected, k3 = [], []
        for ids in completions:
            prefixes = [[*PROMPT, *ids[:t]] for t in range(len(ids))]
            pairs = [[step_distributions(m, prefix, temperature) for m in (policy, reference)] for prefix in prefixes]
            expected.append(sum(p * math.log(p / r) for ps, rs in pairs for p, r in zip(ps, rs, strict=True)))
            ratios = [rs[token] / ps[token] for (ps, rs), token in zip(pairs, ids, strict=True)]
            k3.append(sum((r - 1) - math.log(r) for r in ratios))
        assert found.kl.tolist() == [pytest.approx(expected, rel=1e-9)]
        assert found.k3.tolist() == [pytest.approx(k3, rel=1e-9)]

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_all_three_estimates_have_the_exact_kl_as_their_mean(self, policies, temperature):
        policy, reference, batch = policies
        with torch.no_grad():
            log_pi, log_ref = (
                torch.stack([sequence_logprob(m, PROMPT, ids, temperature) for ids in every_completion()])
                for m in (policy, reference)
            )
        pi = log_pi.exp()
        assert pi.sum().item() == pytest.approx(1, abs=1e-12)  # nothing is missing from the enumeration
        exact = (pi * (log_pi - log_ref)).sum().item()
        found = compare_policies(policy, reference, batch, temperature=temperature)
        assert exact > 0.1
        for values in found:
            assert (pi * values[0]).sum().item() == pytest.approx(exact, rel=1e-9)
        # and the exact steps have less variance than the two that look at the drawn token only
        variances = {name: (pi * (getattr(found, name)[0] - exact) ** 2).sum().item() for name in found._fields}
        assert variances["kl"] < min(variances["log_ratio"], variances["k3"])

    def test_a_policy_is_no_distance_from_itself(self):
        policy, batch = build("gpt2"), collate(GROUPS, pad_id=PAD)
        for values in compare_policies(policy, copy.deepcopy(policy), batch):
            assert values.abs().max() == 0

    def test_no_gradient_is_kept(self):
        policy, reference = build("llama", seed=1), build("llama", seed=2)
        assert not any(values.requires_grad for values in compare_policies(policy, reference, collate(GROUPS)))


def test_a_batch_that_is_built_by_hand_needs_no_order():
    """Absent completions may stand anywhere in a row, not only at its end."""
    model = build("llama")
    batch = GroupBatch(
        prompt_ids=torch.tensor([[3, 1]]),
        prompt_lengths=torch.tensor([2]),
        completion_ids=torch.tensor([[[9, 9], [4, 1], [5, 9]]]),
        completion_lengths=torch.tensor([[0, 2, 1]]),
    )
    expected = [sequence_logprob(model, (3, 1), ids).item() for ids in ((4, 1), (5,))]
    values = completion_logprobs(model, batch)
    assert values.tolist() == [[0.0, pytest.approx(expected[0], rel=1e-9), pytest.approx(expected[1], rel=1e-9)]]
