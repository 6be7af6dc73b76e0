"""Groups come back from Parquet as they were, and a file is there whole or not at all."""

import math
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exoalign.data.table import SCHEMA, iter_table, read_table, write_table
from exoalign.errors import DataError
from exoalign.groups import Group, Message

GROUPS = [
    Group("text", ("a",)),
    Group("", ("", "naïve 日本語 🙂 \x1b[31m\0"), winner=1),
    Group((Message("system", ""), Message("user", "Hi")), ("a", "b", "c"), rewards=(1, -0.0, 5e-324)),
    Group(
        "full",
        ("a", "b"),
        rewards=(0.1, math.nextafter(0.1, 1)),
        winner=0,
        prompt_ids=(0, 2**31 - 1),
        completion_ids=((1,), (2, 3)),
        sampler_logprobs=(-1e300, -1 / 3),
        reference_logprobs=(-700.123456789012345, 0.0),
        scores={"b": (0.1, -1 / 3), "a": (5e-324, 0.0)},
        provenance={"source": "a:1", "sampler": {"k": 2, "temperature": 0.7}, "finish": ["stop", "length"], "x": None},
    ),
]


def test_groups_come_back_as_they_were(tmp_path):
    write_table(GROUPS, tmp_path / "g.parquet")
    back = read_table(tmp_path / "g.parquet")
    assert back == GROUPS
    assert [type(value) for value in back[3].prompt_ids] == [int, int]
    assert isinstance(back[2].prompt[0], Message)
    assert list(back[3].scores) == ["b", "a"]
    assert [path.name for path in tmp_path.iterdir()] == ["g.parquet"]


def test_groups_are_read_some_at_a_time(tmp_path):
    """In order over the batches, and never all of them held: 5,000 of these take 20 MB."""
    path = tmp_path / "g.parquet"
    write_table((Group(f"p{i}", ("a",), completion_ids=(tuple(range(1000, 1100)),)) for i in range(5000)), path)
    tracemalloc.start()
    try:
        assert [group.prompt for group in iter_table(path)] == [f"p{i}" for i in range(5000)]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 3 << 20


def test_no_groups_come_back_as_none(tmp_path):
    write_table([], tmp_path / "g.parquet")
    assert read_table(tmp_path / "g.parquet") == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "g.parquet"
    write_table(GROUPS, path)
    with pytest.raises(pa.ArrowInvalid):  # an id that 32 bits do not hold
        write_table([Group("x", ("a",), prompt_ids=(2**31,))], path)

    def full(writer, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(GROUPS[:1], path)
    assert read_table(path) == GROUPS
    assert [path.name for path in tmp_path.iterdir()] == ["g.parquet"]


def rewritten(path, **changes):
    """The file with columns replaced, or left out where the change is None."""
    write_table(GROUPS[:1], path)
    table = pq.read_table(path)
    for name, column in changes.items():
        place = table.column_names.index(name)
        table = table.remove_column(place) if column is None else table.set_column(place, name, column)
    pq.write_table(table, path)
    return path


def test_a_file_from_before_there_were_scores_is_read(tmp_path):
    assert read_table(rewritten(tmp_path / "g.parquet", scores=None)) == GROUPS[:1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"winner": None}, "column winner is missing, expected int32"),
        ({"prompt": pa.array([5])}, "column prompt is int64, expected string"),
        ({"rewards": pa.array([["good"]])}, r"column rewards is list<.*string>, expected list<.*double>"),
        ({"scores": pa.array(["good"])}, r"column scores is string, expected map<string"),
        ({"completions": pa.array([None], SCHEMA.field("completions").type)}, "row 1: is no group"),
        ({"provenance": pa.array(["{"])}, "row 1: is no group"),
        ({"provenance": pa.array([None], pa.string())}, "row 1: is no group"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, changes, message):
    path = rewritten(tmp_path / "g.parquet", **changes)
    with pytest.raises(DataError, match=message) as error:
        read_table(path)
    assert str(error.value).startswith(str(path))


def test_a_table_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "g.parquet")
    with pytest.raises(DataError, match=r"g\.parquet: column prompt is missing"):
        read_table(tmp_path / "g.parquet")


@pytest.mark.parametrize("place", [0, 4, 200, -1, -5, -30, -300])
def test_a_damaged_file_is_refused_or_read_as_groups(tmp_path, place):
    path = tmp_path / "g.parquet"
    write_table(GROUPS, path)
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    try:
        assert all(isinstance(group, Group) for group in read_table(path))
    except DataError as error:
        assert "g.parquet" in str(error)  # noqa: PT017 - most places are noticed, not all


def test_a_cut_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "g.parquet"
    write_table(GROUPS, path)
    path.write_bytes(path.read_bytes()[:-10])
    for wrong in (path, tmp_path / "missing.parquet", tmp_path):
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read_table(wrong)
