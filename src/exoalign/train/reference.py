"""Reference log-probs: computed once, with the policy's kernels, kept with the groups, and checked before the first step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch

from exoalign.data.collate import collate
from exoalign.data.group_table import GroupTable
from exoalign.errors import TrainingError
from exoalign.groups import Group
from exoalign.logprobs.passes import budget_for, logprobs_in_passes
from exoalign.models import autocast, fingerprint
from exoalign.train.reference_cache import CacheFile, ReferenceCache
from exoalign.train.reference_passes import planned

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
"""Log-probs of the same model may differ by this many nats times the root of the completion's length (tokens that count): what
else is in a pass rounds otherwise. SmolLM2 under bfloat16, 160 completions of HH alone and four groups together: 0.04 times the
root as a quadratic mean, 0.13 at most; bfloat16 against float32 1.2 and 3.8 times (docs/log.md)."""
CHECKED = 4
"""Groups that are compared, spread over the data."""
CHECKED_COMPLETIONS = 8
"""Completions of each that are compared with a cache: K may be large."""


def describe(model: torch.nn.Module, *, bf16: bool, temperature: float) -> dict[str, Any]:
    """What reference log-probs depend on besides the tokens."""
    return {"weights": fingerprint(model), "precision": _precision(model, bf16), "temperature": temperature}


def _precision(model: torch.nn.Module, bf16: bool) -> str:
    return "bfloat16" if bf16 or next(model.parameters()).dtype == torch.bfloat16 else "float32"


def logprobs_of(
    groups: Sequence[Group], model: torch.nn.Module, *, bf16: bool, temperature: float, max_tokens: int | None = None
) -> list[tuple[float, ...]]:
    """log pi(y_k|x) of each group's completions, without gradients and dropout, in passes of `max_tokens` tokens."""
    most = budget_for(groups, max_tokens)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(next(model.parameters()).device, bf16=bf16):
            values = logprobs_in_passes(model, collate(groups), max_tokens=most, temperature=temperature).tolist()
    finally:
        model.train(training)
    return [tuple(row[: group.k]) for group, row in zip(groups, values, strict=True)]


def add_reference(
    groups: Sequence[Group],
    model: torch.nn.Module,
    *,
    bf16: bool,
    temperature: float,
    max_tokens: int | None = None,
    report: Callable[[int], None] | None = None,
    cache: ReferenceCache | None = None,
) -> Sequence[Group]:
    """Give every group that lacks them its reference log-probs; those that are there must be this model's.

    Args:
        groups: groups with token ids.
        model: the reference.
        bf16: compute under bfloat16 autocast.
        temperature: as in the objective.
        max_tokens: tokens in one forward pass; None takes as many as are of use.
        report: called with the number of groups done, from the cache or computed.
        cache: what other runs computed is taken from here, after a few of it were computed again and compared; what is
            computed is kept here, pass by pass.

    Returns:
        A list; of groups on the disk, they and an array of the log-probs beside them.

    Raises:
        TrainingError: naming the group, if a log-prob is not finite, says that it comes from other weights, precision or
            temperature, or comes from a cache that the model disagrees with.
    """
    record = describe(model, bf16=bf16, temperature=temperature)
    missing = list[int]()

    def lacking() -> Iterator[Group]:
        for i, group in enumerate(groups):
            if group.reference_logprobs is None:
                missing.append(i)
                yield group
            elif group.provenance.get("reference", record) != record:
                raise TrainingError(
                    f"{group.where}: its reference log-probs are of something else. {_difference(group, record)}"
                )

    device = next(model.parameters()).device.type  # other kernels, which round differently
    with CacheFile(cache.folder if cache else None, {**record, "device": device}) as kept:
        rows = kept.look_up(lacking())
        known = dict(zip(missing, rows, strict=True))
        _check_kept(kept, groups, known, model, bf16=bf16, temperature=temperature)
        whole = {i for i, row in known.items() if None not in row}
        if cache:
            cache.asked, cache.reused = cache.asked + len(missing), cache.reused + len(whole)
        if report and whole:
            report(len(whole))
        for chosen in planned(groups, missing, whole, model, max_tokens):
            wanted = {i: [k for k, value in enumerate(known[i]) if value is None] for i in chosen}
            parts = [_part(group, wanted[i]) for i, group in chosen.items()]
            values = logprobs_of(parts, model, bf16=bf16, temperature=temperature, max_tokens=max_tokens)
            for i, part, computed in zip(chosen, parts, values, strict=True):
                for k, value in zip(wanted[i], computed, strict=True):
                    _check_finite(part, k, value)
                    known[i][k] = value
            kept.store(parts, values)
            if report:
                report(len(chosen))
    found = WithReference(groups, known, record)
    return found if isinstance(groups, GroupTable) else list(found)


class WithReference(Sequence[Group]):
    """Groups, wherever they lie, and their reference log-probs in an array: what 100,000 groups hold of them in memory.

    Args:
        groups: N groups, some with reference log-probs, which they keep.
        known: for each of the others, by its index, the log-probs of its completions in nats.
        record: what they were computed with (`describe`).
    """

    def __init__(
        self, groups: Sequence[Group], known: Mapping[int, Sequence[float | None]], record: dict[str, Any]
    ) -> None:
        rows = [known.get(i, ()) for i in range(len(groups))]
        self.groups, self.record = groups, record
        self.values = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.float64)  # of all groups, one by one
        self.ends = np.cumsum([len(row) for row in rows], dtype=np.int64)  # [N]: where those of each group end

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        chosen = range(len(self))[index]
        return self._group(chosen, self.groups[chosen]) if isinstance(chosen, int) else [self[i] for i in chosen]

    def __iter__(self) -> Iterator[Group]:
        return itertools.starmap(self._group, enumerate(self.groups))

    def _group(self, i: int, group: Group) -> Group:
        if group.reference_logprobs is not None:
            return group
        row = self.values[self.ends[i - 1] if i else 0 : self.ends[i]].tolist()
        return replace(group, reference_logprobs=tuple(row), provenance={**group.provenance, "reference": self.record})


def _part(group: Group, completions: Sequence[int]) -> Group:
    """The group with some of its completions only, and then no more than log-probs need."""
    if len(completions) == group.k:
        return group
    assert group.completion_ids is not None
    masks = group.completion_masks
    return Group(
        group.prompt,
        tuple(group.completions[k] for k in completions),
        prompt_ids=group.prompt_ids,
        completion_ids=tuple(group.completion_ids[k] for k in completions),
        completion_masks=None if masks is None else tuple(masks[k] for k in completions),
        provenance=group.provenance,
    )


def _check_finite(group: Group, k: int, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{group.where}, completion {k + 1}: the reference log-prob is {value}; expected a finite number: the model's"
            " weights hold NaN or infinity, or overflow in this precision"
        )


def _check_kept(
    kept: CacheFile,
    groups: Sequence[Group],
    found: Mapping[int, Sequence[float | None]],
    model: torch.nn.Module,
    *,
    bf16: bool,
    temperature: float,
) -> None:
    """Compute a few groups that the cache knows again: they must agree but for rounding."""
    tolerance = TOLERANCE[_precision(model, bf16)]
    some = [i for i, row in found.items() if any(value is not None for value in row)]
    for i in some[:: math.ceil(len(some) / CHECKED) or 1]:
        group, row = groups[i], found[i]
        there = dict([(k, value) for k, value in enumerate(row) if value is not None][:CHECKED_COMPLETIONS])
        part = _part(group, list(there))
        values = logprobs_of([part], model, bf16=bf16, temperature=temperature)[0]
        for (k, theirs), ours, length in zip(there.items(), values, part.counted_tokens, strict=True):
            _check_finite(group, k, ours)
            allowed = tolerance * math.sqrt(length)
            if not abs(ours - theirs) <= allowed:
                raise TrainingError(
                    f"{group.where}, completion {k + 1}: the reference cache {kept.path} is stale: it says {theirs:.4f} and"
                    f" the model {ours:.4f}; they may differ by {allowed:.4f}. Weights, precision, temperature and tokens are"
                    " the same, so the kernels have changed (another version of torch or transformers?) or the file was"
                    " altered. Delete it, and its log-probs are computed anew."
                )


def check_agreement(
    groups: Sequence[Group],
    policy: torch.nn.Module,
    *,
    bf16: bool,
    temperature: float,
    max_tokens: int | None = None,
) -> float:
    """Before the first step the policy is the reference, so that every log-ratio must be 0 but for rounding.

    Args:
        groups: groups with reference log-probs.
        policy: the policy before the first step.
        bf16: compute under bfloat16 autocast.
        temperature: as in the objective.

    Returns:
        The largest |log-ratio| found, in nats.

    Raises:
        TrainingError: if one is above the tolerance, saying what differs: weights, precision or temperature.
    """
    tolerance = TOLERANCE[_precision(policy, bf16)]
    largest = 0.0
    for group in groups[:: max(1, len(groups) // CHECKED)][:CHECKED]:
        for row in logprobs_of([group], policy, bf16=bf16, temperature=temperature, max_tokens=max_tokens):
            assert group.reference_logprobs is not None
            both = zip(row, group.reference_logprobs, group.counted_tokens, strict=True)
            for k, (ours, theirs, length) in enumerate(both):
                difference = abs(ours - theirs)
                allowed = tolerance * math.sqrt(length)
                if not difference <= allowed:
                    record = describe(policy, bf16=bf16, temperature=temperature)
                    raise TrainingError(
                        f"{group.where}, completion {k + 1}: before the first step the policy's log-prob is {ours:.4f} and"
                        f" the reference's {theirs:.4f}; they may differ by {allowed:.4f}. {_difference(group, record)}"
                    )
                largest = max(largest, difference)
    return largest


def _difference(group: Group, now: dict[str, Any]) -> str:
    then = group.provenance.get("reference")
    if not then:
        return "The data brings reference log-probs without saying of which model; remove them, and they are computed anew."
    changed = [
        f"{key} was {str(then[key])[:16]} and is {str(now[key])[:16]}" for key in now if then.get(key) != now[key]
    ]
    if changed:
        return (
            f"What differs: {'; '.join(changed)}. Remove reference_logprobs from the data, and they are computed anew."
        )
    return (
        "Weights, precision and temperature are the same: the model is not deterministic, or its kernels have changed."
    )
