"""Boundaries that would move and templates that change what stands before a reply are counted and shown, and nothing else."""

import copy
import gzip
import json
import random
import re

import pytest
from chat_templates import CHATML, QWEN3, SPECIAL, TEMPLATES, byte_tokenizer

from exoalign.data import set_aside
from exoalign.data.doctor.examine import examine
from exoalign.data.formats import open_records, read_groups
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Source
from exoalign.data.token_report import TokenReport
from exoalign.data.tokenize import CHUNK_GROUPS, stream_tokenized, tokenize
from exoalign.demo_model import FOLDER
from exoalign.errors import DataError
from exoalign.files import cache_folder
from exoalign.groups import Group, Message

DEMO = cache_folder() / FOLDER  # read when this file is: each test has a cache of its own


@pytest.fixture(scope="module")
def merging():
    """A tokenizer in which a word and what follows it may become one token: pieces of letters merge across the boundary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "d"), ("c", "d")]
    vocabulary = {s: i for i, s in enumerate([*symbols, "ab", "abc", "Ġd", "cd"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def pair(prompt, *completions, source="f:1"):
    return Group(prompt, completions, winner=0, provenance={"source": source})


def test_boundaries_that_would_move_are_counted_and_three_shown(merging):
    groups = [
        pair("x a", "b", "z"),  # a|b would be ab
        pair("x ", "d", " d", source="f:2"),  # " "|"d" would be " d"
        pair("x ab", "cd", " cd", source="f:3"),  # ab|cd would be abc|d
        pair("x ab", "c", "bc", source="f:4"),
        pair("x", " d", "d", source="f:5"),  # nothing: " d" is a token of its own
    ]
    report = TokenReport()
    with_report, without = tokenize(groups, merging, report=report), tokenize(groups, merging)
    assert with_report == without  # a report and no repair
    assert (report.groups, report.completions, report.checked, report.moved) == (5, 10, 10, 4)
    assert report.prompt_tokens == sum(len(group.prompt_ids) for group in without)
    assert report.completion_tokens == sum(len(ids) for group in without for ids in group.completion_ids)
    assert report.examples == [
        "f:1: apart 'x' ' ' 'a' | 'b', together 'x' ' ' 'ab'",
        "f:2: apart 'x' ' ' | 'd', together 'x' ' d'",
        "f:3: apart 'x' ' ' 'ab' | 'cd', together 'x' ' ' 'abc' 'd'",
    ]
    lines = report.lines()
    assert "4 of 10 completions" in lines[1]
    assert "tokenised apart all the same" in lines[1]
    assert lines[2:] == [f"  {example}" for example in report.examples]


def test_windows_find_what_whole_texts_find(merging):
    """Random texts: the count is that of tokenising each prompt and completion together, one at a time."""
    rng = random.Random(0)

    def words(n):
        return "".join(rng.choice("aaabbbbcccddd  \né") for _ in range(n))

    groups = [pair("x" + words(rng.randrange(160)), words(rng.randrange(160)), words(3)) for _ in range(400)]
    expected = 0
    for group in groups:
        for text in group.completions:
            apart = merging(group.prompt)["input_ids"] + merging(text)["input_ids"]
            expected += apart != merging(group.prompt + text)["input_ids"]
    report = TokenReport()
    tokenize(groups, merging, report=report)
    assert 50 < expected < 750
    assert report.moved == expected


def test_ids_that_were_there_are_counted_and_not_checked(merging):
    report = TokenReport()
    group = Group("x a", ("b", "z"), winner=0, prompt_ids=(1, 2), completion_ids=((3,), (4, 5)))
    assert tokenize([group], merging, report=report) == [group]
    assert (report.prompt_tokens, report.completion_tokens, report.checked, report.moved) == (2, 3, 0, 0)


def test_completions_without_content_are_counted_and_named(merging):
    report = TokenReport()
    tokenize([pair("x", "", "z", source=f"f:{i}") for i in range(4)], merging, report=report)
    assert report.single == 4
    assert "4 of 8 completions are a single token" in report.lines()[1]
    assert "(f:0, f:1, f:2, ...)" in report.lines()[1]


# Conversations


USER = (Message("user", "Hi"),)
THINKING = (*USER, Message("assistant", "<think>\nHm.\n</think>\n\nYes?"), Message("user", "Go on"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_keep_the_prompt_are_no_offenders(name):
    report = TokenReport()
    prompt = (*USER, Message("assistant", "<think>x</think>y"), *USER)
    trajectory = (Message("assistant", "a"), Message("user", "b"), Message("assistant", "<think>x</think>c"))
    tokenize([pair(prompt, "yes", trajectory)], byte_tokenizer(TEMPLATES[name]), report=report)
    assert (report.checked, report.changed, report.examples) == (2, 0, [])


def test_a_template_that_drops_thoughts_is_an_offender():
    report = TokenReport()
    groups = [pair(USER, "yes", "no"), pair(THINKING, "yes", "no", source="f:2")]
    done = tokenize(groups, byte_tokenizer(QWEN3), report=report)
    assert (report.checked, report.changed) == (4, 2)
    assert report.examples[0].startswith("f:2: ")
    assert "<think>" in report.examples[0].partition("the template says")[0]
    assert "<think>" not in report.examples[0].partition("the template says")[2]
    assert "used all the same" in report.lines()[1]
    assert "Hm." in byte_tokenizer(QWEN3).decode(done[1].prompt_ids)


def test_a_template_that_says_another_thing_once_the_reply_is_there():
    """As those do that put an empty thought before a reply of the past, and those that name the number of turns."""
    report = TokenReport()
    numbered = "{{ messages | length }} turns\n" + CHATML
    tokenize([pair(USER, "yes", "no"), pair((*USER, *THINKING), "a", "b")], byte_tokenizer(numbered), report=report)
    assert (report.checked, report.changed, len(report.examples)) == (4, 4, 3)
    assert "'1 turns" in report.examples[0].partition("the template says")[0]
    assert "'2 turns" in report.examples[0].partition("the template says")[2]


def test_a_template_that_strips_once_the_reply_is_there():
    content = "{{ m['content'] if loop.length == 1 else m['content'].strip() }}"
    tokenizer = byte_tokenizer(CHATML.replace("{{ m['content'] }}", content))
    report = TokenReport()
    tokenize([pair((Message("user", "Hi "),), "yes", "no")], tokenizer, report=report)
    assert report.changed == 2
    assert report.examples == ["f:1: the template strips other contents once the reply is there"] * 2


def test_within_a_trajectory_each_reply_is_checked():
    tokenizer = byte_tokenizer(CHATML.replace("{{ m['role'] }}", "{{ m['role'] }}{{ '+' if loop.length > 3 }}"))
    trajectory = (Message("assistant", "a"), Message("user", "b"), Message("assistant", "c"))
    report = TokenReport()
    tokenize([pair(USER, "yes", trajectory)], tokenizer, report=report)
    assert (report.checked, report.changed) == (2, 1)


@pytest.fixture(scope="module")
def breaking():
    """Bytes, but two line breaks are one token wherever they meet, and so are a bracket and a line break."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {s: i for i, s in enumerate([*symbols, "ĊĊ", "]Ċ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ"), ("]", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL
    )


def test_a_reply_that_merges_with_the_templates_last_words_is_counted(breaking):
    breaking.chat_template = CHATML
    trajectory = (Message("assistant", "\nI look."), Message("user", "b"), Message("assistant", "\nc"))
    groups = [pair(USER, "\nHello", "Hello"), pair(USER, "\n", trajectory, "x\n\ny", source="f:2")]
    report = TokenReport()
    with_report, without = tokenize(groups, breaking, report=report), tokenize(groups, breaking)
    assert with_report == without
    assert (report.checked, report.moved, report.changed) == (5, 3, 0)
    apart, _, together = report.examples[0].partition(", together ")
    assert apart.startswith("f:1: apart ")
    assert apart.endswith("'t' '\\n' | '\\n' 'H' 'e' 'l'")
    assert "'t' '\\n\\n' 'H' 'e' 'l'" in together
    assert "3 of 5 completions: tokenised together with the prompt" in report.lines()[1]


@pytest.mark.parametrize("name", ["chatml", "mistral"])
def test_boundaries_of_conversations_are_those_of_the_rendered_text(name, breaking):
    """Against the template's text and the reply in one call; Mistral's ends in a special token, where nothing merges."""
    breaking.chat_template = TEMPLATES[name]
    rng = random.Random(0)
    texts = ["".join(rng.choice("\n\n a\n") for _ in range(rng.randrange(1, 90))) + "." for _ in range(200)]
    report = TokenReport()
    done = tokenize([pair(USER, text, "no", source=f"f:{i}") for i, text in enumerate(texts)], breaking, report=report)
    rendered = breaking.apply_chat_template([USER[0]._asdict()], tokenize=False, add_generation_prompt=True)
    wholes = [breaking(rendered + text, add_special_tokens=False)["input_ids"] for text in texts]
    apart = [[*group.prompt_ids, *group.completion_ids[0][:-1]] for group in done]
    expected = sum(whole != ours for whole, ours in zip(wholes, apart, strict=True))
    assert 0 < expected < 200 if name == "chatml" else expected == 0
    assert report.moved == expected


# Streams, and the whole of a file


def test_a_stream_reads_no_further_than_it_must(tiny_tokenizer):
    read = []

    def groups():
        for i in range(10 * CHUNK_GROUPS):
            read.append(i)
            yield pair(f"p{i}", "a", "b", source=f"f:{i}")

    stream = stream_tokenized(groups(), tiny_tokenizer)
    assert read == []
    first = next(stream)
    assert len(read) == CHUNK_GROUPS
    assert first == tokenize([pair("p0", "a", "b", source="f:0")], tiny_tokenizer)[0]


def test_a_stream_gives_what_one_at_a_time_gives(tiny_tokenizer, merging):
    groups = [pair(f"p{i}", "a" * (i % 7), "b", source=f"f:{i}") for i in range(CHUNK_GROUPS + 3)]
    for tokenizer in (tiny_tokenizer, merging):
        alone = [tokenize([group], tokenizer)[0] for group in groups[:50]] if tokenizer is merging else []
        together = list(stream_tokenized(groups, tokenizer))
        assert together[: len(alone)] == alone
        assert [group.where for group in together] == [group.where for group in groups]


def test_a_slow_tokenizer_works_too():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHATML
    assert not tokenizer.is_fast
    report = TokenReport()
    text, chat = tokenize([pair("Hi", " a</s>", "é"), pair(USER, "a", "b")], tokenizer, report=report)
    expected = [b + 3 for b in b" a</s>"]  # ByT5: a byte and 3 special tokens before them
    assert text.completion_ids[0] == (*expected, tokenizer.eos_token_id)
    assert text.prompt_ids == tuple(b + 3 for b in b"Hi")
    assert chat.prompt_ids == tuple(b + 3 for b in b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert report.moved == 0


def test_errors_stay_errors_in_a_stream(tiny_tokenizer):
    with pytest.raises(DataError, match=r"^f:9: prompt of 5 and completion of 4 tokens, but the model's context is 8"):
        list(stream_tokenized([pair("12345", "123", "1", source="f:9")], tiny_tokenizer, context=8))


def raw(file, aside=None):
    """The rows of a file, read by nothing of ours; without those that were set aside."""
    places = [place for tally in aside.reasons.values() for place in tally.first] if aside else []
    left_out = {int(place.rpartition(":")[2]) for place in places}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for number, line in enumerate(lines, 1) if number not in left_out]


@pytest.mark.parametrize("name", ["hh_harmless_train", "hh_harmless_test", "alpaca_eval_k8"])
def test_the_counts_of_a_whole_file_are_its_bytes(name, shared_data, tiny_tokenizer, monkeypatch):
    """One token a byte: the count needs no tokenizer. A completion has its end besides."""
    monkeypatch.setattr(set_aside, "FIRST", 1 << 30)  # the place of each row
    file = shared_data / f"{name}.jsonl.gz"
    groups, aside = read_groups(file)
    report = TokenReport()
    done = tokenize(groups, copy.deepcopy(tiny_tokenizer), report=report)
    assert report.prompt_tokens == sum(len(group.prompt.encode()) for group in groups)
    assert report.completion_tokens == sum(len(c.encode()) + 1 for group in groups for c in group.completions)
    assert (report.checked, report.moved) == (sum(group.k for group in groups), 0)
    for row, group in zip(raw(file, aside), done, strict=True):  # a transcript is its prompt and its reply, whole
        sides = [row["chosen"], row["rejected"]] if "chosen" in row else [row["prompt"] + c for c in row["completions"]]
        ours = [len(group.prompt_ids) + len(ids) - 1 for ids in group.completion_ids]
        assert ours == [len(side.encode()) for side in sides], group.where


def test_the_counts_of_a_whole_file_of_conversations_are_its_bytes_and_the_templates(shared_data, tiny_tokenizer):
    """ChatML around one turn of a user: three special tokens, and the bytes of "user", "assistant" and three line breaks."""
    file = shared_data / "alpaca_eval_k8.jsonl.gz"
    groups, aside = read_groups(Source(str(file), "alpaca_eval"))
    report = TokenReport()
    tokenize(groups, copy.deepcopy(tiny_tokenizer), report=report)
    assert not aside.rows
    rows = raw(file)
    around = 3 + len("user") + len("assistant") + 3
    assert report.prompt_tokens == sum(len(row["prompt"].encode()) + around for row in rows)
    assert report.completion_tokens == sum(len(text.encode()) + 1 for row in rows for text in row["completions"])
    assert (report.checked, report.moved, report.changed) == (sum(len(row["completions"]) for row in rows), 0, 0)


@pytest.mark.parametrize("name", ["rt_polarity_train", "rt_polarity_test"])
def test_the_counts_of_a_whole_file_of_texts_and_prompts_are_its_bytes(name, shared_data, tiny_tokenizer):
    """As the doctor counts them, and a prompt from the first word to the eighth."""
    file = shared_data / f"{name}.jsonl.gz"
    texts = [row["text"] for row in raw(file)]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    beginnings = [text[: ([*re.finditer(r"\S+", text)][:8])[-1].end()] for text in texts]
    for adapter, side, expected in (("rt_polarity", "completion", texts), ("imdb_prompts", "prompt", beginnings)):
        _, records = open_records(Source(str(file), adapter), SetAside())
        found = examine(records, SetAside(), tokenizer=tokenizer, near=False).lengths[side]
        assert found["total"] == sum(len(text.encode()) for text in expected)
        assert found["max"] == max(len(text.encode()) for text in expected)


@pytest.mark.slow
def test_the_counts_of_a_whole_file_are_those_of_the_library_below(shared_data):
    """The demo model's tokenizer, where it is there: each text alone, by the library that transformers stands on."""
    if not (DEMO / "tokenizer.json").is_file():
        pytest.skip("the demo model is not there yet: any command with `model: demo` makes it")
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    groups, _ = read_groups(shared_data / "hh_harmless_train.jsonl.gz")
    below = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    below.encode_special_tokens = True

    def count(text):
        return len(below.encode(text, add_special_tokens=False).ids)

    report = TokenReport()
    done = tokenize(groups, AutoTokenizer.from_pretrained(DEMO), report=report)
    assert [len(group.prompt_ids) for group in done] == [count(group.prompt) for group in groups]
    assert [tuple(map(len, group.completion_ids)) for group in done] == [
        tuple(count(text) + 1 for text in group.completions) for group in groups
    ]
    together = sum(
        below.encode(group.prompt + text, add_special_tokens=False).ids != [*made.prompt_ids, *ids[:-1]]
        for group, made in zip(groups, done, strict=True)
        for text, ids in zip(group.completions, made.completion_ids, strict=True)
    )
    assert report.moved == together
