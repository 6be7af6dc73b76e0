"""Chat templates, rendered within limits. A template comes with a model from anywhere and is a program: it runs in a child
process, stopped after 2 s or 512 MB (the time limit holds everywhere, the memory limit where the system has one).

Only the structure is rendered, roles with a place-holder as the content of each turn, once for each structure: a `Frame`.
What the template would strip from a content is found by padding the place-holders, and stripped from the content likewise.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from exoalign.data.template_child import LONGEST_TEXT, MEMORY_BYTES, SECONDS
from exoalign.errors import DataError, ModelError
from exoalign.progress import plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOT = "\ue000{}\ue001"  # private-use characters: no template and no text has them by accident
_LEFT, _RIGHT = "\n\u2003", "\u2002\n"  # stripped whole by `trim`, and by half by strip('\n')
_LEFT_OVER = "((?:\u2002\n?)?){}((?:\n?\u2003)?)"  # what two turns leave of it around what the template says between
_STRIPPED = {0: None, 1: "\n", 2: ""}  # how much of the padding is left: what `str.strip` is called with
_START_SECONDS = 120.0
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline());"
    "from exoalign.data.template_child import serve; serve()"
)


class RolesError(ModelError):
    """A template cannot put turns of these roles together; with others it may."""


class ChatTemplate(NamedTuple):
    """The source of a template and the special tokens that it may name, as JSON: what a rendering depends on."""

    source: str
    special: str


class Frame(NamedTuple):
    """What a template puts around the contents of some turns.

    Attributes:
        parts: `parts[i]` stands before the content of turn i, the last one after all: one more than there are turns.
        strips: for each turn, what is stripped from its content on the left and on the right: characters, None for white
            space, "" for nothing.
    """

    parts: tuple[str, ...]
    strips: tuple[tuple[str | None, str | None], ...]

    def content(self, i: int, text: str) -> str:
        """The content of turn i as the template would have it."""
        left, right = self.strips[i]
        return text.lstrip(left).rstrip(right)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The tokenizer's own template.

    Raises:
        ModelError: if it has none.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the prompt is a conversation, but the tokenizer has no chat template; give the prompt as text"
        )
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(f"the tokenizer has several chat templates and none called default: {error}") from error
    special = {
        name: [str(token) for token in value] if isinstance(value, list | tuple) else str(value)
        for name, value in tokenizer.special_tokens_map.items()
    }
    return ChatTemplate(source, json.dumps(special, sort_keys=True))


@lru_cache(maxsize=1024)
def frame(template: ChatTemplate, roles: tuple[str, ...], generation_prompt: bool) -> Frame:
    """What the template puts around turns of these roles, and at the end (`generation_prompt`) to start a reply.

    Raises:
        DataError: if a role is no plain name: the template puts it between its special tokens.
        RolesError: if the template refuses the roles, or drops or repeats a turn.
        ModelError: if it takes too long or too much memory.
    """
    for role in roles:
        if not re.fullmatch(r"\w[\w .-]*", role):
            raise DataError(
                f"the role {role[:60]!r} of a prompt is no plain name; expected user, assistant or its like"
            )
    slots = [_SLOT.format(i) for i in range(len(roles))]
    parts = _split(render(template, tuple(zip(roles, slots, strict=True)), generation_prompt), slots)
    if parts is None:
        raise RolesError("the chat template drops or repeats a turn, so its content cannot be tokenised apart")
    padded = tuple((role, _LEFT + slot + _RIGHT) for role, slot in zip(roles, slots, strict=True))
    around = _split(render(template, padded, generation_prompt), slots)
    strips = [("", "")] * len(roles) if around is None else _strips(parts, around)
    return Frame(tuple(parts), tuple(strips))


def _split(rendered: str, slots: list[str]) -> list[str] | None:
    """The texts around the slots; None unless each of them stands there once, in their order."""
    pieces = re.split("(\ue000\\d+\ue001)", rendered)
    return pieces[::2] if pieces[1::2] == slots else None


def _strips(parts: list[str], padded: list[str]) -> list[tuple[str | None, str | None]]:
    """For each slot what was stripped from its left and right, told by the padding that is left of it."""
    sides: list[str | None] = []  # right of no turn, left and right of each turn, left of no turn
    for part, found in zip(parts, padded, strict=True):
        left_over = re.fullmatch(_LEFT_OVER.format(re.escape(part)), found)
        # a template that looks at the content: leave it as it is
        sides += [_STRIPPED[len(left)] for left in left_over.groups()] if left_over else ["", ""]
    return list(zip(sides[1:-1:2], sides[2::2], strict=True))


def render(template: ChatTemplate, turns: tuple[tuple[str, str], ...], generation_prompt: bool) -> str:
    """The text that `apply_chat_template` gives for (role, content) turns, within the limits.

    Raises:
        RolesError: with the template's own message where it raises.
        ModelError: saying which limit it passed.
    """
    answer = _child_answer(
        {
            "template": template.source,
            "special": json.loads(template.special),
            "turns": [{"role": role, "content": content} for role, content in turns],
            "generation_prompt": generation_prompt,
        }
    )
    if "text" in answer:
        return str(answer["text"])
    roles = [role for role, _ in turns]
    if "error" in answer:
        raise RolesError(f"the chat template refuses the roles {roles}: {plain(answer['error'])}")
    raise ModelError(
        f"the chat template was stopped: {_STOPPED[answer['stopped']]} for the roles {roles}; a template only puts turns"
        " together, so this one is broken or hostile: use the model's own"
    )


_STOPPED = {
    "time": f"it ran for more than {SECONDS:g} s",
    "memory": f"it took more than {MEMORY_BYTES // 2**20} MB",
    "length": f"it made a text of more than {LONGEST_TEXT:,} characters",
    "death": "its process died",
}


class _Child:
    """A process that renders; it lives until it breaks a limit or this process ends."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
        )
        answer = self.ask(sys.path, _START_SECONDS)
        if "ready" not in answer:
            self.stop()
            found = answer.get("error") or _STOPPED[answer["stopped"]]
            raise ModelError(f"the process that renders chat templates did not start: {found}")

    def ask(self, request: Any, seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:  # it died before it had read all
            line = ""
        finally:
            timer.cancel()
        if line.endswith("\n"):
            return dict(json.loads(line))
        return {"stopped": "time" if late.is_set() else "death"}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not written has no reader any more
                    pipe.close()


_child: _Child | None = None
_lock = threading.Lock()


def _child_answer(request: dict[str, Any]) -> dict[str, Any]:
    """The child's answer, from one that is started at the first call and after each that had to be stopped."""
    global _child
    with _lock:
        if _child is None or _child.owner != os.getpid():  # a fork shares the pipe with its parent, who may be using it
            _child = _Child()
        answer = _child.ask(request, SECONDS)
        if "stopped" in answer:
            _child.stop()
            _child = None
        return answer


@atexit.register
def _stop_child() -> None:
    if _child is not None and _child.owner == os.getpid():
        _child.stop()
