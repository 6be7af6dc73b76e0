"""`exoalign doctor`: exit codes, the JSON that others read, the table, and texts of the data that stay texts."""

import json
import sys
from pathlib import Path

import pytest

from exoalign import cli

PAIR = {"prompt": "Name a tree.", "chosen": "Oak", "rejected": "Cat"}
OTHER = {"prompt": "Name something to eat.", "chosen": "Rice", "rejected": "Iron"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, *rows) -> str:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines))
        return name

    return write


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Runs `exoalign doctor` in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["exoalign", "doctor", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


# Change it here too, and in the changelog, when it changes
KEYS = {
    "source": str,
    "kind": str,
    "rows": dict,
    "groups": int,
    "prompts": int,
    "k": dict,
    "unit": str,
    "lengths": dict,
    "rewards": (dict, type(None)),
    "length_correlation": (dict, type(None)),
    "targets": dict,
    "truncation": (dict, type(None)),
    "histograms": dict,
    "findings": list,
    "counts": dict,
}


def test_the_json_has_these_keys_whatever_the_data_is(place, doctor, tiny_folder):
    kway = {"prompt": "Name a colour.", "completions": ["red", "ten", "seven"], "rewards": [1, 0, 0]}
    files = {
        "pairs": place("pairs.jsonl", PAIR, PAIR),
        "kway": place("kway.jsonl", kway),
        "ratings": place("ratings.jsonl", *({"prompt": "a?", "completion": c, "rating": ord(c)} for c in "xyz")),
        "prompts": place("prompts.jsonl", {"prompt": "One"}),
        "text": place("text.jsonl", {"text": "One <|im_end|>"}),
    }
    for kind, file in files.items():
        for options in ([], ["--model", str(tiny_folder), "--max-prompt-tokens", "2", "--beta-r", "0.5"]):
            code, out, _ = doctor(file, "--json", *options)
            values = json.loads(out)
            assert code == 0
            assert list(values) == list(KEYS)
            assert all(isinstance(values[key], kinds) for key, kinds in KEYS.items())
            assert values["kind"] == kind
            assert values["unit"] == ("tokens" if options else "words")
            assert (values["truncation"] is not None) == bool(options)
            assert set(values["rows"]) == {"read", "used", "set_aside", "malformed"}
            assert set(values["histograms"]) == {"prompt", "completion", "k", "rewards", "ess"}
            assert set(values["counts"]) == {"error", "warning", "note"}
            for finding in values["findings"]:
                assert list(finding) == ["kind", "text", "remedy", "grade", "count", "where"]
    assert json.loads(doctor(files["ratings"], "--json")[1])["k"] == {"3": 1}


def test_exit_codes(place, doctor):
    assert doctor(place("clean.jsonl", PAIR, OTHER))[0] == 0
    assert doctor(place("warned.jsonl", PAIR, PAIR))[0] == 0
    assert doctor(place("broken.jsonl", PAIR, b"{"))[0] == 1
    assert doctor("clean.jsonl", "--test", "clean.jsonl")[0] == 1
    assert doctor("broken.jsonl", "--limit", "1")[0] == 0  # the broken row is not looked at


def test_a_split_can_be_held_against_another(place, doctor, tmp_path):
    (tmp_path / "films" / "one").mkdir(parents=True)
    for split, row in {"train": PAIR, "test": {**OTHER, "prompt": PAIR["prompt"]}}.items():
        place(f"films/one/{split}.jsonl", row)
    options = ["films", "--subset", "one", "--split", "train", "--json"]
    assert json.loads(doctor(*options)[1])["counts"]["error"] == 0
    code, out, _ = doctor(*options, "--test", "films", "--test-split", "test")
    (finding,) = json.loads(out)["findings"]
    assert (code, finding["kind"]) == (1, "test_leak")
    assert finding["where"][0].endswith("films/one/train.jsonl:1 (as films/one/test.jsonl:1)")
    assert doctor(*options, "--test", "films/one/test.jsonl")[0] == 1  # a file has no subset


def test_with_a_model_its_context_is_looked_at(place, doctor, tiny_folder):
    long = {**PAIR, "prompt": "x" * 600}
    code, out, _ = doctor(place("long.jsonl", OTHER, long), "--model", str(tiny_folder), "--json")
    (finding,) = json.loads(out)["findings"]
    assert (code, finding["kind"], finding["where"]) == (1, "over_context", ["long.jsonl:2"])
    assert finding["text"].startswith("1 row longer than the model's context of 512 tokens")


WRONG = {
    "a file that is not there": (["gone.jsonl"], "error: gone.jsonl: no such file"),
    "an empty file": (["empty.jsonl"], "error: empty.jsonl: no rows"),
    "a broken test file": (["pairs.jsonl", "--test", "broken.jsonl"], "error: broken.jsonl:1: not JSON at column "),
    "a budget without a model": (
        ["pairs.jsonl", "--max-prompt-tokens", "9"],
        "a budget counts tokens: give --model too",
    ),
    "a beta without its other": (["pairs.jsonl", "--beta-pi", "1"], "it is judged together with --beta-r"),
    "a beta of 0": (["pairs.jsonl", "--beta-r", "0"], "it is 0; expected a finite number above 0"),
    "a page in no folder": (
        ["pairs.jsonl", "--html", "gone/page.html"],
        "the folder of 'gone/page.html' does not exist",
    ),
    "a page that is a folder": (["pairs.jsonl", "--html", "."], "'.' is a folder; expected the name of a file"),
    "a split of a file": (["pairs.jsonl", "--split", "train"], "error: pairs.jsonl: is a file, which has no `split`"),
    "no limit": (["pairs.jsonl", "--limit", "0"], "Invalid value for '--limit'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_ends_with_2_and_one_message(case, place, doctor):
    place("pairs.jsonl", PAIR)
    place("broken.jsonl", b"{")
    place("empty.jsonl")
    arguments, message = WRONG[case]
    code, out, err = doctor(*arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_the_table_says_what_was_found_where_and_what_to_do(place, doctor, tiny_folder):
    code, out, _ = doctor(
        place("pairs.jsonl", PAIR, PAIR, b"{"), "--model", str(tiny_folder), "--max-prompt-tokens", "5"
    )
    assert code == 1
    for words in (
        "3 read: 2 used, 0 set aside, 1 malformed",
        "prompt, tokens",
        "median 12, 95% within 12, longest 12",
        "2: 2",
        "suggested epsilon",
        "truncate_prompt_left",
        "1 malformed row",
        "at line 3: not JSON at column 2",
        "at line 2 (as line 1)",
        "1 error, 2 warnings, 0 notes",
    ):
        assert words in out


def test_texts_and_names_of_the_data_are_inert(place, doctor):
    file = place("[a]\x1b[31m.jsonl", {**PAIR, "prompt": "\x1b[2J <script>alert(1)</script> [/INST]"}, b"{")
    code, out, err = doctor(file, "--html", "page.html")
    assert (code, err) == (1, "")
    assert "\x1b" not in out
    assert "[a]\\x1b[31m.jsonl" in out
    assert "[/INST] in 1" in out
    page = Path("page.html").read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert "[a]␛[31m.jsonl" in page
    assert "<script>alert" not in page


def test_a_limit_is_a_number_of_groups(place, doctor):
    values = json.loads(doctor(place("pairs.jsonl", PAIR, OTHER, PAIR), "--limit", "2", "--json")[1])
    assert (values["groups"], values["rows"]["read"]) == (2, 2)


def test_ratings_beyond_the_limit_are_not_called_used(place, doctor):
    """They are read for the groups before them."""
    rows = [{"prompt": f"p{i % 3}", "completion": f"c{i}", "rating": i} for i in range(6)]
    values = json.loads(doctor(place("ratings.jsonl", *rows), "--limit", "2", "--json")[1])
    assert values["rows"] == {"read": 6, "used": 4, "set_aside": 2, "malformed": 0}
    assert [f["count"] for f in values["findings"] if "beyond the limit of 2" in f["text"]] == [2]
