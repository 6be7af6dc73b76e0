"""What is recorded of a source is what is read of it: bytes of a reader's own files, and one commit of a hub data set."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from exoalign import stages
from exoalign.config_data import DataSection
from exoalign.data import contents, token_cache
from exoalign.data.contents import Commits, content_of, tokens_record
from exoalign.data.group_table import GroupTable
from exoalign.data.prepare import prepare
from exoalign.data.sources import Source
from exoalign.errors import DataError
from exoalign.files import checksum
from exoalign.groups import Group
from exoalign.inputs import Data
from exoalign.recipe import build_recipe

FIRST, SECOND = "1" * 40, "2" * 40
MAIN = {"path": "owner/name", "split": "train", "revision": "main"}


@pytest.fixture
def hub(monkeypatch):
    """A hub without network: `commit` is what every revision is at, or what is raised; the rows tell which one was read."""
    import datasets
    import huggingface_hub

    state = SimpleNamespace(commit=FIRST, asked=[], read=[])

    class Api:
        def dataset_info(self, name, revision=None):
            state.asked.append((name, revision))
            if isinstance(state.commit, Exception):
                raise state.commit
            return SimpleNamespace(sha=state.commit)

    def load(path, *, revision, **options):
        state.read.append(revision)
        rows = [{"prompt": f"p {i}", "chosen": f"of {revision}", "rejected": "b"} for i in range(20)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return state


@pytest.fixture
def made(tiny_tokenizer):
    """Prepare with settings of the section `data`."""

    def make(side="train", *, commits=None, **values):
        data, folder = DataSection.model_validate(values), token_cache.default_folder()
        return prepare(data, side, tiny_tokenizer, context=None, seed=0, cache=folder, commits=commits)

    return make


def of(prepared):
    """The commit that the groups are of, by their texts."""
    (found,) = {group.completions[0].removeprefix("of ") for group in prepared.groups}
    return found


# The hub


def test_what_is_recorded_is_what_is_read(made, hub):
    for commit in (FIRST, FIRST, SECOND):
        hub.commit = commit
        prepared = made(train=MAIN)
        assert prepared.made_from["sources"][0]["commit"] == commit
        assert of(prepared) == commit
    assert hub.read == [FIRST, SECOND]  # the second time out of the cache
    assert hub.asked == [("owner/name", "main")] * 3


def test_a_commit_is_not_asked_for(made, hub):
    prepared = made(train={**MAIN, "revision": SECOND})
    assert of(prepared) == prepared.made_from["sources"][0]["commit"] == SECOND
    assert hub.asked == []


def test_both_sides_are_of_one_commit_though_the_branch_moves(made, hub):
    commits = Commits(token_cache.default_folder())
    assert of(made("train", train=MAIN, holdout=0.3, commits=commits)) == FIRST
    hub.commit = SECOND
    assert of(made("heldout", train=MAIN, holdout=0.3, commits=commits)) == FIRST


def test_a_run_asks_once_for_both_sides(hub, tiny_folder, tiny_tokenizer, tmp_path):
    values = {
        "name": "hub", "out": str(tmp_path / "out"), "model": {"path": str(tiny_folder)},
        "data": {"train": MAIN, "holdout": 0.3}, "align": {"objective": "exo_pref", "learning_rate": 0.003},
    }  # fmt: skip
    data = Data(stages.Context(build_recipe(values), tiny_tokenizer, False, False))
    assert len(data.train.groups) + len(data.heldout.groups) == 20
    assert hub.asked == [("owner/name", "main")]


def test_without_network_the_commit_seen_last_is_used(made, hub):
    first = made(train=MAIN)
    hub.commit = ConnectionError("offline")
    again = made(train=MAIN)
    assert (list(again.groups), again.made_from) == (list(first.groups), first.made_from)
    assert hub.read == [FIRST]
    assert first.notes == []
    assert again.notes == [
        f"owner/name: the hub cannot be asked (ConnectionError); the commit of main that was seen last is used: {FIRST}"
    ]
    other = made(train={**MAIN, "revision": "other"})  # of which none was seen
    assert "commit" not in other.made_from["sources"][0]


def test_what_the_hub_says_is_gone_is_not_taken_from_memory(made, hub):
    from huggingface_hub.errors import RevisionNotFoundError

    made(train=MAIN)
    hub.commit = RevisionNotFoundError.__new__(RevisionNotFoundError)
    made(train=MAIN)
    assert hub.read == [FIRST, "main"]


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"commit": 5}', '{"commit": "../x"}'])
def test_a_damaged_memory_is_none(made, hub, damage):
    made(train=MAIN)
    (file,) = (token_cache.default_folder() / "commits").iterdir()
    file.write_text(damage)
    hub.commit = ConnectionError("offline")
    assert Commits(token_cache.default_folder()).find("owner/name", "main") == (None, [])


def test_without_a_commit_groups_are_in_memory_and_known_by_what_they_are(made, hub):
    hub.commit = ConnectionError("offline")
    first, again, other = (made(train={**MAIN, "revision": name}) for name in ("main", "main", "next"))
    assert list(token_cache.default_folder().glob("*")) == []
    assert not isinstance(first.groups, GroupTable)
    assert first.made_from == again.made_from
    assert first.made_from["sources"][0]["tokens"] != other.made_from["sources"][0]["tokens"]
    assert first.notes == [
        "owner/name: the hub does not say at which commit it is, so its tokens are not kept for other runs"
    ]


def test_groups_are_known_by_all_that_is_trained_on():
    group = Group("x", ("a", "b"), rewards=(1, 0), winner=0, prompt_ids=(1,), completion_ids=((2, 3), (4,)))
    changes = [
        {"prompt_ids": (2,)},
        {"completion_ids": ((2,), (3, 4))},
        {"completion_masks": ((False, True), (True,))},
        {"rewards": (2, 0)},
        {"winner": 1},
    ]
    others = [[dataclasses.replace(group, **change)] for change in changes]
    known = [tokens_record(groups)["tokens"] for groups in ([group], [], [group, group], *others)]
    assert len(set(known)) == len(known)
    assert tokens_record([dataclasses.replace(group, prompt="y")])["tokens"] == known[0]  # it has the same tokens


# Files and folders


def row(text):
    return json.dumps({"prompt": text, "chosen": "a", "rejected": "b"})


def test_of_a_folder_that_counts_which_its_reader_reads(tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("train.jsonl", "test.jsonl", ".hidden.jsonl", "README.md", "part/train.jsonl"):
        (tmp_path / name).write_text(row(name))

    def files(**chosen):
        content = content_of(Source(str(tmp_path), **chosen), Commits(tmp_path / "cache"))
        return dict(content.record["files"])

    expected = {name: checksum(tmp_path / name) for name in ("part/train.jsonl", "train.jsonl")}
    assert files(split="train") == expected
    assert files(split="train", subset="part") == {"part/train.jsonl": expected["part/train.jsonl"]}
    assert files(subset="nowhere") == {}  # the reader says so
    with pytest.raises(DataError, match="has files of the splits test, train; name one"):
        files()


def test_of_a_saved_data_set_every_file_counts(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"prompt": "x", "chosen": "a", "rejected": "b"}]).save_to_disk(tmp_path / "saved")
    content = content_of(Source(str(tmp_path / "saved")), Commits(tmp_path / "cache"))
    names = {name for name, _ in content.record["files"]}
    assert names == {str(p.relative_to(tmp_path / "saved")) for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert any(name.endswith(".arrow") for name in names)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch, made):
    path = tmp_path / "a.jsonl"
    path.write_text(row("x"))

    def refused(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(contents, "checksum", refused)
    for source in (path, tmp_path):
        with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: Permission denied"):
            made(train=str(source))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".jsonl", "y" * 300 + "/z", "x\0y"], ids=["a", "b", "c", "d"])
def test_names_that_no_file_can_have_are_refused(name, made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        made(train=name)
    assert list(Path().iterdir()) == []
