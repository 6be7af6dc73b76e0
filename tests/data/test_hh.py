"""Transcripts are cut where the assistant's last reply begins, and only where both share all that comes before."""

import gzip
import json
import re

import pytest

from exoalign.data import set_aside
from exoalign.data.formats import read_groups
from exoalign.data.hh import split_transcripts

START = "\n\nHuman: Hi\n\nAssistant:"


def test_the_cut_is_before_the_last_reply():
    before = START + " Hello!\n\nHuman: How are you?\n\nAssistant:"
    assert split_transcripts(before + " Well.", before + " Ill.\n\nReally.") == (before, " Well.", " Ill.\n\nReally.")


def test_replies_may_begin_alike():
    assert split_transcripts(START + " Hello you", START + " Hello there") == (START, " Hello you", " Hello there")


def test_a_reply_may_be_empty():
    assert split_transcripts(START, START + " Hello") == (START, "", " Hello")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Hi", "Hello"),
        ("", ""),
        (START + " a", "Hi"),
        (START + " a", "\n\nHuman: Ho\n\nAssistant: a"),
        (START + " a", START + " a\n\nHuman: b\n\nAssistant: c"),  # another number of turns
        (START + " a\n\nHuman: b", START + " c"),  # the last turn is not the assistant's
        (START + " a", START + " c\n\nHuman: b"),
        ("\n\nHuman: Hi\n\nHuman:x\n\nAssistant: a", "\n\nHuman: Hi\n\nHuman:y\n\nAssistant: a"),
    ],
)
def test_what_shares_no_beginning_is_not_cut(chosen, rejected):
    assert split_transcripts(chosen, rejected) is None


def turns(transcript: str) -> list[str]:
    """Role, text, role, text, ...: by a regular expression over the whole, not by the last marker."""
    return re.split(r"\n\n(Human|Assistant):", transcript)[1:]


@pytest.mark.parametrize("name", ["hh_harmless_train", "hh_harmless_test"])
def test_every_row_of_the_real_data_is_cut_as_its_turns_say_or_counted(shared_data, name, monkeypatch):
    monkeypatch.setattr(set_aside, "FIRST", 1 << 30)  # the place of each row
    path = shared_data / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    groups, aside = read_groups(path)
    left_out = {where for tally in aside.reasons.values() for where in tally.first}
    assert len(groups) + len(left_out) == len(rows)
    by_place = {group.where: group for group in groups}
    assert not by_place.keys() & left_out
    for number, row in enumerate(rows, 1):
        chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
        usable = (
            chosen[:-1] == rejected[:-1]
            and chosen[-2] == "Assistant"
            and chosen[-1] != rejected[-1]
            and bool(chosen[-1].strip() and rejected[-1].strip())
        )
        group = by_place.get(f"{path}:{number}")
        assert (group is not None) == usable, number
        if group is not None:
            assert group.completions == (chosen[-1], rejected[-1])
            assert group.prompt + group.completions[0] == row["chosen"]
            assert group.prompt + group.completions[1] == row["rejected"]
            assert group.winner == 0
    assert len(groups) > 0.95 * len(rows)
