"""From the data of a recipe to groups on the disk: made once, told the same twice, never from a damaged file."""

import json
import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from exoalign.config_data import DataSection
from exoalign.data import prepare as module
from exoalign.data import token_cache
from exoalign.data.formats import read_groups
from exoalign.data.group_table import GroupTable
from exoalign.data.mix import side_of
from exoalign.data.prepare import prepare
from exoalign.data.table import write_table
from exoalign.data.tokenize import tokenize
from exoalign.errors import DataError
from exoalign.groups import Group


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


def test_a_cache_that_may_only_be_read_is_used(made, tokenized, monkeypatch, caplog):
    path = pairs("a", 3)
    first = list(made(train=path).groups)

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    again = made(train=path)
    assert isinstance(again.groups, GroupTable)
    assert list(again.groups) == first
    assert (len(tokenized), warnings(caplog)) == (3, [])


def test_a_folder_that_cannot_be_cleaned_costs_no_table(made, tokenized, monkeypatch, caplog):
    def refused(folder):
        raise OSError("busy")

    monkeypatch.setattr(token_cache, "_clean", refused)
    assert isinstance(made(train=pairs("a", 3)).groups, GroupTable)
    assert (len(tokenized), warnings(caplog)) == (3, [])


def test_a_cache_that_cannot_be_used_costs_a_warning(made, caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EXOALIGN_CACHE", str(tmp_path / "file"))
    groups = made(train=pairs("a", 3)).groups
    assert [group.prompt for group in groups] == ["a 0:", "a 1:", "a 2:"]
    (told,) = warnings(caplog)
    assert "a.jsonl: the tokenised groups cannot be kept in" in told
    assert "EXOALIGN_CACHE names another" in told


def test_old_tables_go_when_there_is_no_room(made, monkeypatch, caplog):
    import os
    import time

    folder = token_cache.default_folder()
    paths = [pairs(name, 50) for name in "abcd"]
    tables = [made(train=path).groups.paths[0] for path in paths[:3]]
    for name in (".left.arrow.123", "orphan.arrow", "young.arrow"):
        (folder / name).write_text("of a killed run")
    for age, table in zip((5, 3, 0), tables, strict=True):
        then = time.time() - age * token_cache.DAY
        os.utime(table.with_suffix(".json"), (then, then))
    for name in (".left.arrow.123", "orphan.arrow"):
        os.utime(folder / name, (1, 1))
    caplog.set_level(logging.INFO, token_cache.__name__)
    monkeypatch.setattr(token_cache, "MOST_BYTES", 3 * tables[0].stat().st_size + 100)
    made(train=paths[3])
    assert [table.is_file() for table in tables] == [False, True, True]
    assert not tables[0].with_suffix(".json").is_file()
    left = [name for name in (".left.arrow.123", "orphan.arrow", "young.arrow") if (folder / name).exists()]
    assert left == ["young.arrow"]  # it may be of a run that is just writing its manifest
    assert any(m.endswith(f"manifest that are deleted in {folder}: 1") for m in caplog.messages)


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
    assert (mixed.made_from["mix_seed"], mixed.made_from["seed"]) == (5, None)  # the other is of split and choice
    assert whole.made_from["mix_seed"] is None


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


def test_an_adapter_reads_its_schema_and_is_told_when_unknown(made):
    path = pairs("a", 2)
    pytest.importorskip("exoalign.data.adapters")
    with pytest.raises(DataError, match="nowhere"):
        made(train={"path": path, "adapter": "nowhere"})


def test_a_set_may_have_nothing_on_one_side(made):
    sets = [{"path": pairs("a", 40), "weight": 1}, {"path": pairs("b", 1), "weight": 1}]
    for side in ("train", "heldout"):
        seed = next(s for s in range(99) if side_of("b 0:", holdout=0.3, seed=s) != side)
        here = {p for p in (f"a {i}:" for i in range(40)) if side_of(p, holdout=0.3, seed=seed) == side}
        for _ in range(2):  # out of the cache too
            prepared = made(side, train=sets, holdout=0.3, seed=seed)
            assert {g.prompt for g in prepared.groups} == here
            assert f"b.jsonl: none of 1 groups is on the side `{side}` of the split" in prepared.notes
    expected = r"^no group to hold out; expected at least one; change `data\.holdout` or the data\n"
    with pytest.raises(DataError, match=expected) as error:
        made("heldout", train=sets, holdout=1e-9)
    assert "a.jsonl: none of 40 groups is on the side `heldout`" in str(error.value)
    assert "b.jsonl: none of 1 groups is on the side `heldout`" in str(error.value)


def test_all_that_is_held_out_of_weighted_sets_is_used(made):
    sets = [{"path": pairs("a", 60), "weight": 9}, {"path": pairs("b", 60), "weight": 1}]
    heldout = made("heldout", train=sets, holdout=0.3)
    prompts = [f"{name} {i}:" for name in "ab" for i in range(60)]
    assert [g.prompt for g in heldout.groups] == [p for p in prompts if side_of(p, holdout=0.3, seed=0) == "heldout"]
    assert (heldout.made_from["weights"], heldout.made_from["mix_seed"]) == ([None, None], None)
    counts = Counter(g.prompt[0] for g in made("train", train=sets, holdout=0.3).groups)
    assert counts["a"] > 5 * counts["b"] > 0


@pytest.mark.parametrize("holdout", [None, 0.3])
def test_where_budgets_leave_nothing_the_split_is_not_blamed(made, holdout):
    with pytest.raises(DataError, match=r"a\.jsonl: none of \d+ groups is left within the budgets") as error:
        made(train=pairs("a", 20), max_completion_tokens=4, truncation="drop", holdout=holdout)
    assert not {"split", "holdout"} & set(re.findall(r"\w+", str(error.value)))
    assert re.search(r"longer than max_completion\w* allows \(4 tokens\)", str(error.value))


def test_of_a_template_that_writes_the_date_the_day_counts(tiny_tokenizer, monkeypatch):
    import copy

    dated = copy.deepcopy(tiny_tokenizer)
    dated.chat_template = "{{ strftime_now('%d %b %Y') }}" + tiny_tokenizer.chat_template
    records = []
    for day in ("2026-01-01", "2026-01-02"):
        monkeypatch.setattr(token_cache.time, "strftime", lambda *args, day=day: day)
        records.append([token_cache.tokenizer_record(tokenizer) for tokenizer in (tiny_tokenizer, dated)])
    assert records[0][0] == records[1][0]
    assert records[0][1] != records[1][1]


def test_a_slow_tokenizer_is_known_by_its_rules_too(tmp_path):
    """Two whose vocabularies are the same and whose merges differ."""
    from transformers import CTRLTokenizer

    records = []
    for name, merges in (("one", "a b"), ("two", "a c"), ("one again", "a b")):
        (tmp_path / name).mkdir()
        vocabulary, rules = tmp_path / name / "vocab.json", tmp_path / name / "merges.txt"
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(("<unk>", "a@@", "ab@@", "ac@@", "d"))}))
        rules.write_text(f"#version: 0.2\n{merges}\n")
        records.append(token_cache.tokenizer_record(CTRLTokenizer(str(vocabulary), str(rules))))
    one, two, again = records
    assert one == again
    assert one["rules"] != two["rules"]


def foreign(tmp_path, **provenance):
    """A file of groups that some other program wrote."""
    group = Group("p", ("a", "b", "c"), rewards=(0, 1, 2), provenance={"source": "f:1", **provenance})
    write_table([group], tmp_path / "g.parquet")
    return "g.parquet"


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("vllm", set()),
        (None, set()),
        ({"temperature": "hot"}, set()),
        ({"temperature": None}, set()),
        ({"temperature": True}, set()),
        ({"temperature": 10**400}, set()),
        ({"temperature": -1}, set()),
        ({"temperature": 1}, {1.0}),
        ({"temperature": 0.7}, {0.7}),
    ],
)
def test_a_foreign_provenance_may_say_what_it_likes(made, tmp_path, sampler, expected):
    assert made(train=foreign(tmp_path, sampler=sampler)).temperatures == expected


def test_a_foreign_list_that_is_not_of_the_completions_is_left_out(made, tmp_path):
    path = foreign(tmp_path, finish=["stop"], chosen_completions="all")
    (group,) = made(train=path, completions={"choose": "best_worst", "k": 2}).groups
    assert group.completions == ("a", "c")
    assert group.provenance["chosen_completions"] == [0, 2]
    assert "finish" not in group.provenance


def test_a_cut_prompt_begins_as_tokenising_begins(made, tiny_tokenizer):
    """Some models name a token that begins turns as bos, and no text begins with it: a cut prompt does not either."""
    import copy

    from tokenizers.processors import TemplateProcessing

    turns = copy.deepcopy(tiny_tokenizer)
    turns.bos_token = "<|im_start|>"
    texts = copy.deepcopy(turns)
    texts._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", turns.bos_token_id)]
    )
    rows = [{"prompt": [{"role": "user", "content": "Hello"}], "chosen": "a", "rejected": "b"}]
    Path("chat.jsonl").write_text(json.dumps(rows[0]))
    cut = {"train": "chat.jsonl", "max_prompt_tokens": 6, "truncation": "truncate_prompt_left"}
    whole = made(train="chat.jsonl", tokenizer=turns).groups[0].prompt_ids
    assert whole[0] == turns.bos_token_id
    assert made(**cut, tokenizer=turns).groups[0].prompt_ids == whole[-6:]
    assert made(**cut, tokenizer=texts).groups[0].prompt_ids == (whole[0], *whole[-5:])
