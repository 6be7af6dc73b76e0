"""Replies and trajectories after a conversation: the assistant's words and the ends of its turns count, nothing else does."""

import pytest
from chat_templates import CHATML, TEMPLATES, byte_tokenizer

from exoalign.data.tokenize import content_ids, tokenize
from exoalign.errors import DataError, ModelError
from exoalign.groups import Group, Message

USER = (Message("user", "Hi"),)
THREE = (Message("assistant", " One\n"), Message("user", "Two <|im_end|>"), Message("assistant", "Three </s>"))


def counted(tokenizer, group, k=0) -> list[str]:
    """The stretches of completion k that count, decoded."""
    stretches, before = [], False
    for i, counts in zip(group.completion_ids[k], group.completion_masks[k], strict=True):
        if counts:
            stretches = stretches if before else [*stretches, []]
            stretches[-1].append(i)
        before = counts
    return [tokenizer.decode(ids) for ids in stretches]


@pytest.mark.parametrize(
    ("name", "expected", "whole"),
    [
        (
            "chatml",
            [" One\n<|im_end|>", "Three </s><|im_end|>"],
            " One\n<|im_end|>\n<|im_start|>user\nTwo <|im_end|><|im_end|>\n<|im_start|>assistant\nThree </s><|im_end|>",
        ),
        (
            "gemma",  # strips
            ["One<end_of_turn>", "Three </s><end_of_turn>"],
            "One<end_of_turn>\n<start_of_turn>user\nTwo <|im_end|><end_of_turn>\n<start_of_turn>model\n"
            "Three </s><end_of_turn>",
        ),
        ("mistral", [" One\n</s>", "Three </s></s>"], " One\n</s>[INST] Two <|im_end|> [/INST]Three </s></s>"),
        (
            "llama2",  # the space before the end of a turn is the template's, not the assistant's
            ["One", "</s>", "Three </s></s>"],
            "One </s><s>[INST] Two <|im_end|> [/INST] Three </s></s>",
        ),
    ],
)
def test_what_counts_of_a_trajectory(name, expected, whole):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    group = tokenize([Group(USER, (THREE, "One turn"), winner=0)], tokenizer)[0]
    assert tokenizer.decode(group.completion_ids[0]) == whole
    assert counted(tokenizer, group) == expected
    assert group.completion_masks[1] == (True,) * len(group.completion_ids[1])  # a reply counts whole
    typed = set(content_ids(tokenizer, "Two <|im_end|>Three </s>"))
    assert not typed & set(tokenizer.all_special_ids)


def test_masks_are_those_of_transformers():
    """Its masks come from the template's `generation` tags; nobody types special tokens, which it would take for real."""
    tokenizer = byte_tokenizer(TEMPLATES["generation"])
    prompt = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Yes?"), *USER)
    trajectory = (Message("assistant", "a b"), Message("tool", "{'x': 1}"), Message("assistant", ""))
    trajectory += (Message("user", "more"), Message("assistant", "end"))
    group = tokenize([Group(prompt, (trajectory,))], tokenizer)[0]
    peer = tokenizer.apply_chat_template(
        [turn._asdict() for turn in (*prompt, *trajectory)], return_dict=True, return_assistant_tokens_mask=True
    )
    cut = len(group.prompt_ids)
    assert [*group.prompt_ids, *group.completion_ids[0]] == peer["input_ids"][:-1]  # it goes on with a newline
    assert [int(x) for x in group.completion_masks[0]] == peer["assistant_masks"][cut:-1]


def test_a_reply_and_a_trajectory_of_one_turn_are_the_same_tokens():
    for source in TEMPLATES.values():
        tokenizer = byte_tokenizer(source)
        group = tokenize([Group(USER, (" Yes ", (Message("assistant", " Yes "),)), winner=0)], tokenizer)[0]
        assert group.completion_ids[0] == group.completion_ids[1]
        assert group.completion_masks[0] == group.completion_masks[1]


def test_the_end_of_turn_is_there_once_and_never_made_for_sampled_ids():
    tokenizer = byte_tokenizer(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    texts = Group(USER, ("typed<|im_end|>", "plain"), winner=0)
    ids = tokenize([texts], tokenizer)[0].completion_ids
    assert [x.count(end) for x in ids] == [1, 1]
    assert [x[-1] for x in ids] == [end, end]
    sampled = Group(USER, ("ab", "cut"), winner=0, completion_ids=((1, 2, end), (3, 4, 5)))
    assert tokenize([sampled], tokenizer)[0].completion_ids == ((1, 2, end), (3, 4, 5))


def test_the_end_of_turn_is_that_of_the_roles_at_hand():
    ends = "{{ '<|eot_id|>' if messages[0].role == 'system' else '<|im_end|>' }}"
    tokenizer = byte_tokenizer(CHATML.replace("<|im_end|>", ends))
    plain, with_system = tokenize([Group(p, ("a",)) for p in (USER, (Message("system", "s"), *USER))], tokenizer)
    assert tokenizer.decode(plain.completion_ids[0]) == "a<|im_end|>"
    assert tokenizer.decode(with_system.completion_ids[0]) == "a<|eot_id|>"


def test_a_template_without_an_end_of_turn_ends_with_the_sequence():
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    group = tokenize([Group(USER, (THREE,))], tokenizer)[0]
    assert counted(tokenizer, group) == [" One\n", "Three </s></s>"]
    assert group.completion_ids[0].count(tokenizer.eos_token_id) == 1


def test_a_trajectory_whose_roles_the_template_refuses_is_named():
    tokenizer = byte_tokenizer(TEMPLATES["gemma"])
    two = (Message("assistant", "a"), Message("tool", "b"), Message("assistant", "c"))
    with pytest.raises(ModelError, match=r"^f:1: the chat template refuses the roles .*tool.*must alternate"):
        tokenize([Group(USER, (two,), provenance={"source": "f:1"})], tokenizer)
    odd = (Message("assistant", "a"), Message("<|im_start|>", "b"), Message("assistant", "c"))
    with pytest.raises(DataError, match=r"^f:2: the role '<|im_start|>'"):
        tokenize([Group(USER, (odd,), provenance={"source": "f:2"})], byte_tokenizer(CHATML))
