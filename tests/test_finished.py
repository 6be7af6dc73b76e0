"""Rows that are done outlive a kill at any moment: none lost that was reported, none doubled, none of another fingerprint."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from exoalign.errors import StoreError
from exoalign.finished import Finished, fingerprint_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.sqlite"


def test_rows_come_back_in_order_of_prompt_and_completion(path):
    with Finished(path, {"a": 1}) as rows:
        rows.add([((1, 0), "c"), ((0, 10), "b"), ((0, 9), {"text": "a", "logprob": -0.1})])
    with Finished(path, {"a": 1}) as rows:
        assert list(rows) == [((0, 9), {"text": "a", "logprob": -0.1}), ((0, 10), "b"), ((1, 0), "c")]
        assert rows.keys() == {(0, 9), (0, 10), (1, 0)}
        assert rows.get((1, 0)) == "c"
        assert rows.get((1, 1)) is None


def test_numbers_keep_every_bit(path):
    values = [0.1 + 0.2, -1e-300, 1 / 3]
    with Finished(path, 0) as rows:
        rows.add([((0, k), value) for k, value in enumerate(values)])
        assert [value for _, value in rows] == values


def test_rows_of_another_fingerprint_stay_unseen(path):
    with Finished(path, {"temperature": 1.0}) as rows:
        rows.add([((0, 0), "warm")])
    with Finished(path, {"temperature": 0.5}) as rows:
        assert rows.keys() == set()
        rows.add([((0, 0), "cold")])
    with Finished(path, {"temperature": 1.0}) as rows:
        assert list(rows) == [((0, 0), "warm")]


def test_the_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint_of({"a": 1, "b": [2]}) == fingerprint_of({"b": [2], "a": 1})
    assert fingerprint_of({"a": [1, 2]}) != fingerprint_of({"a": [2, 1]})


def test_a_row_that_is_done_is_not_done_anew(path):
    with Finished(path, 0) as rows:
        rows.add([((0, 0), "first")])
        rows.add([((0, 0), "second"), ((0, 1), "other")])
        assert list(rows) == [((0, 0), "first"), ((0, 1), "other")]


def test_a_transaction_that_fails_leaves_nothing(path):
    with Finished(path, 0) as rows:
        with pytest.raises(StoreError, match=r"rows\.sqlite.*kept"):
            rows.add([((0, 0), "fine"), ((0, {}), "no key")])
        assert rows.keys() == set()


def test_a_damaged_file_is_named(path):
    path.write_bytes(b"this is no database, " * 100)
    with pytest.raises(StoreError, match=r"rows\.sqlite: file is not a database"), Finished(path, 0):
        pass


def test_no_space_is_told_and_what_was_there_stays(path):
    with Finished(path, 0) as rows:
        rows.add([((0, 0), "small")])
        rows._connection.execute("PRAGMA max_page_count=4")
        with pytest.raises(StoreError, match="full"):
            rows.add([((1, 0), "x" * 100_000)])
    with Finished(path, 0) as rows:
        assert list(rows) == [((0, 0), "small")]


WRITER = """
import sys
from pathlib import Path
from exoalign.finished import Finished
with Finished(Path(sys.argv[1]), "w") as rows:
    done = rows.keys()
    for i in range(100_000):
        if (i, 0) not in done:
            rows.add([((i, k), f"{i}-{k}") for k in range(4)])
            print(i, flush=True)
"""


def test_killed_eleven_times_nothing_is_lost_or_doubled(path):
    reported = set()
    for delay in range(11):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        reported.add(int(process.stdout.readline()))  # it is at work
        time.sleep(0.01 * delay)
        os.kill(process.pid, signal.SIGKILL)
        reported |= {int(line) for line in process.stdout.read().splitlines() if line}
        process.wait()
    with Finished(path, "w") as rows:
        found = list(rows)
    assert len(reported) > 11
    assert reported <= {i for (i, _), _ in found}
    assert [key for key, _ in found] == [(i, k) for i in range(len(found) // 4) for k in range(4)]
    assert all(value == f"{i}-{k}" for (i, k), value in found)


def test_values_are_json_and_nothing_else(path):
    with Finished(path, 0) as rows:
        rows.add([((0, 0), {"a": [1]})])
    stored = sqlite3.connect(path).execute("SELECT value FROM finished").fetchone()[0]
    assert json.loads(stored) == {"a": [1]}
