"""Valid files of every format and kind of file, spoilt at random: no raw traceback, and no row lost without a word.

What must hold: reading ends or raises DataError; read = rows of groups + rows set aside + rows in error; where nothing is in
error, strict reading gives the same groups, and where something is, it raises the first error.
"""

import copy
import gzip
import json

import pytest
from file_bytes import comma_separated, jsonl, parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exoalign.data.formats import read_groups, read_prompts, read_texts, stream_groups
from exoalign.data.set_aside import SetAside
from exoalign.errors import DataError

ASK, ASK_MORE = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Why?"}
YES, NO = {"role": "assistant", "content": "Yes"}, {"role": "assistant", "content": "No"}
RULE, TOOL = {"role": "system", "content": "Be kind."}, {"role": "tool", "content": "42"}
TALK = "\n\nHuman: Hi\n\nAssistant:"

FORMATS = {
    "pairs": [
        {"prompt": f"p{i}", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1} for i in range(3)
    ],
    "margin": [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "margin": 0.5} for i in range(3)],
    "transcripts": [{"chosen": f"{TALK} a{i}", "rejected": f"{TALK} b"} for i in range(3)],
    "implicit": [{"chosen": f"I am {i} a", "rejected": f"I am {i} b"} for i in range(3)],
    "kway": [{"prompt": f"p{i}", "completions": ["a", "b", "c"], "rewards": [0.5, 1, -2]} for i in range(3)],
    "rankings": [{"prompt": f"p{i}", "completions": ["a", "b", "c"], "ranks": [2, 1, 3]} for i in range(3)],
    "ratings": [{"prompt": f"p{i % 2}", "completion": f"a{i}", "rating": i} for i in range(4)],
    "labels": [{"prompt": "p", "completion": f"a{i}", "label": i % 2 == 0} for i in range(3)],
    "chat pairs": [{"prompt": [RULE, ASK], "chosen": [YES], "rejected": [NO, ASK_MORE, YES]} for _ in range(3)],
    "chat implicit": [{"chosen": [ASK, YES], "rejected": [ASK, NO]} for _ in range(3)],
    "chat kway": [{"prompt": [ASK], "completions": [[YES], [NO, TOOL, YES]], "rewards": [0, 1]} for _ in range(3)],
    "chat ratings": [{"prompt": [ASK], "completion": [turn], "rating": 1} for turn in (YES, NO, YES)],
    "prompts": [{"prompt": f"p{i}"} for i in range(3)],
    "chat prompts": [{"prompt": [RULE, ASK, YES, ASK_MORE]} for _ in range(3)],
    "text": [{"text": f"t{i}"} for i in range(3)],
    "messages": [{"messages": [RULE, ASK, YES]} for _ in range(3)],
    "completion": [{"prompt": [ASK], "completion": [YES]} for _ in range(3)],
}
NO_GROUPS = {"prompts", "chat prompts", "text", "messages", "completion"}


FILES = {
    "jsonl": lambda rows: jsonl(*rows),
    "jsonl.gz": lambda rows: gzip.compress(jsonl(*rows), 1),
    "json": lambda rows: json.dumps({"data": rows}, indent=1).encode(),
    "csv": comma_separated,
    "parquet": parquet,
}


def check(path, number=None):
    """Read a file in all ways; with how many rows it has, where that is known."""
    aside, groups = SetAside(), []
    broken = first = None
    try:
        for group in stream_groups(path, aside, tolerate=True):
            groups.append(group)
    except DataError as error:
        broken = error
    if broken is None:
        used = [where for group in groups for where in group.provenance.get("rows", [group.where])]
        assert aside.read == len(used) + aside.rows + aside.malformed
        reported = used + [where for tally in aside.reasons.values() for where in tally.first]
        assert len(set(reported)) == len(reported) or path.suffix == ".json"  # on one line there may stand two rows
        if number is not None:
            assert aside.read == number
    try:
        strict = list(stream_groups(path, SetAside()))
    except DataError as error:
        first = str(error)
    expected = next(iter(aside.errors.values())).first[0] if aside.errors else broken and str(broken)
    assert first == expected
    if first is None:
        assert strict == groups
    for read in (read_groups, read_prompts, read_texts):
        try:
            read(path)
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017 - returning is right too


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", FILES)
def test_unspoilt_files_are_read_whole(tmp_path, kind, suffix):
    """Else spoiling them would show nothing."""
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(FILES[suffix](FORMATS[kind]))
    check(path)
    if kind in NO_GROUPS:
        read = read_prompts if "prompts" in kind else read_texts
        assert len(read(path)) == len(FORMATS[kind])
    else:
        groups, aside = read_groups(path)
        assert sum(len(group.provenance.get("rows", [0])) for group in groups) == aside.read == len(FORMATS[kind])


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
kinds, suffixes = st.sampled_from(sorted(FORMATS)), st.sampled_from(sorted(FILES))
places = st.floats(0, 1, exclude_max=True)
spoilers = st.one_of(
    st.tuples(st.just("put"), places, st.binary(min_size=1, max_size=4)),
    st.tuples(
        st.just("put"), places, st.sampled_from([b'"', b"\n", b"\0", b"{", b"]", b",", b"\\ud800", b"NaN", b"\xff"])
    ),
    st.tuples(st.just("take"), places, st.integers(1, 30)),
    st.tuples(st.just("cut"), places, st.none()),
)


@fuzz
@given(kind=kinds, suffix=suffixes, spoil=st.lists(spoilers, min_size=1, max_size=3))
def test_bytes_spoilt(tmp_path, kind, suffix, spoil):
    content = FILES[suffix](FORMATS[kind])
    for what, place, with_what in spoil:
        at = int(place * len(content))
        if what == "put":
            content = content[:at] + with_what + content[at + len(with_what) // 2 :]
        else:
            content = content[:at] + (content[at + with_what :] if what == "take" else b"")
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    number = sum(1 for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())
    check(path, number if suffix == "jsonl" else None)


values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.just(10**400), st.text(max_size=3), st.just("\0"),
    st.just("\ud800"), st.just([]), st.just({}), st.just([ASK]), st.just([YES]), st.just([NO, RULE]),
    st.just(["a", "b"]), st.just([1, 1, 2]), st.just({**YES, "tool_calls": [{}]}), st.just({"role": "human", "content": "Hi"}),
).map(copy.deepcopy)  # fmt: skip


def inner_places(value, way=()):
    """Every place inside a value, as keys and indices from the top."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from inner_places(item, (*way, key))


@fuzz
@given(data=st.data(), kind=kinds, suffix=st.sampled_from(["jsonl", "json", "csv"]))
def test_values_spoilt(tmp_path, data, kind, suffix):
    rows = copy.deepcopy(FORMATS[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from([way for way in inner_places(rows) if way]))
        *above, last = way
        holder = rows
        for key in above:
            holder = holder[key]
        change = data.draw(st.sampled_from(["put", "take", "add"]))
        if change == "put" and len(way) > 1:
            holder[last] = data.draw(values)
        elif change == "take" and len(rows) > 1:
            del holder[last]
        elif isinstance(holder, dict):
            holder[data.draw(st.sampled_from(["prompt", "rewards", "ranks", "rating", "label", "margin", "other"]))] = (
                data.draw(values)
            )
        else:
            holder.insert(0, copy.deepcopy(holder[last]))
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        columns = {column: None for row in rows for column in row}
        rows = [{column: row.get(column, "") for column in columns} for row in rows if row]
        path.write_bytes(comma_separated(rows) if rows and columns else b"")
        check(path)
    else:
        path.write_bytes(FILES[suffix](rows))
        check(path, len(rows) or None)
