"""An estimate as lines for people."""

from __future__ import annotations

from exoalign.estimate.preflight import Estimate
from exoalign.progress import duration


def lines(estimate: Estimate) -> list[str]:
    """A compact table: where the memory goes, what there is, and the time."""
    e, s = estimate, estimate.shape
    precision = "bfloat16 over float32 weights" if e.bf16 else "float32"
    kept = ", activations recomputed" if e.checkpointing else ""
    rows = [
        ("weights", e.weights, f"{count(e.parameters)} parameters, {precision}"),
        ("gradients", e.gradients, f"{count(e.trainable)} trainable"),
        ("optimizer", e.optimizer, ""),
        ("activations", e.activations, f"{e.tokens_per_pass:,} tokens a pass{kept}"),
        ("head, temporaries", e.temporary, ""),
        ("data, reference cache", e.data, ""),
        ("Python, libraries", e.baseline, ""),
    ]
    lengths = f"prompts up to {s.prompt:,} and completions up to {s.completion:,} tokens"
    found = [f"estimate for {s.groups:,} groups, K up to {s.k}, {lengths}:"]
    found += [f"  {name:<22}{size(n):>9}  {note}".rstrip() for name, n, note in rows if n]
    has = "" if e.memory is None else f"  of {size(e.memory)} that this process can have on the {e.device}"
    found.append(f"  {'peak memory':<22}{size(e.total):>9}{has}")
    measured = f"{e.passes:,} passes an epoch at {e.rate / 1e9:,.0f} GFLOP/s, measured here"
    found.append(f"  {'time, roughly':<22}{_long(e.seconds):>9}  {measured}")
    if not e.shared:
        found.append("  this model takes padded rows: each completion brings its prompt along")
    return found


def warning(estimate: Estimate) -> str | None:
    """What to say where the peak is over the memory: which setting to lower, the most effective first."""
    if estimate.fits or estimate.memory is None:
        return None
    over = f"about {size(estimate.total)} are needed and {size(estimate.memory)} are there"
    if not estimate.choices:
        return f"memory: {over}; take a smaller model, shorter rows or a larger machine"
    told = "; ".join(f"{choice.setting}: {size(choice.total)}" for choice in estimate.choices)
    least = min(choice.total for choice in estimate.choices)
    still = "" if least <= estimate.memory else "; even so it does not fit: take a smaller model or a larger machine"
    return f"memory: {over}. What lowers it, each with the peak that is left: {told}{still}"


def _long(seconds: float) -> str:
    return duration(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def size(number: int) -> str:
    """Bytes as people say them, in thousands: `540 MB`, `1.1 GB`, `1,411 GB`."""
    if number < 999_500_000:
        return f"{number / 1e6:,.0f} MB"
    return f"{number / 1e9:,.1f} GB" if number < 99_950_000_000 else f"{number / 1e9:,.0f} GB"


def count(number: int) -> str:
    """Weights as people say them: `540 K`, `135 M`, `70.6 B`."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}" if number < 100 * unit else f"{number / unit:,.0f} {name}"
    return str(number)
