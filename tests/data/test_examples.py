"""Examples for supervised fine-tuning: which text is learnt of each kind of data, and as which tokens.

The tiny tokenizer has one token for each byte, so that what is expected can be written down as text; `END` ends a turn and a
text, and `<|im_start|>` begins a turn.
"""

import copy
import json

import pytest

from exoalign.config_data import DataSection
from exoalign.config_sft import SftSection
from exoalign.data import token_cache
from exoalign.data.examples import best, stream_examples
from exoalign.data.prepare import prepare
from exoalign.data.set_aside import SetAside
from exoalign.data.table import write_table
from exoalign.errors import DataError
from exoalign.groups import Group, Message

END = "<|im_end|>"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return write


@pytest.fixture
def read(write):
    """(prompt, completion) of the examples in some rows, and the account of them."""

    def read(*rows, **more):
        aside = SetAside()
        found = list(stream_examples(write(*rows), aside, **more))
        return [(example.prompt, *example.completions) for example in found], aside

    return read


@pytest.fixture
def prepared(write, tiny_tokenizer):
    def prepared(*rows, loss_on="completions", side="train", tokenizer=tiny_tokenizer, context=None, **settings):
        data = DataSection.model_validate({"train": write(*rows), **settings})
        cache = token_cache.default_folder()
        return prepare(data, side, tokenizer, context=context, seed=0, cache=cache, loss_on=loss_on)

    return prepared


@pytest.fixture
def pieces(prepared, tiny_tokenizer):
    """The decoded prompt of the one example, and its completion as stretches (counts, text)."""

    def pieces(row, **more):
        (example,) = prepared(row, **more).groups
        tokenizer = more.get("tokenizer", tiny_tokenizer)
        (ids,), masks = example.completion_ids, example.completion_masks
        stretches = []
        for i, counts in zip(ids, masks[0] if masks else [True] * len(ids), strict=True):
            if not stretches or stretches[-1][0] != counts:
                stretches.append((counts, []))
            stretches[-1][1].append(i)
        return tokenizer.decode(example.prompt_ids), [(counts, tokenizer.decode(ids)) for counts, ids in stretches]

    return pieces


@pytest.mark.parametrize(
    ("row", "learnt"),
    [
        ({"prompt": "Sky?", "chosen": " Blue.", "rejected": " No."}, ("Sky?", " Blue.")),
        ({"prompt": "Sky?", "chosen": " Blue."}, ("Sky?", " Blue.")),
        ({"prompt": "Sky?", "chosen": " Blue.", "rejected": None}, ("Sky?", " Blue.")),
        ({"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: No."}, None),
        ({"prompt": "Sky?", "completions": [" No.", " Blue.", " Red."], "rewards": [0, 2, 1]}, ("Sky?", " Blue.")),
        ({"prompt": "Sky?", "completions": [" No.", " Blue.", " Azure."], "rewards": [0, 2, 2]}, ("Sky?", " Blue.")),
        ({"prompt": "Sky?", "completions": [" No.", " Blue.", " Red."], "ranks": [3, 1, 2]}, ("Sky?", " Blue.")),
        ({"prompt": "Sky?", "completion": " Blue."}, ("Sky?", " Blue.")),
        ({"text": "The sky is blue."}, ("", "The sky is blue.")),
        ({"messages": [user("Sky?"), assistant("Blue.")]}, ((Message("user", "Sky?"),), "Blue.")),
        ({"prompt": [user("Sky?")], "completion": [assistant("Blue.")]}, ((Message("user", "Sky?"),), "Blue.")),
    ],
)
def test_each_kind_of_row_has_one_text_to_learn(read, row, learnt):
    found, aside = read(row)
    assert found == [learnt or ("\n\nHuman: Sky?\n\nAssistant:", " Blue.")]
    assert not aside.reasons


def test_of_ratings_the_best_of_each_prompt_is_learnt(read):
    rows = [("a", "1", 0.5), ("b", "2", 3), ("a", "3", 0.7), ("b", "4", -1)]
    found, _ = read(*[{"prompt": p, "completion": c, "rating": r} for p, c, r in rows])
    assert found == [("a", "3"), ("b", "2")]


def test_of_messages_the_completion_goes_from_the_first_to_the_last_turn_of_the_assistant(read):
    turns = [
        {"role": "system", "content": "Be short."},
        user("Hi"),
        assistant("Hello"),
        user("Sky?"),
        assistant("Blue"),
    ]
    ((prompt, completion),), _ = read({"messages": [*turns, user("And the sea?")]})
    assert [turn.content for turn in prompt] == ["Be short.", "Hi"]
    assert [turn.content for turn in completion] == ["Hello", "Sky?", "Blue"]


def test_what_only_a_choice_needs_is_left_behind():
    group = Group(
        "p",
        ("a", "b"),
        rewards=(0.0, 1.0),
        winner=1,
        sampler_logprobs=(-1.0, -2.0),
        reference_logprobs=(-1.0, -2.0),
        prompt_ids=(5,),
        completion_ids=((1,), (2, 3)),
    )
    assert best(group) == Group(
        "p", ("b",), prompt_ids=(5,), completion_ids=((2, 3),), provenance={"chosen_completions": [1]}
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("Hi")]}, "rows.jsonl:1: `messages` has no turn of the assistant (found user)"),
        ({"messages": "Hi"}, "rows.jsonl:1: `messages` is str; expected a list of messages"),
        ({"text": 3}, "rows.jsonl:1: `text` is int; expected text"),
        (
            {"prompt": "Hi"},
            "rows.jsonl:1: columns prompt: a prompt alone holds nothing to learn; expected `prompt, comp",
        ),
        ({"chosen": "Hi"}, "rows.jsonl:1: no `prompt`; found columns chosen"),
        ({"prompt": "", "completion": "x"}, "rows.jsonl:1: `prompt` is empty"),
        ({"prompt": "Hi", "chosen": 4}, "rows.jsonl:1: `chosen` is int; expected text or a list of messages"),
        ({"answer": "Hi"}, "rows.jsonl:1: columns answer; expected"),
    ],
)
def test_a_row_without_anything_to_learn_is_refused_with_its_place(read, row, message):
    with pytest.raises(DataError) as caught:
        read(row)
    assert message in str(caught.value)


def test_empty_texts_are_set_aside_and_counted(read):
    found, aside = read({"text": " "}, {"text": "a"}, {"text": ""})
    assert found == [("", "a")]
    assert {reason: tally.count for reason, tally in aside.reasons.items()} == {"a text is empty": 2}
    found, aside = read({"messages": [user("Hi"), assistant("")]}, {"messages": [user("Hi"), assistant("x")]})
    assert len(found) == 1
    assert {reason: tally.count for reason, tally in aside.reasons.items()} == {"a reply is empty": 1}


def test_sampled_completions_without_rewards_hold_no_best_one(tmp_path):
    write_table([Group("p", ("a", "b"), provenance={"source": "row 7"})], tmp_path / "groups.parquet")
    with pytest.raises(DataError, match=r"row 7: 2 completions and neither winner nor rewards.*score them first"):
        list(stream_examples(tmp_path / "groups.parquet", SetAside()))


def test_of_a_table_of_groups_the_best_sampled_ids_are_kept(prepared, tmp_path, tiny_tokenizer):
    ids = ((7, 8), (9, tiny_tokenizer.eos_token_id))
    write_table(
        [Group("p", ("xx", "y"), rewards=(0.0, 1.0), prompt_ids=(1,), completion_ids=ids)], tmp_path / "g.parquet"
    )
    (example,) = prepared({"text": "unread"}, train=str(tmp_path / "g.parquet")).groups
    assert (example.prompt_ids, example.completion_ids, example.rewards) == ((1,), ids[1:], None)


def test_a_text_follows_its_own_first_token_and_ends(pieces):
    assert pieces({"text": "abc"}) == ("a", [(True, f"bc{END}")])
    assert pieces({"text": "a"}) == ("a", [(True, END)])


def test_a_text_follows_the_beginning_of_sequence_token_where_there_is_one(pieces, tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    for loss_on in ("completions", "all"):
        assert pieces({"text": "abc"}, tokenizer=tokenizer, loss_on=loss_on) == ("<s>", [(True, f"abc{END}")])
    row = {"prompt": "ab", "completion": "cd"}
    assert pieces(row, tokenizer=tokenizer) == ("<s>ab", [(True, f"cd{END}")])
    assert pieces(row, tokenizer=tokenizer, loss_on="all") == ("<s>", [(True, f"abcd{END}")])


def test_special_tokens_typed_in_a_text_stay_text(prepared, tiny_tokenizer):
    (example,) = prepared({"text": f"a{END}b"}).groups
    assert len(example.completion_ids[0]) == len(f"{END}b") + 1
    assert example.completion_ids[0].count(tiny_tokenizer.eos_token_id) == 1


CHAT = {"messages": [user("Q"), assistant("A"), user("R"), assistant("B")]}


def test_of_a_conversation_only_what_the_assistant_wrote_counts(pieces):
    prompt, completion = pieces(CHAT)
    assert prompt == f"<|im_start|>user\nQ{END}\n<|im_start|>assistant\n"
    assert completion == [
        (True, f"A{END}"),
        (False, f"\n<|im_start|>user\nR{END}\n<|im_start|>assistant\n"),
        (True, f"B{END}"),
    ]


def test_with_loss_on_all_everything_behind_the_first_token_counts(pieces):
    whole = f"user\nQ{END}\n<|im_start|>assistant\nA{END}\n<|im_start|>user\nR{END}\n<|im_start|>assistant\nB{END}"
    assert pieces(CHAT, loss_on="all") == ("<|im_start|>", [(True, whole)])
    assert pieces({"prompt": "ab", "completion": "cd"}, loss_on="all") == ("a", [(True, f"bcd{END}")])
    assert pieces({"text": "abcd"}, loss_on="all") == ("a", [(True, f"bcd{END}")])


def test_budgets_cut_prompt_and_completion_before_they_become_one(pieces, prepared):
    row = {"prompt": "abcdef", "completion": "ghijkl"}
    cut = {"max_prompt_tokens": 2, "max_completion_tokens": 3}
    both = ["truncate_prompt_left", "truncate_completion_right"]
    assert pieces(row, truncation=both, **cut) == ("ef", [(True, "ghi")])
    assert pieces(row, truncation=both, loss_on="all", **cut) == ("e", [(True, "fghi")])
    assert pieces({"text": "abcdef"}, truncation="truncate_completion_right", context=4) == ("a", [(True, "bcd")])
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: prompt of 1 and completion of 6 tokens, but the context allows 4"
    ):
        prepared({"text": "abcdef"}, context=4)
    with pytest.raises(DataError, match="none of 1 groups is left within the budgets"):
        prepared({"text": "abcdef"}, context=4, truncation="drop")


def test_both_ways_and_groups_to_compare_are_kept_apart(prepared, tokenized_files):
    row = {"prompt": "ab", "chosen": "cd", "rejected": "ef"}
    first = prepared(row)
    assert [group.k for group in first.groups] == [1]
    assert [group.k for group in prepared(row, loss_on=None).groups] == [2]
    assert prepared(row, loss_on="all").groups[0].prompt_ids != first.groups[0].prompt_ids
    assert tokenized_files() == 3
    assert list(prepared(row).groups) == list(first.groups)
    assert tokenized_files() == 3
    assert first.made_from["loss_on"] == "completions"


@pytest.fixture
def tokenized_files():
    return lambda: len(list(token_cache.default_folder().glob("*.arrow")))


def test_texts_are_held_out_each_by_itself(prepared):
    rows = [{"text": f"text number {i}"} for i in range(200)]
    sides = {side: prepared(*rows, side=side, holdout=0.25).groups for side in ("train", "heldout")}
    texts = {side: {group.completions[0] for group in groups} for side, groups in sides.items()}
    assert texts["train"] | texts["heldout"] == {row["text"] for row in rows}
    assert not texts["train"] & texts["heldout"]
    assert 30 <= len(texts["heldout"]) <= 70  # 50 expected, 6 the standard deviation


def test_the_section_refuses_a_choice_among_completions_that_nothing_reads():
    with pytest.raises(ValueError, match=r"`data.completions` has no effect here"):
        SftSection.model_validate({"data": {"train": "x", "completions": {"choose": "best_worst", "k": 2}}})


def test_real_transcripts_and_reviews_are_examples(prepared, shared_data):
    hh = {"path": str(shared_data / "hh_harmless_train.jsonl.gz"), "adapter": "hh", "limit": 20}
    for example in prepared({"text": "unread"}, train=hh).groups:
        assert example.k == 1
        assert example.prompt.startswith("\n\nHuman:")
        assert example.prompt.endswith("\n\nAssistant:")
    reviews = {"path": str(shared_data / "rt_polarity_train.jsonl.gz"), "adapter": "rt_polarity", "limit": 20}
    made = prepared({"text": "unread"}, train=reviews)
    first = made.groups[0]
    text = "though the film's scenario is certainly not earthshaking"
    assert first.completions[0].startswith(text)
    assert len(first.completion_ids[0]) == len(first.completions[0].encode())  # one less in front, one more at the end
