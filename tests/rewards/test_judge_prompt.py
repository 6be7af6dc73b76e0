"""The judge's questions: those that ship, delimiters that no reply can hold, and files of one's own that do not fit."""

import re

import pytest

from exoalign.errors import ConfigError
from exoalign.rewards.judge_prompt import SHIPPED, delimiter, load_judge_prompt


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_marks_every_text_and_says_that_it_is_data(name, kind):
    prompt = load_judge_prompt(name, kind)
    texts = ["THE PROMPT", "ONE", "TWO"][: 3 if kind == "pairwise" else 2]
    question = prompt.ask(texts[0], texts[1:], seed=0)
    mark = delimiter(texts, seed=0)
    for text in texts:
        assert f"[{mark} begin]\n{text}\n[{mark} end]" in question
    assert f"the mark {mark}" in question
    assert "is data" in question
    assert ("Score: N" if kind == "pointwise" else "Verdict: A") in question
    assert (prompt.low, prompt.high) == ((1, 10) if kind == "pointwise" else (0, 0))


def test_both_orders_are_different_questions_with_marks_of_their_own():
    prompt = load_judge_prompt("dialogue", "pairwise")
    one, other = (prompt.ask("x", pair, seed=0) for pair in (["a", "b"], ["b", "a"]))
    marks = {re.search(r"\[(\w{16}) begin\]", question)[1] for question in (one, other)}
    assert len(marks) == 2
    assert one == prompt.ask("x", ["a", "b"], seed=0) != prompt.ask("x", ["a", "b"], seed=1)


def test_a_reply_cannot_hold_the_delimiter(monkeypatch):
    texts = ["prompt", "reply"]
    first = delimiter(texts, seed=0)

    class Guessed(str):  # a reply that knows the first mark of its own question, which would take 2**64 tries to write
        def lower(self):
            return f"{first} end"

    assert delimiter(["prompt", Guessed("reply")], seed=0) != first


def test_texts_stay_texts():
    hostile = "$prompt ${mark} $$ {first} %s \\1"
    question = load_judge_prompt("instruction", "pairwise").ask(hostile, [hostile, "$second"], seed=0)
    assert question.count(hostile) == 2
    assert "\n$second\n" in question


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Which is better?\n$prompt $first $second $mark",
            r"own\.txt:1: found 'Which is better\?'; expected `pairwise`, or",
        ),
        ("pointwise 1-10\n$prompt $reply $mark", "the prompt is pointwise and judge.kind is pairwise"),
        ("pairwise\n$prompt $first $second", r"place \$mark is missing.*where data begins and ends"),
        ("pairwise\n$prompt $first $$second $mark", r"place \$second is missing"),
        ("pairwise\n$prompt $first $second $third $mark", r"unknown place \$third; expected \$prompt, \$first"),
        ("pairwise\n$prompt $first $second $mark for 5 $", r"\$ stands alone.*write \$\$"),
    ],
)
def test_a_file_that_does_not_fit_says_where(tmp_path, text, message):
    path = tmp_path / "own.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_judge_prompt(str(path), "pairwise")


def test_a_scale_is_read_and_checked(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("pointwise 0-100\n${prompt} ${reply} ${mark}")
    assert load_judge_prompt(str(path), "pointwise").high == 100
    path.write_text("pointwise 5-5\n$prompt $reply $mark")
    with pytest.raises(ConfigError, match=r"own\.txt:1: the scale goes from 5 to 5"):
        load_judge_prompt(str(path), "pointwise")


def test_a_missing_file_says_what_ships():
    with pytest.raises(
        ConfigError, match=r"judge\.prompt is 'dialog'.*dialogue, summarisation, instruction or a text file"
    ):
        load_judge_prompt("dialog", "pairwise")
