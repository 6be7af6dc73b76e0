"""`exoalign data`: what it prints and how it exits."""

import json

import pytest

from exoalign import cli
from exoalign.data.adapters import ADAPTERS
from exoalign.data.convert import KINDS, PAIRS

ROWS = [
    {"prompt": "P", "completions": ["a", "b", "c"], "rewards": [1, 0, 0.5]},
    {"prompt": "Q", "completions": ["a", "b"], "rewards": [1, 1]},
    {"prompt": "R", "completions": ["a", " "], "rewards": [1, 0]},
]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with `rows.jsonl`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["exoalign", "data", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_what_was_left_out_is_printed(command):
    code, out, err = command("convert", "rows.jsonl", "o.jsonl", "--to", "trl-preference")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "o.jsonl (trl-preference): rows read 3, groups 2, rows written 1",
        "1 row set aside: all rewards are equal: no pair (rows.jsonl:2)",
        "1 row set aside: a reply is empty (rows.jsonl:3)",
        "not written: completions that are in no pair (1)",
        "not written: rewards (2)",
    ]


def test_the_same_as_json(command):
    code, out, _ = command("convert", "rows.jsonl", "o.jsonl", "--to", "pairs", "--pairs", "all", "--json")
    assert code == 0
    assert json.loads(out) == {
        "out": "o.jsonl",
        "kind": "pairs",
        "rows_read": 3,
        "groups": 2,
        "rows_written": 3,
        "set_aside": {
            "a reply is empty": {"rows": 1, "first": ["rows.jsonl:3"]},
            "all rewards are equal: no pair": {"rows": 1, "first": ["rows.jsonl:2"]},
        },
        "not_written": {},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jsonl", "o.jsonl", "--to", "pairs"], "gone.jsonl: no such file or folder"),
        (["rows.jsonl", "o.jsonl", "--to", "kways"], "no kind `kways`; did you mean `kway`?"),
        (["rows.jsonl", "o.jsonl", "--to", "kway", "--adapter", "shpp"], "no adapter `shpp`; did you mean `shp`?"),
        (["rows.jsonl", "o.jsonl", "--to", "kway", "--adapter", "shp"], "rows.jsonl:1: no `history`"),
        (["rows.jsonl", "o.jsonl", "--to", "kway", "--split", "train"], "is a file, which has no `split`"),
        (["rows.jsonl", "rows.jsonl", "--to", "kway"], "rows.jsonl: exists already"),
        (["rows.jsonl", "o.jsonl", "--to", "pairs", "--pairs", "best"], "`best` is neither best_worst nor all"),
        (
            ["rows.jsonl", "o.jsonl", "--to", "trl-unpaired", "--pairs", "all"],
            "trl-unpaired has none; expected one of pairs, trl-preference, trl-preference-implicit",
        ),
        (["rows.jsonl", "o.jsonl", "--to", "pairs", "--limit", "0"], "'--limit'"),
        (["rows.jsonl", "o.jsonl"], "Missing option '--to'"),
    ],
)
def test_a_mistake_ends_with_code_2_and_writes_nothing(command, tmp_path, arguments, message):
    code, out, err = command("convert", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_help_names_every_kind(command):
    from exoalign.cli_data import KINDS as told

    assert told.replace(" or ", ", ").split(", ") == list(KINDS)
    assert PAIRS == ("best_worst", "all")


def test_the_known_data_sets_are_listed(command):
    code, out, _ = command("adapters")
    assert code == 0
    for adapter in ADAPTERS.values():
        assert f"{adapter.name}  {adapter.hub_id}\n" in out
    rows = json.loads(command("adapters", "--json")[1])
    assert [row["name"] for row in rows] == list(ADAPTERS)
    assert next(row for row in rows if row["name"] == "nectar")["columns"] == {
        "prompt": "text",
        "answers": "[{answer: text, rank: a number}, ...]",
    }
