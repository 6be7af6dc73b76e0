"""Models under peft's adapters by the shared prefix: values and gradients of single sequences, and what goes by rows."""

import pytest
import torch
from architectures import GROUPS, PAD, VOCABULARY, assert_same, assert_same_gradients, build, gradients, one_by_one

from exoalign import collate
from exoalign.logprobs import engine
from exoalign.logprobs.adapted_head import adapted_head_of
from exoalign.logprobs.engine import compare_policies, completion_logprobs, shares_prefix
from exoalign.logprobs.rows import compare_policies as naive_comparison
from exoalign.models import without_dropout

peft = pytest.importorskip("peft")
LAYERS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],  # Conv1D
    "phi": ["q_proj", "fc1"],
    "granite": ["q_proj", "up_proj"],
    "gemma2": ["q_proj", "down_proj"],
}


def adapt(model, targets, **settings):
    """An adapter drawn at random, so that it matters, in the model's type."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False, **settings)
    return peft.get_peft_model(model, config).to(model.dtype).eval()


def draw(model, like, scale=0.3):
    """Random numbers for all parameters whose names hold `like`."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if like in name:
                weight.copy_(scale * torch.randn_like(weight))
    return model


@pytest.fixture
def never_rows(monkeypatch):
    """Decides for the shared prefix, then takes the rows away."""

    def decide(*models):
        assert all(map(shares_prefix, models))
        monkeypatch.setattr(engine.rows, "completion_logprobs", lambda *a, **k: pytest.fail("computed by padded rows"))

    return decide


def assert_packed_is_truth(model, never_rows, temperature=1.0):
    truth = one_by_one(model, GROUPS, temperature)
    expected = gradients(model, truth)
    assert expected
    never_rows(model)
    values = completion_logprobs(model, collate(GROUPS, pad_id=PAD), temperature=temperature)
    assert_same(values.detach(), truth.detach())
    assert_same_gradients(gradients(model, values), expected)


class TestPackedIsTruth:
    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("where", ["layers", "head", "both"])
    def test_lora(self, kind, where, never_rows):
        targets = {"layers": LAYERS[kind], "head": ["lm_head"], "both": [*LAYERS[kind], "lm_head"]}[where]
        model = adapt(build(kind), targets)
        assert_packed_is_truth(model, never_rows, temperature=0.7)
        assert (one_by_one(model, GROUPS) - one_by_one(build(kind), GROUPS)).abs().max() > 0.01

    @pytest.mark.filterwarnings("ignore")  # peft warns of tied weights
    @pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids="+".join)
    @pytest.mark.parametrize("tie", [False, True], ids=["apart", "together"])
    def test_tied_ends(self, targets, tie, never_rows):
        model = adapt(build("llama", tie_word_embeddings=True), targets, ensure_weight_tying=tie)
        assert model.get_base_model().config.tie_word_embeddings
        assert_packed_is_truth(model, never_rows)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("tied", [False, True])
    def test_a_head_that_is_trained_whole(self, tied, never_rows):
        model = adapt(build("llama", tie_word_embeddings=tied), ["q_proj"], modules_to_save=["lm_head"])
        draw(model, "modules_to_save")
        assert_packed_is_truth(model, never_rows)

    @pytest.mark.parametrize("settings", [{"use_rslora": True}, {"lora_bias": True}, {"lora_alpha": 20}], ids=str)
    @pytest.mark.parametrize("kind", ["llama", "phi"])  # phi's head has a bias
    def test_settings_of_lora_on_the_head(self, settings, kind, never_rows):
        if "lora_bias" in settings and kind == "llama":
            settings = {**settings, "target_modules": ["lm_head"]}
        targets = settings.pop("target_modules", ["lm_head"])
        assert_packed_is_truth(draw(adapt(build(kind), targets, **settings), "lora_B.default.bias"), never_rows)

    def test_two_adapters_at_once(self, never_rows):
        model = adapt(build("llama"), ["q_proj", "lm_head"])
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["lm_head", "o_proj"], init_lora_weights=False))
        model.double()
        one = one_by_one(model, GROUPS)
        model.base_model.set_adapter(["default", "other"])
        assert_packed_is_truth(model, never_rows)
        assert (one_by_one(model, GROUPS) - one).abs().max() > 0.01

    def test_dora_on_layers(self, never_rows):
        assert_packed_is_truth(adapt(build("llama"), ["q_proj", "down_proj"], use_dora=True), never_rows)

    @pytest.mark.parametrize("name", ["LoHaConfig", "LoKrConfig", "IA3Config"])
    def test_other_tuners_on_layers(self, name, never_rows):
        settings = {"feedforward_modules": ["down_proj"]} if name == "IA3Config" else {"r": 3}
        config = getattr(peft, name)(target_modules=["k_proj", "down_proj"], **settings)
        model = peft.get_peft_model(build("llama"), config).double().eval()
        draw(model, "hada_"), draw(model, "lokr_"), draw(model, "ia3_")
        assert_packed_is_truth(model, never_rows)
        assert (one_by_one(model, GROUPS) - one_by_one(build("llama"), GROUPS)).abs().max() > 0.01

    def test_an_adapter_that_transformers_put_in(self, never_rows):
        model = build("llama")
        model.add_adapter(peft.LoraConfig(r=3, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
        assert_packed_is_truth(model.double().eval(), never_rows)

    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_gradient_checkpointing(self, reentrant, never_rows):
        model = adapt(build("llama"), ["q_proj", "down_proj", "lm_head"])
        expected = gradients(model, one_by_one(model, GROUPS))
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        without_dropout(model.train())
        never_rows(model)
        values, calls = completion_logprobs(model, collate(GROUPS)), []
        model.get_base_model().model.layers[1].self_attn.register_forward_pre_hook(lambda *args: calls.append(1))
        assert_same_gradients(gradients(model, values), expected)
        assert calls == [1]  # computed again in the backward pass

    def test_comparison_of_policies(self, monkeypatch):
        policy, base = adapt(build("llama"), ["q_proj", "lm_head"]), build("llama")
        batch = collate(GROUPS)
        expected = naive_comparison(policy, base, batch, temperature=0.8)
        monkeypatch.setattr(engine.rows, "compare_policies", lambda *a, **k: pytest.fail("compared by padded rows"))
        for ours, truth in zip(compare_policies(policy, base, batch, temperature=0.8), expected, strict=True):
            assert_same(ours, truth)


class TestSwitching:
    @pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]], ids="+".join)
    def test_off_it_is_the_base_to_the_bit(self, targets, never_rows):
        plain, model = build("llama"), adapt(build("llama"), targets)
        batch = collate(GROUPS)
        with model.disable_adapter():
            assert shares_prefix(model)
        never_rows(model, plain)
        with model.disable_adapter():
            off = completion_logprobs(model, batch)
        assert torch.equal(off, completion_logprobs(plain, batch))
        assert (completion_logprobs(model, batch) - off).abs().max() > 0.01

    @pytest.mark.filterwarnings("ignore")
    def test_off_a_head_that_is_trained_whole_is_the_base(self, never_rows):
        plain, model = build("llama"), adapt(build("llama"), ["q_proj"], modules_to_save=["lm_head"])
        draw(model, "modules_to_save")
        with model.disable_adapter():
            never_rows(model, plain)
            assert torch.equal(completion_logprobs(model, collate(GROUPS)), completion_logprobs(plain, collate(GROUPS)))

    def test_merged_and_taken_out_again(self, never_rows):
        model, batch = adapt(build("llama"), ["q_proj", "lm_head"]), collate(GROUPS)
        values = completion_logprobs(model, batch).detach()
        model.merge_adapter()
        never_rows(model)
        assert_same(completion_logprobs(model, batch).detach(), values)
        model.unmerge_adapter()
        assert_same(completion_logprobs(model, batch).detach(), values)

    def test_merged_and_switched_off_goes_by_rows(self):
        """peft then takes the adapter out of the weights in its forward, which the fast way does not run."""
        model, batch = adapt(build("llama"), ["q_proj", "lm_head"]), collate(GROUPS)
        model.merge_adapter()
        with model.disable_adapter():
            assert adapted_head_of(model.get_base_model()) is None
            assert_same(completion_logprobs(model, batch).detach(), completion_logprobs(build("llama"), batch).detach())

    def test_another_adapter_on_the_head_is_noticed(self):
        model = adapt(build("llama"), ["lm_head"])
        assert shares_prefix(model)
        model.add_adapter(
            "dora", peft.LoraConfig(r=2, target_modules=["lm_head"], use_dora=True, init_lora_weights=False)
        )
        model.double()
        model.set_adapter("dora")
        assert not shares_prefix(model)
        assert_same(completion_logprobs(model, collate(GROUPS)).detach(), one_by_one(model, GROUPS).detach())
        model.set_adapter("default")
        assert shares_prefix(model)

    def test_back_and_forth_is_examined_once_each(self, monkeypatch):
        model, batch, seen = adapt(build("llama"), ["lm_head"]), collate(GROUPS), []
        examine = engine._examine
        monkeypatch.setattr(engine, "_examine", lambda m: seen.append(m) or examine(m))
        for _ in range(3):
            completion_logprobs(model, batch)
            with model.disable_adapter():
                completion_logprobs(model, batch)
        assert len(seen) == 2


class TestRows:
    """What goes by rows, and the line that says why."""

    def test_dora_on_the_head(self, caplog):
        model = adapt(build("llama"), ["lm_head"], use_dora=True)
        assert not shares_prefix(model)
        assert "has an adapter that is more than plain LoRA" in caplog.text
        assert_same(completion_logprobs(model, collate(GROUPS)).detach(), one_by_one(model, GROUPS).detach())

    def test_dropout_that_is_on_at_the_head(self):
        model = adapt(build("llama"), ["q_proj", "lm_head"], lora_dropout=0.5)
        assert shares_prefix(model)
        model.train()
        assert not shares_prefix(model)
        model.eval()
        assert shares_prefix(model)

    def test_other_tuners_on_the_head(self):
        config = peft.LoHaConfig(r=2, target_modules=["lm_head"])
        assert not shares_prefix(peft.get_peft_model(build("llama"), config).double().eval())

    def test_prompt_learning(self, caplog):
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        assert not shares_prefix(peft.get_peft_model(build("llama"), config).double().eval())
        assert "an adapter puts tokens of its own before the prompt" in caplog.text

    def test_a_tuner_that_is_not_known(self, caplog):
        config = peft.VeraConfig(r=2, target_modules=["q_proj"])
        assert not shares_prefix(peft.get_peft_model(build("llama"), config).double().eval())
        assert "an adapter of the type VERA may do more than change single layers" in caplog.text

    def test_an_adapter_that_waits_for_a_token(self):
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[3, 1])
        assert not shares_prefix(peft.get_peft_model(build("llama"), config).double().eval())


def test_what_is_below_the_precision_of_the_weight_is_not_lost():
    """W + s B A in bfloat16 is W here but for a few entries; kept apart, the low rank still moves the logits as it should."""
    model = adapt(build("llama", dtype=torch.bfloat16).float(), ["lm_head"])
    layer = model.get_base_model().lm_head
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(2e-4)
    delta = layer.get_delta_weight("default")
    moved = (layer.base_layer.weight + delta).bfloat16() != layer.base_layer.weight.bfloat16()
    assert moved.float().mean() < 0.05
    adapted = adapted_head_of(model.get_base_model())
    hidden = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        on = adapted.head.columns(slice(None), torch.bfloat16).logits(adapted.states(hidden))[0]
        off = torch.nn.functional.linear(hidden, layer.base_layer.weight.bfloat16()).float()
        truth = hidden.double() @ delta.double().T
    assert on.shape == (4096, VOCABULARY)
    slope = ((on - off).double() * truth).sum() / (truth * truth).sum()  # of the regression on the truth
    assert slope == pytest.approx(1, abs=0.1)
