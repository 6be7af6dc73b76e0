"""Groups become the rows that are written here by hand, and come back unchanged; what a kind cannot hold is told."""

import gzip
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exoalign.data.convert import KINDS, Account, to_rows
from exoalign.data.convert_file import convert_file
from exoalign.data.formats import PromptRow, SetAside, TextRow, open_records
from exoalign.data.set_aside import Tally
from exoalign.data.sources import Source
from exoalign.data.table import write_table
from exoalign.data.write import write_rows
from exoalign.errors import DataError
from exoalign.groups import Group, Message

CHAT = (Message("system", "Be kind."), Message("user", "Hi"))
CHAT_ROWS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
PAIR = Group("Q:", (" yes", " no"), winner=0)
SCORED = Group("Q:", (" yes", " no"), winner=0, rewards=(2.0, 0.5))
EVEN = Group("Q:", (" yes", " no"), winner=0, rewards=(1.0, 1.0))
UNSURE = Group("Q:", (" yes", " no"), winner=0, rewards=(0.5, 2.0))  # the winner stays, whatever the rewards
FOUR = Group("Q:", (" a", " b", " c", " d"), rewards=(1.0, 3.0, 0.0, 1.0))
CONVERSATION = Group(CHAT, ("Hello!", "Go."), winner=1)
TOOL = (Message("assistant", "Let me look."), Message("tool", "12"), Message("assistant", "12."))
TRAJECTORY = Group(CHAT, (TOOL, "No idea."), winner=0)


def said(text):
    return [{"role": "assistant", "content": text}]


TOOL_ROWS = [
    {"role": "assistant", "content": "Let me look."},
    {"role": "tool", "content": "12"},
    {"role": "assistant", "content": "12."},
]


@pytest.mark.parametrize(
    ("group", "kind", "rows"),
    [
        (PAIR, "pairs", [{"prompt": "Q:", "chosen": " yes", "rejected": " no"}]),
        (
            SCORED,
            "pairs",
            [{"prompt": "Q:", "chosen": " yes", "rejected": " no", "score_chosen": 2.0, "score_rejected": 0.5}],
        ),
        (
            EVEN,
            "pairs",
            [{"prompt": "Q:", "chosen": " yes", "rejected": " no", "score_chosen": 1.0, "score_rejected": 1.0}],
        ),
        (UNSURE, "pairs", [{"prompt": "Q:", "chosen": " yes", "rejected": " no"}]),
        (
            FOUR,
            "pairs",
            [{"prompt": "Q:", "chosen": " b", "rejected": " c", "score_chosen": 3.0, "score_rejected": 0.0}],
        ),
        (CONVERSATION, "pairs", [{"prompt": CHAT_ROWS, "chosen": said("Go."), "rejected": said("Hello!")}]),
        (TRAJECTORY, "pairs", [{"prompt": CHAT_ROWS, "chosen": TOOL_ROWS, "rejected": said("No idea.")}]),
        (PAIR, "kway", [{"prompt": "Q:", "completions": [" yes", " no"], "rewards": [1.0, 0.0]}]),
        (SCORED, "kway", [{"prompt": "Q:", "completions": [" yes", " no"], "rewards": [2.0, 0.5]}]),
        (FOUR, "kway", [{"prompt": "Q:", "completions": [" a", " b", " c", " d"], "rewards": [1.0, 3.0, 0.0, 1.0]}]),
        (
            TRAJECTORY,
            "kway",
            [{"prompt": CHAT_ROWS, "completions": [TOOL_ROWS, said("No idea.")], "rewards": [1.0, 0.0]}],
        ),
        (
            CONVERSATION,
            "ratings",
            [
                {"prompt": CHAT_ROWS, "completion": said("Hello!"), "rating": 0.0},
                {"prompt": CHAT_ROWS, "completion": said("Go."), "rating": 1.0},
            ],
        ),
        (PAIR, "rankings", [{"prompt": "Q:", "completions": [" yes", " no"], "ranks": [1, 2]}]),
        (
            Group("Q:", ("a", "b", "c"), rewards=(-3.0, -1.0, -2.0)),
            "rankings",
            [{"prompt": "Q:", "completions": ["a", "b", "c"], "ranks": [3, 1, 2]}],
        ),
        (FOUR, "prompts", [{"prompt": "Q:"}]),
        (FOUR, "text", [{"text": "Q: b"}]),
        (
            CONVERSATION,
            "text",
            [{"messages": [*CHAT_ROWS, *said("Go.")]}],
        ),
        (TRAJECTORY, "text", [{"messages": [*CHAT_ROWS, *TOOL_ROWS]}]),
        (SCORED, "trl-preference", [{"prompt": "Q:", "chosen": " yes", "rejected": " no"}]),
        (
            CONVERSATION,
            "trl-preference",
            [{"prompt": CHAT_ROWS, "chosen": said("Go."), "rejected": said("Hello!")}],
        ),
        (PAIR, "trl-preference-implicit", [{"chosen": "Q: yes", "rejected": "Q: no"}]),
        (
            CONVERSATION,
            "trl-preference-implicit",
            [{"chosen": [*CHAT_ROWS, *said("Go.")], "rejected": [*CHAT_ROWS, *said("Hello!")]}],
        ),
        (
            FOUR,
            "trl-unpaired",
            [
                {"prompt": "Q:", "completion": " b", "label": True},
                {"prompt": "Q:", "completion": " c", "label": False},
            ],
        ),
        (CONVERSATION, "trl-prompt-only", [{"prompt": CHAT_ROWS}]),
        (PAIR, "trl-language-modeling", [{"text": "Q: yes"}]),
        (PromptRow(CHAT, "f:1"), "prompts", [{"prompt": CHAT_ROWS}]),
        (PromptRow("Q:", "f:1"), "trl-prompt-only", [{"prompt": "Q:"}]),
        (TextRow("Once", "f:1"), "text", [{"text": "Once"}]),
        (TextRow(CHAT, "f:1"), "trl-language-modeling", [{"messages": CHAT_ROWS}]),
    ],
)
def test_rows_of_each_kind(group, kind, rows):
    account = Account()
    assert list(to_rows([group], kind, account)) == rows
    assert account.aside.reasons == {}


def test_all_pairs_but_not_of_equal_rewards():
    """Of 4 completions 6 pairs; a and d have the same reward, so 5 are left."""
    account = Account()
    rows = list(to_rows([FOUR], "pairs", account, pairs="all"))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        (" b", " a"), (" a", " c"), (" b", " c"), (" b", " d"), (" d", " c"),
    ]  # fmt: skip
    assert +account.unwritten == {"pairs of equal rewards": 1}


@pytest.mark.parametrize(
    ("group", "kind", "reason"),
    [
        (Group("Q:", ("a", "b"), rewards=(1, 1)), "pairs", "all rewards are equal: no pair"),
        (Group("Q:", ("a", "b", "a"), rewards=(1, 0.5, 0)), "pairs", "chosen and rejected are the same text"),
        (Group("Q:", ("a", "b", "c"), rewards=(1, 0, 1)), "rankings", "equal rewards, which ranks cannot hold"),
        (Group("Q:", ("a", "b")), "kway", "neither rewards nor a winner"),
        (Group("Q:", ("a",), rewards=(1,)), "trl-unpaired", "one completion only"),
    ],
)
def test_a_group_that_the_kind_cannot_hold_is_set_aside(group, kind, reason):
    account = Account()
    folded = Group(**{**vars(group), "provenance": {"source": "f:1", "rows": ["f:1", "f:3"]}})
    assert list(to_rows([folded], kind, account)) == []
    assert account.aside.reasons == {reason: Tally(2, ["f:1", "f:3"])}


@pytest.mark.parametrize(
    ("group", "kind", "unwritten"),
    [
        (SCORED, "trl-preference", {"rewards": 2}),
        (SCORED, "trl-preference-implicit", {"rewards": 2}),
        (SCORED, "kway", {}),
        (EVEN, "kway", {"winners that are not alone at the highest reward": 1}),
        (UNSURE, "kway", {"winners that are not alone at the highest reward": 1}),
        (UNSURE, "pairs", {"rewards that contradict their winner": 2}),
        (FOUR, "pairs", {"completions that are in no pair": 2}),
        (FOUR, "trl-unpaired", {"completions that are in no pair": 2, "rewards": 2}),
        (FOUR, "text", {"completions": 3, "rewards": 4}),
        (FOUR, "prompts", {"completions": 4}),
        (Group("Q:", ("a", "b"), rewards=(1, 0)), "rankings", {"rewards, of which ranks keep the order": 2}),
        (
            Group("Q:", ("a", "b"), winner=0, prompt_ids=(1,), completion_ids=((2,), (3,))),
            "pairs",
            {"groups' prompt_ids": 1, "groups' completion_ids": 1},
        ),
        (Group("Q:", ("a", "b"), winner=0, scores={"length": (1, 2)}), "pairs", {"groups' scores": 1}),
        (PAIR, "kway", {}),
        (FOUR, "ratings", {}),
    ],
)
def test_values_without_a_place_are_counted(group, kind, unwritten):
    account = Account()
    list(to_rows([group], kind, account))
    assert +account.unwritten == unwritten


@pytest.mark.parametrize(
    ("rows", "adapter", "kind", "unwritten"),
    [
        (
            [{"prompt": "P", "chosen": "a", "rejected": "b", "margin": 1, "id": 7, "note": None}],
            None,
            "pairs",
            {"column id": 2},
        ),
        (
            [{"prompt": "P", "completions": ["a", "b"], "rewards": [1, 0], "generators": ["m", "n"], "ranks": [1, 2]}],
            None,
            "trl-preference",
            {"rewards": 4, "column generators": 2, "column ranks": 2},
        ),
        (
            [{"prompt": "P", "completion": text, "rating": 1, "label": True} for text in "ab"],
            None,
            "ratings",
            {"column label": 4},
        ),
        ([{"prompt": "P", "id": "x"}], None, "prompts", {"column id": 2}),
        ([{"text": "T", "label": 1}], None, "text", {"column label": 2}),
        ([{"messages": [*CHAT_ROWS, *said("a")], "prompt": "P"}], None, "text", {"column prompt": 2}),
        (
            [{"prompt": "P", "completions": ["a", "b"], "rewards": [1, 0], "generators": ["m", "n"], "id": 1}],
            "alpaca_eval",
            "kway",
            {"column generators": 2, "column id": 2},
        ),
        ([{"text": "T", "label": 1}], "rt_polarity", "text", {"column label": 2}),
        (
            [{"subreddit": "s", "title": "t", "post": "p", "summary": "x", "id": "y"}],
            "tldr_prompts",
            "prompts",
            {"column summary": 2, "column id": 2},
        ),
    ],
)
def test_columns_that_are_not_read_are_counted(write, tmp_path, rows, adapter, kind, unwritten):
    found = convert_file(Source(str(write(*rows, *rows)), adapter), tmp_path / "o.jsonl", kind)
    assert +found.account.unwritten == unwritten
    assert found.rows == 2 * len(rows)
    assert [line for line in found.lines() if line.startswith("not written: column ")] == [
        f"not written: {what} ({number})" for what, number in unwritten.items() if "column" in what
    ]


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        (PromptRow("Q:", "f:3"), "pairs", "f:3: found only a prompt, which cannot become pairs; it can be `prompts`"),
        (TextRow("Q", "f:3"), "prompts", "f:3: found only text for SFT, which cannot become prompts; it can be `text`"),
    ],
)
def test_what_holds_no_completions_cannot_become_pairs(item, kind, message):
    with pytest.raises(DataError) as error:
        list(to_rows([item], kind, Account()))
    assert str(error.value) == message


def test_trl_reads_its_kinds_as_they_are_meant():
    """TRL's own functions find the conversations, and the prompt that the implicit form hides."""
    data_utils = pytest.importorskip("trl.data_utils")
    for kind in KINDS:
        if kind.startswith("trl-"):
            (row, *_) = to_rows([CONVERSATION], kind, Account())
            assert data_utils.is_conversational(row)
    (implicit,) = to_rows([CONVERSATION], "trl-preference-implicit", Account())
    (explicit,) = to_rows([CONVERSATION], "trl-preference", Account())
    assert data_utils.extract_prompt(implicit) == explicit


# Files

TRICKY = 'line\nfeed, "quoted"; \ttab \u2028 separator \x1b[31m \U0001f600 e\u0301 <|im_end|> \\n \r\n end '


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="in.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return tmp_path / name

    return write


def same(found, expected):
    """Whether groups, prompts or texts are the same but for where they come from."""
    return [replace(f, provenance={}) if isinstance(f, Group) else f[0] for f in found] == [
        replace(e, provenance={}) if isinstance(e, Group) else e[0] for e in expected
    ]


def items(path):
    return list(open_records(path, SetAside(), tolerate=False)[1])


TURNS = [{"role": "user", "content": TRICKY}]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet", ".csv"])
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("pairs", {"prompt": f"P {TRICKY}", "chosen": TRICKY, "rejected": "no"}),
        ("pairs", {"prompt": "P", "chosen": "1", "rejected": " no", "score_chosen": 1e-300, "score_rejected": -0.1}),
        ("pairs", {"prompt": TURNS, "chosen": "a", "rejected": "b"}),
        ("pairs", {"prompt": TURNS, "chosen": TOOL_ROWS, "rejected": said(TRICKY)}),
        ("kway", {"prompt": f"P {TRICKY}", "completions": [TRICKY, "b", "c"], "rewards": [0.1, -1e-300, 0.1]}),
        ("kway", {"prompt": TURNS, "completions": ["a", "b"], "rewards": [1, 2]}),
        ("kway", {"prompt": TURNS, "completions": [TOOL_ROWS, said("b")], "rewards": [1, 2]}),
        ("ratings", {"prompt": "P", "completions": [" a", TRICKY], "rewards": [1, 2]}),
        ("rankings", {"prompt": "P", "completions": [" a", " b", TRICKY], "ranks": [2, 3, 1]}),
        ("prompts", {"prompt": TRICKY}),
        ("prompts", {"prompt": TURNS}),
        ("text", {"text": TRICKY}),
        ("text", {"messages": [*TURNS, *TOOL_ROWS]}),
        ("trl-preference", {"prompt": TRICKY, "chosen": "a", "rejected": "b"}),
        ("trl-preference", {"prompt": TURNS, "chosen": "a", "rejected": "b"}),
        ("trl-preference-implicit", {"prompt": TURNS, "chosen": "a", "rejected": "b"}),
        ("trl-preference-implicit", {"prompt": "P:", "chosen": " a", "rejected": " b"}),
        ("trl-unpaired", {"prompt": TURNS, "completions": ["a", "b"], "rewards": [1, 0]}),
    ],
)
def test_there_and_back_without_loss(write, tmp_path, kind, row, ending):
    other = (
        {"prompt": "Another:" if isinstance(row["prompt"], str) else [{"role": "user", "content": "Another."}]}
        if "prompt" in row
        else {}
    )
    path = write(row, row | other)
    out = tmp_path / f"out{ending}"
    if ending == ".csv" and any(isinstance(value, list) for value in row.values()) and kind != "ratings":
        with pytest.raises(DataError, match=r"is a list, and \.csv holds only text and numbers"):
            convert_file(Source(str(path)), out, kind)
        return
    found = convert_file(Source(str(path)), out, kind)
    assert (found.rows, found.items, found.account.aside.reasons) == (2, 2, {})
    assert found.written == 2 * len(row.get("completions", "1") if kind in ("ratings", "trl-unpaired") else "1")
    assert same(items(out), items(path))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_rankings_keep_the_order_of_rewards_and_back(write, tmp_path):
    """Rewards 0.2, 9, -1: ranks 2, 1, 3, which are read as rewards (3 - rank) / 2."""
    path = write({"prompt": "P", "completions": ["a", "b", "c"], "rewards": [0.2, 9, -1]})
    convert_file(Source(str(path)), tmp_path / "ranks.jsonl", "rankings")
    convert_file(Source(str(tmp_path / "ranks.jsonl")), tmp_path / "back.jsonl", "kway")
    assert json.loads((tmp_path / "ranks.jsonl").read_text())["ranks"] == [2, 1, 3]
    assert json.loads((tmp_path / "back.jsonl").read_text())["rewards"] == [0.5, 1.0, 0.0]


def test_the_groups_of_a_run(tmp_path):
    """Token ids have no place in a data set: they are counted."""
    group = Group("Q:", ("a", "b"), rewards=(1, 0), prompt_ids=(1,), completion_ids=((2,), (3,)))
    write_table([group, group], tmp_path / "groups.parquet")
    found = convert_file(Source(str(tmp_path / "groups.parquet")), tmp_path / "o.jsonl", "kway")
    assert found.lines()[1:] == ["not written: groups' prompt_ids (2)", "not written: groups' completion_ids (2)"]
    assert same(items(tmp_path / "o.jsonl"), [Group("Q:", ("a", "b"), rewards=(1, 0))] * 2)


characters = st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00")
texts = st.text(characters, min_size=1, max_size=8).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)
groups = st.builds(
    lambda prompt, replies: Group(prompt, tuple(replies), rewards=tuple(replies.values())),
    texts,
    st.dictionaries(texts, numbers, min_size=2, max_size=4),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(groups, min_size=1, max_size=3), st.sampled_from([".jsonl", ".jsonl.gz", ".parquet"]))
def test_any_group_there_and_back(tmp_path_factory, found, ending):
    out = tmp_path_factory.mktemp("any") / f"o{ending}"
    write_rows(to_rows(found, "kway", Account()), out)
    assert same(items(out), found)


def test_parquet_holds_the_rows(write, tmp_path):
    """Read by `datasets`, in row groups; conversations and trajectories as lists of role and content."""
    datasets = pytest.importorskip("datasets")
    turns = [{"role": "user", "content": TRICKY}]
    rows = [{"prompt": turns, "completions": [f"a{i}", "b"], "rewards": [i, 0.5]} for i in range(1001)]
    convert_file(Source(str(write(*rows))), tmp_path / "out.parquet", "kway")
    found = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == [{**row, "completions": [said(text) for text in row["completions"]]} for row in rows]


def test_gzip_gives_the_same_bytes_again(write, tmp_path):
    path = write({"prompt": "P", "chosen": "a", "rejected": "b"})
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        convert_file(Source(str(path)), tmp_path / name, "pairs")
    packed = (tmp_path / "one.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "two.jsonl.gz").read_bytes()
    assert packed[3:8] == bytes(5)  # no name, no time
    row = {"prompt": "P", "chosen": "a", "rejected": "b"}
    assert json.loads(gzip.decompress((tmp_path / "one.jsonl.gz").read_bytes())) == row


def test_the_limit_counts_groups(write, tmp_path):
    path = write(*[{"prompt": f"P{i}", "chosen": "a", "rejected": "b"} for i in range(5)])
    found = convert_file(Source(str(path)), tmp_path / "o.jsonl", "ratings", limit=2)
    assert (found.rows, found.items, found.written) == (2, 2, 4)
    path = write({"text": "a"}, {"text": "b"}, {"text": "c"})
    assert convert_file(Source(str(path)), tmp_path / "texts.jsonl", "text", limit=2).written == 2


PAIR_ROW = {"prompt": "P", "chosen": "a", "rejected": "b"}
CHAT_PAIR = {**PAIR_ROW, "prompt": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(("kind", "column"), [("prompts", "prompt"), ("text", "text"), ("pairs", None)])
def test_what_is_read_is_handed_on_at_once(write, kind, column):
    """A malformed row behind the first is only met when it is asked for."""
    rows = [PAIR_ROW, {**PAIR_ROW, "chosen": 1}] if column is None else [{column: "a"}, {column: 1}]
    _, stream = open_records(write(*rows), SetAside(), tolerate=False)
    next(stream)
    with pytest.raises(DataError, match=r"in\.jsonl:2: "):
        next(stream)


@pytest.mark.parametrize(
    ("rows", "out", "kind", "parts"),
    [
        ([PAIR_ROW], "o.txt", "pairs", ["o.txt: its ending is not known; expected one of .jsonl, .jsonl.gz"]),
        ([PAIR_ROW], "in.jsonl", "pairs", ["in.jsonl: exists already", "--force"]),
        ([PAIR_ROW], "folder.jsonl", "pairs", ["folder.jsonl: is a folder"]),
        ([PAIR_ROW], "in.jsonl/o.jsonl", "pairs", ["cannot be written"]),
        ([PAIR_ROW], "o.jsonl", "pair", ["no kind `pair`; did you mean `pairs`? There are: pairs, kway, "]),
        ([PAIR_ROW], "o.csv", "kway", ["o.csv, row 1: `completions` is a list", "write .jsonl or .parquet"]),
        ([CHAT_PAIR], "o.csv", "pairs", ["o.csv, row 1: `prompt` is a list"]),
        ([{**PAIR_ROW, "chosen": json.dumps(CHAT_ROWS)}], "o.csv", "pairs", ["o.csv, row 1: `chosen` is text that .csv would"]),
        ([{**PAIR_ROW, "prompt": str(CHAT_ROWS)}], "o.csv", "pairs", ["o.csv, row 1: `prompt` is text that .csv would"]),
        (
            [{"prompt": "P", "completions": ["a", "b"], "rewards": [0, 0]}],
            "o.jsonl",
            "pairs",
            ["no row to write", "1 row set aside: all rewards are equal"],
        ),
        ([PAIR_ROW, {"prompt": "P", "chosen": 1, "rejected": "b"}], "o.jsonl", "pairs", ["in.jsonl:2: `chosen` is"]),
        ([PAIR_ROW, {**PAIR_ROW, "margin": 1}], "o.csv", "pairs", ["o.csv, row 2: has columns prompt, chosen, rejected, s"]),
        ([PAIR_ROW, {**PAIR_ROW, "margin": 1}], "o.parquet", "pairs", ["o.parquet, row 2: has columns", "write .jsonl"]),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_and_leaves_nothing(write, tmp_path, rows, out, kind, parts):
    path = write(*rows)
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(DataError) as error:
        convert_file(Source(str(path)), tmp_path / out, kind)
    for part in parts:
        assert part in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_parquet_refuses_text_and_conversations_in_one_column(tmp_path):
    """Rows of one file are alike, but an adapter's may differ."""
    with pytest.raises(DataError, match=r"o\.parquet, row 1 or one of the 1000 from there: (.|\n)*: write \.jsonl"):
        write_rows([PAIR_ROW, CHAT_PAIR], tmp_path / "o.parquet")
    assert list(tmp_path.iterdir()) == []


def test_force_overwrites_even_the_source(write):
    path = write(PAIR_ROW)
    convert_file(Source(str(path)), path, "kway", force=True)
    assert json.loads(path.read_text()) == {"prompt": "P", "completions": ["a", "b"], "rewards": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("name", "adapter", "kind"),
    [
        ("hh_harmless_train", None, "pairs"),
        ("hh_harmless_test", "hh_chat", "trl-preference"),
        ("hh_harmless_test", "hh", "trl-preference-implicit"),
        ("alpaca_eval_k8", "alpaca_eval", "kway"),
        ("alpaca_eval_k8", None, "ratings"),
        ("rt_polarity_test", "rt_polarity", "text"),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl.gz", ".parquet"])
def test_real_files_there_and_back(shared_data, tmp_path, name, adapter, kind, ending):
    source, aside = Source(str(shared_data / f"{name}.jsonl.gz"), adapter), SetAside()
    read = list(open_records(source, aside, tolerate=False)[1])
    found = convert_file(source, tmp_path / f"o{ending}", kind)
    assert found.account.aside.reasons == aside.reasons
    assert found.rows == len(read) + aside.rows
    assert same(items(tmp_path / f"o{ending}"), read)
