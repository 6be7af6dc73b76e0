"""Each format of a row, in text and in conversations, TRL's included: the group that it must become, written out by hand."""

import json

import pytest

from exoalign.data.formats import format_row, kind_of, read_groups, read_prompts, read_texts, stream_groups
from exoalign.data.set_aside import SetAside, Tally
from exoalign.errors import DataError
from exoalign.groups import Group, Message


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def tool(text):
    return {"role": "tool", "content": text}


def system(text):
    return {"role": "system", "content": text}


def messages(*turns):
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


SKY = user("What color is the sky?")
BLUE, GREEN = assistant("It is blue."), assistant("It is green.")


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return write


def group_of(row) -> Group:
    aside = SetAside()
    group = format_row(row, "f:1", aside)
    assert aside.lines() == []
    assert group is not None
    assert group.provenance == {"source": "f:1"}
    return group


# Pairs. The rows with the sky are those of TRL's documentation of data set formats.


@pytest.mark.parametrize(
    ("row", "prompt", "completions"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "The sky is", (" blue.", " green.")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", (" blue.", " green.")),
        ({"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}, messages(SKY), ("It is blue.", "It is green.")),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, messages(SKY), ("It is blue.", "It is green.")),
        (
            {"prompt": [SKY], "chosen": "It is blue.", "rejected": [GREEN]},
            messages(SKY),
            ("It is blue.", "It is green."),
        ),
        (  # the longest beginning that both go on from with the assistant
            {
                "chosen": [SKY, BLUE, user("Sure?"), assistant("Yes")],
                "rejected": [SKY, BLUE, user("Sure?"), assistant("No")],
            },
            messages(SKY, BLUE, user("Sure?")),
            ("Yes", "No"),
        ),
        (  # other questions: all that follows the first answer belongs to the trajectories
            {"chosen": [SKY, BLUE, user("a"), assistant("A")], "rejected": [SKY, BLUE, user("b"), assistant("B")]},
            messages(SKY),
            (messages(BLUE, user("a"), assistant("A")), messages(BLUE, user("b"), assistant("B"))),
        ),
        (  # one goes on longer
            {"chosen": [SKY, BLUE], "rejected": [SKY, BLUE, user("a"), assistant("A")]},
            messages(SKY),
            ("It is blue.", messages(BLUE, user("a"), assistant("A"))),
        ),
        (
            {
                "prompt": [system("Be brief."), SKY],
                "chosen": [assistant("?"), tool("blue"), tool("really"), BLUE],
                "rejected": [GREEN],
            },
            messages(system("Be brief."), SKY),
            (messages(assistant("?"), tool("blue"), tool("really"), BLUE), "It is green."),
        ),
        (
            {"prompt": [SKY, assistant("?"), tool("blue")], "chosen": [BLUE], "rejected": [GREEN]},
            messages(SKY, assistant("?"), tool("blue")),
            ("It is blue.", "It is green."),
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
            "\n\nHuman: Hi\n\nAssistant:",
            (" Hello!", " What?"),
        ),
    ],
)
def test_a_pair(row, prompt, completions):
    group = group_of({**row, "generator": "m", "score": 3})
    assert (group.prompt, group.completions, group.winner, group.rewards) == (prompt, completions, 0, None)


@pytest.mark.parametrize(
    ("scores", "rewards"),
    [
        ({"score_chosen": 8.5, "score_rejected": 3}, (8.5, 3.0)),
        ({"chosen_score": 0, "rejected_score": -1}, (0.0, -1.0)),
        ({"score_chosen": 2, "score_rejected": 2}, (2.0, 2.0)),
        ({"margin": 1.5}, (1.5, 0.0)),
        ({"margin": 1.5, "score_chosen": 8.5, "score_rejected": 7}, (8.5, 7.0)),
        ({"margin": None, "score_chosen": None, "score_rejected": None}, None),  # as Parquet says that there is none
    ],
)
def test_scores_of_a_pair(scores, rewards):
    group = group_of({"prompt": "p", "chosen": "a", "rejected": "b", **scores})
    assert (group.rewards, group.winner) == (rewards, 0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [  # values of trl.data_utils.extract_prompt, TRL 1.16
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("The sky is blue.", "The sky is black.", ("The sky is bl", "ue.", "ack.")),
        ("Q: a? A: b", "Q: a? A: c", ("Q: a? A:", " b", " c")),
        ("空は青い", "空は緑だ", ("空は", "青い", "緑だ")),
        ("a  b", "a  c", ("a ", " b", " c")),
    ],
)
def test_texts_that_begin_alike_are_cut_where_trl_cuts_them(chosen, rejected, parts):
    group = group_of({"chosen": chosen, "rejected": rejected})
    assert (group.prompt, *group.completions) == parts


# K completions


def test_completions_with_rewards():
    group = group_of({"prompt": "p", "completions": ["a", "b", "b"], "rewards": [1, 0.5, -2], "ranks": [1, 1, 1]})
    assert group == Group("p", ("a", "b", "b"), rewards=(1.0, 0.5, -2.0), provenance={"source": "f:1"})


def test_completions_of_a_conversation():
    group = group_of({"prompt": [SKY], "completions": [[BLUE], "green", [BLUE, SKY, GREEN]], "rewards": [1, 0, 2]})
    assert group.prompt == messages(SKY)
    assert group.completions == ("It is blue.", "green", messages(BLUE, SKY, GREEN))
    assert group.rewards == (1.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("ranks", "rewards"),
    [([1, 2], (1, 0)), ([3, 1, 2], (0, 1, 0.5)), ([1.0, 5.0, 3.0, 2.0, 4.0], (1, 0, 0.5, 0.75, 0.25))],
)
def test_ranks_become_rewards_from_one_to_zero(ranks, rewards):
    completions = ["a", "b", "c", "d", "e"][: len(ranks)]
    group = group_of({"prompt": "p", "completions": completions, "ranks": ranks})
    assert (group.completions, group.rewards, group.winner) == (tuple(completions), rewards, None)


# Ratings


def rating(prompt, completion, value, column="rating"):
    return {"prompt": prompt, "completion": completion, column: value}


def test_ratings_are_grouped_by_prompt_in_order_of_their_first_row(write):
    path = write(
        rating("p", "a", 1), rating("q", "x", 5), rating("p", "b", 2), rating("q", "y", 4), rating("p", "c", 0)
    )
    aside = SetAside()
    assert list(stream_groups(path, aside)) == [
        Group(
            "p",
            ("a", "b", "c"),
            rewards=(1, 2, 0),
            provenance={"source": f"{path}:1", "rows": [f"{path}:{i}" for i in (1, 3, 5)]},
        ),
        Group("q", ("x", "y"), rewards=(5, 4), provenance={"source": f"{path}:2", "rows": [f"{path}:2", f"{path}:4"]}),
    ]
    assert (aside.read, aside.rows) == (5, 0)


def test_labels_of_trl_count_one_and_zero(write):
    path = write(
        rating("The sky is", " blue.", True, "label"),
        rating("The sky is", " green.", False, "label"),
        rating("The sky is", " red.", 0, "label"),
    )
    assert [group.rewards for group in read_groups(path)[0]] == [(1.0, 0.0, 0.0)]
    path = write(rating([SKY], [BLUE], True, "label"), rating([SKY], [GREEN], False, "label"))
    (group,), _ = read_groups(path)
    assert (group.prompt, group.completions, group.rewards) == (messages(SKY), ("It is blue.", "It is green."), (1, 0))


def test_ratings_that_make_no_group_are_set_aside_row_by_row(write):
    path = write(
        rating("alone", "a", 1),
        rating("same", "a", 1),
        rating("half", "a", 1),
        rating("same", "a", 2),
        rating("half", " ", 2),
        rating("good", "a", 2),
        rating("good", "b", 2),
    )
    groups, aside = read_groups(path)
    assert [group.prompt for group in groups] == ["good"]
    assert aside.reasons == {
        "a reply is empty": Tally(1, [f"{path}:5"]),
        "a prompt with a single completion": Tally(2, [f"{path}:1", f"{path}:3"]),
        "all completions are the same text": Tally(2, [f"{path}:2", f"{path}:4"]),
    }
    assert aside.read == 2 + aside.rows


def test_the_limit_counts_groups_of_ratings(write):
    path = write(*[rating(f"p{i % 3}", f"c{i}", i) for i in range(9)])
    groups, aside = read_groups(path, limit=2)
    assert [group.rewards for group in groups] == [(0, 3, 6), (1, 4, 7)]
    assert (aside.read, aside.rows) == (9, 3)
    assert aside.lines() == [f"3 rows set aside: beyond the limit of 2 ({path}:3, {path}:6, {path}:9)"]


# What is well-formed and cannot be used


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [SKY], "chosen": [BLUE], "rejected": [assistant("")]}, "a reply is empty"),
        ({"prompt": [SKY], "chosen": [assistant(" "), SKY, BLUE], "rejected": [BLUE]}, "a reply is empty"),
        ({"prompt": [SKY], "chosen": [BLUE], "rejected": "It is blue."}, "chosen and rejected are the same text"),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, BLUE]}, "chosen and rejected are the same text"),
        ({"chosen": "The sky is", "rejected": "The sky is blue."}, "a reply is empty"),
        ({"chosen": "a", "rejected": "b"}, "chosen and rejected do not share everything before their last reply"),
        ({"chosen": " a", "rejected": " b"}, "chosen and rejected do not share everything before their last reply"),
        (
            {"chosen": [SKY, BLUE], "rejected": [user("?"), BLUE]},
            "chosen and rejected do not share everything before their last reply",
        ),
        (
            {"chosen": [system("s"), SKY, BLUE], "rejected": [system("s"), user("?"), BLUE]},
            "chosen and rejected do not share everything before their last reply",
        ),
        ({"prompt": [SKY], "chosen": [BLUE, SKY], "rejected": [BLUE]}, "a reply does not end with the assistant"),
        ({"prompt": "p", "completions": ["a", "a"], "rewards": [1, 2]}, "all completions are the same text"),
        ({"prompt": "p", "completions": ["a", "", "b"], "rewards": [1, 2, 3]}, "a reply is empty"),
    ],
)
def test_what_cannot_be_used_is_set_aside(row, reason):
    aside = SetAside()
    assert format_row(row, "f:1", aside) is None
    assert aside.reasons == {reason: Tally(1, ["f:1"])}


def test_the_account_tells_of_rows_set_aside_and_in_error(write):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    bad = [{**good, "prompt": i} for i in range(4)]
    path = write(bad[0], good, {**good, "chosen": ""}, *bad[1:], good)
    aside = SetAside()
    groups = list(stream_groups(path, aside, tolerate=True))
    assert (aside.read, len(groups), aside.rows, aside.malformed) == (7, 2, 1, 4)
    assert aside.lines()[0] == f"1 row set aside: a reply is empty ({path}:3)"
    assert aside.lines()[1].startswith(f"4 rows malformed: {path}:1: `prompt` is int; expected text")
    assert aside.lines()[1].endswith("; ...")


# Prompts and texts


def test_prompts(write):
    path = write({"prompt": "a", "id": 1}, {"prompt": "b"})
    assert read_prompts(path) == [("a", f"{path}:1", {"id": 1}), ("b", f"{path}:2", None)]
    path = write({"prompt": [system("s"), SKY]})
    assert read_prompts(path) == [(messages(system("s"), SKY), f"{path}:1", None)]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "The sky is blue.", "label": 1}, "The sky is blue."),
        ({"messages": [SKY, BLUE]}, messages(SKY, BLUE)),
        ({"messages": [system("s"), SKY, BLUE, user("I'd like to show off")]}, None),
        ({"prompt": "The sky is", "completion": " blue."}, "The sky is blue."),
        ({"prompt": [SKY], "completion": [BLUE]}, messages(SKY, BLUE)),
        ({"prompt": [SKY], "completion": "It is blue."}, messages(SKY, BLUE)),
        ({"prompt": [SKY], "completion": [BLUE, SKY, GREEN]}, messages(SKY, BLUE, SKY, GREEN)),
        ({"prompt": "p", "prompt_id": "x", "messages": [SKY, BLUE]}, messages(SKY, BLUE)),
    ],
)
def test_texts(write, row, text):
    path = write(row)
    expected = messages(*row["messages"]) if text is None else text
    assert read_texts(path) == [(expected, f"{path}:1")]


def test_the_limit_of_texts(write):
    path = write({"text": "a"}, {"text": "b"}, {"text": ""})
    assert [row.text for row in read_texts(path, limit=2)] == ["a", "b"]


# Kinds


def test_text_and_conversations_may_stand_in_one_file(write):
    path = write({"prompt": "a"}, {"prompt": [SKY]})
    assert [row.prompt for row in read_prompts(path)] == ["a", messages(SKY)]
    path = write(
        {"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}
    )
    assert [group.completions for group in read_groups(path)[0]] == [("a", "b"), ("It is blue.", "It is green.")]


def test_columns_that_are_not_read_may_come_and_go(write):
    path = write({"text": "a", "prompt": "x", "id": 1}, {"text": "b"}, {"text": "c", "prompt": None})
    assert [row.text for row in read_texts(path)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("prompt chosen rejected", "pairs"),
        ("chosen rejected", "pairs"),
        ("prompt chosen rejected messages score_chosen score_rejected", "pairs"),
        ("prompt completions rewards", "kway"),
        ("prompt completions rewards ranks", "kway"),
        ("prompt completions ranks", "rankings"),
        ("prompt completion rating", "ratings"),
        ("prompt completion label", "ratings"),
        ("prompt completion", "text"),
        ("text label", "text"),
        ("prompt messages", "text"),
        ("prompt answer", "prompts"),
    ],
)
def test_the_kind_of_a_row(columns, kind):
    assert kind_of(dict.fromkeys(columns.split())) == kind


def test_a_row_of_no_kind():
    with pytest.raises(DataError, match="x:3: columns question; expected `prompt, chosen, rejected`"):
        kind_of({"question": "?"}, "x:3")


def test_steps_with_labels_are_no_group_of_ours(write):
    """TRL's stepwise supervision rates the steps of one answer."""
    with pytest.raises(DataError, match="no `rewards`; found columns completions, labels, prompt"):
        read_groups(write({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}))
