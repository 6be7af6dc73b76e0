"""A comparison's recipe and the trainings that it asks for."""

from pathlib import Path

import pytest

from exoalign.cells import cells_of
from exoalign.compare_recipe import load_comparison
from exoalign.errors import ConfigError

TASK = """
model: {path: demo}
prompts: {train: train.jsonl, evaluation: heldout.jsonl}
sample: {k: 8}
reward: {function: sentiment}
align: {beta_pi: 0.5, beta_r: 0.25, learning_rate: 1e-5, completions: {choose: best_worst, k: 4}}
"""
COMPARISON = """
task: task.yaml
betas: [0.1, 0.2]
seeds: [3, 4]
methods:
  exo-k4: {align: {objective: exo_rw, completions: {choose: random, k: 4}}}
  exo: {align: {objective: exo_rw, beta_pi: 1.0}}
  dpo-pref: {align: {objective: dpo_pref, completions: {choose: best_worst, k: 2}}}
  sft: {align: {objective: sft_best, learning_rate: 3e-5}}
  bon: {best_of: 4}
"""
SEARCH = "search: {learning_rate: [1e-6, 1e-5], prompts: 2}\n"


@pytest.fixture
def files(tmp_path) -> Path:
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "A film:"}\n')
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "compare.yaml").write_text(COMPARISON)
    return tmp_path / "compare.yaml"


def cells(path, *overrides, small=False):
    return {cell.name: cell for cell in cells_of(*load_comparison(path, overrides, small=small))}


def test_every_method_runs_with_every_strength_and_seed(files):
    assert list(cells(files)) == [
        "exo-k4.b0.1.s3", "exo-k4.b0.2.s3", "exo.b0.1.s3", "exo.b0.2.s3", "dpo-pref.b0.1.s3", "dpo-pref.b0.2.s3", "sft.s3",
        "exo-k4.b0.1.s4", "exo-k4.b0.2.s4", "exo.b0.1.s4", "exo.b0.2.s4", "dpo-pref.b0.1.s4", "dpo-pref.b0.2.s4", "sft.s4",
    ]  # fmt: skip


def test_beta_is_the_strength_of_each_objective(files):
    found = cells(files)
    exo, other, pref = (found[f"{name}.b0.1.s3"].recipe.align for name in ("exo-k4", "exo", "dpo-pref"))
    assert (exo.beta_pi, exo.beta_r) == (0.5, 0.2)
    assert (other.beta_pi, other.beta_r) == (1.0, 0.1)
    assert pref.beta_pi == 0.1
    assert "beta_r" not in pref.model_fields_set
    assert found["sft.s3"].beta is None


def test_methods_change_the_task_and_keep_the_rest(files):
    found = cells(files)
    assert {cell.recipe.align.learning_rate for name, cell in found.items() if "sft" not in name} == {1e-5}
    assert found["sft.s4"].recipe.align.learning_rate == 3e-5
    assert found["exo-k4.b0.1.s4"].recipe.seed == 4
    assert found["exo-k4.b0.1.s4"].recipe.align.completions.k == 4
    # the task's own choice of completions is its own objective's
    assert found["exo.b0.1.s3"].recipe.align.completions.choose == "all"


def test_every_method_is_tried_as_often(files):
    files.write_text(COMPARISON + SEARCH)
    trials = [cell for cell in cells(files).values() if cell.trial is not None]
    assert [cell.name for cell in trials if cell.method == "exo"] == [
        "exo.b0.1.search1", "exo.b0.1.search2", "exo.b0.2.search1", "exo.b0.2.search2",
    ]  # fmt: skip
    assert len(trials) == 2 * (3 * 2 + 1)
    assert list(cells(files).values())[: len(trials)] == trials
    assert {cell.recipe.align.learning_rate for cell in trials} == {1e-6, 1e-5}
    assert {cell.seed for cell in trials} == {1_000_000}


def test_the_small_form_lies_elsewhere(files):
    files.write_text(COMPARISON + SEARCH + "small: {seeds: [7], settings: [sample.k=5]}\n")
    comparison, task = load_comparison(files, small=True)
    assert (comparison.out, comparison.name) == ("runs/compare-small", "compare-small")
    assert task.sample.k == 5
    assert list(cells(files, small=True)) == ["exo-k4.b0.1.s7", "exo.b0.1.s7", "dpo-pref.b0.1.s7", "sft.s7"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seeds: [1, 1]", "`seeds` has a value twice"),
        ("methods: {Exo: {best_of: 2}}", "the method 'Exo' names folders; expected small letters"),
        ("methods: {../x: {best_of: 2}}", "names folders"),
        ("methods: {a: {}}", "either `align`, what it changes in the task's section, or `best_of`"),
        ("methods: {a: {best_of: 2, align: {beta_pi: 1.0}}}", "either `align`"),
        ("search: {learning_rate: [1e-5, 2e-5], seed: 3}", "`search.seed` is one of `seeds`"),
        ("held_out: {model: trained}", "`held_out_model` is trained for a scorer"),
        ("task: other.yaml", "the task is wrong: .*other.yaml does not exist"),
        ("settings: [align.objectve=exo_rw]", "unknown key `align.objectve`; did you mean `objective`"),
        ("metods: 1", "unknown key `metods`; did you mean `methods`"),
    ],
)
def test_mistakes_are_told_with_their_place(files, change, words):
    key = change.partition(":")[0]
    lines, kept, inside = COMPARISON.splitlines(), [], False
    for line in lines:
        inside = line.startswith(f"{key}:") or (inside and line.startswith(" "))
        kept += [] if inside else [line]
    files.write_text("\n".join([*kept, change]) + "\n")
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        cells(files)


def test_a_methods_mistake_names_the_method(files):
    files.write_text(COMPARISON.replace("{objective: exo_rw, beta_pi: 1.0}", "{objective: exo_rw, epsilon: 0.1}"))
    with pytest.raises(ConfigError, match=r"methods\.exo: .*`epsilon` has no effect with exo_rw"):
        cells(files)
    files.write_text(COMPARISON.replace("completions: {choose: best_worst, k: 2}", "epsilon: 0.1"))
    with pytest.raises(ConfigError, match=r"methods\.dpo-pref: (?s:.*)learns from pairs"):
        cells(files)
