"""docs/rewards.md: its commands run, its recipes are read, its function works, its tables are those of the code."""

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from exoalign import cli
from exoalign.config_reward import RewardSection, ScorerSection
from exoalign.data.table import write_table
from exoalign.groups import Group
from exoalign.rewards.functions import SHIPPED, scores_of

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", [line for block in blocks("bash") for line in block.splitlines()])
def test_every_command_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(
        [Group("A film.", ("I loved it.", "bad bad bad bad")), Group("B", ("Good.", "Bad!"))], Path("groups.parquet")
    )
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    capsys.readouterr()
    folder = Path(re.search(r"--out (\S+)", command)[1]) / "score"
    stored = PAGE[PAGE.index("## What is stored") :]
    assert all((folder / name).is_file() for name in re.findall(r"^\| `([\w.]+)` \|", stored, re.MULTILINE))


def test_recipes_are_read():
    for text in blocks("yaml"):
        assert RewardSection.model_validate(YAML(typ="safe", pure=True).load(text)["reward"]).all
    (row,) = blocks("json")
    assert set(json.loads(row)) == {"prompt", "instruction_id_list", "kwargs"}


def test_ones_own_function_works():
    space = {}
    exec(blocks("python")[0], space)
    group = Group("2 + 2 =", (" 4", "5"), provenance={"row": {"answer": "4"}})
    assert scores_of([group], space["exact_answer"], arguments={"ignore_case": False}) == [(1.0, 0.0)]


def test_the_tables_are_those_of_the_code():
    functions = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\| [^|]*\|$", PAGE[PAGE.index("## Functions") :], re.MULTILINE))
    assert list(functions) == list(SHIPPED)
    for name, arguments in functions.items():
        parameters = [
            p for p in inspect.signature(SHIPPED[name]).parameters if p not in ("prompts", "completions", "rows")
        ]
        assert re.findall(r"`(\w+)`", arguments) == parameters
    keys = re.findall(
        r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \| (?:function|model|server|all) \|", PAGE, re.MULTILINE))
    )
    assert {*keys, "function", "model", "server", "judge"} == set(ScorerSection.model_fields)
