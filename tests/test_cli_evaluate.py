"""`exoalign evaluate`, and the commands of docs/winrates.md: numbers counted by hand, and what is refused."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from exoalign import cli
from exoalign.data.table import write_table
from exoalign.groups import Group

PAGE = (Path(__file__).parents[1] / "docs" / "winrates.md").read_text()
COMMANDS = [line.strip() for line in re.findall(r"^    exoalign .*$", PAGE, re.MULTILINE)]


@pytest.fixture
def exoalign(tmp_path, monkeypatch, capsys):
    """Runs the command line in this process, in the folder of the files: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["exoalign", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def samples(rewards, texts=("a", "bb")) -> list[Group]:
    return [Group(f"q{i}", texts[: len(row)], rewards=row) for i, row in enumerate(rewards)]


@pytest.fixture(autouse=True)
def files(tmp_path):
    ours, theirs = samples([(3.0, 3.0), (2.0, 2.0), (1.0, 1.0), (5.0, 3.0)]), samples([(0.0,), (1.0,), (1.0,), (4.0,)])
    # 1, 1, 1/2 (two ties), 1/2: 0.75
    for name, groups in {"ours": ours, "theirs": theirs, "a": ours, "b": theirs, "c": theirs}.items():
        write_table(groups, tmp_path / f"{name}.parquet")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(command, exoalign):
    code, said, err = exoalign(*shlex.split(command)[1:])
    assert code == 0, err
    assert said


def test_the_page_shows_what_the_first_command_says(exoalign):
    (shown,) = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    said = exoalign(*shlex.split(COMMANDS[0])[1:])[1]
    assert [line.split() for line in said.splitlines() if line.strip()] == [
        line.split() for line in shown.splitlines() if line.strip()
    ]


def test_a_win_rate_as_json(exoalign):
    code, said, err = exoalign("evaluate", "winrate", "ours.parquet", "theirs.parquet", "--json")
    assert code == 0, err
    found = json.loads(said)
    assert (found["rate"]["mean"], found["ties"], found["pairs"], found["prompts"]) == (0.75, 2, 8, 4)
    # differences 3, 1, 0, 0: of 16 signs the 8 with the first two alike are as far from 0
    assert found["p_value"] == 0.5
    assert {f"`{name}`" for name in found} <= set(re.findall(r"`\w+`", PAGE))


def test_the_preferred_replies_of_data(exoalign, tmp_path):
    rows = [Group(f"q{i}", ("worse", "better"), rewards=(0.0, 9.0 * (i < 2)), winner=1) for i in range(4)]
    write_table(rows, tmp_path / "data.parquet")
    code, said, err = exoalign("evaluate", "winrate", "ours.parquet", "data.parquet", "--chosen", "--json")
    assert code == 0, err
    found = json.loads(said)
    assert (found["rate"]["mean"], found["pairs"]) == (0.5, 8)  # against 9, 9, 0, 0
    code, _, err = exoalign("evaluate", "winrate", "ours.parquet", "theirs.parquet", "--chosen")
    assert code == 2
    assert "no reply is preferred" in err


def test_pairs_that_were_scored_keep_their_winner(exoalign, tmp_path):
    lines = [json.dumps({"prompt": f"q{i}", "chosen": "b" * 7, "rejected": "r"}) for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    code, _, err = exoalign("score", "--data", "pairs.jsonl", "--function", "length", "--out", "scored", "--quiet")
    assert code == 0, err
    code, said, err = exoalign(
        "evaluate", "winrate", "ours.parquet", "scored/score/groups.parquet", "--chosen", "--json"
    )
    assert code == 0, err
    assert json.loads(said)["pairs"] == 8  # 2 x 1 for each prompt


def test_ratings_as_json(exoalign):
    code, said, err = exoalign("evaluate", "ratings", "a.parquet", "b.parquet", "c.parquet", "--json")
    assert code == 0, err
    first, *others = json.loads(said)
    # b and c are the same; a has 3 of 4 games and half a game more on both sides against each: 400 log10(3.5 / 1.5)
    assert first["model"] == "a.parquet"
    assert [first["elo"] - other["elo"] for other in others] == pytest.approx([147.19] * 2, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("winrate", "ours.parquet", "other.parquet"), "prompt 1 is 'q0' (group 'q0') of one side and 'x'"),
        (("winrate", "ours.parquet", "fewer.parquet"), "4 prompts of one side and 1 of the other"),
        (("winrate", "ours.parquet", "theirs.parquet", "--column", "s"), "has no score 's'; there are none"),
        (("winrate", "ours.parquet", "nothing.parquet"), "nothing.parquet"),
        (("ratings", "a.parquet", "other.parquet"), "same prompts in the same order"),
        (("ratings", "a.parquet"), "found 1 files, 1 different; expected two or more"),
    ],
)
def test_what_cannot_be_compared_ends_with_one_message(arguments, words, exoalign, tmp_path):
    write_table([Group(p, ("a",), rewards=(0.0,)) for p in ("x", "q1", "q2", "q3")], tmp_path / "other.parquet")
    write_table(samples([(1.0,)]), tmp_path / "fewer.parquet")
    code, said, err = exoalign("evaluate", *arguments)
    assert (code, said) == (2, "")
    assert words in re.sub(r"[\s│]+", " ", err)
