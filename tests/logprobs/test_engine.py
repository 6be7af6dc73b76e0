"""The shared prefix against padded rows and against single sequences: forward, backward, and what it leaves behind."""

import copy
import json
import logging

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
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
    build_fast,
    encoder_decoder,
    gradients,
    group_of,
    one_by_one,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import exoalign
from exoalign import collate
from exoalign.errors import ModelError
from exoalign.logprobs import engine, rows
from exoalign.logprobs.engine import compare_policies, completion_logprobs, shares_prefix
from exoalign.models import without_dropout

ALL = pytest.mark.parametrize("kind", MODELS)
LONGER = [*GROUPS, group_of((5, 6, 7, 8, 9), (1,), (2,)), group_of((1, 2), (3, 4, 5))]
naive_logprobs, naive_comparison = rows.completion_logprobs, rows.compare_policies


def test_the_package_exports_these():
    assert exoalign.completion_logprobs is completion_logprobs
    assert exoalign.compare_policies is compare_policies


class TestSharedPrefix:
    @ALL
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_values_and_gradients_are_those_of_rows_and_of_single_sequences(self, kind, temperature, no_rows):
        model, oracle = build_fast(kind), build(kind)
        no_rows(model)
        batch = collate(LONGER, pad_id=PAD)
        values = completion_logprobs(model, batch, temperature=temperature)
        ours = gradients(model, values)
        assert values.dtype == torch.float64
        for truth in (naive_logprobs(oracle, batch, temperature=temperature), one_by_one(oracle, LONGER, temperature)):
            assert_same(values.detach(), truth.detach())
            assert_same_gradients(ours, gradients(oracle, truth))
        assert values[~batch.mask].tolist() == [0.0] * int((~batch.mask).sum())

    @pytest.mark.parametrize("kind", MIXTURES)
    def test_mixtures_of_experts_do_so_in_float32(self, kind, no_rows):
        model, oracle = (build(kind, dtype=torch.float32) for _ in range(2))
        no_rows(model)
        batch = collate(LONGER, pad_id=PAD)
        values = completion_logprobs(model, batch, temperature=0.7)
        ours = gradients(model, values)
        for truth in (naive_logprobs(oracle, batch, temperature=0.7), one_by_one(oracle, LONGER, 0.7)):
            assert_same(values.detach(), truth.detach(), 1e-6)
            assert_same_gradients(ours, gradients(oracle, truth), 1e-5)

    @ALL
    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
    @pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
    def test_in_training_too_with_and_without_checkpointing(self, kind, checkpointing, no_rows):
        model, oracle = build_fast(kind), build(kind)
        without_dropout(model)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        no_rows(model)
        layers, calls = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), []
        next(layers[0].children()).register_forward_pre_hook(lambda *args: calls.append(1))
        batch = collate(GROUPS, pad_id=PAD)
        values = completion_logprobs(model, batch)
        ours = gradients(model, values)
        assert model.training
        assert len(calls) == (2 if checkpointing else 1)  # the second time for the backward pass
        truth = naive_logprobs(oracle, batch)
        assert_same(values.detach(), truth.detach())
        assert_same_gradients(ours, gradients(oracle, truth))

    @pytest.mark.parametrize(
        "groups",
        [
            [group_of((3, 1, 4), (5, 9, 2))],
            [group_of((3,), (5,))],
            [group_of((3,), (5,), (6,))],
            [group_of((3,), (5, 9, 2, 6, 5, 3, 5), (1,))],
            [group_of((3,), (5,)), group_of((3, 1, 4, 1, 5, 9, 2, 6), (5, 3), (5, 8), (9, 7, 9))],
        ],
        ids=["K = 1", "one and one", "one-token completions", "a prompt of one token", "unequal groups"],
    )
    @pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral"])
    def test_small_and_uneven_batches(self, kind, groups, no_rows):
        model, oracle = build_fast(kind), build(kind)
        no_rows(model)
        values, truth = completion_logprobs(model, collate(groups, pad_id=PAD)), one_by_one(oracle, groups)
        assert_same(values.detach(), truth.detach())
        assert_same_gradients(gradients(model, values), gradients(oracle, truth))

    model, oracle = build("llama"), build("llama")
    tokens = st.integers(0, VOCABULARY - 1)
    completions = st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=4)
    groups = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=6), completions), min_size=1, max_size=3)

    @settings(max_examples=40, deadline=None)
    @given(groups)
    def test_any_shape(self, drawn):
        groups = [group_of(prompt, *completions) for prompt, completions in drawn]
        batch = collate(groups, pad_id=PAD)
        assert shares_prefix(self.model)
        values, truth = completion_logprobs(self.model, batch), naive_logprobs(self.oracle, batch)
        assert_same(values.detach(), truth.detach())
        assert_same_gradients(gradients(self.model, values), gradients(self.oracle, truth))

    @ALL
    def test_one_group_of_eight_equals_eight_groups_of_one_and_eight_batches_of_one(self, kind):
        model = build_fast(kind)
        completions = [tuple((7 * k + j) % VOCABULARY for j in range(1 + k % 5)) for k in range(8)]
        single = [group_of((3, 1), ids) for ids in completions]
        together = completion_logprobs(model, collate([group_of((3, 1), *completions)])).flatten()
        apart = completion_logprobs(model, collate(single)).flatten()
        alone = torch.stack([completion_logprobs(model, collate([group]))[0, 0] for group in single])
        first, *others = [gradients(model, values) for values in (together, apart, alone)]
        for values, gradient in zip((apart, alone), others, strict=True):
            assert_same(values.detach(), together.detach(), rtol=1e-12)
            assert_same_gradients(gradient, first)

    def test_absent_completions_give_no_gradient(self):
        model, batch = build("llama"), collate(GROUPS, pad_id=PAD)
        (completion_logprobs(model, batch) * ~batch.mask).sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())

    def test_every_prompt_token_is_computed_once_and_the_model_s_own_head_never(self):
        model, seen = build("llama"), []
        assert shares_prefix(model)
        model.model.embed_tokens.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
        model.lm_head.register_forward_hook(lambda *args: seen.append("head"))
        completion_logprobs(model, collate(GROUPS, pad_id=PAD))
        # prompts of 6, 1 and 3 tokens; completions of 3 + 1 + 8, 4 and 1 + 2 + 3 + 5 tokens, each but for its last
        assert seen == [10 + 9 + 3 + 7]


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    # nats a token: some ten roundings at unit roundoff 6e-8 and 4e-3, on logits of up to 10
    [(torch.float32, False, 1e-5), (torch.bfloat16, False, 0.1), (torch.float32, True, 0.1)],
    ids=["float32", "bfloat16", "autocast"],
)


class TestPrecision:
    @pytest.mark.parametrize("kind", [*MODELS, "gpt_oss"])
    @PRECISIONS
    def test_it_errs_no_more_than_rows(self, kind, dtype, autocast, tolerance, no_rows):
        model, oracle = (build(kind, dtype=dtype) for _ in range(2))
        exact = build(kind, dtype=torch.float32 if kind == "gpt_oss" else torch.float64)
        exact.load_state_dict(model.state_dict())  # the rounded weights
        batch = collate(LONGER, pad_id=PAD)
        truth = one_by_one(exact, LONGER).detach().double()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            no_rows(model)  # the probe is not fooled by the rounding
            values = completion_logprobs(model, batch)
            naive = naive_logprobs(oracle, batch)
        assert values.dtype == torch.float32
        tokens = batch.completion_lengths.clamp(min=1)
        error, naive_error = (((v.double() - truth).abs() / tokens).max() for v in (values, naive))
        assert error <= tolerance
        assert error <= 2 * naive_error + tolerance / 10
        # and so do the gradients, all together
        expected = gradients(exact, one_by_one(exact, LONGER))
        largest = max(g.norm() for g in expected.values())
        errors = [
            max((g.double() - expected[name]).norm() / largest for name, g in gradients(m, v).items())
            for m, v in ((model, values), (oracle, naive))
        ]
        assert errors[0] <= 2 * errors[1] + tolerance / 10

    def test_under_autocast_the_weights_get_their_gradients_on_the_first_step(self):
        # autocast remembers weights that were cast without a gradient: the probe must not leave such behind
        model = build("llama", dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            completion_logprobs(model, collate(GROUPS)).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())


class TestComparePolicies:
    @ALL
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_it_equals_rows(self, kind, temperature, no_rows):
        policies = [build_fast(kind, seed=seed) for seed in (1, 2)]
        oracles = [build(kind, seed=seed) for seed in (1, 2)]
        no_rows(*policies)
        batch = collate(LONGER, pad_id=PAD)
        expected = naive_comparison(*oracles, batch, temperature=temperature)
        for values, truth in zip(compare_policies(*policies, batch, temperature=temperature), expected, strict=True):
            assert values.dtype == torch.float64
            assert not values.requires_grad
            assert (truth[batch.mask] != 0).all()
            assert_same(values, truth)

    @pytest.mark.parametrize("unfit", [0, 1], ids=["policy", "reference"])
    def test_one_that_goes_by_rows_takes_the_other_with_it(self, unfit):
        policies = [build("llama", dtype=torch.float32), build("llama", seed=1, dtype=torch.float32)]
        policies[unfit] = build("bloom", dtype=torch.float32)
        batch = collate(GROUPS, pad_id=PAD)
        for values, truth in zip(compare_policies(*policies, batch), naive_comparison(*policies, batch), strict=True):
            assert_same(values, truth, 1e-5)


class TestWithoutALayout:
    """A model set to the `exoalign` attention generates and is trained as ever."""

    ids = torch.tensor([[PAD, PAD, 3, 1, 4, 1, 5], [2, 6, 5, 3, 5, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])

    @pytest.mark.parametrize("kind", [*MODELS, *MIXTURES])
    def test_it_is_what_it_was(self, kind):
        dtype = torch.float32
        model, plain = (build(kind, dtype=dtype) for _ in range(2))
        assert shares_prefix(model)
        written_out = kind in ("gemma2", "gpt_oss")  # then ours is not the same code
        assert plain.config._attn_implementation == ("eager" if written_out else "sdpa")
        with torch.no_grad():
            for arguments in ({}, {"attention_mask": self.mask}):
                ours, theirs = (m(input_ids=self.ids, **arguments).logits for m in (model, plain))
                if arguments:
                    ours, theirs = ours[self.mask.bool()], theirs[self.mask.bool()]
                torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 if written_out else 0)
        drawn = [
            m.generate(
                self.ids,
                attention_mask=self.mask,
                max_new_tokens=8,
                do_sample=False,
                pad_token_id=PAD,
                eos_token_id=None,
            )
            for m in (model, plain)
        ]
        assert drawn[0].shape == (2, 15)
        assert torch.equal(*drawn)

    @pytest.mark.parametrize("kind", ["llama", "gemma2"])
    def test_a_saved_model_does_not_name_it(self, kind, tmp_path):
        model = build_fast(kind, dtype=torch.float32)
        values = completion_logprobs(model, collate(GROUPS)).detach()
        assert model.config._attn_implementation == "exoalign"
        model.save_pretrained(tmp_path)
        assert "exoalign" not in (tmp_path / "config.json").read_text()
        assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == VOCABULARY
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert loaded.config._attn_implementation == ("eager" if kind == "gemma2" else "sdpa")
        assert_same(naive_logprobs(loaded, collate(GROUPS)).detach(), values, 1e-5)

    def test_a_copy_is_judged_by_itself_and_right(self):
        model, batch = build("gemma2", attention="eager"), collate(GROUPS)
        values = completion_logprobs(model, batch)
        copied = copy.deepcopy(model)
        assert copied not in engine._verdicts
        assert_same(completion_logprobs(copied, batch).detach(), values.detach())


REASONS = {
    "falcon_h1": "FalconH1ForCausalLM has layers of hybrid",
    "mamba": "MambaForCausalLM does not take a packed row (ValueError: ",
    "bloom": "the attention of BloomForCausalLM does not follow the interface of transformers",
    "stablelm": "StableLmForCausalLM keeps the layout from its attention",
    "qwen2_moe": "Qwen2MoeForCausalLM is set to windows of 4, None tokens, and its attention is told of None",
    "llama4_text": "Llama4ForCausalLM does not take a packed row (AttributeError: ",
}


class TestFallback:
    @pytest.mark.parametrize("kind", UNFIT)
    def test_it_is_chosen_and_right_and_says_so_once(self, kind, caplog):
        model = build(kind, dtype=torch.float32).train()
        before = model.config._attn_implementation
        without_dropout(model)
        batch = collate(GROUPS, pad_id=PAD)
        with caplog.at_level(logging.WARNING, "exoalign"):
            assert not shares_prefix(model)
            values = completion_logprobs(model, batch, temperature=0.7)
            completion_logprobs(model, batch)
        assert_same(values.detach(), one_by_one(build(kind, dtype=torch.float32), GROUPS, 0.7).detach(), 1e-5)
        assert model.training
        assert model.config._attn_implementation == before
        (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("exoalign")]
        assert line.startswith(f"log-probs go by padded rows, correct but slower: {REASONS[kind]}")

    def test_a_window_longer_than_the_probe_is_not_forgotten(self):
        """What a probe of 8 tokens cannot show: layers that keep their window to the mask, as Phi-3.5-MoE does."""
        fits = build("mistral", sliding_window=4096)
        assert shares_prefix(fits)
        told = build("mistral", sliding_window=4096)
        for layer in told.model.layers:  # hands no window on
            layer.self_attn.config = copy.copy(layer.self_attn.config)
            layer.self_attn.config.sliding_window = None
        assert not shares_prefix(told)

    def test_a_head_of_its_own_is_kept(self, caplog):
        class Halved(torch.nn.Linear):
            def forward(self, x):
                return super().forward(x) / 2

        model = build("llama")
        oracle = build("llama")
        oracle.config.logit_scale = 0.5  # which Llama does not read
        assert not shares_prefix(oracle)
        assert "finishes its logits in a way that is not known here" in caplog.text
        halved = Halved(32, VOCABULARY, bias=False).double()
        halved.weight = model.lm_head.weight
        model.lm_head = halved
        values = completion_logprobs(model, collate(GROUPS))
        assert "the head of LlamaForCausalLM is no plain linear layer" in caplog.text
        # logits / 2 are those of temperature 2
        assert_same(values.detach(), one_by_one(build("llama"), GROUPS, 2.0).detach())

    def test_an_encoder_with_a_decoder_is_refused_by_name(self, caplog):
        model = encoder_decoder()
        before = model.config._attn_implementation
        for _ in range(2):
            with pytest.raises(
                ModelError, match=r"T5ForConditionalGeneration has an encoder and a decoder; expected a"
            ):
                completion_logprobs(model, collate(GROUPS))
        assert model.config._attn_implementation == before
        assert "rows" not in caplog.text

    def test_what_wraps_a_model_runs_its_own_forward(self):
        """DistributedDataParallel collects gradients in its forward; the shared prefix would pass it by."""
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            model, calls = build("llama"), []
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            wrapped.register_forward_hook(lambda *args: calls.append(1))
            values = completion_logprobs(wrapped, collate(GROUPS))
        finally:
            torch.distributed.destroy_process_group()
        assert calls == [1]
        assert not shares_prefix(wrapped)
        assert_same(values.detach(), one_by_one(build("llama"), GROUPS).detach())

    @pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]], ids=["layers", "head"])
    def test_an_adapter_counts(self, targets):
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=targets, init_lora_weights=False)
        model = peft.get_peft_model(build("llama"), config).double().eval()
        values, truth = completion_logprobs(model, collate(GROUPS)), one_by_one(model, GROUPS)
        assert_same(values.detach(), truth.detach())
        assert (values - one_by_one(build("llama"), GROUPS)).abs().max() > 0.01
        assert_same_gradients(gradients(model, values), gradients(model, truth))


class TestProbe:
    """The examination leaves no trace but the attention, and is made again when what it saw has changed."""

    @pytest.mark.parametrize("kind", ["llama", "bloom"])
    def test_modules_keep_their_mode_each(self, kind):
        model = build(kind, dtype=torch.float32).train()
        frozen = list(model.modules())[5:9]
        for module in frozen:
            module.training = False
        flags = [module.training for module in model.modules()]
        shares_prefix(model)
        assert [module.training for module in model.modules()] == flags
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_model_that_raises_is_left_as_it_was(self, dtype, error, caplog):
        model = build("llama", dtype=dtype).train()
        weights = dict(model.named_parameters())

        def breaks(*args):
            if model.config._attn_implementation == "exoalign":
                raise error

        handle = model.model.layers[1].self_attn.q_proj.register_forward_hook(breaks)
        if error is RuntimeError:
            assert not shares_prefix(model)
            assert "LlamaForCausalLM does not take a packed row (RuntimeError: )" in caplog.text
        else:
            with pytest.raises(KeyboardInterrupt):
                shares_prefix(model)
        assert model.training
        assert model.config._attn_implementation == "sdpa"
        assert all(weights[name] is p and p.dtype == dtype for name, p in model.named_parameters())
        handle.remove()

    def test_weights_are_the_same_objects_after_the_probe(self):
        model = build("llama", dtype=torch.bfloat16, tie_word_embeddings=True)
        before = {name: (id(p), p.clone()) for name, p in model.named_parameters(remove_duplicate=False)}
        assert shares_prefix(model)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        for name, p in model.named_parameters(remove_duplicate=False):
            assert id(p) == before[name][0]
            assert p.requires_grad
            assert torch.equal(p, before[name][1])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_small_mistake_is_told_from_rounding(self, dtype, caplog):
        """A head that is off by a tenth: 0.1 nats or so, which bfloat16 itself can be off by."""
        model = build("llama", dtype=dtype)
        model.config.logits_scaling = 1.05
        assert not shares_prefix(model)
        assert "finishes its logits in a way that is not known here" in caplog.text

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_another_attention_is_noticed(self, attention, no_rows):
        model, batch = build("llama"), collate(GROUPS)
        values = completion_logprobs(model, batch)
        model.set_attn_implementation(attention)  # on which a layout has no meaning
        assert_same(completion_logprobs(model, batch).detach(), values.detach())
        no_rows(model)

    def test_another_type_is_noticed(self):
        model = build("mixtral", dtype=torch.float32)
        assert shares_prefix(model)
        model.double()
        assert not shares_prefix(model)  # its grouped products take no float64
        model.float()
        assert shares_prefix(model)

    def test_a_head_put_in_later_is_noticed(self):
        class Same(torch.nn.Linear):
            pass

        model = build("llama")
        assert shares_prefix(model)
        model.lm_head = Same(32, VOCABULARY, bias=False).double()
        assert not shares_prefix(model)
        completion_logprobs(model, collate(GROUPS))

    def test_it_is_made_once_and_silent_where_all_is_well(self, monkeypatch, caplog):
        model, batch = build("llama"), collate(GROUPS)
        examined, examine = [], engine._examine
        monkeypatch.setattr(engine, "_examine", lambda m: examined.append(m) or examine(m))
        for _ in range(3):
            completion_logprobs(model, batch)
        assert examined == [model]
        assert caplog.text == ""

    def test_a_verdict_does_not_keep_a_model_alive(self):
        import gc

        before = len(engine._verdicts)
        shares_prefix(build("llama"))
        gc.collect()
        assert len(engine._verdicts) <= before

    def test_the_autocast_of_accelerate_is_kept_and_does_not_count(self):
        AcceleratorState._reset_state(reset_partial_state=True)  # a trainer of another test may have left its own
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        try:
            model = accelerator.prepare_model(build("llama", dtype=torch.float32))
            forward = model.forward
            assert shares_prefix(model)
            assert model.forward is forward
            # in bfloat16, as before: 3 digits
            wrapped, plain = (m(input_ids=torch.tensor([[3, 1, 4]])).logits for m in (model, build("llama")))
            assert 1e-4 < (wrapped - plain).abs().max() < 0.2
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    def test_random_numbers_are_not_drawn(self):
        model = build("gpt2").train()
        state = torch.get_rng_state()
        shares_prefix(model)
        assert torch.equal(torch.get_rng_state(), state)
