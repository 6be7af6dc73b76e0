"""The alignment objectives: two targets x two divergences, as pure functions on the completions of a prompt.

Shapes: B groups (prompts), K completions of each. `log_ratios`, `rewards`, `mask`, `proposal`, log p and log q are
[B, K]; `winner` and the losses are [B]. With

    rho_k = log pi_theta(y_k|x) - log pi_ref(y_k|x)      `log_ratios`, of whole completions
    c_k   = log pi_ref(y_k|x)   - log mu(y_k|x)          `proposal`, None (zero) for completions drawn from mu = pi_ref
    q     = softmax_k(beta_pi rho_k + c_k)               the policy, `policy_log_probs`
    p     = softmax_k(r_k / beta_r + c_k)                the optimal policy seen on the same K, `reward_target`
    p     = 1 - epsilon on the winner, epsilon on the loser              `preference_target`, K = 2

    objective           loss                              gradient with respect to rho_k
    exo_rw, exo_pref    KL(q || p), mode-seeking          beta_pi q_k (log(q_k / p_k) - KL(q || p))
    dpo_rw, dpo_pref    -sum p log q = KL(p || q) + H(p)  beta_pi (q_k - p_k)

From rewards both have the optimum pi_theta ∝ pi_ref exp(r / (beta_pi beta_r)). Source: Ji et al., Towards Efficient
Exact Optimization of Language Model Alignment, ICML 2024, arXiv 2402.00856: L_exo-rw, L_exo-pref, L_dpo-rw; DPO is
Rafailov et al. 2023, arXiv 2305.18290. Departures: the proposal correction c_k, ragged groups, and a preference target
that sums to one (the official code uses log p = 0 on the winner and -10 on the loser).

`mask` is True for the real completions of a ragged group; what stands under False, NaN included, reaches neither the
loss nor the gradient. A group with one real completion, or none (padding), has loss 0 and gradient 0. Rewards and
proposal are data: no gradient flows to them, even if mu was the policy itself. Arithmetic is in float32 at least, and
arguments are checked by shape and dtype only, so nothing waits for a GPU.
"""

import math
from numbers import Real

import torch
from torch import Tensor

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def exo_rw(
    log_ratios: Tensor,
    rewards: Tensor,
    *,
    beta_pi: float,
    beta_r: float,
    mask: Tensor | None = None,
    proposal: Tensor | None = None,
) -> Tensor:
    """EXO from rewards: the reverse KL(q || p) to the reward target (L_exo-rw).

    Args:
        log_ratios: rho [B, K].
        rewards: [B, K], floating or integer; a constant added to a group changes nothing.
        beta_pi: scale of the log-ratios in q; the strength of the KL penalty is beta_pi * beta_r.
        beta_r: temperature of the rewards in p.
        mask: [B, K] bool, True for real completions; None if all are.
        proposal: c = log pi_ref - log mu [B, K], for completions not drawn from pi_ref.

    Returns:
        [B], at least 0 (but for rounding), and 0 where q = p.

    Raises:
        ValueError: on a wrong shape, dtype or beta.

    >>> loss = exo_rw(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), beta_pi=1.0, beta_r=1.0)
    >>> print(f"{loss.item():.4f}")  # q = (0.5, 0.5), so log cosh(0.5)
    0.1201
    """
    log_q = policy_log_probs(log_ratios, beta_pi=beta_pi, mask=mask, proposal=proposal)
    log_p = _reward_target_for(log_q, rewards, beta_r, mask, proposal)
    return reverse_kl(log_q, log_p, mask)  # L_exo-rw = KL(q || p)


def dpo_rw(
    log_ratios: Tensor,
    rewards: Tensor,
    *,
    beta_pi: float,
    beta_r: float,
    mask: Tensor | None = None,
    proposal: Tensor | None = None,
) -> Tensor:
    """DPO from rewards: the cross-entropy -sum p log q, forward KL(p || q) plus the constant H(p) (L_dpo-rw).

    Arguments and errors as for `exo_rw`. Returns [B]; where q = p it is the entropy H(p), not 0.

    >>> loss = dpo_rw(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), beta_pi=1.0, beta_r=1.0)
    >>> print(f"{loss.item():.4f}")  # q = (0.5, 0.5), so log 2 whatever p is
    0.6931
    """
    log_q = policy_log_probs(log_ratios, beta_pi=beta_pi, mask=mask, proposal=proposal)
    log_p = _reward_target_for(log_q, rewards, beta_r, mask, proposal)
    return cross_entropy(log_q, log_p, mask)  # L_dpo-rw = -sum_k p_k log q_k


def exo_pref(log_ratios: Tensor, winner: Tensor | None = None, *, beta_pi: float, epsilon: float = 1e-3) -> Tensor:
    """EXO from a preference between K = 2 completions: KL(q || p), p = (1 - epsilon, epsilon) (L_exo-pref).

    With s = sigmoid(beta_pi (rho_w - rho_l)) it is s log(s / (1 - epsilon)) + (1 - s) log((1 - s) / epsilon): zero at
    s = 1 - epsilon, and, unlike DPO, bounded and flat where the policy is confidently wrong (s near 0).

    Args:
        log_ratios: rho [B, 2].
        winner: [B] int64, the column of the winner; None means column 0.
        beta_pi: scale of the log-ratios.
        epsilon: mass of the target on the loser, in (0, 0.5).

    Raises:
        ValueError: on a wrong shape, dtype, beta or epsilon. An index other than 0 and 1 in `winner` fails in torch.

    >>> loss = exo_pref(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), beta_pi=1.0)
    >>> print(f"{loss.item():.4f}")
    1.2763
    """
    if epsilon == 0:
        raise ValueError(
            "exo_pref, epsilon = 0: the target has no mass on the loser: reverse KL is infinite; "
            "use epsilon > 0 or dpo_pref"
        )
    _check_pair("exo_pref", log_ratios)
    log_q = policy_log_probs(log_ratios, beta_pi=beta_pi)
    log_p = preference_target(winner, epsilon=epsilon, like=log_q)
    return reverse_kl(log_q, log_p)  # L_exo-pref = KL(q || p)


def dpo_pref(log_ratios: Tensor, winner: Tensor | None = None, *, beta_pi: float, epsilon: float = 0.0) -> Tensor:
    """DPO: the cross-entropy -sum p log q, p = (1 - epsilon, epsilon); epsilon > 0 is conservative (smoothed) DPO.

    Arguments and errors as for `exo_pref`, but epsilon lies in [0, 0.5); 0 gives -log sigmoid(beta_pi (rho_w - rho_l)).

    >>> loss = dpo_pref(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), beta_pi=1.0)
    >>> print(f"{loss.item():.4f}")
    0.3133
    """
    _check_pair("dpo_pref", log_ratios)
    log_q = policy_log_probs(log_ratios, beta_pi=beta_pi)
    log_p = preference_target(winner, epsilon=epsilon, like=log_q)
    return cross_entropy(log_q, log_p)  # L_dpo = -sum_k p_k log q_k


def policy_log_probs(
    log_ratios: Tensor, *, beta_pi: float, mask: Tensor | None = None, proposal: Tensor | None = None
) -> Tensor:
    """The policy on the K completions: log q = log softmax_k(beta_pi rho_k + c_k), [B, K], -inf under the mask.

    >>> policy_log_probs(torch.tensor([[1.0, 1.0]]), beta_pi=0.5).exp()
    tensor([[0.5000, 0.5000]])
    """
    _check_beta("beta_pi", beta_pi)
    _check_shapes("log_ratios", log_ratios, mask, proposal)
    return _log_softmax(beta_pi * _as_float("log_ratios", log_ratios), mask, proposal)  # q


def reward_target(
    rewards: Tensor, *, beta_r: float, mask: Tensor | None = None, proposal: Tensor | None = None
) -> Tensor:
    """The optimal policy on the K completions: log p = log softmax_k(r_k / beta_r + c_k), [B, K], -inf under the mask.

    >>> reward_target(torch.tensor([[3, 3, 9]]), beta_r=1.0, mask=torch.tensor([[True, True, False]])).exp()
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    _check_beta("beta_r", beta_r)
    _check_shapes("rewards", rewards, mask, proposal)
    return _log_softmax(_as_float("rewards", rewards, _FLOATS + _INTEGERS).detach() / beta_r, mask, proposal)  # p


def preference_target(winner: Tensor | None, *, epsilon: float, like: Tensor) -> Tensor:
    """A human preference: log p = log(1 - epsilon) on the winner, log epsilon on the loser, in the shape of `like`.

    `epsilon` = 0 gives -inf on the loser, which only `cross_entropy` can use.

    >>> preference_target(torch.tensor([1]), epsilon=0.25, like=torch.zeros(1, 2)).exp()
    tensor([[0.2500, 0.7500]])
    """
    if not isinstance(epsilon, Real) or not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon: expected a number in [0, 0.5), found {epsilon!r}")
    _check_pair("preference_target", like)
    if winner is None:
        winner = torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)
    if winner.dtype != torch.int64 or winner.shape != like.shape[:1]:
        expected = f"int64 of shape {list(like.shape[:1])}"
        raise ValueError(f"winner: expected {expected}, found {winner.dtype} of shape {list(winner.shape)}")
    log_p = torch.full_like(_as_float("like", like), math.log(epsilon) if epsilon > 0 else -math.inf)
    return log_p.scatter(1, winner[:, None], math.log1p(-epsilon))  # scatter refuses an index other than 0 and 1


def reverse_kl(log_q: Tensor, log_p: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(q || p) = sum_k q_k (log q_k - log p_k), [B]; log p must be finite on every real completion.

    >>> reverse_kl(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.75, 0.25]]).log())
    tensor([0.])
    """
    log_q, log_p = _hide(log_q, log_p, mask)
    return (log_q.exp() * (log_q - log_p)).sum(-1)  # KL(q || p)


def cross_entropy(log_q: Tensor, log_p: Tensor, mask: Tensor | None = None) -> Tensor:
    """-sum_k p_k log q_k = KL(p || q) + H(p), [B]: the forward KL up to the entropy of the target.

    >>> cross_entropy(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log())
    tensor([0.6931])
    """
    log_q, log_p = _hide(log_q, log_p, mask)
    return -(log_p.exp() * log_q).sum(-1)  # -sum_k p_k log q_k


def _reward_target_for(
    log_q: Tensor, rewards: Tensor, beta_r: float, mask: Tensor | None, proposal: Tensor | None
) -> Tensor:
    """`reward_target` in the wider of both precisions, handed over in that of log q."""
    _check_shape("rewards", rewards, log_q.shape)
    rewards = _as_float("rewards", rewards, _FLOATS + _INTEGERS, at_least=log_q.dtype)
    return reward_target(rewards, beta_r=beta_r, mask=mask, proposal=proposal).to(log_q.dtype)


def _log_softmax(scores: Tensor, mask: Tensor | None, proposal: Tensor | None) -> Tensor:
    """Log softmax over the real completions. What came before is linear, so NaN under the mask has gradient 0."""
    if proposal is not None:
        scores = scores + _as_float("proposal", proposal).detach().to(scores.dtype)
    if mask is None:
        return scores.log_softmax(-1)
    # In a group with no real completion the scores stay 0: a softmax over -inf alone is NaN, which the last fill would
    # hide, but not from autograd's anomaly mode.
    scores = scores.masked_fill(~mask, 0.0).masked_fill(~mask & mask.any(-1, keepdim=True), -math.inf)
    return scores.log_softmax(-1).masked_fill(~mask, -math.inf)


def _hide(log_q: Tensor, log_p: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros for both logs under the mask: there both divergences then add 0, and no NaN gets into the gradient."""
    _check_shape("log_p", log_p, log_q.shape)
    log_q, log_p = _as_float("log_q", log_q), _as_float("log_p", log_p)
    if mask is None:
        return log_q, log_p
    _check_mask(mask, log_q.shape)
    return log_q.masked_fill(~mask, 0.0), log_p.masked_fill(~mask, 0.0)


def _as_float(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...] = _FLOATS, at_least: torch.dtype = torch.float32
) -> Tensor:
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, dtypes))}, found {tensor.dtype}")
    return tensor.to(torch.promote_types(tensor.dtype, at_least))


def _check_shapes(name: str, tensor: Tensor, mask: Tensor | None, proposal: Tensor | None) -> None:
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected shape [B, K] (groups, completions), found {list(tensor.shape)}")
    if mask is not None:
        _check_mask(mask, tensor.shape)
    if proposal is not None:
        _check_shape("proposal", proposal, tensor.shape)


def _check_shape(name: str, tensor: Tensor, expected: torch.Size) -> None:
    if tensor.shape != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, found {list(tensor.shape)}")


def _check_mask(mask: Tensor, expected: torch.Size) -> None:
    _check_shape("mask", mask, expected)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected torch.bool (True for a real completion), found {mask.dtype}")


def _check_pair(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2 or tensor.shape[1] != 2:
        found = f"expected shape [B, 2], found {list(tensor.shape)}"
        raise ValueError(f"{name} compares pairs, K = 2: {found}; for K completions use rewards (exo_rw, dpo_rw)")


def _check_beta(name: str, beta: float) -> None:
    if not isinstance(beta, Real) or not 0 < beta < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, found {beta!r}")
