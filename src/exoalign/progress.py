"""Progress on stderr with the time left: a bar that redraws on a terminal, a line now and then elsewhere.

Model text and paths may hold anything, so `plain` makes it inert before it is printed.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

QUIET_LINE_SECONDS = 15.0
"""How often a line is written where there is no terminal to redraw."""
_RANGES = (range(0x20), range(0x7F, 0xA0), range(0x200E, 0x2010), range(0x202A, 0x202F), range(0x2066, 0x206A))
CONTROL = {"\u061c", *(chr(code) for codes in _RANGES for code in codes)} - set("\t\n\r")
"""C0 (but tab, newline and carriage return), DEL and C1; direction marks, overrides and isolates."""


def plain(text: str) -> str:
    """The text with control characters (ESC codes, carriage returns, ...) made visible; tabs and newlines stay."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def show_warnings(*, enabled: bool) -> None:
    """Let the warnings of this package come on stderr, each on its line, or (not `enabled`) nowhere."""
    handler = logging.StreamHandler() if enabled else logging.NullHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger("exoalign").addHandler(handler)


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `2 min 05 s`, `1 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Counts up to `total` and shows it on stderr; what was `done` before says nothing of the time that the rest takes.

    Example:
        >>> with Progress("sample", total=2, enabled=False) as progress:
        ...     progress.advance(2, "last note")
        >>> progress.done
        2
    """

    def __init__(self, label: str, total: int, *, enabled: bool = True, done: int = 0) -> None:
        self.label, self.total, self.enabled = label, total, enabled
        self.done, self.note, self._before = done, "", done
        self._terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        self._began = self._shown = time.monotonic()
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Say that `n` more are done; `note` stands at the end of the line."""
        self.done += n
        self.note = note
        now = time.monotonic()
        if self.enabled and (self._terminal or now - self._shown >= QUIET_LINE_SECONDS):
            self._shown = now
            self._write(now)

    def _write(self, now: float) -> None:
        spent = now - self._began
        now_done = self.done - self._before
        left = spent / now_done * (self.total - self.done) if now_done else 0.0
        note = " ".join(plain(self.note).split())
        line = f"  {self.label}: {self.done}/{self.total}, {duration(spent)}, {duration(left)} left  {note}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{line[:150]}")
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled and self._terminal:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
