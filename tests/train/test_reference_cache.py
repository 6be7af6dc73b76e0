"""The reference cache: what is found again and what is not, killed and crowded writers, damaged files, stale numbers."""

import copy
import hashlib
import json
import logging
import math
import os
import random
import re
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exoalign import ExoConfig, ExoTrainer, Group, load_model, tokenize
from exoalign.errors import DataError, TrainingError
from exoalign.train import reference, reference_passes
from exoalign.train.reference import add_reference, describe
from exoalign.train.reference_cache import CacheFile, ReferenceCache, completion_keys, default_folder

PLAIN = {"bf16": False, "temperature": 1.0}


def films(n: int, k: int = 3) -> list[Group]:
    return [
        Group(f"Film {i}:", tuple(f" good {i}{'!' * j}" for j in range(k)), rewards=tuple(float(j) for j in range(k)))
        for i in range(n)
    ]


def one_a_pass(groups) -> int:
    """Tokens with which each of the groups, which are about equally large, makes a pass of its own."""
    return max(len(group.prompt_ids) + sum(map(len, group.completion_ids)) for group in groups)


@pytest.fixture
def groups(tiny_tokenizer):
    return tokenize(films(8), tiny_tokenizer)


@pytest.fixture
def computed(monkeypatch):
    """Counts the completions that went through the model, pass by pass; the model still runs."""
    passes, real = [], reference.logprobs_of

    def counting(groups, model, **settings):
        passes.append(sum(group.k for group in groups))
        return real(groups, model, **settings)

    monkeypatch.setattr(reference, "logprobs_of", counting)
    return passes


@torch.no_grad()
def by_hand(model, group, temperature=1.0):
    """Each completion as one unpadded row, the textbook way."""
    values = []
    for completion, mask in zip(group.completion_ids, group.completion_masks or [None] * group.k, strict=True):
        logits = model(torch.tensor([[*group.prompt_ids, *completion]])).logits[0].double() / temperature
        logp = torch.log_softmax(logits, -1)
        start = len(group.prompt_ids) - 1
        counted = [t for t in range(len(completion)) if mask is None or mask[t]]
        values.append(sum(float(logp[start + t, completion[t]]) for t in counted))
    return values


def values_of(groups):
    return [group.reference_logprobs for group in groups]


def assert_right(done, model, temperature=1.0, **tolerance):
    for group in done:
        expected = by_hand(model, group, temperature)
        assert list(group.reference_logprobs) == pytest.approx(expected, **(tolerance or {"abs": 1e-4}))


def the_file(folder) -> Path:
    (file,) = folder.glob("*.sqlite")
    return file


def stored(file) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT count(*) FROM logprobs").fetchone()[0]


def test_passes_are_planned_by_windows_of_groups(tiny_model, groups, computed, monkeypatch):
    monkeypatch.setattr(reference_passes, "WINDOW", 3)
    done = add_reference(groups, tiny_model, **PLAIN)
    assert computed == [9, 9, 6]  # three groups of three completions in each window of 8 groups
    assert_right(done, tiny_model)


# What is found again


def test_what_one_run_computed_the_next_one_reads(tiny_model, groups, tmp_path, computed):
    first, second = ReferenceCache(tmp_path), ReferenceCache(tmp_path)
    told = []
    once = add_reference(groups, tiny_model, cache=first, **PLAIN)
    assert_right(once, tiny_model)
    assert (first.reused, first.asked, first.summary()) == (0, 8, "")
    del computed[:]
    again = add_reference(groups, tiny_model, cache=second, report=told.append, **PLAIN)
    assert computed == [3] * reference.CHECKED  # the spot check alone: 4 of the 8 groups
    assert values_of(again) == values_of(once)  # to the bit
    assert [group.provenance["reference"] for group in again] == [group.provenance["reference"] for group in once]
    assert (second.reused, second.asked) == (8, 8)
    assert second.summary() == "8 of 8 reference groups from the cache"
    assert told == [8]


def test_a_group_that_has_its_reference_asks_nothing(tiny_model, groups, tmp_path, computed):
    done = add_reference(groups, tiny_model, **PLAIN)
    del computed[:]
    cache = ReferenceCache(tmp_path)
    assert add_reference(done, tiny_model, cache=cache, **PLAIN) == done
    assert (computed, cache.asked) == ([], 0)


@pytest.mark.parametrize(
    "change",
    [{"beta_pi": 0.1}, {"beta_r": 3.0}, {"learning_rate": 1e-4}, {"objective": "dpo_rw"}, {"seed": 5}],
    ids=str,
)
def test_settings_of_the_objective_and_the_training_reuse_it(tiny_folder, tiny_tokenizer, tmp_path, computed, change):
    def prepared(name, **settings):
        arguments = ExoConfig(str(tmp_path / name), save_strategy="no", disable_tqdm=True, **settings)
        trainer = ExoTrainer(
            load_model(str(tiny_folder), device="cpu"), arguments, films(8), processing_class=tiny_tokenizer,
            reference_cache=tmp_path / "cache",
        )  # fmt: skip
        del computed[:]
        trainer.prepare_reference()
        return trainer

    first = prepared("first")
    assert (first.reference_cache.reused, first.reference_cache.asked) == (0, 8)
    other = prepared("other", **change)
    assert (other.reference_cache.reused, other.reference_cache.asked) == (8, 8)
    assert sum(computed) == 4 * 3 + 4 * 3  # compared with the cache, and before step 1
    assert values_of(other.train_dataset) == values_of(first.train_dataset)
    other.train()


def test_another_objective_with_other_data_fields_reuses_it(tiny_model, tiny_tokenizer, tmp_path):
    """The same two completions as a pair with a winner, and as two with rewards."""
    ranked = tokenize([Group("a", (" x", " y"), winner=0)], tiny_tokenizer)
    rewarded = tokenize([Group("a", (" x", " y"), rewards=(0.0, 1.0))], tiny_tokenizer)
    add_reference(ranked, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    cache = ReferenceCache(tmp_path)
    add_reference(rewarded, tiny_model, cache=cache, **PLAIN)
    assert cache.reused == 1


def test_another_k_and_another_order_compute_only_what_is_new(tiny_model, tiny_tokenizer, tmp_path, computed):
    few = tokenize([Group("a", (" one", " two", " three"))], tiny_tokenizer)
    more = tokenize([Group("a", (" new", " three", " one", " newer", " two"))], tiny_tokenizer)
    add_reference(few, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    del computed[:]
    cache = ReferenceCache(tmp_path)
    done = add_reference(more, tiny_model, cache=cache, **PLAIN)
    assert computed == [3, 2]  # the spot check on the three that are known; the two that are not
    assert_right(done, tiny_model)
    assert cache.reused == 0  # no whole group was known
    assert stored(the_file(tmp_path)) == 5


def test_the_spot_check_of_a_large_group_is_small(tiny_model, tiny_tokenizer, tmp_path, computed):
    large = tokenize(films(1, k=20), tiny_tokenizer)
    add_reference(large, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    del computed[:]
    add_reference(large, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    assert computed == [reference.CHECKED_COMPLETIONS]


# What is not found again


def test_another_temperature_is_another_reference(tiny_model, groups, tmp_path):
    add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    cache = ReferenceCache(tmp_path)
    done = add_reference(groups, tiny_model, cache=cache, bf16=False, temperature=0.7)
    assert cache.reused == 0
    assert_right(done, tiny_model, 0.7)


def test_another_precision_is_another_reference(tiny_model, groups, tmp_path):
    add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    cache = ReferenceCache(tmp_path)
    done = add_reference(groups, tiny_model, cache=cache, bf16=True, temperature=1.0)
    assert cache.reused == 0
    assert values_of(done) == values_of(add_reference(groups, tiny_model, bf16=True, temperature=1.0))


def test_other_weights_are_another_reference(tiny_model, groups, tmp_path):
    add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    with torch.no_grad():
        next(tiny_model.parameters())[65, 0] += 0.5  # one number of one weight
    cache = ReferenceCache(tmp_path)
    done = add_reference(groups, tiny_model, cache=cache, **PLAIN)
    assert cache.reused == 0
    assert_right(done, tiny_model)


def test_temperature_1_is_temperature_1(tiny_model, groups, tmp_path):
    add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), bf16=False, temperature=1)
    cache = ReferenceCache(tmp_path)
    add_reference(groups, tiny_model, cache=cache, bf16=False, temperature=1.0)
    assert cache.reused == 8


def test_keys_are_hashes_of_the_token_ids():
    group = Group("a", ("b", "c"), prompt_ids=(1, 2), completion_ids=((3,), (4, 5)))
    expected = [hashlib.sha256(struct.pack(f"<{1 + len(ids)}q", 2, *ids)).digest() for ids in [(1, 2, 3), (1, 2, 4, 5)]]
    assert completion_keys(group) == expected
    moved = Group("a", ("b",), prompt_ids=(1,), completion_ids=((2, 3),))  # the same ids, cut elsewhere
    assert completion_keys(moved)[0] != expected[0]


def test_which_tokens_count_is_part_of_the_key():
    def keys(ids, *mask):
        return completion_keys(
            Group("a", ("b",), prompt_ids=(1,), completion_ids=(ids,), completion_masks=mask or None)
        )

    plain = keys((2, 3))
    assert keys((2, 3), (True, True)) == plain  # the same number
    assert keys((2, 3), (False, True)) == [hashlib.sha256(struct.pack("<4q", 1, 1, ~2, 3)).digest()]
    assert len({plain[0], keys((2, 3), (False, True))[0], keys((2, 3), (True, False))[0]}) == 3


def test_the_same_tokens_under_other_masks_are_computed_and_right(tiny_model, groups, tmp_path, computed):
    add_reference(groups[:1], tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    del computed[:]
    # three completions of 8, 9 and 10 tokens: all of the first counts, of the others the first and the last token
    masks = tuple(tuple(k == 0 or t in (0, n - 1) for t in range(n)) for k, n in enumerate((8, 9, 10)))
    turns = [replace(groups[0], completion_masks=masks)]
    assert [len(ids) for ids in turns[0].completion_ids] == [8, 9, 10]
    cache = ReferenceCache(tmp_path)
    done = add_reference(turns, tiny_model, cache=cache, **PLAIN)
    assert computed == [1, 2]  # the spot check on the one that is known; the two that are not
    assert_right(done, tiny_model)
    again = add_reference(turns, tiny_model, cache=cache, **PLAIN)
    assert values_of(again) == values_of(done)
    assert cache.reused == 1


def test_groups_without_token_ids_are_named(tiny_model, tmp_path):
    for cache in (None, ReferenceCache(tmp_path)):
        with pytest.raises(DataError, match=r"group 'Film 0:': has no token ids; call exoalign\.tokenize"):
            add_reference(films(1), tiny_model, cache=cache, **PLAIN)


def test_no_cache_unless_asked_for(tiny_model, tiny_tokenizer, tmp_path):
    arguments = ExoConfig(str(tmp_path / "run"), save_strategy="no", disable_tqdm=True)
    trainer = ExoTrainer(tiny_model, arguments, films(2), processing_class=tiny_tokenizer)
    trainer.prepare_reference()
    assert trainer.reference_cache is None
    assert not default_folder().exists()


def test_no_text_is_kept(tiny_model, tiny_tokenizer, tmp_path):
    secret = tokenize([Group("My password is hunter2.", (" Thanks.", " Noted."))], tiny_tokenizer)
    add_reference(secret, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    assert [file.suffix for file in tmp_path.iterdir()] == [".sqlite"]
    content = the_file(tmp_path).read_bytes()
    for text in ("hunter2", "Noted"):
        assert text.encode() not in content


# Numbers that are wrong


def faked(folder, model, other, groups):
    """A cache in which the numbers of `other` stand as those of `model`, checksums and all."""
    record = {**describe(model, **PLAIN), "device": "cpu"}
    rows = values_of(add_reference(groups, other, **PLAIN))
    with CacheFile(folder, record) as file:
        file.store(groups, rows)
    return file.path, rows


def test_a_stale_cache_is_refused_with_file_group_and_both_numbers(tiny_model, groups, tmp_path):
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    path, rows = faked(tmp_path, tiny_model, other, groups)
    with pytest.raises(TrainingError) as error:
        add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    message = str(error.value)
    assert message.startswith(f"group 'Film 0:', completion 1: the reference cache {path} is stale")
    assert f"it says {rows[0][0]:.4f} and the model {by_hand(tiny_model, groups[0])[0]:.4f}" in message
    length = len(groups[0].completion_ids[0])
    assert f"may differ by {1e-3 * math.sqrt(length):.4f}" in message
    assert "Delete it, and its log-probs are computed anew." in message
    path.unlink()
    assert_right(add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN), tiny_model)


@pytest.mark.parametrize("where", [0, 2, 4, 6])
def test_the_spot_check_is_spread_over_the_data(tiny_model, groups, tmp_path, where):
    rows = values_of(add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN))
    with CacheFile(tmp_path, {**describe(tiny_model, **PLAIN), "device": "cpu"}) as file:
        file.store([groups[where]], [[*rows[where][:2], rows[where][2] + 0.02]])
    with pytest.raises(TrainingError, match=f"Film {where}:', completion 3: .* is stale"):
        add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)


@pytest.mark.parametrize(("shift", "stale"), [(0.25, False), (0.35, True)], ids=str)
def test_bfloat16_may_differ_as_padding_makes_it_differ(tiny_model, tiny_tokenizer, groups, tmp_path, shift, stale):
    """By 0.3 nats times the root of the length, in the spot check and in the check before the first step alike."""
    bf16 = {"bf16": True, "temperature": 1.0}
    rows = values_of(add_reference(groups, tiny_model, **bf16))
    shifted = [
        [value + shift * math.sqrt(len(ids)) for value, ids in zip(row, group.completion_ids, strict=True)]
        for group, row in zip(groups, rows, strict=True)
    ]
    with CacheFile(tmp_path / "cache", {**describe(tiny_model, **bf16), "device": "cpu"}) as file:
        file.store(groups, shifted)
    arguments = ExoConfig(str(tmp_path / "run"), bf16=True, save_strategy="no", disable_tqdm=True)
    trainer = ExoTrainer(
        tiny_model, arguments, groups, processing_class=tiny_tokenizer, reference_cache=tmp_path / "cache"
    )
    if stale:
        with pytest.raises(TrainingError, match="is stale"):
            trainer.prepare_reference()
    else:
        trainer.prepare_reference()


def test_rounding_is_not_stale(tiny_model, groups, tmp_path):
    rows = values_of(add_reference(groups, tiny_model, **PLAIN))
    with CacheFile(tmp_path, {**describe(tiny_model, **PLAIN), "device": "cpu"}) as file:
        file.store(groups, [[value + 5e-4 for value in row] for row in rows])
    cache = ReferenceCache(tmp_path)
    add_reference(groups, tiny_model, cache=cache, **PLAIN)
    assert cache.reused == 8


def test_a_log_prob_that_is_not_finite_names_group_and_completion_and_is_not_kept(tiny_model, groups, tmp_path):
    """The token `7` becomes NaN: it stands in the last group alone, in its prompt and in all its completions."""
    seven = groups[7].prompt_ids[5]
    assert [seven in group.prompt_ids for group in groups] == [False] * 7 + [True]
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight[seven] = float("nan")
    most = one_a_pass(groups)
    message = r"group 'Film 7:', completion 1: the reference log-prob is nan; expected a finite number"
    with pytest.raises(TrainingError, match=message):
        add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), max_tokens=most, **PLAIN)
    assert stored(the_file(tmp_path)) == 7 * 3
    with pytest.raises(TrainingError, match=message):  # and from the cache the others come back
        add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)


# Killed, and crowded

COMPUTES = """
import sys, time
from exoalign import Group, load_model, load_tokenizer, tokenize
from exoalign.train.reference import add_reference
from exoalign.train.reference_cache import ReferenceCache

def report(n):
    print(n, flush=True)
    time.sleep(0.02)

model, folder = sys.argv[1:]
groups = [Group(f"Film {i}:", tuple(f" good {i}{'!' * j}" for j in range(3))) for i in range(30)]
groups = tokenize(groups, load_tokenizer(model))
cache = ReferenceCache(folder)
most = max(len(group.prompt_ids) + sum(map(len, group.completion_ids)) for group in groups)
loaded = load_model(model, device="cpu")
add_reference(groups, loaded, bf16=False, temperature=1.0, max_tokens=most, cache=cache, report=report)
"""

WRITES = """
import sys
from pathlib import Path
from exoalign import Group
from exoalign.train.reference_cache import CacheFile

record = {"weights": "a", "precision": "float32", "temperature": 1.0}
print("ready", flush=True)
sys.stdin.readline()
with CacheFile(Path(sys.argv[1]), record) as file:
    for i in range(int(sys.argv[2]), int(sys.argv[3])):
        group = Group("x", ("a", "b"), prompt_ids=(i,), completion_ids=((1,), (2,)))
        file.look_up([group])
        file.store([group], [[-float(i), -i - 0.5]])
"""


def start(script, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)


def test_after_a_kill_only_what_is_missing_is_computed(tiny_folder, tiny_model, tiny_tokenizer, tmp_path, computed):
    groups = tokenize(films(30), tiny_tokenizer)
    working = start(COMPUTES, tiny_folder, tmp_path)
    seen = [working.stdout.readline() for _ in range(10)]
    working.send_signal(signal.SIGKILL)
    assert working.wait() == -signal.SIGKILL
    assert seen == ["1\n"] * 10, working.stderr.read()
    kept = stored(the_file(tmp_path))
    assert 30 <= kept < 90  # ten groups of three at least: each was written before it was reported
    cache = ReferenceCache(tmp_path)
    done = add_reference(groups, tiny_model, cache=cache, max_tokens=one_a_pass(groups), **PLAIN)
    checked = len(range(0, kept // 3, math.ceil(kept / 3 / 4)))  # at most 4, evenly spread over what is there
    assert computed == [3] * (checked + 30 - kept // 3)
    assert cache.reused == kept // 3
    assert stored(the_file(tmp_path)) == 90
    assert_right(done, tiny_model)


def test_after_a_kill_the_passes_are_those_of_a_run_that_was_left_alone(
    tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    """What a pass holds decides how it rounds. Windows of 4, 4 and 1 groups, passes of 2; the run is cut off after one pass."""
    monkeypatch.setattr(reference_passes, "WINDOW", 4)
    sizes = [Group(f"Film {'!' * (i % 3)}{i}", (" good", f" bad {i}"), rewards=(1.0, 0.0)) for i in range(9)]
    groups = tokenize(sizes, tiny_tokenizer)
    most, passes, real = 2 * one_a_pass(groups), [], reference.logprobs_of

    def noting(some, model, **settings):
        passes.append([group.prompt for group in some])
        return real(some, model, **settings)

    monkeypatch.setattr(reference, "logprobs_of", noting)

    def cut_off(done):
        raise KeyboardInterrupt

    alone = add_reference(groups, tiny_model, max_tokens=most, **PLAIN)
    expected = passes[:]
    assert [len(some) for some in expected] == [2, 2, 2, 2, 1]
    del passes[:]
    with pytest.raises(KeyboardInterrupt):
        add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), max_tokens=most, report=cut_off, **PLAIN)
    again = add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), max_tokens=most, **PLAIN)
    assert [passes[0], *passes[3:]] == expected  # between them the spot check of the two groups that are known
    assert values_of(again) == values_of(alone)


def test_what_others_left_in_parts_is_put_together(tiny_model, groups, tmp_path, computed):
    """Every second group is known; the other four fill one pass, not four in part."""
    add_reference(groups[::2], tiny_model, cache=ReferenceCache(tmp_path), **PLAIN)
    del computed[:]
    most = 4 * one_a_pass(groups)
    assert_right(
        add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), max_tokens=most, **PLAIN), tiny_model
    )
    assert computed == [*[3] * 4, 12]  # the spot check, and one pass


def test_processes_fill_one_file_at_once(tmp_path):
    """Four begin together, before there is a file; each writes 300 groups, half of them its neighbour's too."""
    four = [start(WRITES, tmp_path, 150 * i, 150 * i + 300) for i in range(4)]
    for process in four:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in four:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120) for process in four]
    assert [process.returncode for process in four] == [0] * 4, outputs
    assert [error for _, error in outputs] == [""] * 4  # no warning either
    assert stored(the_file(tmp_path)) == 2 * 750
    groups = [Group("x", ("a", "b"), prompt_ids=(i,), completion_ids=((1,), (2,))) for i in range(750)]
    with CacheFile(tmp_path, {"weights": "a", "precision": "float32", "temperature": 1.0}) as file:
        assert file.look_up(groups) == [[-i, -i - 0.5] for i in range(750)]


# Damaged files, and places that cannot be written


@pytest.fixture
def filled(tiny_model, groups, tmp_path):
    """A file with 24 numbers, and those numbers."""
    done = add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path / "cache"), **PLAIN)
    return the_file(tmp_path / "cache"), values_of(done)


def test_a_flipped_number_is_not_used(tiny_model, groups, filled, computed, caplog):
    file, rows = filled
    content = bytearray(file.read_bytes())
    place = content.index(struct.pack(">d", rows[5][1]))  # as SQLite writes it
    content[place + 6] ^= 1  # 2^8 units in the last place: a spot check would let it pass
    file.write_bytes(content)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)  # SQLite sees nothing
    del computed[:]
    done = add_reference(groups, tiny_model, cache=ReferenceCache(file.parent), **PLAIN)
    assert computed == [3, 3, 3, 3, 1]
    assert values_of(done)[5][1] == pytest.approx(rows[5][1], abs=1e-5)
    assert f"1 log-probs in {file} are damaged; they are not used but computed anew" in caplog.text
    caplog.clear()
    again = ReferenceCache(file.parent)
    add_reference(groups, tiny_model, cache=again, **PLAIN)
    assert (again.reused, caplog.text) == (8, "")


def test_numbers_that_changed_places_are_not_used(tiny_model, groups, filled):
    """Two rows exchange their numbers, checksums and all."""
    file, rows = filled
    keys = [completion_keys(groups[1])[0], completion_keys(groups[3])[2]]
    with closing(sqlite3.connect(file)) as connection, connection:
        select = "SELECT value, seal FROM logprobs WHERE completion = ?"
        found = [connection.execute(select, [key]).fetchone() for key in keys]
        assert [value for value, _ in found] == [rows[1][0], rows[3][2]]
        for key, (value, seal) in zip(keys, reversed(found), strict=True):
            connection.execute("UPDATE logprobs SET value = ?, seal = ? WHERE completion = ?", [value, seal, key])
    cache = ReferenceCache(file.parent)
    assert values_of(add_reference(groups, tiny_model, cache=cache, **PLAIN)) == rows
    assert cache.reused == 6


def test_numbers_copied_from_another_file_are_not_used(tiny_model, groups, filled, tmp_path):
    """A file renamed to another reference's name, its rows' checksums with it."""
    file, _ = filled
    cold = {"bf16": False, "temperature": 0.7}
    add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path / "cold"), **cold)
    file.replace(the_file(tmp_path / "cold"))
    cache = ReferenceCache(tmp_path / "cold")
    done = add_reference(groups, tiny_model, cache=cache, **cold)
    assert cache.reused == 0
    assert_right(done, tiny_model, 0.7)


def test_no_flipped_bit_ever_gives_a_wrong_number(tiny_model, groups, filled, tmp_path):
    """800 files with one bit flipped anywhere: each number is the one that was written, or unknown, and nothing is raised."""
    file, rows = filled
    content, chance = file.read_bytes(), random.Random(0)
    record = {**describe(tiny_model, **PLAIN), "device": "cpu"}
    unknown = 0
    logging.getLogger("exoalign").setLevel(logging.ERROR)
    try:
        for _ in range(800):
            damaged = bytearray(content)
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(damaged)
            with CacheFile(file.parent, record) as opened:
                for found, row in zip(opened.look_up(groups), rows, strict=True):
                    assert all(a is None or a == b for a, b in zip(found, row, strict=True))
                    unknown += found.count(None)
                opened.store(groups[:1], rows[:1])
    finally:
        logging.getLogger("exoalign").setLevel(logging.NOTSET)
    assert unknown > 100  # the flips did reach the numbers


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.8, 0.99])
def test_a_truncated_file_gives_no_wrong_number(tiny_model, groups, filled, share, caplog):
    file, rows = filled
    os.truncate(file, int(share * file.stat().st_size))
    done = add_reference(groups, tiny_model, cache=ReferenceCache(file.parent), **PLAIN)
    assert values_of(done) == rows
    if share:  # an empty file is a new one
        whole = f"reference cache: {file} is damaged (" in caplog.text and "Delete the file, and it is" in caplog.text
        assert whole or f"log-probs in {file} are damaged" in caplog.text


def test_a_file_that_is_no_database_is_told_and_left(tiny_model, groups, filled, caplog):
    file, rows = filled
    file.write_text("a diary, by mistake\n" * 500)
    done = add_reference(groups, tiny_model, cache=ReferenceCache(file.parent), **PLAIN)
    assert values_of(done) == rows
    assert f"{file} is damaged (file is not a database); what is missing is computed and not kept" in caplog.text
    assert file.read_text().startswith("a diary")


def test_a_folder_that_is_a_file_costs_a_warning(tiny_model, groups, tmp_path, caplog):
    (tmp_path / "cache").write_text("")
    done = add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path / "cache"), **PLAIN)
    assert_right(done, tiny_model)
    assert caplog.text.count("cannot be used") == 1
    assert "EXOALIGN_CACHE names another" in caplog.text
    assert str(tmp_path / "cache") in caplog.text


@pytest.fixture
def nobody():
    """The rights of an ordinary user, for tests that root runs."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_read_and_costs_a_warning(tiny_model, groups, tiny_tokenizer, caplog, request):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cache"
        rows = values_of(add_reference(groups, tiny_model, cache=ReferenceCache(folder), **PLAIN))
        the_file(folder).chmod(0o444)
        for path in (folder, Path(name)):
            path.chmod(0o555)
        request.getfixturevalue("nobody")
        cache = ReferenceCache(folder)
        assert values_of(add_reference(groups, tiny_model, cache=cache, **PLAIN)) == rows
        assert (cache.reused, caplog.text) == (8, "")  # all that was asked for is there
        more = tokenize(films(10), tiny_tokenizer)
        done = add_reference(more, tiny_model, cache=ReferenceCache(folder), **PLAIN)
        assert_right(done, tiny_model)
        assert caplog.text.count("cannot be used (attempt to write a readonly database)") == 1
        caplog.clear()
        done = add_reference(more, tiny_model, cache=ReferenceCache(Path(name) / "new"), **PLAIN)
        assert_right(done, tiny_model)
        assert caplog.text.count("cannot be used (") == 1
        if not os.getuid():
            os.seteuid(0)
        for path in (folder, Path(name)):
            path.chmod(0o755)


def test_a_full_disk_costs_a_warning(tiny_model, tiny_tokenizer, tmp_path, caplog):
    """No file may grow over 40,000 bytes: about 400 numbers fit."""
    groups = tokenize(films(300), tiny_tokenizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        done = add_reference(groups, tiny_model, cache=ReferenceCache(tmp_path), max_tokens=1000, **PLAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count("cannot be used") == 1
    assert_right(done[-3:], tiny_model)
    kept = stored(the_file(tmp_path))
    assert 100 < kept < 900
    cache = ReferenceCache(tmp_path)  # with room again it goes on
    assert (
        values_of(add_reference(groups, tiny_model, cache=cache, **PLAIN))[: kept // 3] == values_of(done)[: kept // 3]
    )
    assert cache.reused == kept // 3
    assert stored(the_file(tmp_path)) == 900


# The page about it

PAGE = (Path(__file__).parents[2] / "docs" / "reference-cache.md").read_text()


def test_the_page_says_what_the_code_does(tiny_model, tiny_tokenizer, groups, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    arguments = ExoConfig("run", save_strategy="no", disable_tqdm=True)
    names = {
        "ExoTrainer": ExoTrainer,
        "model": tiny_model,
        "args": arguments,
        "groups": groups,
        "tokenizer": tiny_tokenizer,
    }
    eval(block, names).prepare_reference()
    with closing(sqlite3.connect(the_file(tmp_path / "reference"))) as connection:
        (record,) = connection.execute(re.search(r"'(SELECT .*)'", PAGE).group(1)).fetchone()
    assert json.loads(record) == {**describe(tiny_model, **PLAIN), "device": "cpu", "version": 1}
    assert (reference.CHECKED, reference.CHECKED_COMPLETIONS) == (4, 8)
    assert reference.TOLERANCE == {"float32": 0.001, "bfloat16": 0.3}
    assert default_folder() == Path(os.environ["EXOALIGN_CACHE"]) / "reference"
