"""docs/doctor.md: its command runs, and it lists every kind of finding."""

import json
import re
import sys
from pathlib import Path

import pytest

from exoalign import cli
from exoalign.data import doctor

DOCS = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")


def test_every_kind_of_finding_is_listed():
    sources = [path.read_text(encoding="utf-8") for path in Path(doctor.__path__[0]).glob("*.py")]
    kinds = {
        kind for source in sources for kind in re.findall(r'(?:\b[fF]inding\(|for words, kind in \()\s*"(\w+)"', source)
    } | {"empty_completions", "identical_completions", "set_aside"}
    listed = {kind for line in DOCS.splitlines() if line.startswith("| `") for kind in re.findall(r"`(\w+)`", line)}
    assert listed == kinds


def test_its_command_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "Yes", "rejected": "No!"}))
    Path("heldout.jsonl").write_text(json.dumps({"prompt": "Ho", "chosen": "Yes", "rejected": "No!"}))
    command = next(line.split() for line in DOCS.splitlines() if line.startswith("    exoalign doctor"))
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "nothing found" in capsys.readouterr().out
    assert Path("doctor.html").is_file()
