"""Rows as TRL's documentation of data set formats has them, read unchanged, or refused where the model would not see all."""

import json

import pytest

from exoalign.data.formats import read_groups, read_prompts, read_texts
from exoalign.errors import DataError

SKY = {"role": "user", "content": "What color is the sky?"}
BLUE, GREEN = ({"role": "assistant", "content": text} for text in ("It is blue.", "It is green."))
ASKED, SAID = ("user", "What color is the sky?"), ("assistant", "It is blue.")
TALK = [
    {"role": "user", "content": "Hello, how are you?"},
    {"role": "assistant", "content": "I'm doing great. How can I help you today?"},
    {"role": "user", "content": "I'd like to show off how chat templating works!"},
]

GROUPS = {
    "preference": (
        [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}],
        ("The sky is", (" blue.", " green."), None, 0),
    ),
    "preference, implicit prompt": (
        [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
        ("The sky is", (" blue.", " green."), None, 0),
    ),
    "preference, conversational": (
        [{"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}],
        ((ASKED,), ("It is blue.", "It is green."), None, 0),
    ),
    "preference, conversational, implicit prompt": (
        [{"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}],
        ((ASKED,), ("It is blue.", "It is green."), None, 0),
    ),
    "unpaired": (
        [
            {"prompt": "The sky is", "completion": " blue.", "label": True},
            {"prompt": "The sky is", "completion": " green.", "label": False},
        ],
        ("The sky is", (" blue.", " green."), (1.0, 0.0), None),
    ),
    "unpaired, conversational": (
        [
            {"prompt": [SKY], "completion": [BLUE], "label": True},
            {"prompt": [SKY], "completion": [GREEN], "label": False},
        ],
        ((ASKED,), ("It is blue.", "It is green."), (1.0, 0.0), None),
    ),
}
PROMPTS = {
    "prompt-only": ({"prompt": "The sky is"}, "The sky is"),
    "prompt-only, conversational": ({"prompt": [SKY]}, (ASKED,)),
}
TEXTS = {
    "language modeling": ({"text": "The sky is blue."}, "The sky is blue."),
    "language modeling, conversational": ({"messages": [SKY, BLUE]}, (ASKED, SAID)),
    "language modeling, ends with the user": (
        {"messages": TALK},
        tuple((turn["role"], turn["content"]) for turn in TALK),
    ),
    "prompt-completion": ({"prompt": "The sky is", "completion": " blue."}, "The sky is blue."),
    "prompt-completion, conversational": ({"prompt": [SKY], "completion": [BLUE]}, (ASKED, SAID)),
}


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "rows.jsonl"

    return write


# As `datasets` gives rows: a column that others have is null, and so is a key of a message; an empty list says nothing.
@pytest.mark.parametrize("more", [{}, {"tools": None, "images": []}])
@pytest.mark.parametrize("name", GROUPS)
def test_groups(write, name, more):
    rows, expected = GROUPS[name]
    ((group,), aside) = read_groups(write(*[row | more for row in rows]))
    assert (group.prompt, group.completions, group.rewards, group.winner) == expected
    assert (aside.read, aside.rows) == (len(rows), 0)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(write, name):
    row, expected = PROMPTS[name]
    assert [found.prompt for found in read_prompts(write(row, row | {"chat_template_kwargs": {}}))] == [expected] * 2


@pytest.mark.parametrize("name", TEXTS)
def test_texts(write, name):
    row, expected = TEXTS[name]
    assert [found.text for found in read_texts(write(row, row | {"tools": []}))] == [expected] * 2


LAMP = {"type": "function", "function": {"name": "control_light", "parameters": {"type": "object", "properties": {}}}}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "control_light", "arguments": {}}}],
}
DONE = {"role": "tool", "name": "control_light", "content": "The lights are on."}


@pytest.mark.parametrize(
    ("row", "read", "message"),
    [
        (
            {"messages": [SKY, BLUE], "tools": [LAMP]},
            read_texts,
            "`tools` cannot be rendered faithfully: only what the messages say reaches the model; write it into the messages,"
            " or take the column `tools` out to train without it",
        ),
        ({"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN], "tools": [LAMP]}, read_groups, "`tools` cannot be"),
        (
            {"prompt": [SKY], "completion": [BLUE], "label": True, "images": ["a.png"]},
            read_groups,
            "`images` cannot be",
        ),
        ({"prompt": [SKY], "image": {"path": "a.png"}}, read_prompts, "`image` cannot be rendered faithfully"),
        (
            {"prompt": [SKY], "completion": [BLUE], "chat_template_kwargs": {"enable_thinking": False}},
            read_texts,
            "`chat_template_kwargs` cannot be rendered faithfully",
        ),
        (
            {"messages": [SKY, CALL, DONE, BLUE]},
            read_texts,
            "turn 2 of `messages` holds `tool_calls` too; expected only",
        ),
        (
            {"prompt": [SKY], "chosen": [BLUE, DONE, BLUE], "rejected": [GREEN]},
            read_groups,
            "turn 2 of `chosen` holds `name`",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]},
            read_prompts,
            "turn 1 of `prompt`: `content` is list; expected text",
        ),
        (
            {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
            read_groups,
            "no `rewards`; found columns",
        ),
    ],
)
def test_what_cannot_be_rendered_faithfully_is_refused(write, row, read, message):
    path = write(row)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:1: {message}")
