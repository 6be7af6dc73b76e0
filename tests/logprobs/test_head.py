"""The tiled head against the plain formula: one product, one log-softmax, autograd."""

import math

import pytest
import torch
from architectures import build
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from exoalign.logprobs.head import Head, head_of, token_comparison, token_entropy, token_logprobs

M, E, V = 7, 4, 11  # positions, hidden size, vocabulary
FINISHES = pytest.mark.parametrize(
    ("multiplier", "softcap", "temperature"),
    [(1.0, None, 1.0), (1.0, None, 0.7), (0.25, None, 1.0), (1.0, 2.0, 1.0), (3.0, 1.5, 0.7)],
    ids=["plain", "temperature", "multiplier", "softcap", "all"],
)
TILES = pytest.mark.parametrize("tile", [(1, 1), (3, 4), (M, V), (100, 100)], ids=str)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(seed=0):
    """hidden [M, E], weight [V, E], bias [V], ready for gradients."""
    return [numbers(*shape, seed=seed + i).requires_grad_() for i, shape in enumerate([(M, E), (V, E), (V,)])]


TARGETS = torch.tensor([0, 10, 3, 3, 7, 1, 5])


def plain(hidden, weight, bias, multiplier=1.0, softcap=None, temperature=1.0):
    """log softmax(finish(hidden W^T + b) / T): [M, V]."""
    z = (hidden @ weight.T + (0 if bias is None else bias)) * multiplier
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return torch.log_softmax(z / temperature, -1)


class TestTokenLogprobs:
    @FINISHES
    @TILES
    @pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
    def test_values_and_gradients_are_those_of_the_formula(self, multiplier, softcap, temperature, tile, biased):
        hidden, weight, bias = leaves()
        inputs = [hidden, weight, *([bias] if biased else [])]
        bias = bias if biased else None
        truth = plain(hidden, weight, bias, multiplier, softcap, temperature)[torch.arange(M), TARGETS]
        head = Head(weight, bias, multiplier, softcap)
        values = token_logprobs(hidden, head, TARGETS, temperature=temperature, tile=tile)
        torch.testing.assert_close(values, truth, rtol=1e-12, atol=1e-12)
        weights = torch.linspace(-1.0, 2.0, M, dtype=torch.float64)
        expected = torch.autograd.grad((truth * weights).sum(), inputs)
        for ours, theirs in zip(torch.autograd.grad((values * weights).sum(), inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)

    @FINISHES
    def test_gradients_are_those_of_finite_differences(self, multiplier, softcap, temperature):
        def f(hidden, weight, bias):
            head = Head(weight, bias, multiplier, softcap)
            return token_logprobs(hidden, head, TARGETS, temperature=temperature, tile=(3, 4))

        assert torch.autograd.gradcheck(f, leaves())

    def test_two_words_by_hand(self):
        # z = (log 3, 0) * 2 / 4: softmax = (sqrt 3, 1) / (1 + sqrt 3)
        head = Head(torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64), multiplier=2.0)
        values = token_logprobs(torch.ones(2, 1, dtype=torch.float64), head, torch.tensor([0, 1]), temperature=4.0)
        total = math.log(1 + 3**0.5)
        assert values.tolist() == pytest.approx([math.log(3) / 2 - total, -total], rel=1e-14)

    @pytest.mark.parametrize("frozen", [0, 1, 2], ids=["hidden", "weight", "bias"])
    def test_what_is_frozen_gets_no_gradient_and_the_rest_gets_its_own(self, frozen):
        inputs = leaves()
        token_logprobs(inputs[0], Head(*inputs[1:]), TARGETS, tile=(3, 4)).sum().backward()
        expected = [x.grad for x in inputs]
        inputs = leaves()
        inputs[frozen].requires_grad_(False)
        token_logprobs(inputs[0], Head(*inputs[1:]), TARGETS, tile=(3, 4)).sum().backward()
        for i, x in enumerate(inputs):
            assert x.grad is None if i == frozen else torch.equal(x.grad, expected[i])

    @FINISHES
    @TILES
    @pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
    def test_a_frozen_head_computes_no_logits_twice(self, multiplier, softcap, temperature, tile, biased):
        """The gradient towards the hidden states is then ready after the forward pass, and is the formula's."""
        hidden, weight, bias = leaves()
        bias = bias.detach() if biased else None
        truth = plain(hidden, weight.detach(), bias, multiplier, softcap, temperature)[torch.arange(M), TARGETS]
        head = Head(weight.detach(), bias, multiplier, softcap)
        values = token_logprobs(hidden, head, TARGETS, temperature=temperature, tile=tile)
        torch.testing.assert_close(values, truth, rtol=1e-12, atol=1e-12)
        weights = torch.linspace(-1.0, 2.0, M, dtype=torch.float64)
        (expected,) = torch.autograd.grad((truth * weights).sum(), hidden)
        with Sizes() as sizes:
            (ours,) = torch.autograd.grad((values * weights).sum(), hidden)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
        assert sizes.largest <= M * E

    def test_a_second_derivative_is_refused_and_not_made_up(self):
        inputs = leaves()
        values = token_logprobs(inputs[0], Head(*inputs[1:]), TARGETS)
        (first,) = torch.autograd.grad(values.exp().sum(), inputs[0], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()

    @pytest.mark.parametrize("way", ["bfloat16 weights", "autocast"])
    def test_in_bfloat16_it_errs_no_more_than_one_product_and_one_log_softmax(self, way):
        m, e, v = 256, 16, 64
        exact = [numbers(m, e), numbers(v, e, seed=1)]
        targets = torch.randint(v, (m,), generator=torch.Generator().manual_seed(2))
        dtype, autocast = (torch.float32, True) if way == "autocast" else (torch.bfloat16, False)
        exact = [x.bfloat16().double() for x in exact]  # what bfloat16 can hold, so that only the sums err
        results = {}
        for name, to in (("truth", torch.float64), ("naive", dtype), ("ours", dtype)):
            hidden, weight = (x.to(to, copy=True).requires_grad_() for x in exact)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast and name != "truth"):
                if name == "ours":
                    values = token_logprobs(hidden, Head(weight), targets, tile=(1, 7))
                else:
                    z = torch.nn.functional.linear(hidden, weight)
                    z = z if name == "truth" else z.float()
                    values = torch.log_softmax(z, -1)[torch.arange(m), targets]
            values.sum().backward()
            assert name == "truth" or values.dtype == torch.float32
            assert hidden.grad.dtype == weight.grad.dtype == to
            results[name] = [x.double() for x in (values.detach(), hidden.grad, weight.grad)]
        for truth, naive, ours in zip(*(results[name] for name in ("truth", "naive", "ours")), strict=True):
            error, naive_error = ((x - truth).norm() / truth.norm() for x in (ours, naive))
            assert 0 < naive_error < 0.02
            assert error <= 1.2 * naive_error + 1e-4

    def test_autocast_leaves_float64_alone(self):
        hidden, weight, bias = leaves()
        with torch.autocast("cpu", torch.bfloat16):
            values = token_logprobs(hidden, Head(weight, bias), TARGETS)
        assert torch.equal(values, token_logprobs(hidden, Head(weight, bias), TARGETS))


class TestTokenComparison:
    @FINISHES
    @TILES
    def test_the_kl_is_the_sum_over_the_vocabulary(self, multiplier, softcap, temperature, tile):
        (hidden, weight, bias), (other_hidden, other_weight, _) = leaves(), leaves(seed=5)
        log_p = plain(hidden, weight, bias, multiplier, softcap, temperature).tolist()
        log_q = plain(other_hidden, other_weight, None, temperature=temperature).tolist()
        pairs = [zip(*rows, strict=True) for rows in zip(log_p, log_q, strict=True)]
        expected = [sum(math.exp(p) * (p - q) for p, q in steps) for steps in pairs]
        head, other = Head(weight, bias, multiplier, softcap), Head(other_weight)
        ratio, values = token_comparison(hidden, head, other_hidden, other, TARGETS, temperature=temperature, tile=tile)
        assert values.tolist() == pytest.approx(expected, rel=1e-11)
        assert not values.requires_grad
        expected = [p[t] - q[t] for p, q, t in zip(log_p, log_q, TARGETS.tolist(), strict=True)]
        assert ratio.tolist() == pytest.approx(expected, rel=1e-11)

    def test_equal_models_have_no_divergence_but_for_rounding(self):
        hidden, weight, _ = (x.float() for x in leaves())
        ratio, kl = token_comparison(hidden, Head(weight), hidden, Head(weight), TARGETS, tile=(3, 4))
        assert ratio.tolist() == [0.0] * M
        assert kl.tolist() == [0.0] * M

    def test_under_autocast_it_is_near(self):
        (hidden, weight, _), (other_hidden, other_weight, _) = leaves(), leaves(seed=5)
        expected = token_comparison(hidden, Head(weight), other_hidden, Head(other_weight), TARGETS)
        with torch.autocast("cpu", torch.bfloat16):
            values = token_comparison(
                hidden.float(), Head(weight.float()), other_hidden.float(), Head(other_weight.float()), TARGETS
            )
        for ours, truth in zip(values, expected, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), truth, rtol=0.05, atol=0.05)


class TestTokenEntropy:
    @FINISHES
    @TILES
    def test_it_is_the_sum_over_the_vocabulary(self, multiplier, softcap, temperature, tile):
        hidden, weight, bias = leaves()
        log_p = plain(hidden, weight, bias, multiplier, softcap, temperature).tolist()
        expected = [-sum(math.exp(p) * p for p in row) for row in log_p]
        values = token_entropy(hidden, Head(weight, bias, multiplier, softcap), temperature=temperature, tile=tile)
        assert values.tolist() == pytest.approx(expected, rel=1e-11)

    def test_equal_words_have_the_entropy_of_their_number(self):
        assert token_entropy(torch.ones(1, 2), Head(torch.zeros(8, 2))).item() == pytest.approx(3 * math.log(2))


class Sizes(TorchDispatchMode):
    """Notes the number of elements of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


class TestMemory:
    """64 positions of 100 words: 6400 logits, of which a tile of 16 x 50 holds 800; weights of 400."""

    m, e, v, tile = 64, 4, 100, (16, 50)

    def inputs(self):
        return numbers(self.m, self.e).requires_grad_(), numbers(self.v, self.e, seed=1).requires_grad_()

    def test_no_logits_are_kept_for_the_backward_pass(self):
        hidden, weight = self.inputs()
        targets = torch.zeros(self.m, dtype=torch.long)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            token_logprobs(hidden, Head(weight, softcap=2.0), targets, tile=self.tile)
            ours, saved = saved, []
        assert sorted(ours) == [
            self.m,
            self.m,
            self.m,
            self.m * self.e,
            self.v * self.e,
        ]  # targets, their logits, normalisers, hidden, weight

    def test_no_more_than_a_tile_of_logits_ever_exists(self):
        hidden, weight = self.inputs()
        targets = torch.zeros(self.m, dtype=torch.long)
        with Sizes() as sizes:
            token_logprobs(hidden, Head(weight, softcap=2.0), targets, tile=self.tile).sum().backward()
            token_comparison(hidden, Head(weight), hidden, Head(weight), targets, tile=self.tile)
            token_entropy(hidden, Head(weight), tile=self.tile)
        assert hidden.grad is not None
        assert sizes.largest == 16 * 50
        with Sizes() as sizes:  # and the plain formula would have been seen
            plain(hidden, weight, None)
        assert sizes.largest == self.m * self.v


class TestHeadOf:
    @pytest.mark.parametrize(
        ("kind", "multiplier", "softcap", "biased"),
        [
            ("llama", 1.0, None, False),
            ("gemma2", 1.0, 3.0, False),
            ("cohere", 0.25, None, False),
            ("granite", 0.5, None, False),
            ("phi", 1.0, None, True),
        ],
    )
    def test_the_finish_stands_in_the_configuration(self, kind, multiplier, softcap, biased):
        model = build(kind)
        head = head_of(model)
        assert (head.multiplier, head.softcap, head.bias is not None) == (multiplier, softcap, biased)
        assert head.weight is model.get_output_embeddings().weight

    def test_a_head_that_computes_something_else_is_none(self):
        class Doubled(torch.nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        settings = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=5, **settings))
        assert head_of(model) is not None
        model.lm_head = Doubled(8, 5)
        assert head_of(model) is None

    def test_a_weight_that_is_no_plain_tensor_is_none(self):
        class Quantised(torch.Tensor):
            pass

        settings = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=5, **settings))
        weight = torch.nn.Parameter(model.lm_head.weight.detach().as_subclass(Quantised))
        model.lm_head._parameters["weight"] = weight
        assert head_of(model) is None


@pytest.mark.parametrize("frozen", [True, False])
def test_a_certain_token_is_not_more_than_certain(frozen):
    """In bfloat16 20 + 1/16 rounds to 20: the normaliser takes the target's logit as unrounded as it stands above it."""
    hidden = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[20.0, 0.0625], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=not frozen)
    found = token_logprobs(hidden, Head(weight), torch.tensor([0]), tile=(1, 1))
    assert found.item() == pytest.approx(-math.exp(-20), rel=0.1, abs=1e-6)
    assert found.item() <= 0
    found.backward()
    # (1 - p) * (w_0 - w_1) with 1 - p = 2e-9
    assert hidden.grad.abs().max() < 1e-6
    ratio, kl = token_comparison(hidden, Head(weight), hidden, Head(2 * weight), torch.tensor([0]))
    assert ratio.abs().item() < 1e-6
    assert kl.abs().item() < 1e-6
