"""The child process of `template`: renders chat templates, which are foreign programs, one line of JSON in and one out.

It imports transformers' own rendering (and no torch), so that the texts are those of `apply_chat_template`. Its memory is
limited to what it has when it is ready plus `MEMORY_BYTES`; its time is the parent's to watch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

SECONDS = 2.0
"""How long a template may render."""

MEMORY_BYTES = 512 * 2**20
"""How much memory a template may take, where the system can limit it."""

LONGEST_TEXT = 2**20
"""How many characters a template may make of roles and place-holders; real ones make a few thousand."""


def serve() -> None:
    """Answer until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes the pipe
    try:
        from transformers.utils.chat_template_utils import render_jinja_template

        _limit_memory()
        first: dict[str, Any] = {"ready": True}
    except Exception as error:  # said to the parent, which alone can say it to the user
        first = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(first) + "\n")
    answers.flush()
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):  # ends this process should its parent be killed while a template loops
            signal.setitimer(signal.ITIMER_REAL, 5 * SECONDS)
        answers.write(_answer(line, render_jinja_template) + "\n")
        answers.flush()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(line: str, render: Any) -> str:
    try:
        request = json.loads(line)
        rendered = render(
            conversations=[request["turns"]],
            chat_template=request["template"],
            add_generation_prompt=request["generation_prompt"],
            **request["special"],
        )
        text = rendered[0][0]
        return json.dumps({"stopped": "length"} if len(text) > LONGEST_TEXT else {"text": text})
    except MemoryError:
        return '{"stopped": "memory"}'
    except Exception as error:  # templates are programs and raise what they like
        return json.dumps({"error": (str(error) or type(error).__name__)[:1000]})


def _limit_memory() -> None:
    """Limit the address space, where there is `resource`; where the size is not to be read, the data of the process."""
    try:
        import resource
    except ImportError:
        return
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        kind = resource.RLIMIT_AS
    except OSError:
        now, kind = 0, resource.RLIMIT_DATA
    hard = resource.getrlimit(kind)[1]
    most = now + MEMORY_BYTES
    try:
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (ValueError, OSError):  # a system that knows the name and not the limit
        return
