"""A whole comparison of a tiny model: shared stages once, each training resumable, results that can be computed by hand."""

import csv
import json
import sys

import pytest

from exoalign import stages_compare
from exoalign.compare_recipe import load_comparison
from exoalign.comparison import compare, dry_run
from exoalign.data.table import read_table
from exoalign.errors import ConfigError, StoreError

COMPARISON = """
name: tiny
out: out
task: task.yaml
betas: [0.1]
seeds: [0, 1]
checkpoints: 2
methods:
  exo: {label: "EXO, K = 2", align: {objective: exo_rw, completions: {choose: random, k: 2}}}
  online: {align: {objective: exo_rw, online: {k: 2}}}
  ppo: {align: {objective: ppo, online: {k: 2}}}
  dpo-pref: {align: {objective: dpo_pref, completions: {choose: best_worst, k: 2}}}
  best-of-n: {best_of: 4}
search: {learning_rate: [1e-3, 3e-3], prompts: 2, seed: 9}
held_out: {function: length}
small: {seeds: [0], checkpoints: 1, settings: [prompts.limit=2]}
"""


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rewards_of_mine", raising=False)
    for name, count in (("train", 4), ("heldout", 5)):
        rows = [json.dumps({"prompt": f"{name} {i}:"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "rewards_of_mine.py").write_text(
        "def letters(prompts, completions):\n    return [sum(map(ord, t)) % 97 / 97 for t in completions]\n"
    )
    (tmp_path / "task.yaml").write_text(
        json.dumps(
            {
                "model": {"path": str(tiny_folder), "precision": "float32"},
                "prompts": {"train": "train.jsonl", "evaluation": "heldout.jsonl"},
                "sample": {"k": 3, "max_new_tokens": 6},
                "reward": {"function": "rewards_of_mine:letters"},
                "align": {"groups_per_step": 2},
                "evaluate": {"k": 2},
            }
        )
    )
    (tmp_path / "compare.yaml").write_text(COMPARISON)
    return tmp_path


def run(*overrides, lines=None, small=False, **options):
    say = (lambda line: None) if lines is None else lines.append
    return compare(*load_comparison("compare.yaml", overrides, small=small), say=say, show=False, **options)


@pytest.fixture(scope="module")
def read():
    return lambda path: json.loads(path.read_text(encoding="utf-8"))


def test_a_whole_comparison(folder, read):
    lines = []
    result = run(lines=lines)
    out = folder / "out"
    assert result["left"] == []
    assert [(row["method"], row["runs"]) for row in result["methods"]] == [
        ("exo", 2), ("online", 2), ("ppo", 2), ("dpo-pref", 2), ("best-of-n", 1),
    ]  # fmt: skip
    found = read(out / "comparison.json")
    assert [(r["method"], r["seed"], [p["step"] for p in r["points"]]) for r in found["runs"]] == [
        ("exo", 0, [1, 2]), ("exo", 1, [1, 2]), ("online", 0, [1, 2]), ("online", 1, [1, 2]),
        ("ppo", 0, [4, 8]), ("ppo", 1, [4, 8]), ("dpo-pref", 0, [1, 2]), ("dpo-pref", 1, [1, 2]), ("best-of-n", 0, [1, 2, 4]),
    ]  # fmt: skip
    assert not [warning for warning in found["warnings"] if "hardly moves" not in warning]

    # shared: one set of samples, the search's prompts in none of the results
    assert [p.name for p in sorted(out.iterdir()) if p.is_dir() and (p / "groups.parquet").is_file()] == [
        "reward",
        "sample",
    ]
    groups = stages_compare.samples_of(out / "exo.b0.1.s1", 2)
    assert [group.prompt for group in groups] == ["heldout 2:", "heldout 3:", "heldout 4:"]
    assert [g.prompt for g in stages_compare.samples_of(out / "exo.b0.1.search1", 2)] == ["heldout 0:", "heldout 1:"]

    # a point says what its samples say
    point = found["runs"][1]["points"][1]
    by_hand = [sum(sum(map(ord, t)) % 97 / 97 for t in group.completions) / 2 for group in groups]
    assert point["reward"]["mean"] == pytest.approx(sum(by_hand) / 3)
    assert point["kl_exact"]["mean"] > 0
    lengths = [[float(len(t.split())) for t in group.completions] for group in groups]
    assert len(groups[0].scores["held_out"]) == len(lengths[0]) == 2

    # the search took the better of two
    for search in found["search"]:
        gains = [trial["objective"] for trial in search["trials"]]
        assert [trial["chosen"] for trial in search["trials"]] == [gain == max(gains) for gain in gains]
        rate = next(t["settings"]["learning_rate"] for t in search["trials"] if t["chosen"])
        history = read(out / f"{search['method']}.b0.1.s0" / "history.json")["steps"]
        assert history[0]["learning_rate"] == pytest.approx(rate)

    # the win rate against the model before alignment, by the replies of both seeds
    rates = found["win_rates"]
    assert rates["models"] == ["sft", "exo", "online", "ppo", "dpo-pref"]
    by_reward = next(r for r in rates["against"] if r["model"] == "exo" and r["by"] == "reward")
    before = stages_compare.samples_of(out / "base", 0)
    seeds = [stages_compare.samples_of(out / f"exo.b0.1.s{seed}", 2) for seed in (0, 1)]
    won = [
        [(a > b) + 0.5 * (a == b) for of in seeds for a in of[i].rewards for b in before[i].rewards] for i in range(3)
    ]
    assert by_reward["rate"]["mean"] == pytest.approx(sum(sum(row) / len(row) for row in won) / 3)
    assert {r["by"] for r in rates["against"]} == {"reward", "held-out reward model"}
    assert len(rates["ratings"]) == 5

    with (out / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 2 + 3
    assert float(rows[3]["reward_mean"]) == pytest.approx(point["reward"]["mean"])
    assert (out / "report" / "index.html").is_file()


def test_what_is_done_is_not_done_again(folder):
    run()
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/manifest.json")}
    lines = []
    run(lines=lines)
    assert all("(done before)" in line for line in lines if ": " in line)
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/manifest.json")} == before
    run("seeds=[0, 1, 2]", lines=lines)
    assert sum(line.startswith("exo.b0.1.s2:") for line in lines) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_task_is_refused(folder):
    run(small=True)
    with pytest.raises(StoreError, match=r"sample\.max_new_tokens"):
        run("settings=[sample.max_new_tokens=5]", small=True)


def test_no_stage_begins_after_the_minutes(folder):
    result = run(minutes=0.0)
    assert result["left"][0] == "sample"
    assert result["finding"] == ""


def test_a_training_that_fails_is_told_and_the_others_go_on(folder, monkeypatch, read):
    from exoalign.errors import TrainingError

    good = stages_compare.train_resumably

    def train(trainer, *args, **named):
        if trainer.args.objective == "dpo_pref" and trainer.args.seed == 1:
            raise TrainingError("the loss at step 1 is nan")
        return good(trainer, *args, **named)

    monkeypatch.setattr(stages_compare, "train_resumably", train)
    result = run()
    assert any("dpo-pref.b0.1.s1 failed: the loss at step 1 is nan" in warning for warning in result["warnings"])
    assert [(row["method"], row["runs"]) for row in result["methods"]] == [
        ("exo", 2), ("online", 2), ("ppo", 2), ("dpo-pref", 1), ("best-of-n", 1),
    ]  # fmt: skip


def test_interrupted_and_run_again_it_ends_with_the_same(folder, monkeypatch, read):
    run()
    expected = {p.name: read_table(p) for p in sorted((folder / "out" / "exo.b0.1.s1").glob("*.parquet"))}
    drawn = stages_compare.Yardstick.measure
    count = []

    def stop(self, *args, **named):
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt
        return drawn(self, *args, **named)

    monkeypatch.setattr(stages_compare.Yardstick, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        run("out=other")
    run("out=other")
    found = {p.name: read_table(p) for p in sorted((folder / "other" / "exo.b0.1.s1").glob("*.parquet"))}
    assert {name: [g.completions for g in groups] for name, groups in found.items()} == {
        name: [g.completions for g in groups] for name, groups in expected.items()
    }


def test_the_plan_names_every_stage(folder):
    plan = dry_run(*load_comparison("compare.yaml"))
    assert [each["stage"] for each in plan][:4] == ["sample", "reward", "base", "exo.b0.1.search1"]
    assert len(plan) == 3 + 4 * (2 + 2)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search.prompts=5"], "`search.prompts` is 5 and the evaluation has 5 prompts; none would be left"),
        (["methods.exo.align.completions.k=9"], r"methods\.exo: .*completions\.k` is 9, and sample\.k only 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(folder, overrides, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        run(*overrides)
    assert not (folder / "out").exists()
