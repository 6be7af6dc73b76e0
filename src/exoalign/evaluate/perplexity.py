"""How well a model predicts texts that it was not trained on: loss in nats a token, perplexity, both with intervals.

Every token weighs the same; whole examples are redrawn for the intervals, as the tokens of one text resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from exoalign.errors import TrainingError
from exoalign.estimators import Interval, ratio_bootstrap
from exoalign.groups import Group
from exoalign.train.reference import logprobs_of
from exoalign.train.sft import perplexity

TOGETHER = 64
"""Examples whose passes are planned together."""


def text_losses(
    examples: Sequence[Group], model: torch.nn.Module, *, bf16: bool, report: Callable[[int], None] | None = None
) -> list[float]:
    """- log pi(y|x) of each example's completion, in nats, summed over the tokens that count.

    Raises:
        TrainingError: naming an example whose log-prob is not finite.
    """
    losses: list[float] = []
    for start in range(0, len(examples), TOGETHER):
        some = examples[start : start + TOGETHER]
        for example, (value,) in zip(some, logprobs_of(some, model, bf16=bf16, temperature=1.0), strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{example.where}: the log-prob is {value}; expected a finite number: the model's weights hold NaN or"
                    " infinity, or overflow in this precision"
                )
            losses.append(-value)
        if report:
            report(len(some))
    return losses


def compare_losses(
    examples: Sequence[Group], before: Sequence[float], after: Sequence[float], *, seed: int
) -> dict[str, Any]:
    """Loss and perplexity before and after, and what changed, with 95% intervals.

    Args:
        examples: N examples with token ids.
        before, after: [N] summed losses (`text_losses`).
        seed: of the bootstrap.

    Returns:
        {"before", "after": {"loss", "perplexity"}, "difference": the loss's, of the same tokens, "rows", "tokens"}; an
        estimate is {"mean", "low", "high"}.
    """
    tokens = [sum(example.counted_tokens) for example in examples]

    def both(losses: Sequence[float]) -> dict[str, Any]:
        loss = ratio_bootstrap(losses, tokens, seed=seed)
        ends = map(perplexity, (loss.mean, loss.low, loss.high))
        return {"loss": loss.as_dict(), "perplexity": Interval(*ends).as_dict()}

    change = [theirs - ours for theirs, ours in zip(after, before, strict=True)]
    return {
        "before": both(before),
        "after": both(after),
        "difference": ratio_bootstrap(change, tokens, seed=seed).as_dict(),
        "rows": len(examples),
        "tokens": sum(tokens),
    }
