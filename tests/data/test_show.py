"""The group that is printed before training: special tokens are told from typed ones, what counts from what does not."""

import pytest
from chat_templates import CHATML, byte_tokenizer

from exoalign.data.show import render_group
from exoalign.data.tokenize import tokenize
from exoalign.errors import DataError
from exoalign.groups import Group, Message


def test_a_conversation_is_shown_with_its_tokens_and_masks():
    tokenizer = byte_tokenizer(CHATML)
    trajectory = (Message("assistant", "a <|im_end|>"), Message("tool", "b"), Message("assistant", "é"))
    group = Group((Message("user", "Hi\x1b[31m"),), (trajectory, "No"), rewards=(1.5, -2), provenance={"source": "f:3"})
    assert render_group(tokenize([group], tokenizer)[0], tokenizer).split("\n") == [
        "f:3: what the model sees; [[ ]] special token, + counts in the log-prob, - does not",
        "prompt, 26 tokens",  # 1 + 5, 7, 1 + 1, 1 + 10
        "  - [[<|im_start|>]]user",
        r"    Hi\x1b[31m[[<|im_end|>]]",
        "    [[<|im_start|>]]assistant",
        "    ",
        "completion 1 of 2, 37 tokens, 16 count, reward 1.5",  # 12 + 1 and 2 + 1 count; 7 + 1, 1 + 1 + 11 do not
        "  + a <|im_end|>[[<|im_end|>]]",
        "  - ",
        "    [[<|im_start|>]]tool",
        "    b[[<|im_end|>]]",
        "    [[<|im_start|>]]assistant",
        "    ",
        "  + é[[<|im_end|>]]",
        "completion 2 of 2, 3 tokens, 3 count, reward -2",
        "  + No[[<|im_end|>]]",
    ]


def test_a_pair_of_texts_is_shown_with_the_preferred_one():
    tokenizer = byte_tokenizer(CHATML)
    group = tokenize([Group("Hi", (" a", " b"), winner=1, provenance={"source": "f:\x1b3"})], tokenizer)[0]
    shown = render_group(group, tokenizer)
    assert shown.startswith(r"f:\x1b3: ")
    assert "completion 1 of 2, 3 tokens, 3 count\n  +  a[[</s>]]" in shown
    assert "completion 2 of 2, 3 tokens, 3 count, preferred\n  +  b[[</s>]]" in shown


def test_without_ids_there_is_nothing_to_show():
    with pytest.raises(DataError, match=r"^f:3: has no token ids; call exoalign\.tokenize first"):
        render_group(Group("Hi", ("a",), provenance={"source": "f:3"}), byte_tokenizer(CHATML))
