"""The `data` and `prompts` sections: a path, a section or a list of sections, every mistake told with line and nearest key."""

import pytest

from exoalign.config_data import SourceSection, as_list
from exoalign.errors import ConfigError
from exoalign.recipe import load_recipe


@pytest.fixture
def load(tmp_path):
    """Reads a recipe with these lines in the section `data`, which begins in line 4; `a.jsonl` and `b.jsonl` lie beside it."""
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "saved").mkdir()

    def read(lines, *overrides):
        (tmp_path / "r.yaml").write_text(f"model:\n  path: demo\ndata:\n  {lines}\n")
        return load_recipe(tmp_path / "r.yaml", overrides)

    return read


def test_each_form_gives_the_same_data_sets(load, tmp_path):
    a, b = (SourceSection(path=str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
    assert as_list(load("train: a.jsonl").data.train) == [a]
    assert as_list(load("train: {path: a.jsonl}").data.train) == [a]
    assert as_list(load("train: [{path: a.jsonl}, {path: b.jsonl}]").data.train) == [a, b]
    assert as_list("x", 3) == as_list(SourceSection(path="x", limit=3)) == [SourceSection(path="x", limit=3)]
    mixed = load("train:\n    - path: a.jsonl\n      weight: 0.5\n    - path: b.jsonl\n      weight: 2\n      limit: 7")
    assert [(s.weight, s.limit) for s in mixed.data.train] == [(0.5, None), (2, 7)]


def test_files_and_folders_are_found_beside_the_recipe_and_hub_ids_are_left_alone(load, tmp_path):
    assert load("train: saved").data.train == str(tmp_path / "saved")
    for name in ("owner/name", "_owner/name"):
        assert load(f"train: {name}").data.train == name
    hub = load("train: {path: owner/name, subset: x, split: train, revision: abc, adapter: hh}").data.train
    assert (hub.path, hub.adapter, hub.subset, hub.split, hub.revision) == ("owner/name", "hh", "x", "train", "abc")
    with pytest.raises(ConfigError, match=r"r\.yaml:4: `data\.train`: file data/name\.jsonl does not exist"):
        load("train: data/name.jsonl")
    with pytest.raises(ConfigError, match=r"`data\.train`: file saved/nam does not exist"):  # the folder is there
        load("train: saved/nam")


def test_prompts_may_name_an_adapter(load, tmp_path):
    prompts = "{train: {path: a.jsonl, adapter: imdb}, evaluation: a.jsonl}"
    found = load("train: a.jsonl", "data=null", f"prompts={prompts.replace('a.jsonl', str(tmp_path / 'a.jsonl'))}",
                 "reward={function: length}").prompts  # fmt: skip
    assert (found.train.adapter, found.evaluation) == ("imdb", str(tmp_path / "a.jsonl"))


FORMS = "expected a path or hub id, or a section with `path` in it, or a list of such sections"


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        ("train: 5", 4, f"data.train: found 5; {FORMS}"),
        ("train: []", 4, f"data.train: found []; {FORMS}"),
        ("train:", 4, f"data.train: found empty; {FORMS}"),
        ("train: {pth: a.jsonl}", 4, "unknown key `data.train.pth`; did you mean `path`?"),
        ("train: {split: a}", 4, "`data.train.path` is missing; it has no default"),
        ("train: {path: a.jsonl, limit: 0}", 4, "`data.train.limit` is 0; input should be greater than or equal to 1"),
        (
            "train:\n    - path: a.jsonl\n    - path: b.jsonl\n      wieght: 2", 7,
            "unknown key `data.train.1.wieght`; did you mean `weight`?",
        ),
        (
            "train:\n    - path: a.jsonl\n    - 3", 6,
            "`data.train.1` is 3; expected a section with the keys path, adapter, split, subset, revision, limit, weight,"
            " local",
        ),
        (
            "train:\n    - path: a.jsonl\n      weight: 1\n    - path: b.jsonl", 4,
            "data: `train`: 1 of 2 data sets have a weight; give each one or none",
        ),
        ("train: {path: a.jsonl, weight: 2}", 4, "data: `train.weight` has no effect with one data set; leave it out"),
        (
            "train: [{path: a.jsonl}, {path: b.jsonl}]\n  limit: 3", 5,
            "data: `limit` is of one data set, and `train` has a list; give each of them a limit of its own",
        ),
        (
            "train: {path: a.jsonl, limit: 4}\n  limit: 3", 5,
            "data: `limit` and `train.limit` are the same setting; leave one out",
        ),
        ("train: a.jsonl\n  holdout: 1", 5, "`data.holdout` is 1; input should be less than 1"),
        (
            "train: a.jsonl\n  evaluation: b.jsonl\n  holdout: 0.1", 6,
            "data: `holdout` takes the evaluation from `train`, and `evaluation` is given too; leave one out",
        ),
        (
            "train: a.jsonl\n  evaluation_limit: 3", 5,
            "data: `evaluation_limit` has no effect without `evaluation`; leave it out",
        ),
        ("train: a.jsonl\n  holdot: 0.1", 5, "unknown key `data.holdot`; did you mean `holdout`?"),
        ("train: a.jsonl\n  max_prompt_tokens: 0", 5,
         "`data.max_prompt_tokens` is 0; input should be greater than or equal to 1"),
        (
            "train: a.jsonl\n  truncation: truncat_prompt_left", 5,
            "data.truncation: found 'truncat_prompt_left'; expected error, drop, or one or both of truncate_prompt_left,"
            " truncate_completion_right; did you mean truncate_prompt_left?",
        ),
        (
            "train: a.jsonl\n  truncation: [drop]", 5,
            "data.truncation: found 'drop'; expected error, drop, or one or both of truncate_prompt_left,"
            " truncate_completion_right",
        ),
        (
            "train: a.jsonl\n  completions: {choose: best_worst}", 5,
            "data.completions: `choose` is best_worst, which needs `k`, the number of completions to keep",
        ),
        (
            "train: a.jsonl\n  completions:\n    k: 3", 6,
            "data.completions: `k` has no effect while all completions are kept; set `choose` to best_worst or random",
        ),
        (
            "train: a.jsonl\n  completions:\n    k: 3\n    choose: bestworst", 7,
            "`data.completions.choose` is 'bestworst'; expected 'all', 'best_worst' or 'random'; did you mean best_worst?",
        ),
        ("train: a.jsonl\n  completions: {kk: 3}", 5, "unknown key `data.completions.kk`; did you mean `k`?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_and_key(load, tmp_path, lines, line, message):
    with pytest.raises(ConfigError) as error:
        load(lines)
    assert str(error.value).splitlines()[0] == f"{tmp_path / 'r.yaml'}:{line}: {message}"
