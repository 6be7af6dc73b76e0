"""Every command and every Python block of the README and of docs/pipeline.md runs, on a tiny model instead of the demo's."""

import json
import re
import shlex
from pathlib import Path

import pytest

from exoalign import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


PIPELINE = (ROOT / "docs" / "pipeline.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(program: str) -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith(program)]


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_folder):
    """A folder with what the README's reader has: the recipes, a reward function, pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipes").mkdir()
    recipe = (ROOT / "recipes" / "demo.yaml").read_text().replace("path: demo ", f"path: {tiny_folder}")
    assert str(tiny_folder) in recipe
    (tmp_path / "recipes" / "demo.yaml").write_text(recipe)
    for name in ("demo_train.jsonl", "demo_heldout.jsonl"):
        rows = (ROOT / "recipes" / name).read_text().splitlines()
        (tmp_path / "recipes" / name).write_text("\n".join(rows[:8]))
    (tmp_path / "my_reward.py").write_text(next(b for b in blocks("python") if "def brevity" in b))
    for name, noun in {"pairs.jsonl": "Film", "heldout.jsonl": "Meal"}.items():
        rows = [{"prompt": f"{noun} {i}:", "chosen": " good", "rejected": " bad"} for i in range(8)]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize(
    "block", [block for page in (README, PIPELINE) for block in blocks("bash", page) if "exoalign " in block]
)
def test_commands_run(block, workplace, tiny_folder, monkeypatch, capsys):
    for command in [line for line in block.splitlines() if line.startswith("exoalign ")]:
        words = shlex.split(command, comments=True)
        arguments = [str(tiny_folder) if word == "demo" else word for word in words]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0, capsys.readouterr().err


def test_python_runs(workplace, tiny_folder):
    block = next(b for b in blocks("python") if "ExoTrainer" in b)
    exec(compile(block.replace('"demo"', repr(str(tiny_folder))), "README.md", "exec"), {})
    assert (workplace / "runs" / "python" / "model" / "model.safetensors").is_file()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for line in commands("make "):
        assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line


def test_the_tree_names_files_that_exist():
    tree = next(b for b in blocks("text") if "src/exoalign/" in b)
    for line in tree.splitlines():
        folder = ROOT / "src" / "exoalign" if line.startswith("  ") else ROOT
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            assert (folder / name).exists(), f"README names {name}, which does not exist"
            folder = (folder / name).parent  # what follows on the line stands beside it
