"""docs/online.md: its commands, its recipe and its Python run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from exoalign import cli, run
from exoalign.recipe import load_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "online.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("prompts", "heldout"):
        Path(f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": f"{name} {i}:"}) for i in range(3)))
    return tmp_path


def test_the_command_runs(place, tiny_folder, monkeypatch, capsys):
    (command,) = "".join(blocks("bash")).splitlines()
    small = command.replace("demo", str(tiny_folder)).replace("max_new_tokens=40", "max_new_tokens=4")
    monkeypatch.setattr("sys.argv", [*shlex.split(small), "--json", "--quiet"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert [stage["name"] for stage in json.loads(said.out)["stages"]] == ["align", "evaluate"]
    stored = set(re.findall(r"`(\w+\.\w+|\w+/)`", PAGE[PAGE.index("`align/` holds") : PAGE.index("A checkpoint")]))
    assert stored == {"align/", "model/", "history.json", "groups.parquet"}
    assert all((place / "runs/online/align" / name).exists() for name in stored - {"align/"})
    history = json.loads((place / "runs/online/align/history.json").read_text())["steps"]
    logged = {"correction_ess", "policy_ess", "sample_reward", "sample_kl", "sample_length", "sampled_tokens"}
    assert logged <= set(history[0])
    assert all(f"`{name}`" in PAGE for name in logged)


def test_the_recipe_runs(place, tiny_folder):
    (text,) = blocks("yaml")
    Path("online.yaml").write_text(text)
    small = [
        f"model.path={tiny_folder}",
        "sample.max_new_tokens=4",
        "align.groups_per_step=3",
        "reward.function=length",
    ]
    result = run(load_recipe("online.yaml", small), show=False)
    assert result["stages"][0]["what"] == "3 steps of 3 prompts x 4 completions, 3 samplings"


def test_the_python_runs(place, tiny_folder):
    (code,) = blocks("python")
    exec(code.replace('"demo"', repr(str(tiny_folder))), {})
    assert (place / "aligned" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data prompts.jsonl --out x --reward length", "--eval-data: --online compares both models"),
        ("--data prompts.jsonl --out x --eval-data heldout.jsonl", "--reward: --online needs it, or settings reward"),
        ("--data prompts.jsonl --estimate", "--estimate: it counts completions that are there"),
        (
            "--data prompts.jsonl --out x --eval-data heldout.jsonl --reward sentimental",
            "sentimental",
        ),
    ],
)
def test_what_is_missing_is_named(place, tiny_folder, monkeypatch, capsys, options, message):
    monkeypatch.setattr("sys.argv", ["exoalign", "align", "--online", "--model", str(tiny_folder), *options.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in " ".join(said.split())
    assert not (place / "x").exists()
