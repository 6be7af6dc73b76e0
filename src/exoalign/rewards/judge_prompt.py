"""What a judge is asked: a prompt that ships or a file of one's own, with the replies between delimiters that they cannot hold.

The first line of a file says its kind: `pairwise`, or `pointwise 1-10` with the ends of the scale. What follows is the
question, in which `$prompt`, `$first` and `$second` (or `$reply`) stand for the texts and `$mark` for the mark of their
delimiters; `$$` is a dollar sign.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from exoalign.errors import ConfigError, first_line

_FOLDER = Path(__file__).parent / "judge_prompts"
SHIPPED = ("dialogue", "summarisation", "instruction")
_PLACES = {"pairwise": ("prompt", "first", "second", "mark"), "pointwise": ("prompt", "reply", "mark")}
_HEAD = re.compile(r"pairwise|pointwise (-?\d+)-(-?\d+)")


@dataclass(frozen=True)
class JudgePrompt:
    """A question with places for the texts.

    Attributes:
        kind: `pairwise` or `pointwise`.
        text: the question, as a template.
        low, high: the ends of the scale, of a pointwise one.
    """

    kind: str
    text: str
    low: int = 0
    high: int = 0

    def ask(self, prompt: str, replies: Sequence[str], *, seed: int) -> str:
        """The question on two replies, or on one. The same texts and seed give the same question."""
        mark = delimiter([prompt, *replies], seed=seed)
        names = _PLACES[self.kind][:-1]
        blocks = {
            name: f"[{mark} begin]\n{text}\n[{mark} end]" for name, text in zip(names, [prompt, *replies], strict=True)
        }
        return Template(self.text).substitute(blocks, mark=mark)


def delimiter(texts: Sequence[str], *, seed: int) -> str:
    """A mark of 16 hexadecimal digits that none of the texts holds: random to whoever wrote them, yet the same each time."""
    attempt = 0
    while True:
        digest = hashlib.sha256(json.dumps([seed, attempt, *texts]).encode()).hexdigest()[:16]
        if not any(digest in text.lower() for text in texts):
            return digest
        attempt += 1


def load_judge_prompt(name: str, kind: str) -> JudgePrompt:
    """The question of that name and kind.

    Args:
        name: one of `SHIPPED`, or a file.
        kind: `pairwise` or `pointwise`.

    Raises:
        ConfigError: if there is none, it is of the other kind, or lacks one of its places or has an unknown one.
    """
    path = _FOLDER / f"{kind}_{name}.txt" if name in SHIPPED else Path(name).expanduser()
    try:
        head, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"judge.prompt is {name!r}: {first_line(error)}; expected {', '.join(SHIPPED)} or a text file with the question"
        ) from error
    found = _HEAD.fullmatch(head.strip())
    if found is None:
        raise ConfigError(f"{path}:1: found {head[:40]!r}; expected `pairwise`, or `pointwise 1-10` with the scale")
    if head.split()[0] != kind:
        raise ConfigError(f"{path}:1: the prompt is {head.split()[0]} and judge.kind is {kind}; they must be the same")
    low, high = (int(found[1]), int(found[2])) if found[1] is not None else (0, 0)
    if kind == "pointwise" and low >= high:
        raise ConfigError(f"{path}:1: the scale goes from {low} to {high}; expected its lower end first")
    places = _PLACES[kind]
    expected = ", ".join(f"${place}" for place in places)
    try:
        Template(text).substitute(dict.fromkeys(places, ""))
    except KeyError as error:
        raise ConfigError(f"{path}: unknown place ${error.args[0]}; expected {expected}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: a $ stands alone ({error}); write $$ for a dollar sign") from error
    for place in places:
        if not re.search(rf"\$(?:{place}\b|\{{{place}\}})", text.replace("$$", "")):
            why = "; it tells the judge where data begins and ends" if place == "mark" else ""
            raise ConfigError(f"{path}: the place ${place} is missing; expected {expected}{why}")
    return JudgePrompt(kind, text, low, high)
