"""Groups come back from an Arrow file as they went in, one at a time, and a file is there whole or not at all."""

import copy
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from exoalign.data.group_table import BATCH, GroupTable, build, join, with_ids
from exoalign.errors import DataError
from exoalign.groups import Group, Message
from exoalign.train.reference import WithReference

TURNS = (Message("user", "Hi"),)
GROUPS = [
    Group("text", ("a",)),
    Group("", ("", "naïve 日本語 🙂 \x1b[31m\0"), winner=1),
    Group(
        TURNS,
        ((Message("assistant", "x"), Message("user", "?"), Message("assistant", "y")), "plain"),
        rewards=(1, -0.0),
    ),
    Group(
        "full",
        ("a", "b"),
        rewards=(0.1, 5e-324),
        winner=0,
        prompt_ids=(0, 2**31 - 1),
        completion_ids=((1,), (2, 3)),
        completion_masks=((True,), (False, True)),
        sampler_logprobs=(-1e300, -1 / 3),
        reference_logprobs=(-700.123456789012345, 0.0),
        provenance={"source": "a:1", "sampler": {"k": 2, "temperature": 0.7}, "x": None},
    ),
]


def many(count):
    return [
        Group(f"p{i}", ("a", "b"), winner=0, prompt_ids=(i % 200 + 1,), completion_ids=((1,), (2,)))
        for i in range(count)
    ]


@pytest.fixture
def table(tmp_path):
    """More than one batch of groups."""
    return build(many(BATCH + 10), tmp_path / "t.arrow")


def test_groups_come_back_as_they_were(tmp_path):
    table = build(iter(GROUPS), tmp_path / "t.arrow")
    assert list(table) == GROUPS
    assert [table[i] for i in range(-4, 4)] == GROUPS * 2
    assert isinstance(table[2].completions[0][1], Message)
    assert [type(i) for i in table[3].prompt_ids] == [int, int]
    assert [path.name for path in tmp_path.iterdir()] == ["t.arrow"]


def test_no_groups_come_back_as_none(tmp_path):
    table = build([], tmp_path / "t.arrow")
    assert list(table) == []
    with pytest.raises(IndexError):
        table[0]


def test_it_behaves_as_the_list_does(table):
    groups = many(BATCH + 10)
    assert len(table) == len(groups)
    for index in (0, BATCH - 1, BATCH, -1):
        assert table[index] == groups[index]
    for part in (slice(BATCH - 2, BATCH + 3), slice(None, None, -100), slice(5, 5)):
        assert list(table[part]) == groups[part]
        assert list(table[::-1][part]) == groups[::-1][part]
    with pytest.raises(IndexError):
        table[len(groups)]


def test_tables_join_and_rows_are_taken(table, tmp_path):
    other = build(GROUPS, tmp_path / "other.arrow")
    assert list(join([table, other])) == many(BATCH + 10) + GROUPS
    joined = join([table[7:9], other.take([3, 0]), table])
    assert list(joined) == [*many(9)[7:9], GROUPS[3], GROUPS[0], *many(BATCH + 10)]


def test_it_is_pickled_by_its_path(table, tmp_path):
    part = pickle.loads(pickle.dumps(table.take([BATCH, 3])))
    assert list(part) == [many(BATCH + 1)[-1], many(4)[3]]
    assert len(pickle.dumps(table)) < 500
    assert list(copy.deepcopy(table)) == list(table)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[0].prompt)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(part), capture_output=True)
    assert done.stdout == f"p{BATCH}\n".encode()


def test_building_takes_one_batch_at_a_time(tmp_path):
    """When a batch is asked for, those before it are in the file already."""
    sizes = []

    def stream():
        for i in range(3 * BATCH):
            if i % BATCH == 0:
                (temporary,) = tmp_path.iterdir()
                sizes.append(temporary.stat().st_size)
            yield Group(f"p{i}", ("a" * 1000,))

    build(stream(), tmp_path / "t.arrow")
    assert [size // (1000 * BATCH) for size in sizes] == [0, 1, 2]


def test_a_failed_build_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "t.arrow"
    build(GROUPS, path)

    def stream():
        yield from many(BATCH + 1)
        raise DataError("row 513 is bad")

    with pytest.raises(DataError, match="row 513"):
        build(stream(), path)
    assert list(GroupTable([path])) == GROUPS
    assert [file.name for file in tmp_path.iterdir()] == ["t.arrow"]


@pytest.mark.parametrize("damage", ["cut", "text", "missing", "other columns"])
def test_a_file_that_is_none_of_groups_is_named(tmp_path, damage):
    path = build(GROUPS, tmp_path / "t.arrow").paths[0]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "missing":
        path.unlink()
    else:
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int32())])):
            pass
    with pytest.raises(
        DataError, match=r"t\.arrow: .*(cannot be read as an Arrow file|columns are not those of groups)"
    ):
        GroupTable([path])


def test_a_table_with_ids_stays_on_the_disk_and_is_checked(table, tmp_path, tiny_tokenizer):
    assert with_ids(table, tiny_tokenizer) is table
    with pytest.raises(DataError, match="the model's context is 1"):
        with_ids(table, tiny_tokenizer, context=1)
    foreign = build([Group("x", ("a",), prompt_ids=(999_999,), completion_ids=((1,),))], tmp_path / "f.arrow")
    with pytest.raises(DataError, match="another tokenizer's"):
        with_ids(foreign, tiny_tokenizer)
    made = with_ids(build(GROUPS[:1], tmp_path / "text.arrow"), tiny_tokenizer)
    assert isinstance(made, list)
    assert made[0].prompt_ids is not None


def test_reference_log_probs_lie_beside_the_table(table):
    own = Group("own", ("a",), prompt_ids=(1,), completion_ids=((1,),), reference_logprobs=(-9.0,))
    for groups in (table, [own, *table]):
        start = len(groups) - len(table)
        known = {start + i: [-float(i), -0.5] for i in range(len(table))}
        both = WithReference(groups, known, {"weights": "w"})
        assert len(both) == len(groups)
        for i in (0, 1, BATCH, len(table) - 1):
            assert both[start + i].reference_logprobs == (-float(i), -0.5)
            assert both[start + i].provenance["reference"] == {"weights": "w"}
        assert [g.prompt for g in both[-2:]] == [g.prompt for g in groups[-2:]]
        assert [g.reference_logprobs for g in both] == [both[i].reference_logprobs for i in range(len(both))]
        if start:
            assert both[0] is own
        assert pickle.loads(pickle.dumps(both))[-1] == both[-1]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_while_building_no_file_stands(tmp_path):
    code = (
        "import sys, itertools; from pathlib import Path; from exoalign.data.group_table import build; "
        "from exoalign.groups import Group\n"
        "build((Group(f'p{i}', ('a' * 1000,)) for i in itertools.count()), Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "t.arrow")])
    try:
        for _ in range(600):
            if any(file.stat().st_size for file in tmp_path.glob(".t.arrow.*")):
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert next(itertools.islice(tmp_path.glob(".t.arrow.*"), 1)).stat().st_size > 0
    assert not (tmp_path / "t.arrow").exists()
