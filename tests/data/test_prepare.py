"""From the data of a recipe to groups on the disk: made once, told the same twice, never from a damaged file."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from exoalign.config_data import DataSection
from exoalign.data import prepare as module
from exoalign.data import token_cache
from exoalign.data.formats import read_groups
from exoalign.data.group_table import GroupTable
from exoalign.data.prepare import prepare
from exoalign.data.tokenize import tokenize
from exoalign.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tokenized(monkeypatch):
    """The groups that went through the tokenizer."""
    seen = []
    through = module.stream_tokenized

    def counting(groups, *args, **kwargs):
        return through((seen.append(group) or group for group in groups), *args, **kwargs)

    monkeypatch.setattr(module, "stream_tokenized", counting)
    return seen


def pairs(name, count, **more):
    rows = [{"prompt": f"{name} {i}:", "chosen": f" good {i}", "rejected": " bad", **more} for i in range(count)]
    Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{name}.jsonl"


@pytest.fixture
def made(tiny_tokenizer):
    """Prepare with settings of the section `data`."""

    def make(side="train", *, context=None, seed=0, tokenizer=tiny_tokenizer, **values):
        folder = token_cache.default_folder()
        data = DataSection.model_validate(values)
        return prepare(data, side, tokenizer, context=context, seed=seed, cache=folder)

    return make


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_groups_are_those_of_the_slow_way_and_lie_on_the_disk(made, tiny_tokenizer):
    path = pairs("a", 20)
    groups = made(train=path).groups
    assert isinstance(groups, GroupTable)
    assert list(groups) == tokenize(read_groups(path)[0], tiny_tokenizer)
    assert groups.paths[0].parent == token_cache.default_folder()


def test_a_second_run_tokenises_nothing_and_tells_the_same(made, tokenized):
    path = pairs("a", 5)
    with Path(path).open("a") as file:
        file.write('\n{"prompt": "x", "chosen": "same", "rejected": "same"}')
    first = made(train=path, limit=9)
    assert len(tokenized) == 5
    second = made(train=path, limit=9)
    assert len(tokenized) == 5
    assert list(second.groups) == list(first.groups)
    assert second.notes == first.notes
    assert first.notes[0].startswith("1 row set aside")
    assert "a.jsonl: 5 usable groups, 9 were asked for" in first.notes
    assert second.made_from == first.made_from
    assert "token ids kept in" in first.lines[-1]
    assert "token ids from the cache" in second.lines[-1]
    assert second.lines[:-1] == first.lines[:-1]


def test_a_file_that_was_moved_is_the_same_data(made):
    path = pairs("a", 3)
    before = made(train=path).made_from
    Path(path).rename("b.jsonl")
    moved = made(train="b.jsonl")
    assert moved.made_from == before
    assert moved.groups[0].where == "b.jsonl:1"  # and errors name the file that is there
    change_bytes("b.jsonl")
    assert made(train="b.jsonl").made_from != before


def change_bytes(path):
    Path(path).write_text(Path(path).read_text().replace("good 2", "fine 2"))


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 4},
        {"holdout": 0.4},
        {"max_prompt_tokens": 100},
        {"truncation": "drop"},
        {"completions": {"choose": "random", "k": 2}},
        {"context": 400},
    ],
    ids=str,
)
def test_whatever_the_groups_depend_on_makes_them_anew(made, tokenized, change):
    path = pairs("a", 12)
    made(train=path)
    tokenized.clear()
    made(train=path, **change)
    assert tokenized


def test_other_bytes_template_or_special_tokens_make_them_anew(made, tokenized, tiny_tokenizer):
    import copy

    path = pairs("a", 3)
    made(train=path)
    change_bytes(path)
    other_template, other_end = copy.deepcopy(tiny_tokenizer), copy.deepcopy(tiny_tokenizer)
    other_template.chat_template = tiny_tokenizer.chat_template + " "
    other_end.eos_token = "<|im_start|>"
    for n, tokenizer in enumerate((tiny_tokenizer, other_template, other_end), 2):
        groups = made(train=path, tokenizer=tokenizer).groups
        assert len(tokenized) == 3 * n
    assert groups[0].completion_ids[0][-1] == tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize("damage", ["bit", "cut", "empty manifest", "other manifest", "no manifest", "no table"])
def test_a_damaged_file_is_made_anew_with_a_warning(made, tokenized, caplog, damage):
    path = pairs("a", 6)
    first = made(train=path)
    table = first.groups.paths[0]
    manifest = table.with_suffix(".json")
    expected = list(first.groups)
    content = table.read_bytes()
    del first
    table.unlink()  # a new file: changing the old one in place would change what is mapped
    if damage == "bit":
        at = content.index(b"good 3")
        table.write_bytes(content[:at] + b"g00d 3" + content[at + 6 :])
    elif damage == "cut":
        table.write_bytes(content[:-9])
    elif damage != "no table":
        table.write_bytes(content)
    if "manifest" in damage:
        text = json.loads(manifest.read_text())
        text["record"]["version"] = -1
        manifest.unlink()
        if damage != "no manifest":
            manifest.write_text("" if damage.startswith("empty") else json.dumps(text))
    again = made(train=path)
    assert list(again.groups) == expected
    assert len(tokenized) == 12
    told = warnings(caplog)
    if damage == "no manifest":  # that is how a killed run looks
        assert told == []
    else:
        assert len(told) == 1
        assert told[0].startswith(f"a.jsonl: its tokenised groups in {table} are damaged: ")
        assert told[0].endswith("; they are made anew")
    assert made(train=path).lines[-1].startswith("a.jsonl: token ids from the cache")


def test_a_row_in_error_leaves_no_table(made):
    path = pairs("a", 700)
    with Path(path).open("a") as file:
        file.write('\n{"prompt": "x", "chosen": 5, "rejected": "y"}')
    with pytest.raises(DataError, match=r"^a\.jsonl:701: "):
        made(train=path)
    assert list(token_cache.default_folder().iterdir()) == []


def test_a_cache_that_cannot_be_used_costs_a_warning(made, caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EXOALIGN_CACHE", str(tmp_path / "file"))
    groups = made(train=pairs("a", 3)).groups
    assert [group.prompt for group in groups] == ["a 0:", "a 1:", "a 2:"]
    (told,) = warnings(caplog)
    assert "a.jsonl: the tokenised groups cannot be kept in" in told
    assert "EXOALIGN_CACHE names another" in told


def test_old_tables_go_when_there_is_no_room(made, monkeypatch):
    import os
    import time

    folder = token_cache.default_folder()
    paths = [pairs(name, 50) for name in "abcd"]
    tables = [made(train=path).groups.paths[0] for path in paths[:3]]
    (folder / ".left.arrow.123").write_text("of a killed run")
    for age, table in zip((5, 3, 0), tables, strict=True):
        then = time.time() - age * token_cache.DAY
        os.utime(table.with_suffix(".json"), (then, then))
    os.utime(folder / ".left.arrow.123", (1, 1))
    monkeypatch.setattr(token_cache, "MOST_BYTES", 3 * tables[0].stat().st_size + 100)
    made(train=paths[3])
    assert [table.is_file() for table in tables] == [False, True, True]
    assert not tables[0].with_suffix(".json").is_file()
    assert not (folder / ".left.arrow.123").exists()


def test_a_held_out_share_is_by_prompt_and_complete(made):
    path = pairs("a", 60)
    with Path(path).open("a") as file:  # each prompt a second time
        file.write(
            "\n" + "\n".join(json.dumps({"prompt": f"a {i}:", "chosen": " x", "rejected": " y"}) for i in range(60))
        )
    train, heldout = (list(made(side, train=path, holdout=0.3).groups) for side in ("train", "heldout"))
    assert len(train) + len(heldout) == 120
    assert not {g.prompt for g in train} & {g.prompt for g in heldout}
    assert Counter(g.prompt for g in heldout).most_common()[-1][1] == 2
    assert made("heldout", train=path) is None
    with pytest.raises(DataError, match=r"none of 1 groups is on the side `heldout` of the split"):
        made("heldout", train=pairs("b", 1), holdout=1e-9)


def test_sets_are_mixed_by_weight_or_taken_whole(made):
    sets = [{"path": pairs("a", 30)}, {"path": pairs("b", 10)}]
    whole = made(train=sets)
    assert [g.prompt for g in whole.groups] == [f"a {i}:" for i in range(30)] + [f"b {i}:" for i in range(10)]
    weighted = [{**one, "weight": weight} for one, weight in zip(sets, (1, 1), strict=True)]
    mixed = made(train=weighted, seed=5)
    prompts = [g.prompt for g in mixed.groups]
    assert Counter(p[0] for p in prompts) == {"a": 11, "b": 10}
    assert len(set(prompts)) == 21
    assert prompts == [g.prompt for g in made(train=weighted, seed=5).groups]
    assert prompts != [g.prompt for g in made(train=weighted, seed=6).groups]
    assert mixed.lines[-2:] == [
        "a.jsonl: 11 of 30 groups, 52.4% of the mixture",
        "b.jsonl: 10 of 10 groups, 47.6% of the mixture",
    ]
    assert mixed.made_from["weights"] == [1, 1]


def test_completions_are_chosen_before_they_are_tokenised(made):
    rows = [{"prompt": f"p {i}", "completions": ["a", "b", "c", "d"], "rewards": [i, 3, -i, 1]} for i in range(3)]
    Path("k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    groups = made(train="k.jsonl", completions={"choose": "best_worst", "k": 2}).groups
    assert [g.completions for g in groups] == [("a", "b"), ("b", "c"), ("b", "c")]
    assert [len(g.completion_ids) for g in groups] == [2, 2, 2]


def test_what_does_not_fit_is_an_error_or_counted(made):
    path = pairs("a", 3)  # prompts of 4 bytes, completions of up to 7 and the end
    with pytest.raises(
        DataError, match=r"^a\.jsonl:1: .*5, but max_completion_tokens allows 4|^a\.jsonl:1: completion of 8"
    ):
        made(train=path, max_completion_tokens=4)
    cut = made(train=path, max_completion_tokens=4, truncation="truncate_completion_right")
    assert [len(ids) for g in cut.groups for ids in g.completion_ids] == [4] * 6
    assert any("3 of 3 groups" in note for note in cut.notes)
    assert made(train=path, max_completion_tokens=4, truncation="truncate_completion_right").notes == cut.notes


def test_a_hub_data_set_is_known_by_its_commit(made, monkeypatch, tokenized):
    """No network: the hub's answer and the rows are given, and what was asked for is recorded."""
    from types import SimpleNamespace

    import datasets
    import huggingface_hub

    commits, asked = ["c1", "c1", "c2", None], []

    class Api:
        def dataset_info(self, name, revision=None):
            asked.append((name, revision))
            if commits[0] is None:
                raise ConnectionError("offline")
            return SimpleNamespace(sha=commits.pop(0))

    def load(path, **options):
        asked.append((path, options["split"]))
        return datasets.Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b"}])

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = {"path": "owner/name", "split": "train", "revision": "main"}
    counts = []
    for _ in range(5):
        made(train=hub)
        counts.append(len(tokenized))
    assert counts == [1, 1, 2, 3, 4]  # without a commit it may be another one
    assert asked[:3] == [("owner/name", "main"), ("owner/name", "train"), ("owner/name", "main")]


def test_an_adapter_reads_its_schema_and_is_told_when_unknown(made):
    path = pairs("a", 2)
    pytest.importorskip("exoalign.data.adapters")
    with pytest.raises(DataError, match="nowhere"):
        made(train={"path": path, "adapter": "nowhere"})
