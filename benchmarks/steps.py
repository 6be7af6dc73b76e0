"""One training step without a trainer, timed; see floor.py and growth.py, which run it.

The step is `train.gradient.accumulate` as ExoTrainer calls it, with the objective's loss and reference log-probs of zero. It
also counts the floating-point operations that no way of computing the same gradient can leave out.

Shape legend: N unique tokens, M tokens that predict one or more.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case, long_prompts, rows_of
from processes import peak_bytes, report

from exoalign import Group, collate, load_model, load_tokenizer
from exoalign.estimate.rate import product_rate
from exoalign.groups import GroupBatch
from exoalign.logprobs.pack import pack
from exoalign.logprobs.passes import budget_for
from exoalign.losses import exo_pref, exo_rw
from exoalign.models import quiet_libraries
from exoalign.train.gradient import accumulate

KINDS = {
    "all matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "flash attention": ("flash_attention",),
    "elementwise": (
        "aten::mul",
        "aten::add",
        "aten::sub",
        "aten::div",
        "aten::neg",
        "aten::silu",
        "aten::pow",
        "aten::rsqrt",
    ),
    "exponentials and sums": ("aten::exp_", "aten::amax", "aten::sum", "aten::log"),
    "copies and conversions": ("aten::copy_", "aten::cat", "aten::index", "aten::clone"),
}
OTHER = "other"


def groups_of(settings: dict[str, Any]) -> tuple[Case, list[Group]]:
    """The groups of a case in round `round`, or one group of K replies to a prompt of so many tokens."""
    case = CASES[settings["case"]]
    if "k" not in settings:
        return case, rows_of(case, settings["model"], Path(settings["data"]), settings["round"])
    make = functools.partial(long_prompts, k=settings["k"], prompt=settings["prompt"])
    found = make(load_tokenizer(settings["model"]), Path(settings["data"]), settings["round"] + 1)
    return case, found[-1:]


def operations(model: Any, batch: GroupBatch) -> tuple[float, int]:
    """What a forward and backward pass needs at least, a multiplication and an addition being two, and N.

    A matrix product of the forward has two of its size in the backward. Layers are counted on unique tokens, but the last
    one's on those that predict (its keys and values on all), the head on those; attention as its two products forward and four
    backward for each pair and head, in the last layer the pairs of those that predict.
    """
    packed, config = pack(batch), model.config
    predictors = packed.predictors.unique()  # a prompt's last token predicts for all its completions
    n, m = packed.input_ids.shape[1], len(predictors)
    seen = packed.position_ids[0] + 1
    pairs = (config.num_hidden_layers - 1) * int(seen.sum()) + int(seen[predictors].sum())
    layers = [
        p.numel() for name, p in model.base_model.named_parameters() if name.startswith("layers.") and p.dim() == 2
    ]
    last = [
        p.numel()
        for name, p in model.base_model.layers[-1].named_parameters()
        if p.dim() == 2 and not name.startswith(("self_attn.k_proj", "self_attn.v_proj"))
    ]
    head = config.vocab_size * config.hidden_size
    size = config.num_attention_heads * config.head_dim
    products = 6.0 * (n * sum(layers) - (n - m) * sum(last) + m * head)
    return products + 12.0 * pairs * size, n


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds, peak memory, tokens, operations and the rate of matrix products of one step, after a warm-up."""
    quiet_libraries()
    case, groups = groups_of(settings)
    model = load_model(settings["model"], dtype=torch.bfloat16 if case.precision == "bfloat16" else torch.float32)
    model.train()
    batch = collate(groups)
    step = functools.partial(_step, model, case, max_tokens=budget_for(groups, settings.get("tokens")))
    step(batch)  # memory is mapped and kernels are chosen on the first pass
    device = torch.device("cpu")
    rate = functools.partial(product_rate, model, bf16=case.precision != "float32", device=device, rows=1024)
    before = rate()
    began = time.perf_counter()
    step(batch)
    seconds = time.perf_counter() - began
    needed, tokens = operations(model, batch)
    found = {"seconds": seconds, "tokens": tokens, "operations": needed, "rate": (before + rate()) / 2}
    found["peak_bytes"] = peak_bytes()
    return found | ({"profile": _profile(step, batch)} if settings.get("profile") else {})


def _step(model: Any, case: Case, batch: GroupBatch, *, max_tokens: int) -> None:
    """Forward and backward; the reference's log-probs are 0, which changes no operation."""

    def losses(logprobs: torch.Tensor, part: GroupBatch) -> torch.Tensor:
        if case.objective == "exo_pref":
            return exo_pref(logprobs, part.winner, beta_pi=0.5)
        assert part.rewards is not None
        return exo_rw(logprobs, part.rewards, beta_pi=0.5, beta_r=0.5, mask=part.completion_lengths > 0)

    accumulate(
        model,
        batch,
        losses,
        total=batch.shape[0],
        max_tokens=max_tokens,
        temperature=1.0,
        bf16=case.precision == "autocast",
        backward=lambda loss, last: loss.backward(),
    )


def _profile(step: Callable[[GroupBatch], None], batch: GroupBatch) -> dict[str, float]:
    """Shares of the processor time of another such step, by what it was spent on, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step(batch)
    shares = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), OTHER)
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: spent / total for kind, spent in sorted(shares.items(), key=lambda item: -item[1])}


if __name__ == "__main__":
    report(measure(json.loads(sys.argv[1])))
