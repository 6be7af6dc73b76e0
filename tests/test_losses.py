"""Expected values are derived in the comments by hand, or by enumeration in NumPy, never by the code under test.

Lower-case q and p in the comments are the policy and the target on the completions of one group.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exoalign import losses
from exoalign.losses import cross_entropy, dpo_pref, dpo_rw, exo_pref, exo_rw, reverse_kl
from exoalign.objectives import OBJECTIVES

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)
NAN, INF = math.nan, math.inf
RW = pytest.mark.parametrize("objective", [exo_rw, dpo_rw])
PREF = pytest.mark.parametrize("objective", [exo_pref, dpo_pref])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def value_and_gradient(function, log_ratios, *arguments, **settings):
    log_ratios = log_ratios.clone().requires_grad_()
    loss = function(log_ratios, *arguments, **settings)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratios)
    return loss.detach(), gradient


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


# beta_pi rho = (log 3, 0) so q = (3/4, 1/4); r / beta_r = (0, log 4) so p = (1/5, 4/5).
ASYMMETRIC = {"log_ratios": double([[LOG3 / 2, 0.0]]), "rewards": double([[0.0, LOG4 / 2]])}
BETAS = {"beta_pi": 2.0, "beta_r": 0.5}
# KL(q || p) = 3/4 log(15/4) + 1/4 log(5/16);   KL(p || q) = 1/5 log(4/15) + 4/5 log(16/5) = 0.6662
REVERSE_KL = 0.7005291775353194
# -sum p log q = -(1/5 log(3/4) + 4/5 log(1/4)) = KL(p || q) + H(p)
CROSS_ENTROPY = 1.1665719033862687


class TestValues:
    def test_exo_is_the_reverse_kl_and_dpo_the_forward_cross_entropy(self):
        torch.testing.assert_close(exo_rw(**ASYMMETRIC, **BETAS), double([REVERSE_KL]), rtol=1e-12, atol=0)
        torch.testing.assert_close(dpo_rw(**ASYMMETRIC, **BETAS), double([CROSS_ENTROPY]), rtol=1e-12, atol=0)

    def test_divergences_on_their_own(self):
        q, p = double([[0.75, 0.25]]).log(), double([[0.2, 0.8]]).log()
        torch.testing.assert_close(reverse_kl(q, p), double([REVERSE_KL]), rtol=1e-12, atol=0)
        torch.testing.assert_close(cross_entropy(q, p), double([CROSS_ENTROPY]), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("name", ["exo_rw", "exo_pref", "dpo_rw", "dpo_pref"])
    def test_the_table_tells_the_divergence_of_each_function(self, name):
        objective = OBJECTIVES[name]
        # q = (3/4, 1/4); the pair's target with epsilon = 1/5 and the winner in column 1 is the same p = (1/5, 4/5).
        arguments = {
            "rewards": {"rewards": ASYMMETRIC["rewards"]},
            "winner": {"winner": torch.tensor([1])},
        }[objective.needs]
        settings = {"beta_pi": 2.0, "beta_r": 0.5, "epsilon": 0.2}
        settings = {name: value for name, value in settings.items() if name in objective.reads}
        loss = objective.function(ASYMMETRIC["log_ratios"], **arguments, **settings)
        expected = {"reverse KL": REVERSE_KL, "forward KL": CROSS_ENTROPY}[objective.divergence]
        assert loss.item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_the_table_agrees_with_the_signatures(self, name):
        objective = OBJECTIVES[name]
        parameters = inspect.signature(objective.function).parameters
        assert objective.function.__name__ == name
        assert objective.needs == list(parameters)[1]
        assert sorted(objective.reads) == sorted(list(parameters)[2:])
        epsilon = parameters.get("epsilon")
        assert objective.default_epsilon == (epsilon.default if epsilon else None)
        assert objective.description

    def test_proposal_correction_weighs_the_completions(self):
        # exp(beta_pi rho) = (1, 2, 3), exp(r / beta_r) = (1, 4, 1), exp(c) = (3, 1, 1):
        # q = (3, 2, 3) / 8, p = (3, 4, 1) / 8, KL(q || p) = 1/4 log(1/2) + 3/8 log 3.
        log_ratios, rewards = double([[0.0, LOG2 / 2, LOG3 / 2]]), double([[0.0, LOG4 / 2, 0.0]])
        corrected = exo_rw(log_ratios, rewards, **BETAS, proposal=double([[LOG3, 0.0, 0.0]]))
        assert corrected.item() == pytest.approx(0.2386928131105548, rel=1e-12)
        # Forward: -(3/8 log(3/8) + 1/2 log(1/4) + 1/8 log(3/8))
        corrected = dpo_rw(log_ratios, rewards, **BETAS, proposal=double([[LOG3, 0.0, 0.0]]))
        assert corrected.item() == pytest.approx(1.1835618070658088, rel=1e-12)
        # Without: q = (1, 2, 3) / 6, p = (1, 4, 1) / 6, KL(q || p) = 1/3 log(1/2) + 1/2 log 3.
        assert exo_rw(log_ratios, rewards, **BETAS).item() == pytest.approx(0.31825708414740646, rel=1e-12)

    @RW
    def test_a_constant_proposal_drops_out(self, objective):
        log_ratios, rewards = double([[0.3, -1.0, 0.2]]), double([[1.0, 0.0, 2.0]])
        plain = value_and_gradient(objective, log_ratios, rewards, **BETAS)
        shifted = value_and_gradient(objective, log_ratios, rewards, **BETAS, proposal=double([[7.0, 7.0, 7.0]]))
        torch.testing.assert_close(shifted, plain, rtol=1e-12, atol=1e-14)

    @RW
    def test_no_gradient_reaches_rewards_and_proposal_even_if_mu_is_the_policy(self, objective):
        # c = -rho (mu = pi_theta): with a gradient through c, the gradient at beta_pi = 1 would vanish altogether.
        log_ratios, rewards = double([[0.3, -1.0, 0.2]]), double([[1.0, 0.0, 2.0]])
        _, expected = value_and_gradient(objective, log_ratios, rewards, beta_pi=1.0, beta_r=1.0, proposal=-log_ratios)
        rho, r = log_ratios.clone().requires_grad_(), rewards.clone().requires_grad_()
        objective(rho, r, beta_pi=1.0, beta_r=1.0, proposal=-rho).sum().backward()
        assert r.grad is None
        assert rho.grad.abs().max() > 0.01
        torch.testing.assert_close(rho.grad, expected, rtol=1e-12, atol=0)

    def test_exo_pref(self):
        # q = (3/4, 1/4), epsilon = 1/10: winner 0: 3/4 log(5/6) + 1/4 log(5/2); winner 1: 3/4 log(15/2) + 1/4 log(5/18)
        log_ratios = double([[LOG3, 0.0], [LOG3, 0.0]])
        loss = exo_pref(log_ratios, torch.tensor([0, 1]), beta_pi=1.0, epsilon=0.1)
        expected = double([0.09233151537307283, 1.1909438040411825])
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        assert exo_pref(log_ratios[:1], beta_pi=1.0, epsilon=0.1).item() == pytest.approx(0.09233151537307283)

    def test_exo_pref_rests_where_the_winner_has_all_but_epsilon(self):
        # sigmoid(log 999) = 0.999 = 1 - epsilon for the default epsilon
        loss, gradient = value_and_gradient(exo_pref, double([[math.log(999), 0.0]]), beta_pi=1.0)
        torch.testing.assert_close(loss, double([0.0]), rtol=0, atol=1e-14)
        torch.testing.assert_close(gradient, double([[0.0, 0.0]]), rtol=0, atol=1e-14)

    def test_dpo_pref_with_smoothing(self):
        # q = (3/4, 1/4): -(0.8 log(3/4) + 0.2 log(1/4))
        loss = dpo_pref(double([[LOG3, 0.0]]), beta_pi=1.0, epsilon=0.2)
        assert loss.item() == pytest.approx(0.5074045301854028, rel=1e-12)

    def test_dpo_pref_is_minus_log_sigmoid(self):
        margins = double([-1000.0, -3.0, 0.0, 0.5, 40.0])
        log_ratios = torch.stack([margins + 5.0, torch.full_like(margins, 5.0)], dim=1)
        # -log sigmoid(x) = log(1 + exp(-x)) = max(-x, 0) + log1p(exp(-|x|)) with x = margin / 10
        expected = double([max(-x / 10, 0) + math.log1p(math.exp(-abs(x) / 10)) for x in margins.tolist()])
        torch.testing.assert_close(dpo_pref(log_ratios, beta_pi=0.1), expected, rtol=1e-12, atol=0)
        swapped = dpo_pref(log_ratios.flip(1), torch.ones(5, dtype=torch.int64), beta_pi=0.1)
        torch.testing.assert_close(swapped, expected, rtol=1e-12, atol=0)

    def test_dpo_rw_of_a_pair_is_a_soft_label_logistic_loss(self):
        # p_1 = 1 / (1 + exp(-(2 - 1) / 0.5)) and q_1 = 1 / (1 + exp(-0.1 * (3 - 1)))
        p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.2))
        loss = dpo_rw(double([[3.0, 1.0]]), double([[2.0, 1.0]]), beta_pi=0.1, beta_r=0.5)
        assert loss.item() == pytest.approx(-p * math.log(q) - (1 - p) * math.log(1 - q), rel=1e-12)


class TestGradients:
    # At q = (3/4, 1/4), p = (1/5, 4/5), beta_pi = 2: log(q/p) = (log(15/4), log(5/16)).
    # exo: 2 * 3/4 * (1.3217558399823195 - 0.7005291775353194);  dpo: 2 * (3/4 - 1/5). Both sum to zero over k.
    @pytest.mark.parametrize(("objective", "first"), [(exo_rw, 0.9318399936705002), (dpo_rw, 1.1)])
    def test_by_hand(self, objective, first):
        _, gradient = value_and_gradient(objective, **ASYMMETRIC, **BETAS)
        torch.testing.assert_close(gradient, double([[first, -first]]), rtol=1e-12, atol=0)

    def test_closed_forms_with_proposal(self):
        generator = np.random.default_rng(0)
        rho, r, c = generator.normal(size=(3, 4, 5))
        q, p = softmax(0.7 * rho + c), softmax(r / 0.3 + c)
        kl = (q * np.log(q / p)).sum(-1, keepdims=True)
        exo, dpo = 0.7 * q * (np.log(q / p) - kl), 0.7 * (q - p)
        for objective, expected in ((exo_rw, exo), (dpo_rw, dpo)):
            arguments = {"beta_pi": 0.7, "beta_r": 0.3, "proposal": torch.from_numpy(c)}
            _, gradient = value_and_gradient(objective, torch.from_numpy(rho), torch.from_numpy(r), **arguments)
            torch.testing.assert_close(gradient, torch.from_numpy(expected), rtol=1e-10, atol=1e-13)

    @RW
    def test_gradcheck_rewards(self, objective):
        generator = torch.Generator().manual_seed(0)
        rho, r, c = torch.randn(3, 3, 4, dtype=torch.float64, generator=generator)
        mask = torch.tensor([[True] * 4, [True, False, True, True], [False, True, False, False]])

        def function(x):
            return objective(x, r, **BETAS, mask=mask, proposal=c)

        assert torch.autograd.gradcheck(function, rho.requires_grad_())

    @PREF
    def test_gradcheck_pairs(self, objective):
        log_ratios = double([[0.3, -1.0], [2.0, 0.1]]).requires_grad_()
        winner = torch.tensor([1, 0])
        assert torch.autograd.gradcheck(lambda x: objective(x, winner, beta_pi=0.7, epsilon=0.01), log_ratios)


class TestEnumerated:
    """All 9 sequences of 2 symbols out of 3, each once: mu is uniform, so c = log pi_ref up to a constant."""

    beta_r = 0.4

    def setup_method(self):
        generator = torch.Generator().manual_seed(1)
        self.logits = torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()
        reference = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        self.log_ref = self.sequence_log_probs(reference)
        self.rewards = torch.randn(9, dtype=torch.float64, generator=generator)

    @staticmethod
    def sequence_log_probs(logits):
        """[4, 3] logits (first symbol, then the second given each first) -> [9] log-probabilities of sequences."""
        log_probs = logits - logits.exp().sum(-1, keepdim=True).log()
        return (log_probs[0][:, None] + log_probs[1:]).reshape(9)

    def loss(self, objective):
        log_ratios = self.sequence_log_probs(self.logits) - self.log_ref
        arguments = {"beta_pi": 1.0, "beta_r": self.beta_r, "proposal": self.log_ref[None] + 17.0}
        return objective(log_ratios[None], self.rewards[None], **arguments).squeeze(0)

    def test_exo_is_the_kl_to_the_optimal_policy_and_log_z_minus_j(self):
        log_pi = self.sequence_log_probs(self.logits).detach().numpy()
        log_ref, r = self.log_ref.numpy(), self.rewards.numpy()
        log_z = np.log(np.sum(np.exp(log_ref + r / self.beta_r)))
        log_star = log_ref + r / self.beta_r - log_z
        kl = np.sum(np.exp(log_pi) * (log_pi - log_star))
        j = np.sum(np.exp(log_pi) * r) - self.beta_r * np.sum(np.exp(log_pi) * (log_pi - log_ref))
        assert self.loss(exo_rw).item() == pytest.approx(kl, rel=1e-10)
        assert self.loss(exo_rw).item() == pytest.approx(log_z - j / self.beta_r, rel=1e-10)

    def test_gradient_of_exo_is_that_of_the_rl_objective(self):
        (gradient,) = torch.autograd.grad(self.loss(exo_rw), self.logits)
        log_pi = self.sequence_log_probs(self.logits)
        j = (log_pi.exp() * (self.rewards - self.beta_r * (log_pi - self.log_ref))).sum()
        (policy_gradient,) = torch.autograd.grad(j, self.logits)
        assert gradient.abs().max() > 0.01
        torch.testing.assert_close(gradient, -policy_gradient / self.beta_r, rtol=0, atol=1e-10)

    def test_gradient_of_dpo_is_that_of_likelihood_under_the_optimal_policy(self):
        (gradient,) = torch.autograd.grad(self.loss(dpo_rw), self.logits)
        star = softmax(self.log_ref.numpy() + self.rewards.numpy() / self.beta_r)
        likelihood = (torch.from_numpy(star) * self.sequence_log_probs(self.logits)).sum()
        (expected,) = torch.autograd.grad(-likelihood, self.logits)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


numbers = st.floats(-20, 20, width=32)


@st.composite
def groups(draw):
    """Log-ratios, rewards and proposal of one group, and a permutation of its completions."""
    k = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(numbers, min_size=k, max_size=k), min_size=3, max_size=3))
    return double(rows)[:, None, :], draw(st.permutations(range(k)))


class TestInvariances:
    @RW
    @settings(deadline=None, max_examples=50)
    @given(case=groups())
    def test_permuting_completions_permutes_the_gradient(self, objective, case):
        (rho, r, c), order = case
        loss, gradient = value_and_gradient(objective, rho, r, **BETAS, proposal=c)
        permuted = value_and_gradient(objective, rho[:, order], r[:, order], **BETAS, proposal=c[:, order])
        torch.testing.assert_close(permuted, (loss, gradient[:, order]), rtol=1e-10, atol=1e-10)

    @RW
    @settings(deadline=None, max_examples=50)
    @given(case=groups(), constant=numbers)
    def test_constants_added_to_rewards_or_log_ratios_change_nothing(self, objective, case, constant):
        (rho, r, c), _ = case
        plain = value_and_gradient(objective, rho, r, **BETAS, proposal=c)
        shifted = value_and_gradient(objective, rho + constant, r - 3 * constant, **BETAS, proposal=c)
        torch.testing.assert_close(shifted, plain, rtol=1e-9, atol=1e-9)

    @settings(deadline=None, max_examples=50)
    @given(case=groups())
    def test_reverse_kl_is_not_negative(self, case):
        (rho, r, c), _ = case
        assert exo_rw(rho, r, **BETAS, proposal=c).item() >= -1e-12

    @RW
    def test_groups_do_not_see_each_other(self, objective):
        rho, r = double([[0.1, 2.0], [1.0, -1.0]]), double([[1.0, 0.0], [0.0, 3.0]])
        alone = torch.cat([objective(rho[i : i + 1], r[i : i + 1], **BETAS) for i in range(2)])
        assert torch.equal(objective(rho, r, **BETAS), alone)


class TestMask:
    @RW
    @pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30, 0.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_masked_group_equals_its_subset(self, objective, garbage, dtype):
        rho = torch.tensor([[0.3, -1.0, 0.2]], dtype=dtype)
        r = torch.tensor([[1.0, 0.0, 2.0]], dtype=dtype)
        c = torch.tensor([[0.0, 0.5, -0.5]], dtype=dtype)
        real = torch.tensor([[False, True, True, False, True]])

        def padded(values):
            return torch.full((1, 5), garbage, dtype=dtype).masked_scatter(real, values)

        loss, gradient = value_and_gradient(objective, padded(rho), padded(r), **BETAS, mask=real, proposal=padded(c))
        expected, expected_gradient = value_and_gradient(objective, rho, r, **BETAS, proposal=c)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient[real], expected_gradient[0])
        assert torch.equal(gradient[~real], torch.zeros(2, dtype=dtype))

    @pytest.mark.parametrize("divergence", [reverse_kl, cross_entropy])
    def test_divergences_ignore_garbage_under_the_mask(self, divergence):
        log_q = double([[math.log(0.75), NAN, math.log(0.25)]])
        log_p = double([[math.log(0.2), INF, math.log(0.8)]])
        loss, gradient = value_and_gradient(divergence, log_q, log_p, torch.tensor([[True, False, True]]))
        expected = {reverse_kl: REVERSE_KL, cross_entropy: CROSS_ENTROPY}[divergence]
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        assert gradient[0, 1] == 0
        assert gradient.isfinite().all()

    @RW
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_completion_has_no_loss_and_no_gradient(self, objective, dtype):
        rho, r = torch.tensor([[-123.4]], dtype=dtype), torch.tensor([[77.7]], dtype=dtype)
        loss, gradient = value_and_gradient(objective, rho, r, **BETAS, proposal=rho)
        assert loss.item() == 0
        assert gradient.item() == 0
        rho, r = torch.tensor([[NAN, -123.4]], dtype=dtype), torch.tensor([[NAN, 77.7]], dtype=dtype)
        loss, gradient = value_and_gradient(objective, rho, r, **BETAS, mask=torch.tensor([[False, True]]))
        assert loss.item() == 0
        assert gradient.tolist() == [[0, 0]]

    @RW
    def test_empty_group_is_zero_and_leaves_the_others_alone(self, objective):
        rho, r = double([[NAN, NAN], [LOG3 / 2, 0.0]]), double([[INF, NAN], [0.0, LOG4 / 2]])
        mask = torch.tensor([[False, False], [True, True]])
        with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
            loss, gradient = value_and_gradient(objective, rho, r, **BETAS, mask=mask, proposal=rho * 0)
        expected = {exo_rw: REVERSE_KL, dpo_rw: CROSS_ENTROPY}[objective]
        torch.testing.assert_close(loss, double([0.0, expected]), rtol=1e-12, atol=0)
        assert gradient[0].tolist() == [0, 0]
        assert gradient[1].abs().min() > 0.1

    def test_log_probabilities_under_the_mask_are_minus_infinity(self):
        mask = torch.tensor([[True, False], [False, False]])
        log_q = losses.policy_log_probs(torch.zeros(2, 2), beta_pi=1.0, mask=mask)
        log_p = losses.reward_target(torch.zeros(2, 2), beta_r=1.0, mask=mask)
        assert log_q.tolist() == log_p.tolist() == [[0.0, -INF], [-INF, -INF]]


class TestNumerics:
    @RW
    @pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
    def test_extremes_stay_finite_in_float32(self, objective, signs):
        rho = signs[0] * torch.tensor([[1e4, -1e4, 0.0, 1e4]])
        r = signs[1] * torch.tensor([[1e6, -1e6, 0.0, -1e6]])
        loss, gradient = value_and_gradient(objective, rho, r, beta_pi=0.5, beta_r=0.1)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()

    def test_an_extreme_value_is_right(self):
        # q = (1, 0) and log p = ((-1e6 - 1e6) / 0.1, 0), so KL(q || p) = 2e7; -sum p log q = -log q_2 = 0.5 * 2e4.
        rho, r = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e6, 1e6]])
        assert exo_rw(rho, r, beta_pi=0.5, beta_r=0.1).item() == pytest.approx(2e7, rel=1e-6)
        assert dpo_rw(rho, r, beta_pi=0.5, beta_r=0.1).item() == pytest.approx(1e4, rel=1e-6)

    @PREF
    @pytest.mark.parametrize("winner", [0, 1])
    def test_extreme_pairs_stay_finite(self, objective, winner):
        loss, gradient = value_and_gradient(objective, torch.tensor([[1e4, -1e4]]), torch.tensor([winner]), beta_pi=0.5)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        rho, r = torch.tensor([[0.3, -1.0, 0.2]], dtype=dtype), torch.tensor([[1.0, 0.0, 2.5]], dtype=dtype)
        for objective in (exo_rw, dpo_rw):
            loss, gradient = value_and_gradient(objective, rho, r, **BETAS, proposal=rho)
            exact = objective(rho.double(), r.double(), **BETAS, proposal=rho.double())
            assert loss.dtype == torch.float32
            assert gradient.dtype == dtype
            torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
        for objective in (exo_pref, dpo_pref):
            loss = objective(rho[:, :2], beta_pi=1.0)
            torch.testing.assert_close(loss.double(), objective(rho[:, :2].double(), beta_pi=1.0), rtol=1e-6, atol=1e-6)

    def test_float64_stays_and_the_loss_has_the_precision_of_the_log_ratios(self):
        rho, r = ASYMMETRIC["log_ratios"], ASYMMETRIC["rewards"]
        assert exo_rw(rho, r.float(), **BETAS).dtype == torch.float64
        assert exo_rw(rho.float(), r, **BETAS, proposal=r).dtype == torch.float32
        assert exo_pref(rho, beta_pi=1.0).dtype == torch.float64

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
    def test_integer_rewards(self, dtype):
        # q = (1/2, 1/2), p = (1, e^-1) / (1 + e^-1): KL(q || p) = log cosh(1/2)
        for rho in (double([[0.0, 0.0]]), torch.zeros(1, 2)):
            loss = exo_rw(rho, torch.tensor([[3, 2]], dtype=dtype), beta_pi=1.0, beta_r=1.0)
            assert loss.dtype == rho.dtype
            assert loss.item() == pytest.approx(0.12011450695827751, rel=1e-12 if rho.dtype == torch.float64 else 1e-5)

    def test_no_value_is_looked_at(self):
        """A meta tensor has no values: anything that would make a GPU wait raises here."""
        rho = torch.zeros(2, 2, device="meta")
        mask, winner = rho.bool(), rho.long()[:, 0]
        for objective in (exo_rw, dpo_rw):
            assert objective(rho, rho, **BETAS, mask=mask, proposal=rho).shape == (2,)
        for objective in (exo_pref, dpo_pref):
            assert objective(rho, winner, beta_pi=1.0).shape == (2,)

    def test_no_groups_and_no_completions(self):
        assert exo_rw(torch.zeros(0, 4), torch.zeros(0, 4), **BETAS).shape == (0,)
        assert exo_rw(torch.zeros(3, 0), torch.zeros(3, 0), **BETAS).tolist() == [0, 0, 0]
        assert exo_pref(torch.zeros(0, 2), beta_pi=1.0).shape == (0,)


Z = torch.zeros(2, 3)


class TestErrors:
    @RW
    @pytest.mark.parametrize("name", ["beta_pi", "beta_r"])
    @pytest.mark.parametrize("beta", [0.0, -0.1, NAN, INF, "0.1", None])
    def test_beta(self, objective, name, beta):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number above 0, found"):
            objective(Z, Z, **{**BETAS, name: beta})

    @RW
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"log_ratios": torch.zeros(3)}, r"log_ratios: expected shape \[B, K\] .*, found \[3\]"),
            ({"log_ratios": torch.zeros(2, 3, 1)}, r"log_ratios: expected shape \[B, K\] .*, found \[2, 3, 1\]"),
            ({"log_ratios": Z.long()}, "log_ratios: expected one of torch.float64.*, found torch.int64"),
            ({"log_ratios": Z.to(torch.complex64)}, "log_ratios: expected .*, found torch.complex64"),
            ({"rewards": torch.zeros(2, 1)}, r"rewards: expected shape \[2, 3\], found \[2, 1\]"),
            ({"rewards": Z.bool()}, "rewards: expected .*, found torch.bool"),
            ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask: expected shape \[2, 3\], found \[3\]"),
            ({"mask": Z}, "mask: expected torch.bool .*, found torch.float32"),
            ({"proposal": torch.zeros(2)}, r"proposal: expected shape \[2, 3\], found \[2\]"),
            ({"proposal": Z.long()}, "proposal: expected .*, found torch.int64"),
        ],
    )
    def test_rewarded_groups(self, objective, change, message):
        with pytest.raises(ValueError, match=message):
            objective(**{"log_ratios": Z, "rewards": Z, **BETAS, **change})

    @PREF
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"log_ratios": Z}, r"compares pairs, K = 2: expected shape \[B, 2\], found \[2, 3\]"),
            ({"log_ratios": torch.zeros(2)}, r"expected shape \[B, 2\], found \[2\]"),
            ({"winner": torch.zeros(3, dtype=torch.int64)}, r"winner: expected int64 of shape \[2\], found .* \[3\]"),
            ({"winner": torch.zeros(2)}, r"winner: expected int64 of shape \[2\], found torch.float32"),
            ({"epsilon": 0.5}, r"epsilon: expected a number in \[0, 0.5\), found 0.5"),
            ({"epsilon": -0.1}, r"epsilon: expected a number in \[0, 0.5\), found -0.1"),
            ({"epsilon": NAN}, r"epsilon: expected a number in \[0, 0.5\), found nan"),
            ({"epsilon": None}, r"epsilon: expected a number in \[0, 0.5\), found None"),
            ({"beta_pi": 0}, "beta_pi: expected a finite number above 0, found 0"),
        ],
    )
    def test_pairs(self, objective, change, message):
        with pytest.raises(ValueError, match=message):
            objective(**{"log_ratios": torch.zeros(2, 2), "beta_pi": 1.0, **change})

    @PREF
    @pytest.mark.parametrize("index", [-1, 2])
    def test_a_winner_that_is_no_column(self, objective, index):
        with pytest.raises(RuntimeError, match="out of bounds"):
            objective(torch.zeros(1, 2), torch.tensor([index]), beta_pi=1.0)

    def test_exo_pref_without_mass_on_the_loser(self):
        reason = "no mass on the loser: reverse KL is infinite; use epsilon > 0 or dpo_pref"
        with pytest.raises(ValueError, match=reason):
            exo_pref(torch.zeros(1, 2), beta_pi=1.0, epsilon=0.0)

    def test_divergences(self):
        with pytest.raises(ValueError, match=r"log_p: expected shape \[2, 3\], found \[3\]"):
            reverse_kl(Z, torch.zeros(3))
        with pytest.raises(ValueError, match=r"mask: expected torch\.bool"):
            cross_entropy(Z, Z, Z)
