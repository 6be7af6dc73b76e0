"""Progress: a line that redraws on a terminal, a line now and then elsewhere, and nothing that model text could turn."""

import io

import pytest

from exoalign import progress
from exoalign.progress import Progress, duration, plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain naïve 日本語 🙂", "plain naïve 日本語 🙂"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08\x00\x7f", "a\\x0db\\x08\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),  # the one-byte form of ESC [
        ("\u202egnirts", "\\x202egnirts"),  # right to left
        ("\ud800", "\\xd800"),
        ("", ""),
    ],
)
def test_control_characters_are_shown_and_do_nothing(text, shown):
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch, clock):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("sample", 40) as bar:
        for _ in range(40):
            clock.now += 1
            bar.advance(note="fine")
    assert stream.getvalue() == ("  sample: 15/40, 15 s, 25 s left  fine\n  sample: 30/40, 30 s, 10 s left  fine\n")
    assert bar.done == 40


def test_a_terminal_sees_every_step_on_one_line_which_is_wiped_at_the_end(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("align", 3) as bar:
        clock.now += 10
        bar.advance()
        bar.advance(2)
    written = stream.getvalue()
    assert "\n" not in written
    assert written.startswith("\r\x1b[2K  align: 1/3, 10 s, 20 s left")
    assert "3/3, 10 s, 0 s left" in written
    assert written.endswith("\r\x1b[2K")


def test_notes_are_inert_and_stay_on_their_line(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("align", 2) as bar:
        bar.advance(note="\x1b[2J\rowned")
        bar.advance(note="first\nsecond" + "x" * 500)
    written = stream.getvalue().replace("\r\x1b[2K", "|")
    assert "\x1b" not in written
    assert "\r" not in written
    assert "\n" not in written
    assert max(map(len, written.split("|"))) <= 150


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_nothing_is_shown_when_it_is_not_wanted(monkeypatch, clock, stream):
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("sample", 2, enabled=False) as bar:
        clock.now += 100
        bar.advance()
    assert stream.getvalue() == ""


def test_an_error_inside_passes_through(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(ValueError, match="inside"), Progress("sample", 2):
        raise ValueError("inside")


def test_what_was_done_before_took_no_time(monkeypatch, clock):
    """90 of 100 before, 2 more in 10 s: 40 s for the other 8."""
    monkeypatch.setattr("sys.stderr", Terminal())
    with Progress("train step", 100, done=90) as bar:
        clock.now += 10
        bar.advance(2)
        assert "train step: 92/100, 10 s, 40 s left" in progress.sys.stderr.getvalue()
