"""docs/sft.md: its commands run, and its table of settings is that of the section."""

import json
import re
import shlex
from pathlib import Path

import pytest

from exoalign import cli
from exoalign.config_sft import SftSection

PAGE = (Path(__file__).parents[1] / "docs" / "sft.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"Film {i} is a joy."} for i in range(20)]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    Path("reviews.jsonl").write_text("\n".join(map(json.dumps, texts)))
    Path("chats.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 3))
    monkeypatch.setattr("sys.argv", [str(tiny_folder) if word == "demo" else word for word in shlex.split(command)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    folder = Path(re.search(r"--out (\S+)", command)[1]) / "sft"
    assert capsys.readouterr().out.splitlines()[-1] == f"model: {folder / 'model'}"
    assert (folder / "model" / "config.json").is_file()
    named = re.findall(r"^\| `(\w+\.json|\w+/)` \|", PAGE, re.MULTILINE)
    assert {"model/", "metrics.json", "history.json", "summary.json"} == set(named)
    assert all((folder / name).exists() for name in named)


def test_the_settings_are_those_of_the_section():
    table = PAGE[PAGE.index("## Settings") : PAGE.index("## What is stored")]
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", table, re.MULTILINE))
    assert sorted(rows) == sorted(SftSection.model_fields)
    for name, shown in rows.items():
        field = SftSection.model_fields[name]
        if not field.is_required() and name not in ("lora", "trainer"):
            told = shown.strip("` ")
            assert told == str(field.default).lower() or float(told) == field.default, name
