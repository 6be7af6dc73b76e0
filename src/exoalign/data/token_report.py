"""What tokenisation made, and whether the prompt's ids are a prefix of the whole.

Prompt and completion are tokenised apart, since that is how they meet in sampling. Where tokenising them together gives other
tokens at the boundary, or the chat template says another thing before a reply once it is there, the model was trained on
other tokens than ours. Such rows are counted and some shown; they are used with our ids all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from exoalign.data.template import ChatTemplate, frame, render
from exoalign.data.turns import Turns, roles
from exoalign.errors import ModelError
from exoalign.groups import Group, Message
from exoalign.progress import plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

_SHOWN = 3
_WINDOW = 40  # characters at least, on each side, in which a boundary is looked at
_AROUND = 4  # tokens shown on each side of a boundary
_TAG = re.compile(r"</?\w+/?>")  # `<think>` and its like, which templates look for in contents


@dataclass
class TokenReport:
    """Counts of one tokenisation, filled by `tokenize` and `stream_tokenized`.

    Attributes:
        groups: groups that went through.
        completions: completions of them.
        prompt_tokens: tokens of all prompts, each counted once for its group.
        completion_tokens: tokens of all completions.
        checked: completions whose boundary with the prompt was checked; ids that were there already are not.
        moved: completions whose tokens at the boundary are others when tokenised with what stands before them: the prompt as
            text, or what the chat template says after its last special token.
        changed: completions of conversations before which the template says another thing than at the end of the prompt.
        single: completions of one token: nothing but the end of a turn, which teaches only to be silent.
        single_rows: the first three groups that have such.
        examples: three of the moved and changed ones, decoded around the boundary.
    """

    groups: int = 0
    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    checked: int = 0
    moved: int = 0
    changed: int = 0
    single: int = 0
    single_rows: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Sentences for the user: what was made, then what is doubtful, each with its examples."""
        lines = [
            f"{self.groups} groups: {self.prompt_tokens:,} prompt tokens, {self.completion_tokens:,} in"
            f" {self.completions} completions"
        ]
        if self.single:
            more = ", ..." if self.single > len(self.single_rows) else ""
            lines.append(
                f"{self.single} of {self.completions} completions are a single token, so they teach only where to end"
                f" ({', '.join(self.single_rows)}{more}); remove the rows if the texts are empty"
            )
        if self.moved:
            lines.append(
                f"{self.moved} of {self.checked} completions: tokenised together with the prompt, the boundary would move;"
                " they are tokenised apart all the same, as in sampling. Let prompts not end in the middle of a word or in"
                " a space, and replies to conversations not begin with a line break"
            )
        if self.changed:
            lines.append(
                f"{self.changed} of {self.checked} completions: the chat template changes what stands before the reply once"
                " it is there; the prompt as it is for sampling is used all the same"
            )
        return [plain(line) for line in (*lines, *(f"  {example}" for example in self.examples))]

    def count(self, group: Group, *, checked: bool) -> None:
        """Count a group with its ids; `checked` says whether its boundaries are looked at."""
        self.checked += group.k if checked else 0
        self.groups += 1
        self.completions += group.k
        self.prompt_tokens += len(group.prompt_ids or ())
        lengths = [len(ids) for ids in group.completion_ids or ()]
        self.completion_tokens += sum(lengths)
        if 1 in lengths:
            self.single += lengths.count(1)
            if len(self.single_rows) < _SHOWN:
                self.single_rows.append(group.where)

    def check_text(self, where: str, before: Ids, reply: Ids, whole: Ids, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compare the ids of a reply and of what stands before it with those of both tokenised together."""
        ours, cut = before + reply, len(before)
        if ours == whole:
            return
        self.moved += 1
        if len(self.examples) < _SHOWN:
            differs = [a != b for a, b in zip(ours, whole, strict=False)]
            first = differs.index(True) if True in differs else min(len(ours), len(whole))
            begin = max(0, min(first, cut) - _AROUND)
            self.examples.append(
                f"{where}: apart {_tokens(tokenizer, ours[begin:cut])} |"
                f" {_tokens(tokenizer, ours[cut : cut + _AROUND])},"
                f" together {_tokens(tokenizer, whole[begin : cut + _AROUND])}"
            )

    def check_turns(self, group: Group, turns: Turns) -> None:
        """Check that what the template says up to a reply is the same with and without it, for each of the assistant's."""
        prompt = group.prompt
        assert not isinstance(prompt, str)
        for completion in group.completions:
            reply = (Message("assistant", completion),) if isinstance(completion, str) else completion
            fault = _changed_structure(turns.template, roles(prompt), roles(reply))
            fault = fault or _changed_content(turns.template, prompt, reply)
            if fault is None:
                continue
            self.changed += 1
            if len(self.examples) < _SHOWN:
                self.examples.append(f"{group.where}: {fault}")


def boundary_window(prompt: str, completion: str) -> str:
    """The text around the boundary, some words on each side: whether it moves is decided there, at a fifth of the price."""
    begin = max(0, prompt.rfind(" ", 0, max(0, len(prompt) - _WINDOW)))
    end = completion.find(" ", _WINDOW)
    return prompt[begin:] + (completion if end < 0 else completion[:end])


def boundary_holds(before: Ids, reply: Ids, window: Ids) -> bool:
    """Whether the window's tokens are the last ones before a reply followed by the reply's first ones.

    False is only a doubt: the window may begin or end inside a token.
    """
    most = min(len(window), len(before))
    return any(
        window[0] == before[-n] and window[:n] == before[-n:] and window[n:] == reply[: len(window) - n]
        for n in range(1, most + 1)
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return " ".join(repr(plain(str(tokenizer.decode([i])))) for i in ids)


@lru_cache(maxsize=1024)
def _changed_structure(template: ChatTemplate, before: tuple[str, ...], after: tuple[str, ...]) -> str | None:
    """What is wrong with the template for a prompt and a completion of these roles, whatever their contents."""
    names = before + after
    try:
        whole = frame(template, names, False)
    except ModelError as error:
        return f"prompt and reply together: {error}"
    for i in (i for i in range(len(before), len(names)) if names[i] == "assistant"):
        prompt = frame(template, names[:i], True)
        here, there = "…".join(prompt.parts), "…".join((*whole.parts[:i], whole.parts[i][: len(prompt.parts[i])]))
        if here != there:
            return _difference(here, "…".join(whole.parts))
        if prompt.strips != whole.strips[:i]:
            return "the template strips other contents once the reply is there"
    return None


def _changed_content(template: ChatTemplate, prompt: tuple[Message, ...], reply: tuple[Message, ...]) -> str | None:
    """What the template does to tags such as `<think>` in contents, if it knows them."""
    known = _known_tags(template)
    turns = [(turn.role, tuple(_shape(turn.content, known))) for turn in (*prompt, *reply)]
    if not any(len(shape) > 1 or shape[:1] != ("",) for _, shape in turns if shape):
        return None
    return _changed_tags(template, tuple(turns), len(prompt))


@lru_cache(maxsize=16)
def _known_tags(template: ChatTemplate) -> frozenset[str]:
    return frozenset(_TAG.findall(template.source))


def _shape(content: str, known: frozenset[str]) -> list[str]:
    """The tags in a content, in order, and "" for text between them."""
    shape: list[str] = []
    at = 0
    for match in _TAG.finditer(content):
        if match.group() in known:
            shape += [""] if match.start() > at else []
            shape.append(match.group())
            at = match.end()
    return [*shape, ""] if at < len(content) else shape


@lru_cache(maxsize=1024)
def _changed_tags(template: ChatTemplate, shapes: tuple[tuple[str, tuple[str, ...]], ...], cut: int) -> str | None:
    texts = [
        (role, "".join(piece or f"\ue000{i}.{j}\ue001" for j, piece in enumerate(shape)))
        for i, (role, shape) in enumerate(shapes)
    ]
    names = tuple(role for role, _ in texts)
    for upto, generation_prompt in ((cut, True), (len(texts), False)):
        try:
            around = frame(template, names[:upto], generation_prompt)
            found = render(template, tuple(texts[:upto]), generation_prompt)
        except ModelError as error:
            return f"contents with tags: {error}"
        pairs = zip(around.parts, (text for _, text in texts[:upto]), strict=False)
        ours = "".join(part + text for part, text in pairs)
        if not found.startswith(ours):
            return _difference(_visible(ours), _visible(found))
    return None


def _visible(text: str) -> str:
    return re.sub("\ue000[\\d.]+\ue001", "…", text)


def _difference(ours: str, theirs: str) -> str:
    """Both texts around the first character that differs."""
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    begin = max(0, first - 40)
    return f"{plain(ours[begin : first + 40])!r} is used, the template says {plain(theirs[begin : first + 40])!r} (… a content)"
