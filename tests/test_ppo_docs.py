"""docs/ppo.md: its Python runs, and its tables are those of the code."""

import json
import re
from pathlib import Path

import pytest

from exoalign import cli, models, rl_losses
from exoalign.train.ppo import PpoTrainer
from exoalign.train.rl_arguments import PpoConfig

PAGE = (Path(__file__).parents[1] / "docs" / "ppo.md").read_text()


def test_the_example_runs(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    space = {}
    exec(block.replace('"demo"', repr(str(tiny_folder))).replace("max_new_tokens=40", "max_new_tokens=4"), space)
    assert space["trainer"].state.global_step == 4
    assert models.load_model(str(tmp_path / "aligned")).config.vocab_size


def test_the_recipe_runs(tiny_folder, tmp_path, monkeypatch):
    """The page's command on the page's recipe, with a tiny model and few tokens."""
    monkeypatch.chdir(tmp_path)
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    recipe = recipe.replace("path: demo", f"path: {tiny_folder}").replace("max_new_tokens: 40", "max_new_tokens: 4")
    Path("ppo.yaml").write_text(recipe.replace("groups_per_step: 16", "groups_per_step: 1"))
    for name in ("prompts", "heldout"):
        Path(f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": f"A film {i}:"}) for i in range(2)))
    monkeypatch.setattr("sys.argv", command.split())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (tmp_path / "runs/ppo/align/model/model.safetensors").is_file()


def test_the_defaults_are_those_of_the_settings(tmp_path):
    table = PAGE[PAGE.index("## The options") : PAGE.index("Logged for each step")]
    written = {10_000.0: "10,000", 3e-6: "3e-6", 1e-4: "1e-4"}

    def said(value) -> str:
        if value is None or isinstance(value, bool):
            return {None: "none", True: "on", False: "off"}[value]
        return written.get(value, f"{value:g}")

    config = PpoConfig(str(tmp_path))
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", table, re.MULTILINE)
    assert len(rows) == 12
    for names, shown in rows:
        told = shown.split(", ")
        found = [getattr(config, name) for name in re.findall(r"`(\w+)`", names)]
        told = told * len(found) if len(told) == 1 else told
        assert told == list(map(said, found)), names


def test_what_the_table_names_is_there():
    details = PAGE[PAGE.index("## The details") : PAGE.index("Departures")]
    for name in re.findall(r"`rl_losses\.(\w+)`", details):
        assert callable(getattr(rl_losses, name))
    for name in re.findall(r"`PpoTrainer\.(\w+)`", details):
        assert callable(getattr(PpoTrainer, name))
