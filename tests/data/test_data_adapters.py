"""Rows in the exact raw schema of each known data set become the rows that are written here by hand; others are refused."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from file_bytes import rows

from exoalign.data.adapters import ADAPTERS, adapt
from exoalign.data.formats import read_groups, read_prompts, read_texts
from exoalign.data.set_aside import Tally
from exoalign.data.sources import Source
from exoalign.errors import DataError
from exoalign.groups import Group, Message

HH = {
    "chosen": "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: How are you? \n\nAssistant: Fine.",
    "rejected": "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: How are you? \n\nAssistant: Go away.",
}
TLDR = {
    "info": {
        "id": "t3_1",
        "post": "I lost my cat.",
        "title": "Cat gone",
        "subreddit": "cats",
        "site": None,
        "article": None,
    },
    "summaries": [
        {"text": " Cat lost.", "policy": "sup2", "note": "ok"},
        {"text": " The cat is gone.", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "w1",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": None},
}
ARTICLE = {
    **TLDR,
    "info": {"id": "a", "post": None, "title": "News", "subreddit": None, "site": "cnn", "article": "It rained."},
    "choice": 0,
}
POST = {"id": "t3_2", "subreddit": "AskReddit", "title": "Why?", "post": "I wonder why.", "summary": "Wondering."}
TLDR_PROMPT = "SUBREDDIT: r/cats\n\nTITLE: Cat gone\n\nPOST: I lost my cat.\n\nTL;DR:"
POST_PROMPT = "SUBREDDIT: r/AskReddit\n\nTITLE: Why?\n\nPOST: I wonder why.\n\nTL;DR:"
IMDB = {"text": "One two  three four five six, seven eight. Nine ten", "label": 0}


def aspect(rating):
    return {"Rating": rating, "Rationale": "because", "Type": None, "Rationale For Rating": None}


def reply(model, text, score):
    return {
        "annotations": {
            name: aspect("4") for name in ("helpfulness", "honesty", "instruction_following", "truthfulness")
        },
        "custom_system_prompt": "You are helpful.",
        "model": model,
        "principle": "helpfulness",
        "response": text,
        "critique": "good",
        "fine-grained_score": 4.25,
        "overall_score": score,
    }


ULTRA = {
    "source": "evol_instruct",
    "instruction": "Add 2 and 3.",
    "models": ["alpaca-7b", "bard", "gpt-4", "llama-2-7b-chat"],
    "completions": [
        reply("alpaca-7b", "4", 1.0),
        reply("bard", "5", 7.5),
        reply("gpt-4", "2 + 3 = 5", 9.0),
        reply("llama-2-7b-chat", "Five", 7.5),
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}


def turns(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


BINARIZED = {
    "prompt": "Add 2 and 3.",
    "prompt_id": "a1b2",
    "chosen": [{"content": "Add 2 and 3.", "role": "user"}, {"content": "5", "role": "assistant"}],
    "rejected": [{"content": "Add 2 and 3.", "role": "user"}, {"content": "4", "role": "assistant"}],
    "messages": [{"content": "Add 2 and 3.", "role": "user"}, {"content": "5", "role": "assistant"}],
    "score_chosen": 6.5,
    "score_rejected": 6.5,
}
ALPACA = {"prompt": "Name a fruit.", "completions": ["Pear", "Car"], "rewards": [0.5, 0], "generators": ["a", "b"]}
ANNOTATION = {
    "instruction": "Name a fruit.",
    "output_1": "Apple",
    "generator_1": "gpt4_turbo",
    "dataset": "helpful_base",
    "output_2": "Pear",
    "generator_2": "phi-2",
    "annotator": "weighted_alpaca_eval_gpt4_turbo",
    "preference": 1.25,
}
HELPSTEER = {
    "prompt": "Name a fruit.",
    "response": "Pear",
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 1,
}
LATER = {**HELPSTEER, "prompt": "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nName a fruit."}
NECTAR = {
    "prompt": "\n\nHuman: Name a fruit. \n\nAssistant: ",
    "answers": [
        {"answer": "Car", "model": "mistral-7b", "rank": 3.0},
        {"answer": "Pear", "model": "gpt-4", "rank": 1.0},
        {"answer": "Leek", "model": "gpt-3.5-turbo", "rank": 2.0},
    ],
    "turns": 1,
    "num_responses": 3,
    "source": ["lmsys-chat-1m"],
    "good_natured": True,
}
TIED = {**NECTAR, "answers": [*NECTAR["answers"][:2], {"answer": "Leek", "model": "gpt-3.5-turbo", "rank": 3.0}]}
SHP = {
    "post_id": "abc",
    "domain": "askculinary_train",
    "upvote_ratio": 0.98,
    "history": "How long do eggs boil?",
    "c_root_id_A": "x",
    "c_root_id_B": "y",
    "created_at_utc_A": 1636107557,
    "created_at_utc_B": 1636107600,
    "score_A": 12,
    "score_B": 30,
    "human_ref_A": "Ten minutes.",
    "human_ref_B": "Until done.",
    "labels": 0,
    "seconds_difference": 43.0,
    "score_ratio": 2.5,
}

KNOWN = [
    ("hh", HH, HH),
    (
        "hh_chat",
        HH,
        {
            "chosen": turns("Hi there", "Hello!", "How are you?", "Fine."),
            "rejected": turns("Hi there", "Hello!", "How are you?", "Go away."),
        },
    ),
    ("tldr", TLDR, {"prompt": TLDR_PROMPT, "chosen": " The cat is gone.", "rejected": " Cat lost."}),
    (
        "tldr",
        ARTICLE,
        {"prompt": "Article:\nIt rained.\n\nTL;DR:\n", "chosen": " Cat lost.", "rejected": " The cat is gone."},
    ),
    ("tldr_sft", POST, {"prompt": POST_PROMPT, "completion": " Wondering."}),
    ("tldr_prompts", POST, {"prompt": POST_PROMPT}),
    ("imdb", IMDB, {"text": IMDB["text"], "label": IMDB["label"]}),
    ("imdb_prompts", IMDB, {"prompt": "One two  three four five six, seven eight."}),
    ("imdb_prompts", {"text": "Two words", "label": -1}, {"prompt": "Two words"}),
    ("rt_polarity", {"text": "a gem .", "label": 1}, {"text": "a gem .", "label": 1}),
    ("rt_polarity_prompts", {"text": "a gem , with all its  flaws .", "label": 1}, {"prompt": "a gem , with"}),
    ("rt_polarity", {"text": "a gem .", "label": 1.0}, {"text": "a gem .", "label": 1.0}),
    (
        "ultrafeedback",
        ULTRA,
        {
            "prompt": turns("Add 2 and 3."),
            "completions": ["4", "5", "2 + 3 = 5", "Five"],
            "rewards": [1.0, 7.5, 9.0, 7.5],
        },
    ),
    (
        "ultrafeedback_binarized",
        BINARIZED,
        {
            "chosen": turns("Add 2 and 3.", "5"),
            "rejected": turns("Add 2 and 3.", "4"),
            "score_chosen": 6.5,
            "score_rejected": 6.5,
        },
    ),
    (
        "alpaca_eval",
        ALPACA,
        {"prompt": turns("Name a fruit."), "completions": ["Pear", "Car"], "rewards": [0.5, 0]},
    ),
    (
        "alpaca_eval_annotations",
        ANNOTATION,
        {"prompt": turns("Name a fruit."), "completion": "Pear", "rating": 0.25},
    ),
    ("helpsteer", HELPSTEER, {"prompt": turns("Name a fruit."), "completion": "Pear", "rating": 3}),
    ("helpsteer", LATER, {"prompt": turns("Hi", "Hello.", "Name a fruit."), "completion": "Pear", "rating": 3}),
    (
        "nectar",
        NECTAR,
        {
            "prompt": "\n\nHuman: Name a fruit. \n\nAssistant:",
            "completions": [" Car", " Pear", " Leek"],
            "rewards": [0.0, 1.0, 0.5],
        },
    ),
    (
        "nectar",
        TIED,
        {
            "prompt": "\n\nHuman: Name a fruit. \n\nAssistant:",
            "completions": [" Car", " Pear", " Leek"],
            "rewards": [0.0, 1.0, 0.0],
        },
    ),
    (
        "shp",
        SHP,
        {
            "prompt": turns("How long do eggs boil?"),
            "chosen": "Until done.",
            "rejected": "Ten minutes.",
            "score_chosen": 30,
            "score_rejected": 12,
        },
    ),
    (
        "shp",
        {**SHP, "labels": 1, "score_A": 41},
        {
            "prompt": turns("How long do eggs boil?"),
            "chosen": "Ten minutes.",
            "rejected": "Until done.",
            "score_chosen": 41,
            "score_rejected": 30,
        },
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), KNOWN)
def test_a_row_of_the_raw_schema(name, row, expected):
    assert adapt(name, row, "f:1") == [expected]


@pytest.mark.parametrize(("name", "row", "expected"), KNOWN)
def test_columns_that_are_told_as_not_read_change_nothing(name, row, expected):
    others = {"generators": ["x"], "label": 7, "summary": "x"}
    changed = {column: others.get(column, 1.5) for column in ADAPTERS[name].unread}
    assert set(changed) <= set(ADAPTERS[name].schema)
    assert adapt(name, row | changed, "f:1") == [expected]


def test_every_adapter_is_tested():
    assert {name for name, _, _ in KNOWN} == set(ADAPTERS)


def test_turns_of_one_speaker_are_one_turn():
    start = "\n\nHuman: Hi\n\nAssistant: Wait.\n\nAssistant:"
    row = {"chosen": f"{start} Hello!", "rejected": f"{start} No."}
    assert adapt("hh", row, "f:1") == [row]
    assert adapt("hh_chat", row, "f:1") == [
        {"chosen": turns("Hi", "Wait.\n\nHello!"), "rejected": turns("Hi", "Wait.\n\nNo.")}
    ]


def without(row, column):
    return {key: value for key, value in row.items() if key != column}


@pytest.mark.parametrize(
    ("name", "row", "parts"),
    [
        ("hh", {"prompt": "Hi"}, ["no `chosen`", "{chosen: text, rejected: text}", "`exoalign data adapters`"]),
        ("hh", {"chosen": None, "rejected": "x"}, ["`chosen` is null, expected text"]),
        ("hh", {"chosen": "Yes", "rejected": "No"}, ["`chosen` is no transcript", "Human:"]),
        ("hh_chat", {"chosen": HH["chosen"], "rejected": "No"}, ["`rejected` is no transcript"]),
        ("hh", SHP, ["no `chosen`", "the row fits the adapter `shp`"]),
        ("tldr", POST, ["no `info`", "the row fits the adapter `tldr_sft` or `tldr_prompts`"]),
        ("tldr", {**TLDR, "choice": 2}, ["`choice` is 2, expected 0 or 1"]),
        ("tldr", {**TLDR, "choice": True}, ["`choice` is True, expected 0 or 1"]),
        ("tldr", {**TLDR, "summaries": TLDR["summaries"][:1]}, ["`summaries` holds 1; expected the 2"]),
        ("tldr", {**TLDR, "info": {"id": "1"}}, ["`info` is an object, expected {post: text", "or {article: text}"]),
        ("tldr_sft", without(POST, "summary"), ["no `summary`"]),
        ("imdb", {"text": ["a"], "label": 0}, ["`text` is a list, expected text"]),
        ("rt_polarity", {"text": "a", "label": "pos"}, ["`label` is text, expected a whole number"]),
        ("ultrafeedback", {**ULTRA, "completions": [{"response": "x"}]}, ["no `completions[0].overall_score`"]),
        ("ultrafeedback", BINARIZED, ["no `instruction`", "fits the adapter `ultrafeedback_binarized`"]),
        (
            "ultrafeedback_binarized",
            {**BINARIZED, "chosen": "5"},
            ["`chosen` is text, expected [{role: text, content: text}, ...]"],
        ),
        ("alpaca_eval", {**ALPACA, "rewards": [1, None]}, ["`rewards[1]` is null, expected a number"]),
        ("alpaca_eval_annotations", {**ANNOTATION, "preference": 0}, ["`preference` is 0; expected 1"]),
        ("alpaca_eval_annotations", {**ANNOTATION, "preference": float("nan")}, ["`preference` is nan"]),
        ("helpsteer", {**HELPSTEER, "helpfulness": "3"}, ["`helpfulness` is text, expected a number"]),
        ("nectar", {**NECTAR, "answers": {}}, ["`answers` is an object, expected [{answer: text"]),
        ("shp", {**SHP, "labels": 5}, ["`labels` is 5, expected 0 or 1"]),
        (
            "shp",
            {**SHP, "labels": 1},
            [
                "`labels` is 1, so A is preferred, and `score_A` 12, `score_B` 30 say that it lost; mend the label or the"
            ],
        ),
        (
            "shp",
            {**SHP, "score_B": 2.5},
            ["`labels` is 0, so B is preferred, and `score_A` 12, `score_B` 2.5 say that"],
        ),
        ("shp", [], ["is a list, expected {history: text"]),
    ],
)
def test_a_row_of_another_schema_is_refused(name, row, parts):
    with pytest.raises(DataError) as error:
        adapt(name, row, "file.jsonl:7")
    assert str(error.value).startswith("file.jsonl:7: ")
    for part in parts:
        assert part in str(error.value)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"no adapter `ultra-feedback`; did you mean `ultrafeedback`\? There are: hh, "):
        adapt("ultra-feedback", ULTRA, "f:1")
    with pytest.raises(DataError, match=r"no adapter `zzz`. There are: hh, "):
        adapt("zzz", HH, "f:1")


# Through the reader

ASSISTANT = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: How are you? \n\nAssistant:"
HELLO = (Message("user", "Hi there"), Message("assistant", "Hello!"), Message("user", "How are you?"))
FRUIT = (Message("user", "Name a fruit."),)


@pytest.mark.parametrize(
    ("name", "rows", "group"),
    [
        ("hh", [HH], Group(ASSISTANT, (" Fine.", " Go away."), winner=0)),
        ("hh_chat", [HH], Group(HELLO, ("Fine.", "Go away."), winner=0)),
        ("tldr", [TLDR], Group(TLDR_PROMPT, (" The cat is gone.", " Cat lost."), winner=0)),
        (
            "ultrafeedback",
            [ULTRA],
            Group((Message("user", "Add 2 and 3."),), ("4", "5", "2 + 3 = 5", "Five"), rewards=(1.0, 7.5, 9.0, 7.5)),
        ),
        (
            "ultrafeedback_binarized",
            [BINARIZED],
            Group((Message("user", "Add 2 and 3."),), ("5", "4"), rewards=(6.5, 6.5), winner=0),
        ),
        ("alpaca_eval", [ALPACA], Group(FRUIT, ("Pear", "Car"), rewards=(0.5, 0.0))),
        (
            "alpaca_eval_annotations",
            [ANNOTATION, {**ANNOTATION, "output_2": "Car", "preference": 1.0}],
            Group(FRUIT, ("Pear", "Car"), rewards=(0.25, 0.0)),
        ),
        (
            "helpsteer",
            [HELPSTEER, {**HELPSTEER, "response": "Car", "helpfulness": 0}],
            Group(FRUIT, ("Pear", "Car"), rewards=(3.0, 0.0)),
        ),
        (
            "nectar",
            [TIED],
            Group("\n\nHuman: Name a fruit. \n\nAssistant:", (" Car", " Pear", " Leek"), rewards=(0.0, 1.0, 0.0)),
        ),
        (
            "shp",
            [SHP],
            Group(
                (Message("user", "How long do eggs boil?"),),
                ("Until done.", "Ten minutes."),
                rewards=(30.0, 12.0),
                winner=0,
            ),
        ),
    ],
)
def test_raw_rows_become_a_group(name, rows, group, tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    ((found,), aside) = read_groups(Source(str(path), adapter=name))
    assert replace(found, provenance={}) == group
    assert (aside.read, aside.rows) == (len(rows), 0)


@pytest.mark.parametrize(
    ("name", "row", "read", "expected"),
    [
        ("tldr_prompts", POST, read_prompts, POST_PROMPT),
        ("tldr_sft", POST, read_texts, POST_PROMPT + " Wondering."),
        ("imdb", IMDB, read_texts, IMDB["text"]),
        ("imdb_prompts", IMDB, read_prompts, "One two  three four five six, seven eight."),
    ],
)
def test_raw_rows_become_prompts_and_texts(name, row, read, expected, tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text(json.dumps(row))
    assert [row[:2] for row in read(Source(str(path), adapter=name))] == [(expected, f"{path}:1")]


def test_transcripts_without_a_shared_beginning_are_set_aside(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(map(json.dumps, [HH, {**HH, "rejected": "\n\nHuman: Other\n\nAssistant: What?"}])))
    for name in ("hh", "hh_chat"):
        groups, aside = read_groups(Source(str(path), adapter=name))
        assert len(groups) == 1
        assert list(aside.reasons.values()) == [Tally(1, [f"{path}:2"])]


def test_a_row_of_another_schema_is_named_with_its_line(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(map(json.dumps, [HH, SHP])))
    with pytest.raises(DataError, match=rf"^{path}:2: no `chosen`; .*; the row fits the adapter `shp`$"):
        read_groups(Source(str(path), adapter="hh"))
    with pytest.raises(DataError, match=r"^no adapter `hhh`; did you mean `hh`\?"):
        read_groups(Source(str(path), adapter="hhh"))


@pytest.mark.parametrize("few", [[], ULTRA["completions"][:1]])
def test_too_few_completions_do_not_stop_a_raw_file(few, tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(map(json.dumps, [ULTRA, {**ULTRA, "completions": few}, ULTRA])))
    source = Source(str(path), adapter="ultrafeedback")
    groups, aside = read_groups(source)
    assert (len(groups), aside.read) == (2, 3)
    assert aside.reasons == {"fewer than two completions": Tally(1, [f"{path}:2"])}
    assert len(read_prompts(source)) == 3


HUB = {  # (hub id, subset, split, revision)
    "hh": ("Anthropic/hh-rlhf", "harmless-base", "test", None),
    "hh_chat": ("Anthropic/hh-rlhf", "helpful-rejection-sampled", "train", None),
    "tldr": ("openai/summarize_from_feedback", "comparisons", "train", "refs/convert/parquet"),
    "tldr_sft": ("vwxyzjn/summarize_from_feedback_tldr_3_filtered", None, "train", None),
    "tldr_prompts": ("vwxyzjn/summarize_from_feedback_tldr_3_filtered", None, "validation", None),
    "imdb": ("stanfordnlp/imdb", None, "train", None),
    "imdb_prompts": ("stanfordnlp/imdb", None, "test", None),
    "rt_polarity": ("cornell-movie-review-data/rotten_tomatoes", None, "train", None),
    "rt_polarity_prompts": ("cornell-movie-review-data/rotten_tomatoes", None, "test", None),
    "ultrafeedback": ("openbmb/UltraFeedback", None, "train", None),
    "ultrafeedback_binarized": ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs", None),
    "alpaca_eval": ("tatsu-lab/alpaca_eval", None, "train", None),
    "alpaca_eval_annotations": ("tatsu-lab/alpaca_eval", None, "train", None),
    "helpsteer": ("nvidia/HelpSteer2", None, "train", None),
    "nectar": ("berkeley-nest/Nectar", None, "train", None),
    "shp": ("stanfordnlp/SHP", "askculinary", "train", None),
}
FOLDERS = {"hh", "hh_chat", "shp"}
"""The data sets whose subsets are folders where others have configurations."""
PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_hub_is_asked_for_what_the_docs_name(name, monkeypatch):
    """There is no hub here: recorded is what it would be asked for. It answers with a row of the raw schema."""
    hub_id, subset, split, revision = HUB[name]
    row, expected = next((row, expected) for other, row, expected in KNOWN if other == name)
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **o: asked.append((a, o)) or [row])
    source = Source(hub_id, adapter=name, subset=subset, split=split, revision=revision)
    label = hub_id + (f"@{revision}" if revision else "")
    assert list(rows(source)) == [(f"{label}[{split}], row 1", expected)]
    which = "data_dir" if name in FOLDERS else "name"
    assert asked == [((hub_id,), {which: subset, "split": split, "revision": revision, "streaming": True})]
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    told = [hub_id, *filter(None, (subset, revision)), *({split} - {"train", "validation", "test"})]
    # hh_chat is "the same as conversations" as the line before it
    subsets = PAGE if name == "hh_chat" else line
    assert all(f"`{part}`" in (subsets if part == subset else line) for part in told)


# Real files


def real(folder, name):
    with gzip.open(folder / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("name", ["hh_harmless_test.jsonl.gz", "hh_harmless_train.jsonl.gz"])
def test_real_transcripts(shared_data, name):
    """Text stays what it is. Conversations have the same words, whatever the layout, and turns that alternate."""
    for i, row in enumerate(real(shared_data, name)):
        assert adapt("hh", row, f"{name}:{i}") == [row]
        (chat,) = adapt("hh_chat", row, f"{name}:{i}")
        for column, conversation in chat.items():
            words = " ".join(turn["content"] for turn in conversation).split()
            assert words == row[column].replace("\n\nHuman:", " ").replace("\n\nAssistant:", " ").split()
            roles = [turn["role"] for turn in conversation]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert i >= 299


def test_real_groups_and_sentences(shared_data):
    for row in real(shared_data, "alpaca_eval_k8.jsonl.gz"):
        (group,) = adapt("alpaca_eval", row, "f:1")
        assert group["prompt"][0]["content"] == row["prompt"]
        assert (group["completions"], group["rewards"]) == (row["completions"], row["rewards"])
    for row in real(shared_data, "rt_polarity_test.jsonl.gz"):
        assert adapt("rt_polarity", row, "f:1") == [{"text": row["text"], "label": row["label"]}]
