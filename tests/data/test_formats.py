"""Rows become groups, or are set aside and counted, or are refused with file and line; nothing else happens."""

import gzip
import json
import re
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exoalign.data import table
from exoalign.data.formats import read_groups, read_prompts, stream_groups
from exoalign.data.set_aside import SetAside, Tally
from exoalign.data.table import BATCH_ROWS, write_table
from exoalign.errors import DataError
from exoalign.groups import Group, Message

PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
SCORED = {"prompt": "Hi", "completions": ["a", "b", "c"], "rewards": [1, 0.5, -2]}
GOOD = json.dumps(PAIR).encode()


@pytest.fixture
def write(tmp_path):
    """Writes rows (dicts or bytes) as a JSONL file."""

    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines))
        return tmp_path / name

    return write


def refused(path, read=read_groups) -> str:
    with pytest.raises(DataError) as error:
        read(path)
    return str(error.value)


# Rows that are right


def test_a_pair(write):
    path = write(PAIR)
    groups, aside = read_groups(path)
    assert groups == [Group("Hi", ("Hello!", "What?"), winner=0, provenance={"source": f"{path}:1"})]
    assert aside.lines() == []


def test_completions_with_rewards(write):
    path = write(SCORED, {**SCORED, "completions": ["x", "y"], "rewards": [0, 1], "generators": ["m", "n"]})
    groups, _ = read_groups(path)
    assert groups[0] == Group("Hi", ("a", "b", "c"), rewards=(1.0, 0.5, -2.0), provenance={"source": f"{path}:1"})
    assert groups[1].rewards == (0.0, 1.0)


def test_messages(write):
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    path = write({**PAIR, "prompt": turns})
    expected = (Message("system", "Be kind."), Message("user", "Hi"))
    assert read_groups(path)[0][0].prompt == expected
    assert read_prompts(path)[0] == (expected, f"{path}:1", None)


def test_transcripts(write):
    shared = "\n\nHuman: Hi\n\nAssistant:"
    path = write({"chosen": shared + " Hello!", "rejected": shared + " What?"})
    group = read_groups(path)[0][0]
    assert (group.prompt, group.completions, group.winner) == (shared, (" Hello!", " What?"), 0)


def test_blank_lines_count_as_lines_but_not_as_rows(write):
    groups, _ = read_groups(write(b"", PAIR, b"   ", PAIR))
    assert [group.where.rsplit(":")[-1] for group in groups] == ["2", "4"]


def test_line_ends_and_a_byte_order_mark_do_no_harm(write):
    assert len(read_groups(write(b"\xef\xbb\xbf" + GOOD + b"\r", GOOD + b"\r"))[0]) == 2


def test_gzip(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + b"\n" + GOOD))
    assert len(read_groups(path)[0]) == 2


def test_text_of_every_script_survives(write):
    text = "naïve 日本語 🙂 \u2028 \x85 \x1b[31m"  # line separators of Unicode are no line ends
    assert read_groups(write({**PAIR, "chosen": text}))[0][0].completions[0] == text


def test_parquet_of_a_run(tmp_path):
    groups = [Group("Hi", ("a", "b"), rewards=(0.0, 1.0), provenance={"source": f"s:{i}"}) for i in range(3)]
    write_table(groups, tmp_path / "groups.parquet")
    assert read_groups(tmp_path / "groups.parquet", limit=2)[0] == groups[:2]
    assert read_prompts(tmp_path / "groups.parquet", limit=2) == [("Hi", "s:0", None), ("Hi", "s:1", None)]
    write_table([], tmp_path / "none.parquet")
    assert "no rows" in refused(tmp_path / "none.parquet")
    assert "no rows" in refused(tmp_path / "none.parquet", read_prompts)


def test_the_groups_of_a_run_are_streamed(tmp_path, monkeypatch):
    """No more is read than is asked for."""
    path = tmp_path / "groups.parquet"
    write_table([Group("Hi", ("a", "b"), rewards=(0.0, 1.0)) for _ in range(3 * BATCH_ROWS)], path)
    made = []
    monkeypatch.setattr(table, "group_of", lambda row: made.append(row) or Group(row["prompt"], ("a", "b")))
    assert len(read_groups(path, limit=2)[0]) == len(read_prompts(path, limit=2)) == 2
    assert len(made) == 4
    aside = SetAside()
    assert len(list(stream_groups(path, aside))) == aside.read == 3 * BATCH_ROWS


@pytest.mark.parametrize("read", [lambda path, limit: read_groups(path, limit=limit)[0], read_prompts])
def test_the_limit_counts_rows_and_looks_no_further(write, read):
    path = write(PAIR, PAIR, b"{broken")
    assert len(read(path, limit=2)) == 2
    with pytest.raises(DataError, match=":3: not JSON"):
        read(path, limit=3)


def test_the_limit_counts_usable_rows(write):
    groups, aside = read_groups(write({**PAIR, "chosen": ""}, PAIR, PAIR, PAIR), limit=2)
    assert len(groups) == 2
    assert len(aside.lines()) == 1


# Rows that are set aside


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**PAIR, "chosen": ""}, "a reply is empty"),
        ({**PAIR, "rejected": " \n"}, "a reply is empty"),
        ({**PAIR, "rejected": "Hello!"}, "chosen and rejected are the same text"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
            "chosen and rejected do not share everything before their last reply",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_counted_with_their_lines(write, row, reason):
    good = (
        PAIR
        if "prompt" in row
        else {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: a\n\nAssistant: y"}
    )
    path = write(good, row, row)
    groups, aside = read_groups(path)
    assert len(groups) == 1
    assert (aside.read, aside.rows) == (3, 2)
    assert aside.lines() == [f"2 rows set aside: {reason} ({path}:2, {path}:3)"]


def test_the_first_lines_stand_for_many(write):
    path = write(PAIR, *[{**PAIR, "chosen": ""}] * 7)
    lines = f"{path}:2, {path}:3, {path}:4, ..."
    _, aside = read_groups(path)
    assert aside.lines() == [f"7 rows set aside: a reply is empty ({lines})"]
    assert aside.reasons == {"a reply is empty": Tally(7, [f"{path}:{i}" for i in range(2, 7)])}  # of millions no more


def test_when_all_rows_are_set_aside_that_is_an_error(write):
    message = refused(write({**PAIR, "chosen": ""}))
    assert "all 1 rows were set aside" in message
    assert message.endswith("1 row set aside: a reply is empty (" + message.split(":")[0] + ":1)")


# Rows that are refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD[:-5], "not JSON at column "),
        (b"hello", "not JSON at column 1: Expecting value"),
        (GOOD.replace(b"Hello", b"caf\xe9"), "not UTF-8 at byte "),
        (GOOD.replace(b"Hello", b"a\0b"), "not JSON at column "),
        (b"\0\0\0", "not JSON at column 1"),
        (GOOD.decode().encode("utf-16"), "not UTF-8 at byte 1 of the line"),
        (GOOD.replace(b"Hello", b"\\ud83d"), "`chosen` holds a lone surrogate"),
        (b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}', "the key `prompt` stands twice"),
        (b'{"prompt": "a", "x": {"y": 1, "y": 2}}', "the key `y` stands twice"),
        (b'{"x": NaN}', "NaN is no number; expected finite values"),
        (b'{"x": -Infinity}', "-Infinity is no number"),
        (b'{"x": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"x": ' * sys.getrecursionlimit() + b"1" + b"}" * sys.getrecursionlimit(), "nested too deeply"),
        (b"[1, 2]", "found list, expected a JSON object"),
        (b"null", "found NoneType, expected a JSON object"),
        (b'"text"', "found str, expected a JSON object"),
        ({}, "columns none; expected `prompt, chosen, rejected`, or"),
        ({"text": "x", "label": 1}, "columns label, text; expected `prompt, chosen, rejected`, or"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "b"},
            "no `prompt`, and only one of `chosen` and `rejected` is a transcript",
        ),
        ({**PAIR, "chosen": ["a"]}, "`chosen` is list and the prompt is text; give both as text"),
        ({**PAIR, "rejected": None}, "`rejected` is null; expected text"),
        ({**PAIR, "prompt": ""}, "`prompt` is empty"),
        ({**PAIR, "prompt": " \n\t"}, "`prompt` is empty"),
        ({**PAIR, "prompt": 5}, "`prompt` is int; expected text or a list of messages"),
        ({**PAIR, "prompt": []}, "`prompt` is an empty list; expected text or a list of messages"),
        ({**PAIR, "prompt": None}, "`prompt` is null; expected text or a list of messages"),
        ({**PAIR, "prompt": ["Hi"]}, 'turn 1 of `prompt` is str; expected {"role": "...", "content": "..."}'),
        ({**PAIR, "prompt": [{"role": "user"}]}, "turn 1 of `prompt`: `content` is missing; expected text"),
        ({**PAIR, "prompt": [{"role": "user", "content": 1}]}, "turn 1 of `prompt`: `content` is int; expected text"),
        ({"completions": ["a", "b"], "rewards": [0, 1]}, "no `prompt`; found columns completions, rewards"),
        ({**SCORED, "completions": "abc"}, "`completions` is no list of texts"),
        ({**SCORED, "completions": ["a", None, "c"]}, "completions[1] is null; expected text or a list of messages"),
        ({**SCORED, "completions": [], "rewards": []}, "found 0 completion(s), expected at least 2"),
        ({**SCORED, "rewards": [1, 2]}, "2 rewards for 3 completions"),
        ({**SCORED, "rewards": None}, "`rewards` is null; expected a list with a number for each"),
        ({**SCORED, "rewards": [1, "2", 3]}, "`rewards` holds '2'; expected a list with a number for each"),
        ({**SCORED, "rewards": [1, True, 3]}, "`rewards` holds true; expected a list with a number for each"),
        ({**SCORED, "rewards": [1, 10**400, 3]}, "rewards[1] is inf; expected a finite number"),
        (json.dumps(SCORED).replace("0.5", "1e999").encode(), "`rewards` holds inf; expected finite numbers"),
    ],
)
def test_a_wrong_row_is_told_with_file_and_line(write, line, message):
    path = write(b"", line, PAIR)
    assert refused(path).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "no `prompt`; found columns none"),
        ({"text": "a"}, "no `prompt`; found columns text"),
        ({"prompt": ""}, "`prompt` is empty"),
        (b"{", "not JSON at column "),
    ],
)
def test_a_wrong_prompt_is_told_with_file_and_line(write, line, message):
    path = write(b"", line)
    assert refused(path, read_prompts).startswith(f"{path}:2: {message}")


# Files


@pytest.mark.parametrize("read", [read_groups, read_prompts])
def test_a_file_that_is_none(tmp_path, write, read):
    none = ": no such file or folder, and no hub id; expected a path that exists, or `owner/name`"
    assert refused(tmp_path / "missing.jsonl", read) == f"{tmp_path / 'missing.jsonl'}{none}"
    assert refused(tmp_path / ("x" * 300), read).endswith(none)
    assert refused("a\0b", read).endswith(none)
    assert refused("data/missing.jsonl", read).endswith(none)  # a file by its name, though it looks like a hub id
    assert refused(tmp_path, read).startswith(f"{tmp_path}: no data files; expected .jsonl")
    assert re.search(r"rows\.jsonl: no rows; expected one JSON object .*on each line$", refused(write(), read))
    assert "no rows" in refused(write(b"", b"  ", b""), read)


def test_a_folder_called_parquet(tmp_path):
    (tmp_path / "x.parquet").mkdir()
    assert "x.parquet: no data files" in refused(tmp_path / "x.parquet")
    assert "y.parquet: no such file" in refused(tmp_path / "y.parquet")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[:-20],
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:40] + bytes([packed[40] ^ 0xFF]) + packed[41:],
        lambda packed: b"no gzip at all",
        lambda packed: b"\x1f\x8b",
    ],
    ids=["cut end", "cut middle", "flipped byte", "plain text", "two bytes"],
)
def test_a_damaged_gzip_file(tmp_path, spoil):
    path = tmp_path / "rows.jsonl.gz"
    rows = "\n".join(json.dumps({**PAIR, "chosen": f"reply {i * 7919 % 1000}"}) for i in range(200))
    path.write_bytes(spoil(gzip.compress(rows.encode())))
    assert refused(path).startswith(f"{path}")


# Anything at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
columns = st.sampled_from(["prompt", "chosen", "rejected", "completions", "rewards", "other"])
rows = st.dictionaries(columns, json_values | st.just("\n\nHuman: a\n\nAssistant: b") | st.lists(st.text(max_size=3)))
lines = st.lists(st.one_of(st.binary(max_size=40), rows.map(lambda row: json.dumps(row).encode())), max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | lines.map(b"\n".join))
@example(content=b"")
@example(content=b'{"prompt": "a", "completions": ["b", "c"], "rewards": [1, ' + b"9" * 400 + b"]}")
@example(content=b'{"prompt": "a", "chosen": "b", "rejected": "\\udc00"}')
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path, content):
    path = tmp_path / "any.jsonl"
    path.write_bytes(content)
    for read in (read_groups, read_prompts):
        try:
            read(path)
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017 - returning is right too


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl.gz", ".parquet"]))
def test_whatever_a_packed_file_holds_it_is_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="any"):
        read_groups(path)


# Real data


def test_alpaca_groups_keep_every_completion_and_reward(shared_data):
    path = shared_data / "alpaca_eval_k8.jsonl.gz"
    groups, aside = read_groups(path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        written = [json.loads(line) for line in file]
    assert aside.reasons == {}
    assert [list(group.completions) for group in groups] == [row["completions"] for row in written]
    assert [list(group.rewards) for group in groups] == [row["rewards"] for row in written]
    assert {group.k for group in groups} == {7, 8}


def test_rows_of_another_task_are_refused_with_their_columns(shared_data):
    path = shared_data / "rt_polarity_test.jsonl.gz"
    assert refused(path).startswith(f"{path}:1: columns label, text; expected")
