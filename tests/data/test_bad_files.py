"""Files that are refused: each by the place and the reason, on one line, and nothing else. The files are written here."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_bytes import jsonl, parquet

from exoalign import cli
from exoalign.data.formats import read_groups, read_prompts, read_texts, stream_groups
from exoalign.data.set_aside import SetAside
from exoalign.data.shapes import format_row
from exoalign.errors import DataError

PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
KWAY = {"prompt": "Hi", "completions": ["a", "b", "c"], "rewards": [1, 0.5, -2]}
RANKS = {"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [2, 1, 3]}
RATED = {"prompt": "Hi", "completion": "a", "rating": 3}
LABEL = {"prompt": "Hi", "completion": "a", "label": True}
TEXT = {"text": "Once upon a time"}
GOOD = json.dumps(PAIR).encode()


def turns(*roles, **last):
    """A conversation whose contents are its roles; `last` goes into the last message."""
    made = [{"role": role, "content": role} for role in roles]
    return [*made[:-1], {**made[-1], **last}] if made else []


CHAT = {"prompt": turns("user"), "chosen": turns("assistant"), "rejected": [{"role": "assistant", "content": "no"}]}
WHOLE = {"chosen": turns("user", "assistant"), "rejected": turns("user", "assistant", content="no")}


LINES = [
    # what is no JSON, or JSON that says two things
    (PAIR, GOOD[:-5], ":2: not JSON at column 50: Unterminated string"),
    (PAIR, b"prompt,chosen,rejected", ":2: not JSON at column 1: Expecting value"),
    (PAIR, GOOD + GOOD, ":2: not JSON at column 58: Extra data"),
    (PAIR, GOOD.replace(b"Hello", b"caf\xe9"), ":2: not UTF-8 at byte 32 of the line; save the file as UTF-8"),
    (PAIR, GOOD.replace(b"Hello", b"a\0b"), ":2: not JSON at column 30: Invalid control character"),
    (PAIR, GOOD.replace(b"Hello", b"a\\u0000b"), ":2: `chosen` holds a NUL character"),
    (PAIR, GOOD.replace(b"Hello", b"\\ud83d"), ":2: `chosen` holds a lone surrogate"),
    (PAIR, GOOD.replace(b'"chosen"', b'"prompt"'), ":2: the key `prompt` stands twice"),
    (CHAT, jsonl(CHAT).replace(b'"content"', b'"role"', 1), ":2: the key `role` stands twice"),
    (PAIR, b'["Hi", "Hello!", "What?"]', ":2: found list, expected a JSON object; write each row as {"),
    (PAIR, b'{"prompt": ' + b"[" * 50_000, ":2: nested too deeply; flatten it or leave the row out"),
    # columns
    (PAIR, {}, ":2: columns none; expected `prompt, chosen, rejected`"),
    (PAIR, {"prompt": "Hi", "chosen": "a"}, ":2: no `rejected`; found columns chosen, prompt"),
    (
        PAIR,
        {"chosen": "I am", "rejected": "I was"},
        ":2: no `prompt`; found columns chosen, rejected; expected a row of pairs",
    ),
    (KWAY, {"prompt": "Hi", "completions": ["a", "b"]}, ":2: no `rewards`; found columns completions, prompt"),
    (RANKS, KWAY, ":2: no `ranks`; found columns completions, prompt, rewards"),
    (RATED, {"prompt": "Hi", "completion": "b"}, ":2: no `rating`; found columns completion, prompt"),
    (PAIR, {**PAIR, "completions": ["a"]}, ":2: found columns chosen, completions, prompt, rejected, a row of kway"),
    (
        {"chosen": "I am", "rejected": "I was"},
        PAIR,
        ":2: found columns chosen, prompt, rejected, a row of pairs; expected",
    ),
    # types
    (PAIR, {**PAIR, "chosen": None}, ":2: `chosen` is null; expected text or a list of messages"),
    (PAIR, {**PAIR, "prompt": None}, ":2: `prompt` is null; expected text or a list of messages"),
    (PAIR, {**PAIR, "rejected": turns("assistant")}, ":2: `rejected` is list and the prompt is text"),
    (PAIR, {**PAIR, "chosen": 5}, ":2: `chosen` is int; expected text"),
    (PAIR, {**PAIR, "prompt": " "}, ":2: `prompt` is empty"),
    (
        KWAY,
        {**KWAY, "completions": ["a", None, "c"]},
        ":2: completions[1] is null; expected text or a list of messages",
    ),
    (KWAY, {**KWAY, "completions": "abc"}, ":2: `completions` is no list of texts or conversations"),
    (WHOLE, {**WHOLE, "chosen": "Hello"}, ":2: `chosen` is str and `rejected` is list; expected both"),
    (WHOLE, {**WHOLE, "rejected": "Hello"}, ":2: `chosen` is list and `rejected` is str; expected both"),
    # numbers
    (
        KWAY,
        jsonl(KWAY).replace(b"0.5", b"NaN"),
        ":2: NaN is no number; expected finite values; mend it or leave the row out",
    ),
    (KWAY, jsonl(KWAY).replace(b"0.5", b"-Infinity"), ":2: -Infinity is no number; expected finite values"),
    (KWAY, jsonl(KWAY).replace(b"0.5", b"1e999"), ":2: `rewards` holds inf; expected finite numbers"),
    (KWAY, {**KWAY, "rewards": [1, 10**400, 0]}, ":2: rewards[1] is inf; expected a finite number"),
    (KWAY, {**KWAY, "rewards": [1, 0]}, ":2: 2 rewards for 3 completions; expected one for each"),
    (KWAY, {**KWAY, "rewards": [1, 0, 0, 0]}, ":2: 4 rewards for 3 completions; expected one for each"),
    (KWAY, {**KWAY, "rewards": [1, None, 0]}, ":2: `rewards` holds null; expected a list with a number"),
    (KWAY, {**KWAY, "completions": ["a"], "rewards": [1]}, ":2: found 1 completion(s), expected at least 2"),
    (RANKS, {**RANKS, "completions": ["a"], "ranks": [1]}, ":2: found 1 completion(s), expected at least 2"),
    (KWAY, {**KWAY, "completions": [], "rewards": []}, ":2: found 0 completion(s), expected at least 2"),
    (RATED, {**RATED, "rating": "good"}, ":2: `rating` is 'good'; expected a number"),
    (RATED, {**RATED, "rating": True}, ":2: `rating` is true; expected a number"),
    (LABEL, {**LABEL, "label": 0.5}, ":2: `label` is 0.5; expected true or false; for numbers call it `rating`"),
    (LABEL, {**LABEL, "label": [1]}, ":2: `label` is list; expected true or false"),
    # the losing side wins
    (
        PAIR,
        {**PAIR, "score_chosen": 1, "score_rejected": 2.5},
        ":2: `score_chosen` 1 is less than `score_rejected` 2.5",
    ),
    (PAIR, {**PAIR, "chosen_score": 1, "rejected_score": 2}, ":2: `chosen_score` 1 is less than `rejected_score` 2"),
    (PAIR, {**PAIR, "margin": -0.5}, ":2: `margin` is -0.5, so the rejected side wins"),
    (PAIR, {**PAIR, "score_chosen": 1}, ":2: no `score_rejected`; found columns chosen, prompt"),
    (PAIR, {**PAIR, "score_chosen": 1, "score_rejected": None}, ":2: `score_rejected` is null; expected a number"),
    # ranks
    (RANKS, {**RANKS, "ranks": [1, 2, 2]}, ":2: ranks[1] and ranks[2] are both 2; expected no ties"),
    (RANKS, {**RANKS, "ranks": [0, 1, 2]}, ":2: `ranks` are 0, 1, 2; expected 1 (best) to 3, each once"),
    (RANKS, {**RANKS, "ranks": [1, 2, 4]}, ":2: `ranks` are 1, 2, 4; expected 1 (best) to 3"),
    (RANKS, {**RANKS, "ranks": [1, 2, 2.5]}, ":2: `ranks` are 1, 2, 2.5; expected 1 (best) to 3"),
    (RANKS, {**RANKS, "ranks": [1, 2]}, ":2: 2 ranks for 3 completions; expected one for each"),
    (RANKS, {**RANKS, "ranks": "1, 2, 3"}, ":2: `ranks` is str; expected a list with a number for each"),
    # turns
    (CHAT, {**CHAT, "prompt": turns("human")}, ":2: turn 1 of `prompt` has the unknown role 'human'; expected system"),
    (CHAT, {**CHAT, "prompt": turns("user", "assistant")}, ":2: `prompt` ends with the assistant; expected the user"),
    (CHAT, {**CHAT, "prompt": turns("system")}, ":2: `prompt` ends with the system; expected the user or a tool last"),
    (
        CHAT,
        {**CHAT, "prompt": turns("user", "system", "user")},
        ":2: turn 2 of `prompt` is the system's after the user",
    ),
    (
        CHAT,
        {**CHAT, "prompt": turns("user", "user")},
        ":2: turn 2 of `prompt` is the user's after the user; expected assist",
    ),
    (
        CHAT,
        {**CHAT, "prompt": turns("assistant", "user")},
        ":2: turn 1 of `prompt` is the assistant's at the beginning",
    ),
    (CHAT, {**CHAT, "prompt": turns("user", "tool")}, ":2: turn 2 of `prompt` is the tool's after the user"),
    (CHAT, {**CHAT, "prompt": []}, ":2: `prompt` is an empty list; expected text or a list of messages"),
    (CHAT, {**CHAT, "prompt": ["Hi"]}, ":2: turn 1 of `prompt` is str; expected {"),
    (CHAT, {**CHAT, "prompt": [{"role": "user"}]}, ":2: turn 1 of `prompt`: `content` is missing; expected text"),
    (
        CHAT,
        {**CHAT, "chosen": turns("assistant", content=None)},
        ":2: turn 1 of `chosen`: `content` is null; expected text",
    ),
    (
        CHAT,
        {**CHAT, "chosen": turns("assistant", tool_calls=[])},
        ":2: turn 1 of `chosen` holds `tool_calls` too; expected",
    ),
    (
        CHAT,
        {**CHAT, "chosen": turns("assistant", content=[{"type": "image"}])},
        ":2: turn 1 of `chosen`: `content` is list",
    ),
    (CHAT, {**CHAT, "chosen": turns("user")}, ":2: `chosen` has no turn of the assistant (found user)"),
    (CHAT, {**CHAT, "chosen": []}, ":2: `chosen` has no turn of the assistant (found none)"),
    (CHAT, {**CHAT, "chosen": turns("user", "assistant")}, ":2: turn 1 of `chosen` is the user's after the user"),
    (
        CHAT,
        {**CHAT, "chosen": turns("assistant", "assistant")},
        ":2: turn 2 of `chosen` is the assistant's after the assist",
    ),
    (WHOLE, {**WHOLE, "rejected": turns("user")}, ":2: `rejected` has no turn of the assistant (found user)"),
    # what the model would not see
    (
        CHAT,
        {**CHAT, "tools": [{"type": "function"}]},
        ":2: `tools` cannot be rendered faithfully: only what the messages say",
    ),
    (
        CHAT,
        {**CHAT, "chat_template_kwargs": {"thinking": True}},
        ":2: `chat_template_kwargs` cannot be rendered faithfully",
    ),
    (PAIR, {**PAIR, "images": ["a.png"]}, ":2: `images` cannot be rendered faithfully"),
    (
        CHAT,
        {**CHAT, "chosen": [{"role": "assistant", "tool_calls": [{}]}]},
        ":2: turn 1 of `chosen` holds `tool_calls` too",
    ),
    (
        CHAT,
        {**CHAT, "chosen": [*turns("assistant"), *turns("tool", name="weather"), *turns("assistant")]},
        ":2: turn 2 of `chosen` holds `name` too",
    ),
]


@pytest.mark.parametrize(("first", "line", "message"), LINES, ids=[message[3:60] for _, _, message in LINES])
def test_a_malformed_line_after_a_good_one(tmp_path, first, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(first, line, first))
    with pytest.raises(DataError) as error:
        read_groups(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)
    aside = SetAside()
    groups = list(stream_groups(path, aside, tolerate=True))
    assert [tally.first for tally in aside.errors.values()] == [[str(error.value)]]
    assert (aside.read, sum(len(group.provenance.get("rows", [0])) for group in groups) + aside.rows) == (3, 2)


@pytest.mark.parametrize(("first", "line", "message"), LINES, ids=[message[3:60] for _, _, message in LINES])
def test_a_malformed_line_through_the_command_line(tmp_path, monkeypatch, capsys, first, line, message):
    """Exit code 2, one message with the place, no traceback, and no file, not even a part of one."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(first, line, first))
    command = ["exoalign", "data", "convert", str(path), str(tmp_path / "out.jsonl"), "--to", "kway"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    assert printed.err.startswith(f"error: {path}{message}")
    assert "Traceback" not in printed.err
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


FILES = [
    ("empty.jsonl", b"", ": no rows; expected one JSON object on each line"),
    ("blank.jsonl", b"\n \n", ": no rows; expected one JSON object on each line"),
    ("marks.jsonl", b"\xef\xbb\xbf", ": no rows; expected one JSON object on each line"),
    ("rows.jsonl", GOOD.decode().encode("utf-16"), ":1: not UTF-8 at byte 1 of the line"),
    ("cut.jsonl.gz", gzip.compress(GOOD)[:-9], ": cannot be read: Compressed file ended before"),
    ("plain.jsonl.gz", GOOD, ": cannot be read: Not a gzipped file"),
    ("empty.json", b"", ": no rows; expected an array of objects"),
    ("none.json", b"[]", ": no rows; expected an array of objects"),
    ("none.json", b'{"data": []}', ": no rows; expected an array of objects"),
    ("cut.json", b"[\n" + GOOD + b",\n" + GOOD, ":3: found the end of the file: expected ','; the file is cut"),
    ("cut.json", b"[" + GOOD[:-5], ":1: found '\"Wh': not JSON: Unterminated string"),
    ("more.json", b"[" + GOOD + b"]\n]", ":2: found ']': more follows the end"),
    (
        "lines.json",
        GOOD + b"\n" + GOOD,
        ":1: found an object with prompt, chosen, rejected; expected an array of objects",
    ),
    ("text.json", b'"Hi"', ":1: found '\"Hi\"': expected an array of objects"),
    ("latin.json", b"[\n" + GOOD.replace(b"Hello", b"caf\xe9") + b"]", ":2: not UTF-8 at byte 34 of the file"),
    ("row.json", b"[\n" + GOOD + b",\n5]", ":3: found int, expected a JSON object"),
    ("twice.json", b"[" + GOOD + b',\n\n{"a": 1, "a": 2}]', ":3: the key `a` stands twice"),
    ("twice.json", b'{"data": [' + GOOD + b'], "data": []}', ":1: the key `data` stands twice"),
    ("both.json", b'{"data": [' + GOOD + b'], "instances": []}', ":1: `data` and `instances` both hold rows"),
    ("nan.json", b'{"version": NaN, "data": [' + GOOD + b"]}", ":1: NaN is no number"),
    ("nan.json", b"[" + GOOD + b',\n{"x": NaN}]', ":2: NaN is no number"),
    ("surrogate.json", b"[" + GOOD.replace(b"Hello", b"\\udc00") + b"]", ":1: `chosen` holds a lone surrogate"),
    ("empty.csv", b"", ": no rows; expected a header and a row on each line"),
    ("header.csv", b"prompt,chosen,rejected\n", ": no rows; expected a header and a row on each line"),
    ("twice.csv", b"prompt,prompt\na,b\n", ":1: the header is ['prompt', 'prompt']; expected a name for each column"),
    ("unnamed.csv", b"prompt,\na,b\n", ":1: the header is ['prompt', '']; expected a name for each column"),
    ("cut.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", ":3: found 2 fields, expected 3 as the header says"),
    ("long.csv", b"prompt,chosen,rejected\na,b,c\na,b,c,d\n", ":3: found 4 fields, expected 3 as the header says"),
    ("quote.csv", b'prompt,chosen,rejected\n"a\nb",b,c\na,b,"c\n', ":4: not CSV: unexpected end of data"),
    ("quote.csv", b'prompt,chosen,rejected\na,"b"b,c\n', ":2: not CSV: ',' expected after '\"'"),
    ("latin.csv", b"prompt,chosen,rejected\na,b,caf\xe9\n", ":2: not UTF-8 at byte 8 of the line"),
    ("nul.csv", b"prompt,chosen,rejected\na,b,c\0\n", ":2: "),
    ("number.csv", b"prompt,completion,rating\na,b,good\n", ":2: `rating` is 'good'; expected a number"),
    ("nan.csv", b"prompt,completion,rating\na,b,nan\n", ":2: `rating` holds nan; expected finite numbers"),
    ("null.csv", b"prompt,completion,rating\na,b,\n", ":2: `rating` is null; expected a number"),
    ("list.csv", b'prompt,completions,rewards\na,"[""b"", ""c""]",1\n', ":2: `rewards` is int; expected a list"),
    ("list.csv", b'prompt,completions,rewards\na,"[""b"",","[1]"\n', ":2: `completions`: not JSON at column 6"),
    (
        "turns.csv",
        b"prompt,chosen,rejected\n\"[{'role': 'user', 'content': 'Hi'}]\",b,c\n",
        ":2: `prompt` begins like a",
    ),
    (
        "turns.csv",
        b'prompt\n"[{""role"": ""user"", ""content"": ""H"\n',
        ":2: `prompt` begins like a list of messages and is",
    ),
    (
        "turns.csv",
        b'prompt,chosen,rejected\n"[{""role"": ""x"", ""role"": ""user""}]",b,c\n',
        ":2: `prompt`: the key `role`",
    ),
    (
        "turns.csv",
        b'prompt,chosen,rejected\n"[{""role"": ""user""}]",b,c\n',
        ":2: turn 1 of `prompt`: `content` is missing",
    ),
    ("empty.parquet", b"", ": cannot be read as Parquet"),
    ("cut.parquet", parquet([PAIR])[:-20], ": cannot be read as Parquet"),
    ("none.parquet", parquet([], pa.schema([("prompt", pa.string())])), ": no rows; expected one row or more"),
    ("nan.parquet", parquet([KWAY, {**KWAY, "rewards": [0, float("nan"), 1]}]), ", row 2: `rewards` holds nan"),
    ("inf.parquet", parquet([{**KWAY, "rewards": [0, float("inf"), 1]}]), ", row 1: `rewards` holds inf"),
    ("null.parquet", parquet([PAIR, {**PAIR, "chosen": None}]), ", row 2: `chosen` is null; expected text"),
    ("nul.parquet", parquet([{**PAIR, "prompt": "a\0"}]), ", row 1: `prompt` holds a NUL character"),
    ("bytes.parquet", parquet([{**PAIR, "prompt": b"a"}]), ", row 1: `prompt` is bytes; expected text"),
    (
        "column.parquet",
        parquet([{"prompt": "a", "chosen": "b"}]),
        ", row 1: no `rejected`; found columns chosen, prompt",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[f"{n}{m[:40]}" for n, _, m in FILES])
def test_a_malformed_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_groups(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_parquet_text_that_is_no_utf8(tmp_path):
    """Arrow takes the bytes as they are; the row is found by reading one after the other."""
    good = pa.array(["good"] * 3)
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, *pa.array([b"good", b"caf\xe9", b"good"], pa.binary()).buffers()[1:]]
    )
    table = pa.table({"prompt": bad, "chosen": good, "rejected": pa.array(["bad"] * 3)})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet, row 2: holds text that is not UTF-8"):
        read_groups(tmp_path / "rows.parquet")


PROMPTS = [
    (PAIR | {"prompt": turns("user")}, b'{"chosen": "a"}', ":2: no `prompt`; found columns chosen"),
    ({"prompt": "a"}, {"prompt": ""}, ":2: `prompt` is empty"),
    ({"prompt": turns("user")}, {"prompt": turns("user", content=" ")}, ":2: `prompt` is empty"),
    ({"prompt": "a"}, {"prompt": 1}, ":2: `prompt` is int; expected text"),
    (
        {"prompt": turns("user")},
        {"prompt": turns("user"), "tools": "[{}]"},
        ":2: `tools` cannot be rendered faithfully",
    ),
]


TEXTS = [
    (TEXT, {"text": " "}, ":2: `text` is empty; expected text"),
    (TEXT, {"text": None}, ":2: `text` is null; expected text"),
    (TEXT, {"messages": turns("user", "assistant")}, ":2: no `text`; found columns messages"),
    (TEXT, {"label": 1}, ":2: columns label; expected"),
    (
        PAIR,
        TEXT,
        ":1: columns chosen, prompt, rejected; expected `text`, or `messages`, or `prompt, completion` for SFT",
    ),
    (RATED, TEXT, ":1: columns completion, prompt, rating; expected `text`"),
    (
        {"messages": turns("user", "assistant")},
        {"messages": turns("user")},
        ":2: `messages` has no turn of the assistant",
    ),
    (
        {"messages": turns("user", "assistant")},
        {"messages": "Hi"},
        ":2: `messages` is str; expected a list of messages",
    ),
    (
        {"messages": turns("user", "assistant")},
        {"messages": turns("user", "assistant"), "tools": [{"type": "function"}]},
        ":2: `tools` cannot be rendered faithfully",
    ),
    ({"messages": None}, TEXT, ":1: `messages` is null; expected a list of messages"),
    ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}, ":2: a reply is empty; expected"),
    ({"completion": "b"}, TEXT, ":1: no `prompt`; found columns completion"),
]


@pytest.mark.parametrize(
    ("read", "first", "line", "message"),
    [*((read_prompts, *case) for case in PROMPTS), *((read_texts, *case) for case in TEXTS)],
)
def test_a_malformed_prompt_or_text(tmp_path, read, first, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(first, line))
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_a_row_by_itself_that_is_no_whole_group():
    with pytest.raises(DataError, match="x:7: one rated completion is no group"):
        format_row(RATED, "x:7", SetAside())
    with pytest.raises(DataError, match="x:7: columns text; expected `prompt, chosen, rejected`"):
        format_row(TEXT, "x:7", SetAside())
