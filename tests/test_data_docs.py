"""docs/data.md: every row is read as the format under whose heading it stands, and every command runs."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import exoalign
from exoalign import cli
from exoalign.data.adapters import ADAPTERS
from exoalign.data.formats import kind_of, read_groups, read_prompts, read_texts

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
FORMATS = {"pairs", "kway", "rankings", "ratings", "prompts", "text"}


def blocks(language: str) -> list[tuple[str, str]]:
    """(heading, block) for each block of a language."""
    found, heading = [], ""
    for line, block in re.findall(rf"^#+ ([^\n]*)$|^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        heading = line or heading
        found += [] if line else [(heading, block)]
    return found


COMMANDS = [line for _, block in blocks("bash") for line in block.splitlines() if line.startswith("exoalign")]


@pytest.mark.parametrize(("heading", "block"), blocks("json"))
def test_every_row_is_read(heading, block, tmp_path):
    rows = [json.loads(line) for line in block.splitlines()]
    kinds = {kind_of(row) for row in rows}
    named = re.search(r"\(`(\w+)`\)", heading)
    assert kinds == {named[1]} if named else kinds <= {"pairs", "kway"}
    path = tmp_path / "rows.jsonl"
    path.write_text(block)
    if kinds == {"prompts"}:
        assert len(read_prompts(path)) == len(rows)
    elif kinds == {"text"}:
        assert len(read_texts(path)) == len(rows)
    else:
        groups, aside = read_groups(path)
        assert len(groups) == (1 if kinds == {"ratings"} else len(rows))
        assert aside.reasons == {}


def test_every_format_stands_there_as_text_and_as_conversation():
    for kind in FORMATS:
        rows = [block for heading, block in blocks("json") if f"(`{kind}`)" in heading]
        assert any('"role"' in row for row in rows), kind
        assert any('"role"' not in row for row in rows), kind


def test_trajectories_keep_their_turns(tmp_path):
    for _, block in [found for found in blocks("json") if found[0] == "Trajectories"]:
        (tmp_path / "rows.jsonl").write_text(block)
        ((group,), _) = read_groups(tmp_path / "rows.jsonl")
        assert [turn.role for turn in group.completions[0]] in (
            ["assistant", "tool", "assistant"],
            ["assistant", "user", "assistant"],
        )


def test_every_adapter_has_its_line():
    for adapter in ADAPTERS.values():
        line = re.search(rf"^\| `{adapter.name}` \|.*$", PAGE, re.MULTILINE)
        assert line, adapter.name
        assert adapter.hub_id in line[0]
    assert len(re.findall(r"^\| `\w+` \| .*\|.*\|$", PAGE.split("## Known data sets")[1].split("##")[0], re.M)) == len(
        ADAPTERS
    )


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the page names, and a hub that gives two rows of HH."""
    transcripts = [
        {"chosen": f"\n\nHuman: {i}\n\nAssistant: Yes.", "rejected": f"\n\nHuman: {i}\n\nAssistant: No."}
        for i in range(2)
    ]
    for name in ("hh.jsonl.gz", "hh-test.jsonl.gz"):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write("\n".join(map(json.dumps, transcripts)))
    kway = {"prompt": "Name a fruit:", "completions": [" pear", " car", " leek"], "rewards": [1, -0.5, 0.25]}
    (tmp_path / "kway.jsonl").write_text(json.dumps(kway))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "P", "chosen": " a", "rejected": " b"}')
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return transcripts

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, workplace, tiny_folder, monkeypatch, capsys):
    words = [str(tiny_folder) if word == "demo" else word for word in shlex.split(command)]
    if words[1] not in typer.main.get_command(cli.app).commands:
        pytest.skip(f"{command}: the command is not there yet")
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in ((0, 1) if words[1] == "doctor" else (0,)), capsys.readouterr().err
    if words[2] == "convert":
        assert Path(words[4]).stat().st_size > 0
    if "Anthropic" in command:
        options = {"data_dir": "harmless-base", "revision": None, "streaming": True}
        splits = re.findall(r"split (\w+)", command)
        assert {asked[1].pop("split") for asked in workplace} == set(splits)
        assert all(asked == (("Anthropic/hh-rlhf",), options) for asked in workplace)


def test_its_python_runs(workplace, tiny_folder, capsys):
    ((_, block),) = blocks("python")
    exec(compile(block.replace('"demo"', repr(str(tiny_folder))), "docs/data.md", "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"^\d groups: [\d,]+ prompt tokens", said, re.MULTILINE)
    assert "what the model sees" in said


def test_what_it_names_is_exported():
    named = set(re.findall(r"`(\w+)`", PAGE.split("\n## From Python")[1]))
    assert {"examine", "GroupTable", "DataError"} < named <= set(exoalign.__all__)
    assert all(getattr(exoalign, name) for name in exoalign.__all__)
