"""Verifiable instructions: rows whose instructions are plainly followed, or plainly not."""

import pytest

from exoalign.data.formats import read_prompts
from exoalign.errors import RewardError
from exoalign.groups import Group
from exoalign.rewards.scorers import FunctionScorer

pytest.importorskip("if_verifiable")

SHORT = {
    "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
    "kwargs": [{"num_words": 4, "relation": "less than"}, {}],
}


def group(completions, row):
    return Group("Name a fruit.", tuple(completions), provenance={"source": "p:1", "row": row})


def test_all_instructions_must_be_followed():
    score = FunctionScorer("if_verifiable")
    texts = ["A red apple", "An apple, say", "An apple is a fruit that grows", ""]
    assert score([group(texts, SHORT)]) == [(1.0, 0.0, 0.0, 0.0)]


def test_loose_scores_forgive_what_stands_around_the_reply():
    row = {"instruction_id_list": ["length_constraints:number_words"], "kwargs": SHORT["kwargs"][:1]}
    text = "Here is a fruit for you:\nAn apple"  # without its first line two words
    assert FunctionScorer("if_verifiable")([group([text], row)]) == [(0.0,)]
    assert FunctionScorer("if_verifiable", {"loose": True})([group([text], row)]) == [(1.0,)]


def test_the_language_of_a_text_is_not_guessed_by_chance(monkeypatch):
    from langdetect import DetectorFactory

    monkeypatch.setattr(DetectorFactory, "seed", None)
    row = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "en"}]}
    texts = ["The house ist sehr schön and big", "An apple a day keeps the doctor away."]
    first = FunctionScorer("if_verifiable")([group(texts, row)])
    assert all(FunctionScorer("if_verifiable")([group(texts, row)]) == first for _ in range(40))
    assert first[0][1] == 1.0


def test_what_is_drawn_elsewhere_stays_as_it_was():
    import random

    random.seed(5)
    expected = random.random()
    random.seed(5)
    FunctionScorer("if_verifiable")([group(["A red apple"], SHORT)])
    assert random.random() == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "the row has no instructions; expected the columns `instruction_id_list` and `kwargs`"),
        ({"instruction_id_list": []}, "the row has no instructions"),
        ({**SHORT, "kwargs": [{}]}, "expected a list with an object for each of 2 ids"),
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, "did you mean punctuation:no_comma"),
        (
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3}]},
            "has no `relation` in `kwargs`; expected num_words, relation",
        ),
    ],
)
def test_a_row_that_cannot_be_verified_is_refused(row, message):
    with pytest.raises(RewardError, match=f"^reward function if_verifiable at p:1 .*{message}"):
        FunctionScorer("if_verifiable")([group(["a"], row)])


def test_prompts_keep_their_rows_other_columns(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "Name a fruit.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}\n{"prompt": "B"}\n'
    )
    first, second = read_prompts(tmp_path / "p.jsonl")
    assert first.row == {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert second.row is None
    (tmp_path / "k.jsonl").write_text('{"prompt": "B", "completions": ["a", "b"], "rewards": [0, 1], "answer": "a"}\n')
    assert read_prompts(tmp_path / "k.jsonl")[0].row == {"answer": "a"}  # what its kind reads is not kept again
