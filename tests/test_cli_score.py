"""`exoalign score`: what it prints, what it refuses, and that nothing in a text acts on the terminal."""

import json
import sys

import pytest

from exoalign import cli
from exoalign.data.table import read_table

ROWS = [
    {"prompt": "Say [/foo]\u001b[2J", "completions": ["a", "[bold]a b[/bold] \u001b[31mred", "a b c d"], "rewards": [0, 1, 2]},
    {"prompt": "B", "completions": ["same", "same too"], "rewards": [0, 1]},
    {"prompt": "C", "completions": ["x", "y"], "rewards": [0, 1]},
]  # fmt: skip


@pytest.fixture
def exoalign(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(*arguments):
        monkeypatch.setattr(
            sys, "argv", ["exoalign", "score", "--data", "k.jsonl", "--out", "out", *map(str, arguments)]
        )
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_columns_are_weighted_clipped_and_written(exoalign, tmp_path):
    code, said, err = exoalign(
        "--function", "length", "--function", "regex", "--argument", "regex.pattern=^a( b)*$",
        "--weight", "length=-0.5", "--clip", "length=0,2", "--weight", "regex=10",
    )  # fmt: skip
    assert code == 0, err
    groups = read_table(tmp_path / "out" / "score" / "groups.parquet")
    assert groups[0].scores == {"length": (1.0, 3.0, 4.0), "regex": (1.0, 0.0, 0.0)}
    assert groups[0].rewards == (9.5, -1.0, -1.0)
    assert (
        said == "7 rewards, mean 0.714\ngroups: out/score/groups.parquet\n"
    )  # (9.5 - 1 - 1 - 0.5 - 1 - 0.5 - 0.5) / 7


def test_texts_are_inert_where_they_are_explained(exoalign):
    code, said, _ = exoalign("--function", "length", "--explain", 5)
    assert code == 0
    assert "\x1b" not in said
    assert said.split("\n\n")[0].split("\n") == [
        "k.jsonl:1",
        "    Say [/foo]\\x1b[2J",
        "  best: reward 4 (length 4)",
        "    a b c d",
        "  worst: reward 1 (length 1)",
        "    a",
    ]
    assert "k.jsonl:3" not in said  # its completions are worth the same


def test_json_is_all_that_stands_on_stdout(exoalign):
    code, said, _ = exoalign("--function", "length", "--explain", 1, "--json")
    assert code == 0
    found = json.loads(said)
    assert found["groups"] == "out/score/groups.parquet"
    assert {number["label"]: number["value"] for number in found["numbers"]}["completions"] == 7
    assert found["explain"] == [
        {
            "source": "k.jsonl:1",
            "prompt": ROWS[0]["prompt"],
            "best": {"completion": "a b c d", "reward": 4.0, "scores": {"length": 4.0}},
            "worst": {"completion": "a", "reward": 1.0, "scores": {"length": 1.0}},
        }
    ]


def test_a_second_time_nothing_is_scored_and_other_settings_are_refused(exoalign, tmp_path):
    (tmp_path / "counted.py").write_text(
        "def f(prompts, completions):\n    open('calls', 'a').write('x')\n    return [1.0] * len(completions)\n"
    )
    for _ in range(2):
        assert exoalign("--function", "counted:f")[0] == 0
    assert (tmp_path / "calls").read_text() == "xxx"
    code, _, err = exoalign("--function", "counted:f", "--weight", "f=2")
    assert code == 2
    assert "reward.columns.f.weight was 1.0 and is 2.0" in err
    assert exoalign("--function", "counted:f", "--weight", "f=2", "--redo")[0] == 0
    assert read_table(tmp_path / "out" / "score" / "groups.parquet")[0].rewards == (2.0, 2.0, 2.0)


def test_the_same_function_twice_has_two_columns(exoalign, tmp_path):
    code, _, err = exoalign(
        "--function", "regex", "--function", "regex", "--argument", "regex.pattern=a", "--argument", "regex_2.pattern=b"
    )  # fmt: skip
    assert code == 0, err
    assert read_table(tmp_path / "out" / "score" / "groups.parquet")[0].scores == {
        "regex": (1.0, 1.0, 1.0),
        "regex_2": (0.0, 1.0, 1.0),
    }


def test_a_server_scores_too(exoalign, httpserver, tmp_path):
    httpserver.expect_request("/r").respond_with_json({"rewards": [7, 6, 5, 4, 3, 2, 1]})
    code, _, err = exoalign("--server", httpserver.url_for("/r"), "--function", "length", "--weight", "length=0")
    assert code == 0, err
    assert [group.rewards for group in read_table(tmp_path / "out" / "score" / "groups.parquet")] == [
        (7.0, 6.0, 5.0), (4.0, 3.0), (2.0, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to score with; give --function, --model or --server"),
        (["--function", "lenght"], "did you mean length?"),
        (["--function", "regex"], "regex needs the argument `pattern`"),
        (["--function", "length", "--weight", "lenght=1"], "no column 'lenght'; there are length"),
        (["--function", "length", "--weight", "length"], "expected for example length=-0.1"),
        (["--function", "length", "--weight", "length=much"], "could not convert"),
        (["--function", "length", "--weight", "length=nan"], "finite number"),
        (["--function", "length", "--clip", "length=3,1"], "`clip` is 3 to 1"),
        (["--function", "length", "--clip", "length=3"], "2 items"),
        (["--function", "length", "--argument", "length=3"], "expected for example regex.pattern"),
        (["--function", "length", "--argument", "length.targt=3"], "did you mean `target`?"),
        (["--function", "length", "--normalise", "groups"], "did you mean group?"),
        (["--model", "no/such_model"], "no/such_model"),
        (["--server", "localhost:1"], "expected a URL that begins with http"),
    ],
)
def test_what_cannot_be_meant_ends_with_one_message(exoalign, tmp_path, arguments, message):
    code, said, err = exoalign(*arguments)
    assert code == 2
    assert said == ""
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "score").exists()


def test_a_function_that_raises_leaves_what_is_done(exoalign, tmp_path):
    (tmp_path / "raising.py").write_text(
        "def f(prompts, completions):\n    return [1 / (prompts[0] != 'C')] * len(completions)\n"
    )
    code, _, err = exoalign("--function", "raising:f")
    assert code == 2
    assert "error: reward function raising:f raised ZeroDivisionError at k.jsonl:3 ('C'): division by zero" in err
    assert (tmp_path / "out" / ".score.partial" / "rows.sqlite").is_file()
