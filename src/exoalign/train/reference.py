"""Reference log-probs: computed once, with the policy's kernels, kept with the groups, and checked before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from exoalign.data.collate import collate
from exoalign.errors import TrainingError
from exoalign.groups import Group
from exoalign.logprobs.engine import shares_prefix
from exoalign.logprobs.passes import budget_for, logprobs_in_passes, split
from exoalign.models import autocast, fingerprint

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Policy and reference may differ by this many nats times the root of the completion's length before the first step."""
CHECKED = 4
"""Groups that are compared, spread over the data."""


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
) -> list[Group]:
    """Give every group that lacks them its reference log-probs; those that are there must be this model's.

    Args:
        groups: groups with token ids.
        model: the reference.
        bf16: compute under bfloat16 autocast.
        temperature: as in the objective.
        max_tokens: tokens in one forward pass; None takes as many as are of use.
        report: called with the number of groups done.

    Raises:
        TrainingError: naming the group, if a log-prob is not finite, or says that it comes from other weights, precision or
            temperature.
    """
    missing = [i for i, group in enumerate(groups) if group.reference_logprobs is None]
    done = list(groups)
    record = describe(model, bf16=bf16, temperature=temperature)
    for group in groups:
        if group.reference_logprobs is not None and group.provenance.get("reference", record) != record:
            raise TrainingError(
                f"{group.where}: its reference log-probs are of something else. {_difference(group, record)}"
            )
    for chosen in _together(done, missing, model, max_tokens):
        values = logprobs_of(
            [done[i] for i in chosen], model, bf16=bf16, temperature=temperature, max_tokens=max_tokens
        )
        for i, row in zip(chosen, values, strict=True):
            if not all(map(math.isfinite, row)):
                raise TrainingError(
                    f"{done[i].where}: the reference log-probs are {row}; expected finite numbers: the model's weights hold"
                    " NaN or infinity, or overflow in this precision"
                )
            done[i] = replace(done[i], reference_logprobs=row, provenance={**done[i].provenance, "reference": record})
        if report:
            report(len(chosen))
    return done


def _together(
    groups: Sequence[Group], chosen: Sequence[int], model: torch.nn.Module, max_tokens: int | None
) -> list[list[int]]:
    """Indices of groups that fill a pass together, or of one group that fills several."""
    prompts = [len(groups[i].prompt_ids or ()) for i in chosen]
    completions = [[len(ids) for ids in groups[i].completion_ids or ()] for i in chosen]
    most = budget_for([groups[i] for i in chosen], max_tokens)
    sets = split(prompts, completions, most, shared=shares_prefix(model))
    return [[chosen[i] for i in passes[0].groups] for passes in sets]


def check_agreement(
    groups: Sequence[Group],
    policy: torch.nn.Module,
    *,
    bf16: bool,
    temperature: float,
    max_tokens: int | None = None,
) -> float:
    """Before the first step the policy is the reference, so that every log-ratio must be 0 but for rounding.

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
            assert group.completion_ids is not None
            for k, (ours, theirs) in enumerate(zip(row, group.reference_logprobs, strict=True)):
                difference = abs(ours - theirs)
                allowed = tolerance * math.sqrt(len(group.completion_ids[k]))
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
