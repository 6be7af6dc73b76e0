"""Functions that look at words, on texts whose values are counted by hand."""

import math
import sys
import time

import pytest

from exoalign.errors import RewardError
from exoalign.groups import Group
from exoalign.rewards.functions import length, scores_of
from exoalign.rewards.scorers import FunctionScorer
from exoalign.rewards.texts import readability, regex, repetition


def test_regex_says_whether_the_pattern_occurs():
    texts = ["Answer: 42", "answer: x", "", "So. Answer: 7!"]
    assert regex([""] * 4, texts, pattern=r"Answer: \d") == [1.0, 0.0, 0.0, 1.0]
    assert regex([""] * 4, texts, pattern=r"(?i)answer") == [1.0, 1.0, 0.0, 1.0]
    assert regex([""] * 4, texts, pattern=r"Answer: \d+", whole=True) == [1.0, 0.0, 0.0, 0.0]
    assert regex([""] * 4, texts, pattern=r"[a-z]{2,}", count=True) == [1.0, 1.0, 0.0, 1.0]
    assert regex([""], ["a-b-c"], pattern="-", count=True) == [2.0]


@pytest.mark.parametrize("how", [{}, {"count": True}, {"whole": True}])
def test_a_pattern_that_takes_for_ever_is_stopped(how):
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"\(a\|a\)\+\$.* was searched for 0\.2 s without an end"):
        regex([""], ["a" * 60 + "b"], pattern=r"^(a|a)+$", seconds=0.2, **how)
    assert time.monotonic() - began < 5


def test_words_that_come_again_cost():
    texts = ["a b c d", "a b c a b c", "x x x x", "one two", "", "The cat the CAT the cat"]
    # 3-grams: abc bcd | abc bca cab abc: 1 of 4 | xxx xxx: 1 of 2 | none | none | tct ctc tct ctc: 2 of 4
    assert repetition([""] * 6, texts) == [0.0, -0.25, -0.5, 0.0, 0.0, -0.5]
    assert repetition([""], ["x x x x"], n=1) == [-0.75]
    assert all(math.copysign(1, value) == 1 for value in repetition([""], ["a b c d"]))  # no -0.0


def test_a_target_length_is_best_where_it_is_met():
    assert length([""] * 3, ["a", "a b c", "a b c d e"], target=3) == [-2.0, 0.0, -2.0]


def test_readability_is_the_formula_of_textstat():
    # automated readability index: 4.71 * characters / words + 0.5 * words / sentences - 21.43, full stops counted
    (easy,) = readability([""], ["The cat sat. The dog ran."], metric="automated_readability_index")
    assert easy == pytest.approx(4.71 * 20 / 6 + 0.5 * 6 / 2 - 21.43)
    hard, empty = readability(
        ["", ""], ["Incomprehensible terminology obfuscates.", ""], metric="automated_readability_index"
    )
    assert hard > easy
    assert math.isfinite(empty)


@pytest.fixture
def syllables(tmp_path, monkeypatch):
    """A dictionary of syllables with a few entries, in place of the one that nltk would download."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("textstat")
    from nltk.corpus.reader.cmudict import CMUDictCorpusReader

    folder = tmp_path / "corpora" / "cmudict"
    folder.mkdir(parents=True)
    entries = [
        "THE 1 DH AH0",
        "CAT 1 K AE1 T",
        "SAT 1 S AE1 T",
        "HAPPY 1 HH AE1 P IY0",
        "SYLLABLES 1 S IH1 L AH0 B AH0 L Z",
    ]
    (folder / "cmudict").write_text("\n".join(entries) + "\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    reader = CMUDictCorpusReader(str(folder), ["cmudict"])
    monkeypatch.setattr(nltk.corpus, "cmudict", reader)


def test_flesch_reading_ease_is_the_default(syllables):
    # 206.835 - 1.015 * words / sentences - 84.6 * syllables / words, with 4 words of 5 syllables
    assert readability([""], ["The happy cat sat."]) == pytest.approx([206.835 - 1.015 * 4 - 84.6 * 5 / 4], abs=1e-6)


def test_without_a_dictionary_of_syllables_it_is_told_before_anything_is_sampled(tmp_path):
    """In a process of its own: textstat remembers what it has counted."""
    import os
    import subprocess

    pytest.importorskip("textstat")
    code = (
        "import nltk; nltk.download = lambda *a, **k: False\n"
        "from exoalign.rewards.scorers import FunctionScorer\nFunctionScorer('readability')"
    )
    home = {"HOME": str(tmp_path), "NLTK_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | home)
    if done.returncode == 0:
        pytest.skip("the dictionary is installed beside Python")
    assert "RewardError: reward function readability: flesch_reading_ease needs a dictionary" in done.stderr
    assert "python -m nltk.downloader cmudict" in done.stderr


# Arguments


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("regex", {}, "regex needs the argument `pattern`; it takes pattern, whole, count, seconds"),
        ("regex", {"patern": "a"}, "regex has no argument `patern`; did you mean `pattern`?"),
        ("regex", {"pattern": "("}, r"regex: pattern '\(' is no regular expression: missing \)"),
        ("regex", {"pattern": 5}, "regex: pattern 5 is no regular expression"),
        ("regex", {"pattern": "a", "whole": True, "count": True}, "exclude each other"),
        ("sentiment", {"n": 1}, "sentiment has no argument `n`; it takes no arguments"),
        ("repetition", {"n": 0}, "`n` is 0; expected a whole number of words"),
        ("readability", {"metric": "easy"}, "`metric` is 'easy'; expected one of .*flesch_reading_ease"),
        ("if_verifiable", {"rows": []}, "if_verifiable has no argument `rows`"),
        ("if_verifiable", {"benchmark": "x"}, "`benchmark` is 'x'; expected ifeval or ifbench"),
    ],
)
def test_arguments_are_checked_before_anything_is_sampled(function, arguments, message):
    with pytest.raises(RewardError, match=f"^reward function {message}|^reward function {function}: .*{message}"):
        FunctionScorer(function, arguments)


def test_one_s_own_function_takes_arguments_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "own_rewards_with_arguments.py").write_text(
        "def letters(prompts, completions, letter, times=1):\n    return [c.count(letter) * times for c in completions]\n"
        "def anything(prompts, completions, **settings):\n    return [settings['x'] for c in completions]\n"
    )
    group = Group("Say:", ("aa", "b"))
    own = FunctionScorer("own_rewards_with_arguments:letters", {"letter": "a", "times": 3})
    assert own([group, group]) == [(6.0, 0.0)] * 2
    assert own.name == "letters"
    assert FunctionScorer("own_rewards_with_arguments:anything", {"x": 2}, name="two")([group]) == [(2.0, 2.0)]
    with pytest.raises(RewardError, match="letters has no argument `time`; did you mean `times`"):
        FunctionScorer("own_rewards_with_arguments:letters", {"letter": "a", "time": 3})
    before = own.identity()
    assert before["arguments"] == {"letter": "a", "times": 3}
    with (tmp_path / "own_rewards_with_arguments.py").open("a") as file:
        file.write("# changed\n")
    assert own.identity()["code"] != before["code"]


def test_the_other_columns_of_the_row_come_as_rows():
    def exact(prompts, completions, rows):
        return [float(text == row["answer"]) for text, row in zip(completions, rows, strict=True)]

    groups = [Group("2+2", ("4", "5"), provenance={"source": "p:1", "row": {"answer": "4"}}), Group("3", ("4",))]
    assert scores_of(groups[:1], exact) == [(1.0, 0.0)]
    with pytest.raises(RewardError, match=r"raised KeyError at group '3'"):
        scores_of(groups, exact)


def test_errors_of_functions_that_ship_name_the_row():
    group = Group("p", ("a" * 60 + "b",), provenance={"source": "f:7"})
    scorer = FunctionScorer("regex", {"pattern": "^(a|a)+$", "seconds": 0.1})
    with pytest.raises(RewardError, match=r"^reward function regex at f:7 .*without an end"):
        scorer([group])
