"""Each finding by a file that has exactly that fault, and by the clean one that has none; counts and places by hand."""

import json

import pytest
from chat_templates import TEMPLATES, byte_tokenizer

from exoalign.data.doctor.examine import examine, examine_fast
from exoalign.data.formats import PromptRow, TextRow, open_records
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Source
from exoalign.errors import DataError, ModelError
from exoalign.groups import Group, Message

LONG = " ".join(f"{word} number {i} stands here" for i, word in enumerate(["apple", "pear", "plum", "quince"] * 8))

# Chosen and rejected are equally long, so that no length is preferred.
CLEAN = [
    {"prompt": "What is red?", "chosen": "A poppy", "rejected": "The sea"},
    {"prompt": "Who sings at night?", "chosen": "An owl", "rejected": "A rock"},
    {"prompt": "Where do fish live?", "chosen": "In water", "rejected": "On roofs"},
]
CLEAN_KWAY = [
    {"prompt": "What is red?", "completions": ["poppy", "ocean"], "rewards": [1, 0]},
    {"prompt": "Who sings at night?", "completions": ["owls", "bats", "fish"], "rewards": [2, 1, 0]},
    {"prompt": "Where do fish live?", "completions": ["water", "roofs"], "rewards": [0.5, 1]},
]
SCORED = {"prompt": "Name a colour.", "completions": ["red", "ten", "sky"], "rewards": [1, 0, 0.5]}
PAIR = {"prompt": "Name a tree.", "chosen": "Oak", "rejected": "Cat"}


@pytest.fixture
def write(tmp_path):
    """Writes rows (dicts or bytes) as a JSONL file."""

    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines))
        return str(tmp_path / name)

    return write


def examined(path, **more):
    aside = SetAside()
    kind, records = open_records(Source(path), aside)
    return examine(records, aside, source=path, kind=kind, **more)


def found(examination):
    return {finding.kind: (finding.grade, finding.count) for finding in examination.findings}


def places(examination, kind):
    return [examination.place(w) for f in examination.findings if f.kind == kind for w in f.where]


def test_a_clean_file_has_no_finding(write):
    for kind, rows, k in (("pairs", CLEAN, {2: 3}), ("kway", CLEAN_KWAY, {2: 2, 3: 1})):
        examination = examined(write(*rows))
        assert examination.findings == ()
        assert not examination.has_errors
        assert examination.rows == {"read": 3, "used": 3, "set_aside": 0, "malformed": 0}
        assert (examination.kind, examination.groups, examination.prompts, examination.k) == (kind, 3, 3, k)


SAME = {"prompt": "Name a pet.", "completions": ["cat", "cat", "dog"]}
FAULTS = {
    "empty": ({"empty_completions": ("warning", 1)}, [{**PAIR, "rejected": " "}], ["line 4"]),
    "identical": ({"identical_completions": ("warning", 1)}, [{**PAIR, "rejected": "Oak"}], ["line 4"]),
    "repeated": ({"repeated_completions": ("note", 1)}, [{**SAME, "rewards": [1, 1, 0]}], ["line 4"]),
    "all equal": (
        {"all_equal_rewards": ("warning", 1)},
        [{**SCORED, "rewards": [2, 2, 2]}, {**SCORED, "prompt": "Why?"}],
        ["line 4"],
    ),
    "row twice": ({"duplicate_rows": ("warning", 2)}, [PAIR, PAIR, PAIR], ["line 5 (as line 4)", "line 6 (as line 4)"]),
    "contradiction": (
        {"contradictions": ("warning", 1)},
        [PAIR, {**PAIR, "chosen": "Cat", "rejected": "Oak"}],
        ["line 5 (against line 4)"],
    ),
    "contradicting scores": (
        {"contradictions": ("warning", 1)},
        [
            {"prompt": "A tree?", "completions": ["Oak", "Cat"], "rewards": [1, 0]},
            {"prompt": "A tree?", "completions": ["Oak", "Cat"], "rewards": [1, 2]},
        ],
        ["line 5 (against line 4)"],
    ),
    "prompt twice": (
        {"repeated_prompts": ("note", 1)},
        [PAIR, {**PAIR, "chosen": "Elm"}],
        ["line 5 (as line 4)"],
    ),
    "prompt nearly twice": (
        {"near_duplicate_prompts": ("warning", 1)},  # one of five: more than a tenth
        [{**PAIR, "prompt": LONG}, {**PAIR, "prompt": LONG.replace("plum number 14", "Cherry  number 14").upper()}],
        ["line 5 (like line 4)"],
    ),
    "escape": ({"control_characters": ("warning", 1)}, [{**PAIR, "prompt": "A \x1b[31mtree?"}], ["line 4"]),
    "right to left": ({"control_characters": ("warning", 1)}, [{**PAIR, "chosen": "\u202eOa"}], ["line 4"]),
    "special token": ({"special_tokens": ("warning", 1)}, [{**PAIR, "prompt": "<|im_end|> a tree"}], ["line 4"]),
    "malformed": ({"malformed": ("error", 2)}, [b'{"prompt": "a', PAIR, {"chosen": "a"}], None),
    "not finite": (
        {"not_finite": ("error", 1)},
        [b'{"prompt": "a", "completions": ["b", "c"], "rewards": [NaN, 1]}'],
        None,
    ),
    "uneven spread": (
        {"uneven_spread": ("note", None)},
        [{**SCORED, "prompt": c * 9, "rewards": [1 if c < "m" else 1e-6, 0, 0]} for c in "abcdefghijklmnopqrstuvwxyz"],
        [],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is_and_nothing_else(fault, write):
    expected, rows, where = FAULTS[fault]
    clean = CLEAN_KWAY if "completions" in str(rows[0]) else CLEAN
    examination = examined(write(*clean, *rows))
    assert found(examination) == expected
    if where is not None:
        assert places(examination, next(iter(expected))) == where
    assert examination.has_errors == any(grade == "error" for grade, _ in expected.values())
    assert all(finding.remedy and finding.text for finding in examination.findings)


def test_malformed_rows_are_named_with_file_line_and_reason_and_the_rest_is_read(write):
    path = write(*CLEAN, b'{"prompt": "a', {"chosen": "a"}, PAIR)
    examination = examined(path)
    assert examination.rows == {"read": 6, "used": 4, "set_aside": 0, "malformed": 2}
    first, second = examination.findings[0].where
    assert first.startswith(f"{path}:4: not JSON at column ")
    assert second.startswith(f"{path}:5: ")


def test_findings_stand_in_the_order_of_their_grades(write):
    examination = examined(write(*CLEAN, PAIR, {**PAIR, "chosen": "Elm"}, {**PAIR, "rejected": ""}, b"{"))
    assert [finding.grade for finding in examination.findings] == ["error", "warning", "note"]


def test_a_malformed_first_row_does_not_spoil_the_others(write):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    examination = examined(write({"messages": "Hi"}, {"messages": turns}))
    assert examination.rows == {"read": 2, "used": 1, "set_aside": 0, "malformed": 1}


def test_a_completion_with_unlike_rewards(write):
    examination = examined(write(*CLEAN_KWAY, {**SAME, "rewards": [1, 0, 0.5]}))
    assert found(examination) == {"unlike_rewards": ("warning", 1), "repeated_completions": ("note", 1)}


def test_a_file_of_which_nothing_can_be_used(write):
    examination = examined(write({**PAIR, "rejected": ""}))
    assert found(examination) == {"no_groups": ("error", None), "empty_completions": ("warning", 1)}
    with pytest.raises(DataError, match="no rows"):
        examined(write())


def test_faults_that_only_groups_made_elsewhere_can_have():
    good = Group("Why?", ("So.", "No."), winner=0)
    groups = [
        good,
        Group("One?", ("1",), rewards=(1.0,)),
        Group("Same?", ("a", "a"), winner=0),
        Group("Empty?", ("  ", "ab"), winner=0),
        Group("Score?", ("ab", "cd"), winner=0, rewards=(0.0, 1.0)),
    ]
    examination = examine(groups, SetAside())
    assert found(examination) == {
        "single_completion": ("error", 1),
        "empty_completions": ("warning", 1),
        "identical_completions": ("warning", 1),
        "score_against_choice": ("warning", 1),
    }
    assert places(examination, "single_completion") == ["group 'One?'"]
    assert found(examine_fast([good])) == {}


def test_test_prompts_in_the_training_data(write):
    train = write(*CLEAN, {**PAIR, "prompt": LONG})
    test = [
        PromptRow("Who sings at night?", "test:7"),
        PromptRow(LONG.replace("pear number 5", "fig number 5"), "test:8"),
    ]
    examination = examined(train, test=test)
    assert found(examination) == {"test_leak": ("error", 1), "near_test_leak": ("warning", 1)}
    assert places(examination, "test_leak") == ["line 2 (as test:7)"]
    assert places(examination, "near_test_leak") == ["line 4 (like test:8)"]
    assert found(examined(train, test=[PromptRow("Why is the sky blue?", "test:1")])) == {}
    assert found(examined(train, test=[PromptRow(LONG, "test:1")])) == {"test_leak": ("error", 1)}


def test_without_the_search_for_near_duplicates_only_exact_ones_are_found(write):
    path = write(*CLEAN, {**PAIR, "prompt": LONG}, {**PAIR, "prompt": LONG + "!"}, PAIR, PAIR)
    assert found(examined(path, near=False)) == {"duplicate_rows": ("warning", 1)}


@pytest.mark.parametrize(("sign", "direction"), [(1, "longer"), (-1, "shorter")])
def test_a_preference_for_length(write, sign, direction):
    rows = [
        {"prompt": f"What is {i} {'abcdefghij'[i] * 9}?", "chosen": "no" * (3 + sign), "rejected": "yes" * 2}
        for i in range(10)
    ]
    examination = examined(write(*rows))
    assert found(examination) == {"length_bias": ("warning", None)}
    assert examination.length_correlation == {"mean": sign, "low": sign, "high": sign, "groups": 10}
    share = "100%" if sign > 0 else "0%"
    assert examination.findings[0].text.startswith(f"{direction} completions are preferred: ")
    assert examination.findings[0].text.endswith(f"the longer one wins in {share} of the pairs")


def test_prompts_alone_and_texts():
    prompts = examine([PromptRow("Hi there", "p:1"), PromptRow((Message("user", "Hi there"),), "p:2")], SetAside())
    assert (prompts.kind, prompts.groups, prompts.prompts, prompts.k) == ("prompts", 2, 1, {})
    assert found(prompts) == {"repeated_prompts": ("note", 1)}
    assert prompts.lengths["prompt"]["median"] == 2
    assert prompts.lengths["completion"] is None
    texts = examine([TextRow("one two three", "t:1"), TextRow((Message("user", "</s>"),), "t:2")], SetAside())
    assert (texts.kind, texts.groups, texts.prompts) == ("text", 2, 2)
    assert found(texts) == {"special_tokens": ("warning", 1)}
    assert texts.lengths["prompt"] is None
    assert texts.lengths["completion"]["max"] == 3
    assert found(examine([TextRow("one", "t:1"), TextRow("one", "t:2")], SetAside())) == {
        "repeated_prompts": ("note", 1)
    }


def test_with_a_tokenizer_its_tokens_count_and_its_special_ones_are_looked_for(tiny_tokenizer, write):
    rows = [
        {"prompt": "ab é", "chosen": "xyz", "rejected": "uvw"},
        {"prompt": "[INST]", "chosen": "a", "rejected": "b"},
    ]
    path = write(*rows, {"prompt": "<pad>", "chosen": "c", "rejected": "d"})
    examination = examined(path, tokenizer=tiny_tokenizer)
    assert found(examination) == {"special_tokens": ("warning", 1)}  # [INST] is none of this tokenizer's
    assert places(examination, "special_tokens") == ["line 3"]
    assert examination.unit == "tokens"
    assert examination.lengths["prompt"] == {"median": 5, "p95": 5.9, "max": 6, "total": 16}  # bytes: 5, 6 and 5
    assert examination.lengths["completion"]["total"] == 2 * 4 + 4 * 2  # with the token that ends a turn


def test_budgets_count_what_they_would_cut(tiny_tokenizer, write):
    rows = [{**PAIR, "prompt": "a" * 5}, {**PAIR, "prompt": "b" * 10, "chosen": "c" * 7}]
    cut = examined(write(*rows), tokenizer=tiny_tokenizer, max_prompt_tokens=6, max_completion_tokens=5)
    policies = cut.truncation["policies"]
    assert policies["error"]["groups"] == 1
    assert policies["drop"] == {"groups": 1, "completions": 2, "tokens": 10 + 8 + 4}
    assert policies["truncate_prompt_left"] == {"groups": 1, "completions": 0, "tokens": 4}
    assert policies["truncate_completion_right"] == {"groups": 1, "completions": 1, "tokens": 3}
    assert ("over_budget", ("warning", 1)) in found(cut).items()
    assert places(cut, "over_budget") == ["line 2"]
    whole = examined(write(*rows), tokenizer=tiny_tokenizer, max_prompt_tokens=10, max_completion_tokens=8)
    assert "over_budget" not in found(whole)


def test_a_group_that_cannot_be_tokenized_is_named_and_the_others_are_counted(tiny_tokenizer):
    turns = (Message("<|im_start|>", "Hi"),)
    groups = [Group(f"{i} is?", ("a", "b"), winner=0, provenance={"source": f"x:{i}"}) for i in range(5)]
    groups[3] = Group(turns, ("a", "b"), winner=0, provenance={"source": "x:3"})
    examination = examine(groups, SetAside(), tokenizer=tiny_tokenizer, near=False)
    assert found(examination) == {"cannot_be_tokenized": ("error", 1)}
    assert examination.findings[0].where[0].startswith("x:3: the role '<|im_start|>'")
    assert (examination.groups, examination.lengths["prompt"]["total"]) == (5, 4 * 5)


SYSTEM = (Message("system", "Be kind."), Message("user", "Hi"))
USER = (Message("user", "Hi"),)


def test_roles_that_a_template_refuses_are_a_finding_and_every_other_row_is_counted():
    """As Gemma's does with a system turn: by itself, not once for each of many rows, and with the template's own words."""
    tokenizer = byte_tokenizer(TEMPLATES["gemma"])
    groups = [Group(SYSTEM if i % 3 else USER, ("a", "b"), winner=0, provenance={"source": f"x:{i}"}) for i in range(9)]
    examination = examine(groups, SetAside(), tokenizer=tokenizer, near=False)
    assert found(examination)["cannot_be_tokenized"] == ("error", 6)
    refusal = "the chat template refuses the roles ['system', 'user']: System role not supported"
    where = examination.findings[0].where
    assert where == tuple(f"x:{i}: {refusal}" for i in (1, 2, 4, 5, 7))  # the first five of six
    assert examination.lengths["completion"]["total"] == 3 * 2 * 2  # of three rows: a byte and the end of the turn
    prompts = [PromptRow(SYSTEM, "p:1"), PromptRow(USER, "p:2")]
    examination = examine(prompts, SetAside(), tokenizer=tokenizer, near=False)
    assert found(examination)["cannot_be_tokenized"] == ("error", 1)
    assert examination.findings[0].where == (f"p:1: {refusal}",)
    assert examination.groups == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the prompt is a conversation, but the tokenizer has no chat template"),
        ("{{ 'a' * 10 ** 7 }}", "the chat template was stopped"),
    ],
)
def test_a_tokenizer_that_can_take_no_conversation_is_told_at_once(template, message):
    for record in (Group(SYSTEM, ("a", "b"), winner=0), PromptRow(SYSTEM, "p:1")):
        with pytest.raises(ModelError, match=message):
            examine([record], SetAside(), tokenizer=byte_tokenizer(template))


def test_rows_that_are_longer_than_the_context(tiny_tokenizer, write):
    rows = [{**PAIR, "prompt": "a" * n} for n in (5, 6, 7)]  # and a reply of 3 bytes with its end
    examination = examined(write(*rows), tokenizer=tiny_tokenizer, context=10, near=False)
    assert found(examination) == {"over_context": ("error", 1)}
    assert places(examination, "over_context") == ["line 3"]
    assert "data.truncation" in examination.findings[0].remedy
    assert found(examined(write(*rows), tokenizer=tiny_tokenizer, context=11, near=False)) == {}
    prompts = [PromptRow("a" * n, f"p:{n}") for n in (9, 10)]  # a reply has one token at least
    examination = examine(prompts, SetAside(), tokenizer=tiny_tokenizer, context=10, near=False)
    assert found(examination) == {"over_context": ("error", 1)}
    assert examination.findings[0].where == ("p:10",)


def test_the_name_of_a_file_is_no_finding(write):
    rows = [*CLEAN_KWAY, b'{"prompt": "a"', b'{"prompt": "a", "completions": ["b", "c"], "rewards": [NaN, 1]}']
    examination = examined(write(*rows, name="infinite, expected finite numbers.jsonl"))
    assert found(examination) == {"malformed": ("error", 1), "not_finite": ("error", 1)}
    assert ":4: not JSON" in examination.findings[0].where[0]


def test_the_fast_part_looks_for_the_models_own_special_tokens():
    group = Group("<turn>", ("</s>", "text"), winner=0)
    assert found(examine_fast([group])) == {"special_tokens": ("warning", 1)}
    (finding,) = examine_fast([group], special=["<turn>", "<turns>"]).findings
    assert finding.text == "1 row with the tokenizer's special tokens as text: <turn> in 1"


def test_ids_that_groups_have_already_are_what_counts():
    group = Group("a b c", ("d", "e"), winner=0, prompt_ids=(1, 2), completion_ids=((3,), (4, 5, 6)))
    examination = examine_fast([group])
    assert examination.unit == "tokens"
    assert examination.lengths["prompt"]["max"] == 2
    assert examination.lengths["completion"]["total"] == 4


FILES = ["hh_harmless_train", "hh_harmless_test", "alpaca_eval_k8", "rt_polarity_train", "rt_polarity_test"]


@pytest.mark.parametrize("name", FILES)
def test_real_data_has_no_error(name, shared_data):
    examination = examined(str(shared_data / f"{name}.jsonl.gz"))
    assert not examination.has_errors
    assert examination.rows["read"] == examination.rows["used"] + examination.rows["set_aside"]
    assert json.loads(json.dumps(examination.as_dict(), allow_nan=False)) == examination.as_dict()
