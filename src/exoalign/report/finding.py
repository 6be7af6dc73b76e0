"""What a run found: its estimates, one sentence in plain words, and the headline cards.

An estimate is a mean with a 95% bootstrap interval, clustered by prompt. The sentence claims a rise or a fall only when
the interval of the difference lies on one side of 0, and speaks of chance only by that of the accuracy.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MINUS = "\u2212"
CHANCE = 0.5  # accuracy of a coin on pairs


@dataclass(frozen=True)
class Estimate:
    """A finite mean; `low` and `high` are the ends of its interval, or both None where there is none."""

    mean: float
    low: float | None = None
    high: float | None = None

    def side_of(self, value: float) -> int:
        """+1 or -1 when the whole interval lies above or below `value`, else 0; 0 also without an interval."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > value) - (self.high < value)


@dataclass(frozen=True)
class Card:
    """One headline number: `kind` names its colour in the stylesheet."""

    label: str
    value: str
    note: str = ""
    kind: str = ""


def finite(value: object) -> float | None:
    """The value as a float when it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)


def estimate(metrics: Mapping[str, Any], *keys: str) -> Estimate | None:
    """The estimate at `keys`, from {"mean", "low", "high"} or a bare number; None when it is absent or not finite."""
    found: Any = metrics
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    if not isinstance(found, Mapping):
        found = {"mean": found}
    mean, low, high = (finite(found.get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return None
    return Estimate(mean, low, high) if low is not None and high is not None else Estimate(mean)


def decimals(*estimates: Estimate | None) -> int:
    """Decimals that show two figures of the narrowest interval, or three of the smallest mean when there is none."""
    present = [e for e in estimates if e is not None]
    widths = [e.high - e.low for e in present if e.low is not None and e.high is not None and e.high > e.low]
    means = [abs(e.mean) for e in present if e.mean != 0]
    if widths:
        places = 1 - math.floor(math.log10(min(widths)))
    elif means:
        places = 2 - math.floor(math.log10(min(means)))
    else:
        places = 2
    return min(max(places, 0), 6)


def number(value: float, places: int, *, sign: bool = False) -> str:
    """The value with a typographic minus; never "-0.00", and a plus on request."""
    text = f"{abs(value):,.{places}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return (MINUS if value < 0 else "+" if sign else "") + text


def interval(found: Estimate, places: int, *, sign: bool = False, unit: str = "") -> str:
    """The interval as "0.12 to 0.24", or nothing when there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"{number(found.low, places, sign=sign)}{unit} to {number(found.high, places, sign=sign)}{unit}"


def finding(metrics: Mapping[str, Any]) -> str:
    """The finding of the run, in one or two sentences that claim no more than the intervals carry."""
    if sentence := _reward_finding(metrics) or _pair_finding(metrics):
        return sentence
    return "The metrics hold no finite held-out reward or accuracy, so this page states no finding."


def cards(metrics: Mapping[str, Any]) -> list[Card]:
    """The headline numbers that the metrics hold, in reading order."""
    return [*_reward_cards(metrics), *_pair_cards(metrics)]


def _difference(metrics: Mapping[str, Any]) -> Estimate | None:
    base, aligned = estimate(metrics, "base", "reward"), estimate(metrics, "aligned", "reward")
    measured = estimate(metrics, "difference", "reward")
    if measured is None and base is not None and aligned is not None:
        return Estimate(aligned.mean - base.mean)
    return measured


def difference_places(difference: Estimate) -> int:
    """Enough decimals that an end of a clear interval does not round to 0."""
    places = decimals(difference)
    if side := difference.side_of(0):
        nearest = difference.low if side > 0 else difference.high
        while places < 6 and nearest is not None and round(nearest, places) == 0:
            places += 1
    return places


def _change_places(before: Estimate, after: Estimate) -> int:
    """Decimals that show two figures of the change."""
    return decimals(Estimate(after.mean, min(before.mean, after.mean), max(before.mean, after.mean)))


def _kl(metrics: Mapping[str, Any]) -> Estimate | None:
    """The exact per-step KL where there is one: it has the lower variance; else the mean log-ratio."""
    return estimate(metrics, "aligned", "kl_exact") or estimate(metrics, "aligned", "kl")


def _count(metrics: Mapping[str, Any], noun: str, *keys: str) -> str:
    found = estimate(metrics, *keys)
    return "" if found is None else f"{found.mean:,.0f} {noun}{'' if found.mean == 1 else 's'}"


def _where(metrics: Mapping[str, Any]) -> str:
    prompts, kl = _count(metrics, "held-out prompt", "prompts"), _kl(metrics)
    where = f" on {prompts}" if prompts else ""
    if kl is not None:
        where += f", at a KL of {number(kl.mean, decimals(kl))} nats from the reference"
    return where


def _reward_finding(metrics: Mapping[str, Any]) -> str:
    base, aligned = estimate(metrics, "base", "reward"), estimate(metrics, "aligned", "reward")
    difference, where = _difference(metrics), _where(metrics)
    if base is None or aligned is None or difference is None:
        if aligned is None:
            return ""
        places = decimals(aligned)
        extent = f" (95% interval {interval(aligned, places)})" if aligned.low is not None else ""
        return f"Mean reward after alignment is {number(aligned.mean, places)}{extent}{where}; no base to compare with."
    places = difference_places(difference)
    before, after = number(base.mean, places), number(aligned.mean, places)
    change, extent = number(difference.mean, places, sign=True), interval(difference, places)
    if not extent:
        noise = "No interval was computed, so this may be noise."
        return f"Mean reward went from {before} to {after} ({change}){where}. {noise}"
    if side := difference.side_of(0):
        verb = "rose" if side > 0 else "fell"
        return f"Mean reward {verb} from {before} to {after} ({change}, 95% interval {extent}){where}."
    return (
        f"No clear change in mean reward: {before} before, {after} after "
        f"({change}, 95% interval {extent}, which contains 0){where}."
    )


def _pair_finding(metrics: Mapping[str, Any]) -> str:
    accuracy = estimate(metrics, "heldout", "accuracy")
    before, after = estimate(metrics, "train", "loss_before"), estimate(metrics, "train", "loss_after")
    sentences = []
    if accuracy is not None:
        percent = _percent(accuracy)
        places = min(decimals(percent), 1)
        chance = estimate(metrics, "heldout", "accuracy", "chance") or Estimate(CHANCE)
        pairs = (
            _count(metrics, "held-out pair", "heldout", "pairs")
            or _count(metrics, "held-out group", "heldout", "groups")
            or "the held-out pairs"
        )
        what = "the best completion" if estimate(metrics, "heldout", "groups") else "the preferred reply"
        verdict = {1: "better than chance", -1: "worse than chance", 0: "not clearly different from chance"}
        extent = f" (95% interval {interval(percent, places, unit='%')})" if percent.low is not None else ""
        judged = "; no interval was computed"
        if extent:
            judged = f", {verdict[accuracy.side_of(chance.mean)]} ({number(100 * chance.mean, 0)}%)"
        sentences.append(
            f"The aligned model ranks {what} first in {number(percent.mean, places)}% of {pairs}{extent}{judged}."
        )
    if before is not None and after is not None:
        change = "fell" if after.mean < before.mean else "rose" if after.mean > before.mean else "stayed"
        pairs = _count(metrics, "pair", "train", "pairs") or _count(metrics, "group", "train", "groups")
        places = _change_places(before, after)
        sentences.append(
            f"Training loss {change} from {number(before.mean, places)} to {number(after.mean, places)}"
            f"{f' on {pairs}' if pairs else ''}{f', drawn from {drawn}' if (drawn := _drawn_from(metrics)) else ''}."
        )
        if accuracy is None:
            sentences.append("Nothing held out was measured.")
    return " ".join(sentences)


def _drawn_from(metrics: Mapping[str, Any]) -> str:
    """How many training groups there are, where not all were evaluated."""
    part = metrics.get("train", {})
    evaluated = part.get("pairs", part.get("groups", 0))
    return f"{part['of']:,}" if part.get("of", 0) > evaluated else ""


def _percent(share: Estimate) -> Estimate:
    if share.low is None or share.high is None:
        return Estimate(100 * share.mean)
    return Estimate(100 * share.mean, 100 * share.low, 100 * share.high)


def _note(found: Estimate, places: int, *, sign: bool = False, unit: str = "") -> str:
    extent = interval(found, places, sign=sign, unit=unit)
    return f"95%: {extent}" if extent else "no interval"


def _reward_cards(metrics: Mapping[str, Any]) -> list[Card]:
    base, aligned = estimate(metrics, "base", "reward"), estimate(metrics, "aligned", "reward")
    difference = _difference(metrics)
    places = decimals(base, aligned) if difference is None else difference_places(difference)
    shown = []
    if base is not None:
        shown.append(Card("Reward before", number(base.mean, places), _note(base, places), "base"))
    if aligned is not None:
        shown.append(Card("Reward after", number(aligned.mean, places), _note(aligned, places), "aligned"))
    if difference is not None:
        value = number(difference.mean, places, sign=True)
        shown.append(Card("Difference", value, _note(difference, places, sign=True)))
    if (kl := _kl(metrics)) is not None:
        kl_places, ratio = decimals(kl), estimate(metrics, "aligned", "kl")
        note = _note(kl, kl_places)
        if ratio is not None and ratio != kl:
            note += f"; mean log-ratio {number(ratio.mean, kl_places)}"
        shown.append(Card("KL from reference", f"{number(kl.mean, kl_places)} nats", note))
    lengths = [(name, estimate(metrics, name, "length")) for name in ("base", "aligned")]
    present = [(name, length) for name, length in lengths if length is not None]
    if present:
        value = " → ".join(number(length.mean, 1) for _, length in present)
        names = " → ".join({"base": "before", "aligned": "after"}[name] for name, _ in present)
        shown.append(Card("Completion length", value, f"tokens, {names}"))
    return shown


def _pair_cards(metrics: Mapping[str, Any]) -> list[Card]:
    shown = []
    if (accuracy := estimate(metrics, "heldout", "accuracy")) is not None:
        percent = _percent(accuracy)
        places = min(decimals(percent), 1)
        note = _note(percent, places, unit="%")
        shown.append(Card("Held-out accuracy", f"{number(percent.mean, places)}%", note, "aligned"))
    if (loss := estimate(metrics, "heldout", "loss")) is not None:
        shown.append(Card("Held-out loss", number(loss.mean, decimals(loss)), _note(loss, decimals(loss))))
    before, after = estimate(metrics, "train", "loss_before"), estimate(metrics, "train", "loss_after")
    if before is not None and after is not None:
        places = _change_places(before, after)
        shown.append(
            Card("Training loss", f"{number(before.mean, places)} → {number(after.mean, places)}", "before → after")
        )
    counts = [(key, _count(metrics, "pair", key, "pairs")) for key in ("train", "heldout")]
    if any(count for _, count in counts):
        value = " + ".join(count.split()[0] for _, count in counts if count)
        training = f"training (of {drawn})" if (drawn := _drawn_from(metrics)) else "training"
        names = " + ".join({"train": training, "heldout": "held out"}[key] for key, count in counts if count)
        shown.append(Card("Pairs", value, names))
    return shown
