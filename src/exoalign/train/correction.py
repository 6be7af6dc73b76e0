"""The proposal correction: completions that were not drawn from the reference, but from a mu that is known.

With c_k = log pi_ref(y_k|x) - log mu(y_k|x) in both softmaxes (`losses`) the K completions stand for the distributions that
they would stand for had they been drawn from pi_ref, and the optimum stays pi*. mu may be the policy of some steps ago, another
model, or a truncation (top-p, top-k) of either: then all holds on the completions that it can draw.

The price is variance: K completions with weights softmax(c) are worth ESS = 1 / sum_k softmax(c)_k^2 of them (Kong 1992).

Shape legend: K completions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from exoalign.data.collate import collate
from exoalign.data.doctor.findings import Finding
from exoalign.errors import DataError
from exoalign.finished import fingerprint_of
from exoalign.groups import Group
from exoalign.models import fingerprint, identity

RECENT = 10
"""Steps over which the mean of `correction_ess` is looked at."""


def proposal_of(group: Group) -> tuple[float, ...]:
    """c = log pi_ref - log mu of each completion, in nats, [K].

    Raises:
        DataError: naming the group that lacks the one or the other.
    """
    for name in ("sampler_logprobs", "reference_logprobs"):
        if getattr(group, name) is None:
            raise DataError(
                f"{group.where}: has no {name}, which the correction of the proposal needs; set correction to auto or off,"
                " or sample with exoalign, which keeps them"
            )
    pairs = zip(group.reference_logprobs or (), group.sampler_logprobs or (), strict=True)
    return tuple(reference - sampler for reference, sampler in pairs)


@dataclass(frozen=True)
class Correction:
    """Which groups are corrected, and by how much.

    Attributes:
        mode: `on`: all; `off`: none; `auto`: those whose sampler's distribution is not the reference's: it was truncated, at
            another temperature, of another model or of the policy as it trained, or is not known at all. A group without
            sampler log-probs was drawn from the reference, as far as `auto` knows. (To correct samples of the reference itself
            would add nothing but the rounding of two ways to compute the same.)
        temperature: of the reference's log-probs.
        reference: fingerprints of the reference: of its weights, of these in bfloat16 (samplers load them so), of its files.
    """

    mode: str = "auto"
    temperature: float = 1.0
    reference: frozenset[str] = field(default_factory=frozenset)

    def of(self, group: Group) -> tuple[float, ...] | None:
        """c of a group's completions, None where none is needed.

        Raises:
            DataError: naming the group, with `on`, that lacks what it takes.
        """
        return proposal_of(group) if self.applies(group) else None

    def applies(self, group: Group) -> bool:
        """Whether a group is corrected."""
        if self.mode != "auto":
            return self.mode == "on"
        return group.sampler_logprobs is not None and self._is_another(group.provenance.get("sampler"))

    def _is_another(self, sampler: Any) -> bool:
        if not isinstance(sampler, Mapping):
            return True
        truncated = sampler.get("top_p", 1.0) < 1 or sampler.get("top_k", 0) > 0
        elsewhere = sampler.get("fingerprint") not in self.reference
        return truncated or elsewhere or sampler.get("temperature") != self.temperature


def correction_for(
    groups: Iterable[Group], reference: torch.nn.Module, *, mode: str, temperature: float
) -> Correction | None:
    """The correction of groups whose reference is this model as it is now; None where none of them can need one.

    The model's fingerprints take a while for a large one, and are made where a group may need them only.
    """
    if mode == "off":
        return None
    if mode == "on":
        return Correction(mode, temperature)
    samplers = [group.provenance.get("sampler") for group in groups if group.sampler_logprobs is not None]
    if not samplers:
        return None
    backends = {sampler.get("backend") for sampler in samplers if isinstance(sampler, Mapping)}
    prints = {fingerprint(reference), fingerprint(reference, torch.bfloat16)} if backends else set[str]()
    path = str(getattr(reference, "name_or_path", "") or "")
    if "vllm" in backends and path:
        prints.add(fingerprint_of(identity(path)))
    return Correction(mode, temperature, frozenset(prints))


@dataclass(frozen=True)
class CorrectedCollate:
    """Makes a batch's tensors, with the proposal where groups are corrected; it can be sent to a loader's worker processes."""

    correction: Correction

    def __call__(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """The tensors by name; see `collate`."""
        return collate(groups, proposals=[self.correction.of(group) for group in groups]).as_dict()


class CollapseWatch:
    """Says once where the correction leaves too little of the K completions: when over `RECENT` logged steps the means both of
    `correction_ess` and of `policy_ess` are below max(1.5, K / 4).

    Both, since c alone says too little of the policy's own samples: with beta_pi = 1 its weights there are softmax(rho + c) =
    softmax(log pi_theta - log mu), all equal when a block begins, however far the policy is from the reference.

    Args:
        k: completions of a group, as a mean.
        remedy: what to do about it.

    >>> steps = [{"correction_ess": 1.25, "policy_ess": 1.25, "step": n} for n in range(1, 11)]
    >>> [finding.kind for finding in CollapseWatch(4, "lower align.learning_rate").look(steps)]
    ['correction']
    """

    def __init__(self, k: float, remedy: str) -> None:
        self.k, self.remedy = k, remedy
        self._seen, self._recent, self._said = 0, deque[Mapping[str, float]](maxlen=RECENT), False

    def look(self, history: Sequence[Mapping[str, float]]) -> list[Finding]:
        """The finding, when it is due after what was logged since the last look; the whole history the first time."""
        found, floor = list[Finding](), max(1.5, self.k / 4)
        for step in history[self._seen :]:
            if "correction_ess" not in step:
                continue
            self._recent.append(step)
            of_c, of_q = (sum(one[n] for one in self._recent) / RECENT for n in ("correction_ess", "policy_ess"))
            if len(self._recent) == RECENT and max(of_c, of_q) < floor and not self._said:
                self._said = True
                between = f"{self._recent[0]['step']:g} to {step['step']:g}"
                text = (
                    f"the correction collapses: in steps {between} its effective sample size is {of_c:.3g} of K ="
                    f" {self.k:.3g} as a mean, and that of the policy's weights {of_q:.3g}, both below {floor:.3g}: a group"
                    " teaches little more than one completion"
                )
                found.append(Finding("correction", text, self.remedy))
        self._seen = len(history)
        return found
