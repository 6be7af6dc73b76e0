"""The proposal correction: completions that were not drawn from the reference, but from a mu that is known.

With c_k = log pi_ref(y_k|x) - log mu(y_k|x) in both softmaxes (`losses`) the K completions stand for the distributions that
they would stand for had they been drawn from pi_ref, and the optimum stays pi*. mu may be the policy of some steps ago, another
model, or a truncation (top-p, top-k) of either: then all holds on the tokens that it can draw.

The price is variance: the weights softmax(c) of K completions are worth no more than ESS = 1 / sum_k softmax(c)_k^2 of them.
"""

from __future__ import annotations

from exoalign.errors import DataError
from exoalign.groups import Group


def proposal_of(group: Group) -> tuple[float, ...]:
    """c = log pi_ref - log mu of each completion, in nats, [K].

    Raises:
        DataError: naming the group that lacks the one or the other.
    """
    for name in ("sampler_logprobs", "reference_logprobs"):
        if getattr(group, name) is None:
            raise DataError(f"{group.where}: has no {name}, which the correction of its proposal needs")
    pairs = zip(group.reference_logprobs or (), group.sampler_logprobs or (), strict=True)
    return tuple(reference - sampler for reference, sampler in pairs)
