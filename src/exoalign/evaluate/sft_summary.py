"""What the page shows of supervised fine-tuning: the stage's `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exoalign.groups import Group, completion_text, prompt_text

SHOWN, CHARACTERS = 3, 600
"""Texts that are shown of each kind, and characters of each."""


def sft_summary(
    examples: Sequence[Group],
    steps: Sequence[dict[str, Any]],
    heldout: Sequence[Group],
    before: Sequence[float],
    after: Sequence[float],
    metrics: dict[str, Any] | None,
) -> dict[str, Any]:
    """Numbers, the loss of each step, and the loss of each held-out text before and after.

    Args:
        examples: what was trained on.
        steps: the history.
        heldout: N held-out examples, of which the others tell.
        before, after: [N] summed losses.
        metrics: of `compare_losses`, None where nothing is held out.
    """
    learnt = sum(sum(example.counted_tokens) for example in examples)
    numbers: list[dict[str, Any]] = [
        {"label": "training rows", "value": len(examples)},
        {"label": "tokens that are learnt", "value": learnt, "note": "in one epoch"},
    ]
    for name in ("perplexity", "loss") if metrics else ():
        assert metrics is not None
        numbers += [
            {"label": f"held-out {name} {when}", "value": metrics[when][name], "note": f"{len(heldout)} rows"}
            for when in ("before", "after")
        ]
    x = [step["step"] for step in steps]
    curve = {"name": "training", "x": x, "y": [step["loss"] for step in steps]}
    summary: dict[str, Any] = {
        "numbers": numbers,
        "curves": [{"title": "Training", "x_label": "step", "y_label": "nats a token", "series": [curve]}],
    }
    if not metrics:
        return summary
    lengths = [sum(example.counted_tokens) for example in heldout]
    each = {
        name: [loss / length for loss, length in zip(losses, lengths, strict=True)]
        for name, losses in (("before", before), ("after", after))
    }
    series = [{"name": name, "values": values} for name, values in each.items()]
    summary["histograms"] = [{"title": "Held-out texts", "x_label": "nats a token", "series": series}]
    order = sorted(range(len(heldout)), key=lambda i: each["after"][i])
    summary["texts"] = [
        {"title": title, "rows": [_shown(heldout[i], each["before"][i], each["after"][i]) for i in chosen]}
        for title, chosen in (
            ("Held-out texts that the model predicts best", order[:SHOWN]),
            ("Held-out texts that the model predicts worst", order[: -SHOWN - 1 : -1]),
        )
    ]
    return summary


def _shown(example: Group, before: float, after: float) -> dict[str, str]:
    text = completion_text(example.completions[0])
    if example.prompt:
        text = f"{prompt_text(example.prompt)[-CHARACTERS // 2 :]}\n{text}"
    return {"label": f"{after:.2f} nats a token, {before:.2f} before", "text": text[:CHARACTERS]}
