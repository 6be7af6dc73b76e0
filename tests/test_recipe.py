"""A recipe is right, or every mistake in it is told with its line, its key and the nearest valid key."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from exoalign.cells import cells_of
from exoalign.compare_recipe import load_comparison
from exoalign.config import Recipe
from exoalign.config_train import POLICY_GRADIENTS, ObjectiveName
from exoalign.errors import ConfigError
from exoalign.recipe import MOST_BYTES, build_recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
GOOD = """\
model:
  path: tiny
prompts:
  train: train.jsonl
  evaluation: heldout.jsonl
reward:
  function: length
"""  # 7 lines: what a test adds begins at line 8


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe with its files into a folder that is not the working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("train.jsonl", "heldout.jsonl"):
        (folder / name).touch()

    def write(text: str, name: str = "r.yaml") -> Path:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return folder / name

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_recipe(path, overrides)
    return str(error.value)


# What ships, and what stays in step


def test_the_demo_recipe_parses():
    recipe = load_recipe(RECIPES / "demo.yaml")
    assert recipe.model.path == "demo"
    assert recipe.prompts.train == str(RECIPES / "demo_train.jsonl")
    assert recipe.align.learning_rate == 2e-5


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_that_ships_parses(path):
    if not path.name.startswith("compare-"):
        assert isinstance(load_recipe(path), Recipe)
        return
    comparison, task = load_comparison(path)
    assert isinstance(task, Recipe)
    assert cells_of(comparison, task)
    with pytest.raises(ConfigError, match=r"compare-\w+\.yaml is a comparison; run it with `exoalign compare"):
        load_recipe(path)


def test_the_objectives_of_recipes_are_those_that_exist():
    from exoalign.objectives import OBJECTIVES

    assert set(get_args(ObjectiveName)) == {*OBJECTIVES, *POLICY_GRADIENTS}


def test_reading_a_recipe_loads_no_torch():
    probe = (
        "import sys; from exoalign.recipe import load_recipe; "
        f"load_recipe({str(RECIPES / 'demo.yaml')!r}); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "[]\n"


def test_a_recipe_does_not_change(write):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(write(GOOD)).align.beta_r = 1.0


# Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.5e+3", 1500.0),
        ("0.25", 0.25),
        (".5", 0.5),
        ("2", 2.0),
    ],
)
def test_numbers_are_numbers_in_files_and_overrides(write, text, expected):
    path = write(GOOD + f"align:\n  beta_r: {text}\n")
    assert load_recipe(path).align.beta_r == expected
    assert load_recipe(write(GOOD), [f"align.beta_r={text}"]).align.beta_r == expected


@pytest.mark.parametrize(
    ("added", "line", "message"),
    [
        ("align:\n  beta_r: '0.5'\n", 9, "`align.beta_r` is '0.5'; input should be a valid number"),
        ("align:\n  beta_r: true\n", 9, "`align.beta_r` is True; input should be a valid number"),
        ("align:\n  beta_r: .inf\n", 9, "`align.beta_r` is inf; input should be a finite number"),
        ("align:\n  beta_r: .nan\n", 9, "`align.beta_r` is nan; input should be a finite number"),
        ("align:\n  beta_r: 0\n", 9, "`align.beta_r` is 0; input should be greater than 0"),
        ("align:\n  beta_r:\n", 9, "`align.beta_r` is empty; input should be a valid number"),
        ("align:\n  epsilon: 0.5\n", 9, "`align.epsilon` is 0.5; input should be less than 0.5"),
        ("sample:\n  k: true\n", 9, "`sample.k` is True; input should be a valid integer"),
        ("sample:\n  k: 4.0\n", 9, "`sample.k` is 4.0; input should be a valid integer"),
        ("sample:\n  k: 1\n", 9, "`sample.k` is 1; input should be greater than or equal to 2"),
        ("sample:\n  top_p: 1.1\n", 9, "`sample.top_p` is 1.1; input should be less than or equal to 1"),
        ("seed: 4294967296\n", 8, "`seed` is 4294967296; input should be less than 4294967296"),
        ("seed: -1\n", 8, "`seed` is -1; input should be greater than or equal to 0"),
        ("name: 5\n", 8, "`name` is 5; input should be a valid string"),
        ("name: [a, b]\n", 8, "`name` is ['a', 'b']; input should be a valid string"),
    ],
)
def test_a_wrong_value_is_told_with_line_and_key(write, added, line, message):
    path = write(GOOD + added)
    assert refused(path) == f"{path}:{line}: {message}"


def test_a_long_value_is_cut_in_the_message(write):
    assert len(refused(write(GOOD + f"seed: {'x' * 50_000}\n"))) < 300


def test_yes_is_no_boolean(write):
    assert "`model.trust_remote_code` is 'yes'; input should be a valid boolean" in refused(
        write(GOOD.replace("path: tiny", "path: tiny\n  trust_remote_code: yes"))
    )


# Keys and sections


@pytest.mark.parametrize(
    ("added", "line", "message"),
    [
        ("align:\n  beta_R: 0.5\n", 9, "unknown key `align.beta_R`; did you mean `beta_r`?"),
        ("algin:\n  beta_r: 0.5\n", 8, "unknown key `algin`; did you mean `align`?"),
        ("evaluate:\n  zzz: 1\n", 9, "unknown key `evaluate.zzz`; valid keys: k"),
        ("1: 2\n", 8, "unknown key `1`; valid keys: name, out, seed, "),
        ("null: 2\n", 8, "unknown key `null`; valid keys: name, out, seed, "),
        ("? [a, b]\n: c\n", 8, "a key is a list or a section; expected a name"),
        ("? {a: b}\n: c\n", 8, "a key is a list or a section; expected a name"),
        ("name: a\nname: b\n", 9, "the key `name` stands twice; remove one"),
        ("align:\n  beta_r: 1\n  beta_r: 2\n", 10, "the key `align.beta_r` stands twice; remove one"),
        ("align:\n  trainer: {a: 1, a: 2}\n", 9, "the key `align.trainer.a` stands twice; remove one"),
        ("sample:\n", 8, "`sample` is empty; expected a section with the keys k, temperature, "),
        ("sample: 4\n", 8, "`sample` is 4; expected a section with the keys k, temperature, "),
        ("evaluate: [k]\n", 8, "`evaluate` is ['k']; expected a section with the keys k"),
        ("align:\n  objective: exo_prf\n", 9, "`align.objective` is 'exo_prf'; expected 'exo_rw', 'exo_pref', "),
    ],
)
def test_a_wrong_key_is_told_with_its_line(write, added, line, message):
    path = write(GOOD + added)
    assert refused(path).startswith(f"{path}:{line}: {message}")


def test_the_nearest_objective_is_named(write):
    assert refused(write(GOOD + "align:\n  objective: dpo-rw\n")).endswith("did you mean dpo_rw?")


def test_a_plain_model_is_no_section(write):
    path = write(GOOD.replace("model:\n  path: tiny", "model: demo"))
    assert refused(path).startswith(f"{path}:1: `model` is 'demo'; expected a section with the keys path, revision")


def test_a_missing_section_and_a_missing_key(write):
    path = write(GOOD.replace("model:\n  path: tiny\n", ""))
    assert refused(path) == f"{path}: `model` is missing; it has no default"
    path = write(GOOD.replace("  evaluation: heldout.jsonl\n", ""))
    assert refused(path) == f"{path}:3: `prompts.evaluation` is missing; it has no default"


def test_a_misspelt_section_stands_before_the_one_that_it_makes_missing(write):
    path = write(GOOD.replace("model:", "modle:"))
    assert refused(path).splitlines() == [
        f"{path}:1: unknown key `modle`; did you mean `model`?",
        f"{path}: `model` is missing; it has no default",
    ]


# What fits together


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            GOOD.replace("prompts:\n  train: train.jsonl\n  evaluation: heldout.jsonl\n", ""),
            None,
            "give either `prompts`",
        ),
        (GOOD + "data:\n  train: train.jsonl\n", 3, "give either `prompts`"),
        (GOOD.replace("reward:\n  function: length\n", ""), 3, "`prompts` needs a `reward` section"),
        ("model:\n  path: x\ndata:\n  train: train.jsonl\nreward:\n  function: length\n", 5, "`reward` is read with"),
        (GOOD + "align:\n  objective: exo_pref\n", 9, "`align.objective` is exo_pref, which learns from pairs"),
        (
            GOOD + "align:\n  completions: {choose: random, k: 9}\n",
            9,
            "`align.completions.k` is 9, and sample.k only 8; lower it, or sample more",
        ),
        (
            GOOD + "align:\n  beta_r: 1\n  objective: exo_pref\n  epsilon: 0\n",
            11,
            "align: `epsilon` is 0 with exo_pref",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told_with_the_line_at_fault(write, text, line, message):
    path = write(text)
    assert refused(path).startswith(f"{path}:{line}: {message}" if line else f"{path}: {message}")


@pytest.mark.parametrize("objective", sorted({*get_args(ObjectiveName)} - {*POLICY_GRADIENTS}))
def test_data_fits_every_objective(write, objective):
    path = write(f"model:\n  path: x\ndata:\n  train: train.jsonl\nalign:\n  objective: {objective}\n")
    assert load_recipe(path).align.objective == objective


def test_the_temperature_is_the_samplers_unless_it_is_set(write):
    sampled = write(GOOD + "sample:\n  temperature: 0.8\n")
    assert load_recipe(sampled).temperature == 0.8
    with pytest.raises(ConfigError, match="would be no samples of the reference"):
        load_recipe(sampled, ["align.temperature=0.9"])
    ready = write("model:\n  path: x\ndata:\n  train: train.jsonl\n")
    assert load_recipe(ready).temperature == 1.0
    assert load_recipe(ready, ["align.temperature=0.9"]).temperature == 0.9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["align.objective=exo_pref", "align.beta_r=0.1"], "`beta_r` has no effect with exo_pref"),
        (["align.epsilon=0.1"], "`epsilon` has no effect with exo_rw"),
        (["sample.k=4"], "`sample` is read with `prompts` only"),
        (["evaluate.k=4"], "`evaluate` is read with `prompts` only"),
    ],
)
def test_settings_without_effect_are_refused(write, overrides, message):
    ready = write("model:\n  path: x\ndata:\n  train: train.jsonl\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(ready, overrides)


# YAML that is no recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected sections (model, prompts, align, ...), found nothing"),
        ("# a comment\n", ": expected sections (model, prompts, align, ...), found nothing"),
        ("- model\n- data\n", ": expected sections (model, prompts, align, ...), found list"),
        ("model\n", ": expected sections (model, prompts, align, ...), found str"),
        (GOOD + "align:\n\tbeta_r: 1\n", ":9: not valid YAML: found character '\\t'"),
        (GOOD + "name: [a\n", ":9: not valid YAML: "),
        (GOOD + "name: *other\n", ":8: not valid YAML: found undefined alias"),
        (GOOD + "---\n" + GOOD, ":8: not valid YAML: but found another document"),
        (GOOD + 'name: "a\0"\n', ":1: not valid YAML: unacceptable character #x0000"),
        (b"model:\n  path: caf\xe9\n", ":2: not UTF-8: byte 0xe9"),
        (GOOD + 'name: "\\ud800"\n', ":8: '\\ud800' is no str: "),
        (GOOD + "name: 2024-01-01\n", ":8: 2024-01-01 is a date in YAML; put it in quotes"),
        (GOOD + f"seed: {'9' * 5000}\n", ":8: '99999"),
        (GOOD + "seed: !!int x\n", ":8: 'x' is no int: "),
        (GOOD + "name: !!binary aGk=\n", ":8: the tag tag:yaml.org,2002:binary is refused"),
        (GOOD + "align:\n  trainer: !!omap [a: b]\n", ":9: the tag tag:yaml.org,2002:omap is refused"),
        (GOOD + f"x: {'[' * 1000}{']' * 1000}\n", ":1: nested too deeply"),
        ("#" * (MOST_BYTES + 1), f" is larger than {MOST_BYTES} bytes"),
    ],
)
def test_what_is_no_recipe_is_refused(write, text, message):
    path = write(text)
    assert f"{path}{message}" in refused(path)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [owned]",
        "!!python/object/new:os.mkdir [owned]",
        "!!python/name:os.system ''",
        "!x 1",
    ],
)
def test_tags_make_nothing(write, value):
    path = write(GOOD + f"name: {value}\n")
    assert ":8: the tag " in refused(path)
    assert "the tag " in refused(write(GOOD), f"name={value}")
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        GOOD + "align: &a\n  beta_r: 0.5\nsample:\n  <<: *a\n",
        "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(30)),
    ],
    ids=["recursive", "merged", "billion laughs"],
)
def test_aliases_are_refused_before_they_grow(write, text):
    assert "used again elsewhere by an alias (*)" in refused(write(text))


def test_a_byte_order_mark_does_no_harm(write):
    assert load_recipe(write("\ufeff" + GOOD)).model.path == "tiny"


# Files


def test_a_missing_recipe_names_the_near_one(write):
    path = write(GOOD, "hotel.yaml")
    assert refused(path.with_name("hotle.yaml")).endswith(f"hotle.yaml does not exist; did you mean {path}?")
    assert refused(path.parent) == f"recipe {path.parent} is a folder; expected a YAML file"
    assert "does not exist" in refused(path.parent / "nowhere" / "r.yaml")
    assert "does not exist" in refused(path.with_name("x" * 300))


def test_a_missing_file_names_line_key_and_the_near_file(write):
    path = write(GOOD.replace("train.jsonl", "trian.jsonl"))
    message = refused(path)
    assert message.startswith(f"{path}:4: `prompts.train`: file trian.jsonl does not exist")
    assert message.endswith(f"did you mean {path.parent / 'train.jsonl'}?")


@pytest.mark.parametrize("value", ["''", "x" * 300, "~nobody-of-that-name/x", '"a\\0b"'])
def test_a_path_that_is_no_file_is_refused(write, value):
    path = write(GOOD.replace("train.jsonl", value))
    assert refused(path).startswith(f"{path}:4: `prompts.train`: file ")


@pytest.mark.parametrize("name", ["r.yaml", "override.yaml"])
def test_files_are_found_beside_the_recipe_then_in_the_working_directory(write, name):
    path = write(GOOD, name)
    (path.parent / "tiny").mkdir()
    recipe = load_recipe(path)
    assert recipe.prompts.train == str(path.parent / "train.jsonl")
    assert recipe.model.path == str(path.parent / "tiny")
    (path.parent / "train.jsonl").unlink()
    Path("train.jsonl").touch()
    assert load_recipe(path).prompts.train == "train.jsonl"


def test_a_model_that_is_no_folder_beside_the_recipe_stays_as_it_is(write):
    assert load_recipe(write(GOOD)).model.path == "tiny"
    assert load_recipe(write(GOOD.replace("tiny", "x" * 300))).model.path == "x" * 300


# Overrides


def test_overrides_win_over_the_file(write):
    path = write(GOOD + "align:\n  beta_r: 0.1\n  beta_pi: 0.3\n")
    recipe = load_recipe(path, ["align.beta_r=0.5", "name=mine", "align.trainer.warmup_steps=3", "sample.k=4"])
    assert (recipe.align.beta_r, recipe.align.beta_pi) == (0.5, 0.3)
    assert (recipe.name, recipe.align.trainer, recipe.sample.k) == ("mine", {"warmup_steps": 3}, 4)


def test_the_last_override_wins(write):
    assert load_recipe(write(GOOD), ["seed=1", "seed=2"]).seed == 2


def test_a_value_may_hold_an_equals_sign(write):
    assert load_recipe(write(GOOD), ["name=a=b"]).name == "a=b"


def test_a_section_can_be_taken_out_and_another_put_in(write):
    recipe = load_recipe(write(GOOD), ["prompts=null", "reward=null", f"data.train={write(GOOD)}"])
    assert recipe.prompts is None
    assert recipe.data is not None


def test_an_override_fills_an_empty_section(write):
    assert load_recipe(write(GOOD + "sample:\n"), ["sample.k=4"]).sample.k == 4


def test_paths_of_overrides_are_relative_to_the_working_directory(write):
    path = write(GOOD)
    assert "file train.jsonl does not exist (looked for train.jsonl)" in refused(path, "prompts.train=train.jsonl")
    Path("train.jsonl").touch()
    recipe = load_recipe(path, ["prompts.train=train.jsonl"])
    assert recipe.prompts.train == "train.jsonl"
    assert recipe.prompts.evaluation == str(path.parent / "heldout.jsonl")
    (path.parent / "tiny").mkdir()
    assert load_recipe(path, ["model.path=tiny"]).model.path == "tiny"
    whole = refused(path, "prompts={train: train.jsonl, evaluation: heldout.jsonl}")
    assert whole.startswith("override 'prompts={train")
    assert whole.endswith("file heldout.jsonl does not exist (looked for heldout.jsonl)")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.beta_r", "override 'align.beta_r': expected section.key=value, for example align.beta_r=0.5"),
        ("=3", "override '=3': expected section.key=value"),
        ("align..beta_r=3", "override 'align..beta_r=3': expected section.key=value"),
        (".seed=3", "override '.seed=3': expected section.key=value"),
        ("model.path.x=1", "override 'model.path.x=1': path is a value, not a section"),
        ("sample.k=[", "override 'sample.k=[': not valid YAML"),
        ("sample.k={a: 1, a: 2}", "override 'sample.k={a: 1, a: 2}': the key `a` stands twice"),
        ("align.beta_r=", "override 'align.beta_r=': `align.beta_r` is empty; input should be a valid number"),
        ("align.beta_R=1", "override 'align.beta_R=1': unknown key `align.beta_R`; did you mean `beta_r`?"),
        ("algin.beta_r=1", "override 'algin.beta_r=1': unknown key `algin`; did you mean `align`?"),
        ("align.beta_r=half", "override 'align.beta_r=half': `align.beta_r` is 'half'; input should be a valid number"),
        ("align.max_tokens_per_pass=none", "override 'align.max_tokens_per_pass=none': `align.max_tokens_per_pass"),
        ("align.max_tokens_per_pass=0", "override 'align.max_tokens_per_pass=0': `align.max_tokens_per_pass"),
        (
            "align.objective=exo_pref",
            "override 'align.objective=exo_pref': `align.objective` is exo_pref, which learns",
        ),
        ("x=" + "[" * 1000, "override 'x=[[["),
    ],
)
def test_a_wrong_override_is_named(write, override, message):
    assert refused(write(GOOD), override).startswith(message)


def test_the_callers_values_are_left_alone():
    values = {"model": {"path": "x"}, "data": {"train": os.devnull}}
    with pytest.raises(ConfigError, match="does not exist"):
        build_recipe(values, ["align.beta_r=2", "model.path=y"])
    assert values == {"model": {"path": "x"}, "data": {"train": os.devnull}}


def test_values_from_options_are_called_by_their_options():
    values = {"model": {"path": "x"}, "data": {"train": "missing.jsonl"}}
    with pytest.raises(ConfigError, match=r"^--data: `data.train`: file missing.jsonl does not exist"):
        build_recipe(values, lines={"data.train": "--data"})
