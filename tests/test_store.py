"""A run's folder: what is done stays done, what is not whole is thrown away, what is another's is left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exoalign.differences import differences
from exoalign.errors import StoreError
from exoalign.files import checksum, write_text
from exoalign.finished import Finished
from exoalign.store import RunFolder, Standing

MADE_FROM = {"model": {"weights": "abc"}, "sample": {"k": 8, "temperature": 1.0}, "prompts": ["a", "b"], "limit": None}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; the lock file aside, which holds nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


class Work:
    """The work of a stage, which counts how often it is done."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> str:
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("a")
        (folder / "b.bin").write_bytes(bytes(range(256)))
        return f"{self.calls} done"


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def done(tmp_path, work):
    """A run's folder in which the stage `sample` is complete."""
    with RunFolder(tmp_path / "run", "mine") as folder:
        folder.stage("sample", MADE_FROM, work)
    return tmp_path / "run"


def refused(path: Path, made_from=MADE_FROM, name="mine") -> str:
    before = snapshot(path) if os.path.isdir(path) else None
    with pytest.raises(StoreError) as error, RunFolder(path, name) as folder:
        folder.stage("sample", made_from, lambda partial: pytest.fail("the stage was done again"))
    assert before is None or snapshot(path) == before
    return str(error.value)


# Done once


def test_a_stage_is_done_once_and_used_again(tmp_path, work):
    with RunFolder(tmp_path / "run", "mine") as folder:
        first = folder.stage("sample", MADE_FROM, work)
        again = folder.stage("sample", MADE_FROM, work)
    with RunFolder(tmp_path / "run", "mine") as folder:
        later = folder.stage("sample", json.loads(json.dumps(MADE_FROM)), work)
    assert work.calls == 1
    assert (first.reused, again.reused, later.reused) == (False, True, True)
    assert (first.what, later.what) == ("1 done", "1 done")
    assert (
        first.identity
        == later.identity
        == {
            "b.bin": checksum(first.folder / "b.bin"),
            "deep/a.txt": checksum(first.folder / "deep" / "a.txt"),
        }
    )
    assert later.seconds == first.seconds


def test_the_manifest_says_what_the_stage_was_made_from(done):
    manifest = json.loads((done / "sample" / "manifest.json").read_text())
    assert manifest["made_from"] == MADE_FROM
    assert manifest["stage"] == "sample"
    assert {"python", "torch", "transformers", "exoalign"} <= manifest["versions"].keys()


def test_tuples_are_the_lists_that_json_makes_of_them(done, work):
    with RunFolder(done, "mine") as folder:
        assert folder.standing("sample", {**MADE_FROM, "prompts": ("a", "b")}) == Standing("done")


def test_stages_stand_beside_each_other(done, work):
    with RunFolder(done, "mine") as folder:
        folder.stage("reward", {"other": 1}, work)
        assert folder.standing("sample", MADE_FROM).state == "done"
    assert (done / "reward" / "b.bin").is_file()


# Made from something else


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sample": {"k": 4, "temperature": 1.0}}, "sample.k was 8 and is 4"),
        ({"sample": {"k": 8}}, "sample.temperature was 1.0 and is null"),
        ({"model": {"weights": "xyz"}}, 'model.weights was "abc" and is "xyz"'),
        ({"prompts": ["a", "c"]}, 'prompts[1] was "b" and is "c"'),
        ({"prompts": ["a"]}, "prompts had 2 items and has 1"),
        ({"new": True}, "new was null and is true"),
        ({"limit": 5}, "limit was null and is 5"),
        ({"model": "hub"}, 'model was {"weights": "abc"} and is "hub"'),
    ],
)
def test_other_inputs_are_refused_with_what_differs(done, change, line):
    message = refused(done, {**MADE_FROM, **change})
    assert message.startswith(f"{done / 'sample'} stands and does not fit:\n  {line}\n")
    assert "Nothing was overwritten" in message


def test_every_difference_is_listed_up_to_ten(done):
    message = refused(done, {**MADE_FROM, "limit": 5, "sample": {"k": 4, "temperature": 0.5}})
    assert [line.split()[0] for line in message.splitlines()[1:-1]] == ["sample.k", "sample.temperature", "limit"]
    message = refused(done, {**MADE_FROM, **{f"new{i}": i for i in range(100)}})
    assert message.count(" was null") == 10
    assert "and 90 more" in message


def test_a_long_value_is_cut():
    assert differences({"a": "x" * 999}, {"a": "y"}) == [f'a was "{"x" * 56}... and is "y"']


# What is not whole


def test_an_edited_or_missing_file_is_noticed(done):
    path = done / "sample" / "deep" / "a.txt"
    path.write_text("b")
    message = refused(done)
    assert message.startswith(
        f"{done / 'sample'} stands and does not fit:\n  {path} is missing or has changed since the"
    )
    assert message.endswith("or add --redo to do anew what changed.")
    path.unlink()
    assert "a.txt is missing or has changed" in refused(done)


def test_an_interrupted_stage_leaves_nothing_that_counts(tmp_path, work):
    def half(folder):
        (folder / "half.txt").write_text("ha")
        raise RuntimeError("the power went")

    path = tmp_path / "run"
    with pytest.raises(RuntimeError, match="the power went"), RunFolder(path, "mine") as folder:
        folder.stage("sample", MADE_FROM, half)
    assert not (path / "sample").exists()
    with RunFolder(path, "mine") as folder:
        assert folder.standing("sample", MADE_FROM).state == "unfinished"
        folder.stage("sample", MADE_FROM, work)
    assert sorted(p.name for p in (path / "sample").iterdir()) == ["b.bin", "deep", "manifest.json", "timing.json"]
    assert [p.name for p in path.iterdir() if p.name.endswith(".partial")] == []


def test_a_folder_without_a_manifest_is_not_a_stages(done):
    (done / "sample" / "manifest.json").unlink()
    assert refused(done) == f"{done / 'sample'} has no manifest, so it is not a stage's; move it away"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"made_from": 1}',
        b"\xff\xfe",
        '{"made_from": {}, "files": [], "what": ""}',
    ],
)
def test_a_damaged_manifest_is_told(done, text):
    path = done / "sample" / "manifest.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(done).startswith(f"{path} is damaged (")


# Goes on, and done anew


class Interrupted(Exception):
    pass


def rows_of(folder: Path, stop_at: int | None = None) -> str:
    """Two rows at a time into the file of finished rows, then all of them into one file."""
    with Finished(folder / "rows.sqlite", "w") as rows:
        for i in range(0, 10, 2):
            if i == stop_at:
                (folder / ".groups.parquet.123").write_text("half")
                (folder / "model").mkdir()
                (folder / "model" / "half").write_text("half")
                raise Interrupted
            if rows.get((i, 0)) is None:
                rows.add([((i, 0), i), ((i + 1, 0), i + 1)])
        (folder / "all.json").write_text(json.dumps(list(rows)))
    return "10 rows"


def test_finished_rows_and_checkpoints_are_found_again_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted), RunFolder(path, "mine") as folder:
        folder.stage("sample", MADE_FROM, lambda p: rows_of(p, stop_at=6))
    (path / ".sample.partial" / "checkpoints").mkdir()
    found = {}

    def again(partial):
        found["names"] = sorted(p.name for p in partial.iterdir())
        with Finished(partial / "rows.sqlite", "w") as rows:
            found["rows"] = len(rows.keys())
        return rows_of(partial)

    with RunFolder(path, "mine") as folder:
        result = folder.stage("sample", MADE_FROM, again)
    assert found["rows"] == 6
    assert [name for name in found["names"] if not name.startswith("rows.sqlite")] == ["checkpoints"]
    assert set(result.files) == {"all.json"}
    assert json.loads((path / "sample" / "all.json").read_text()) == [[[i, 0], i] for i in range(10)]
    assert sorted(p.name for p in path.iterdir()) == [".lock", "run.json", "sample"]


def test_checkpoints_of_something_else_are_refused_and_rows_do_no_harm(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted), RunFolder(path, "mine") as folder:
        folder.stage("sample", MADE_FROM, lambda p: rows_of(p, stop_at=6))
    (path / ".sample.partial" / "checkpoints").mkdir()
    other = {**MADE_FROM, "limit": 5}
    assert f"{path / 'sample'} was begun and does not fit:\n  limit was null and is 5" in refused(path, other)
    (path / ".sample.partial" / "checkpoints").rmdir()
    with pytest.raises(Interrupted), RunFolder(path, "mine") as folder:
        folder.stage("sample", other, lambda p: rows_of(p, stop_at=0))
    assert len(list((path / ".sample.partial").glob("rows.*.sqlite"))) == 1  # put aside: not those of these settings
    with RunFolder(path, "mine") as folder:  # back to what it was: the rows are there again
        assert folder.standing("sample", other).state == "unfinished"
        folder.stage("sample", MADE_FROM, lambda p: str(len(Finished(p / "rows.sqlite", "w").__enter__().keys())))
        assert folder.result("sample").what == "6"
    assert not list((path / "sample").glob("rows*"))


def test_redo_gives_up_checkpoints_of_something_else(tmp_path):
    path = tmp_path / "run"

    def begins(partial):
        (partial / "checkpoints").mkdir()
        raise Interrupted

    with pytest.raises(Interrupted), RunFolder(path, "mine") as folder:
        folder.stage("align", {"rate": 1}, begins)
    with RunFolder(path, "mine", redo=True) as folder:
        folder.stage("align", {"rate": 2}, lambda p: str([q.name for q in p.iterdir()]))
        assert folder.result("align").what == "[]"


def test_redo_does_anew_what_changed_and_keeps_the_old_until_it_is_done(done, work):
    def fails(partial):
        raise Interrupted

    with pytest.raises(Interrupted), RunFolder(done, "mine", redo=True) as folder:
        folder.stage("sample", {"other": 1}, fails)
    assert (done / "sample" / "b.bin").is_file()
    with RunFolder(done, "mine", redo=True) as folder:
        assert folder.stage("sample", MADE_FROM, work).reused  # as it was
        result = folder.stage("sample", {"other": 1}, lambda p: (p / "new.txt").write_text("new") and "new")
    assert (result.reused, set(result.files)) == (False, {"new.txt"})
    assert sorted(p.name for p in done.iterdir()) == [".lock", "run.json", "sample"]


@pytest.mark.parametrize("moment", ["before the old goes", "between the two renamings"])
def test_killed_while_it_is_put_in_place_nothing_is_done_twice(done, work, moment):
    """What stands on the disk at that moment is laid out by hand."""
    os.replace(done / "sample", done / ".sample.partial")
    (done / ".sample.made_from.json").write_text(json.dumps(MADE_FROM))
    (done / "sample").mkdir()
    (done / "sample" / "manifest.json").write_text('{"made_from": {}, "files": {}, "what": "", "stage": "sample"}')
    if moment == "between the two renamings":
        os.replace(done / "sample", done / ".sample.old")
    with RunFolder(done, "mine", redo=True) as folder:
        result = folder.stage("sample", MADE_FROM, lambda p: pytest.fail("done twice"))
    assert (result.what, work.calls) == ("1 done", 1)
    assert sorted(p.name for p in done.iterdir()) == [".lock", "run.json", "sample"]


def test_what_is_pending_is_not_compared(done):
    made_from = {"k": 1, "stages": {"sample": {"a": "1"}, "sft": {"b": "2"}}}
    with RunFolder(done, "mine") as folder:
        folder.stage("align", made_from, lambda p: "")
        now = {"k": 1, "stages": {"sample": {"a": "1"}}}
        assert folder.standing("align", now, ["sft"]).state == "done"
        assert folder.standing("align", now).state == "changed"
        now = {"k": 1, "stages": {"sft": {"b": "2"}, "sample": {"a": "other"}}}
        assert folder.standing("align", now, ["sample"]).state == "done"
        assert folder.standing("align", now).changes == ('stages.sample.a was "1" and is "other"',)


# What is another's


def test_another_runs_folder_is_left_alone(done):
    assert refused(done, name="theirs") == f"{done} holds the run 'mine', not 'theirs'; choose another with out=..."


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    assert (
        refused(tmp_path) == f"{tmp_path} is not empty and holds no run (thesis.tex, ...); choose another with out=..."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    assert refused(tmp_path / "run") == f"{tmp_path / 'run'} is a file; choose another folder with out=..."
    assert refused(tmp_path / "run" / "deeper").startswith(f"{tmp_path / 'run' / 'deeper'} cannot be used: ")


def test_a_folder_that_cannot_be_made(tmp_path):
    assert "cannot be used: " in refused(tmp_path / ("x" * 300))
    assert "cannot be used: " in refused(Path("/proc/no/such/place"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
def test_a_damaged_run_file_is_told(done, text):
    (done / "run.json").write_text(text)
    assert refused(done).startswith(f"{done / 'run.json'} is damaged (")


def test_what_a_killed_process_left_of_the_run_file_does_no_harm(tmp_path, work):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".run.json.12345").write_text('{"na')
    with RunFolder(path, "mine") as folder:
        folder.stage("sample", MADE_FROM, work)
    assert work.calls == 1


HOLD = """
import sys, time
from exoalign.store import RunFolder
with RunFolder(sys.argv[1], "mine"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_locked_out_until_the_first_ends_even_by_a_kill(done):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(done)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            assert refused(done).startswith(f"{done} is in use by another process; wait for it")
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
    with RunFolder(done, "mine") as folder:
        assert folder.standing("sample", MADE_FROM).state == "done"


def test_a_process_killed_in_a_stage_leaves_the_folder_usable(tmp_path, work):
    code = HOLD.replace('RunFolder(sys.argv[1], "mine"):', 'RunFolder(sys.argv[1], "mine") as folder:').replace(
        'print("held", flush=True)\n    time.sleep(60)',
        'folder.stage("sample", {}, lambda p: ((p / "half").write_text("ha"), print("held", flush=True), time.sleep(60)))',
    )
    path = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
    assert (path / ".sample.partial" / "half").is_file()
    with RunFolder(path, "mine") as folder:
        assert not folder.stage("sample", MADE_FROM, work).reused
    assert not (path / "sample" / "half").exists()


# Files


def test_a_failed_write_leaves_the_old_text_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "naïve 日本語\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "half \ud800")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "naïve 日本語\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_checksum_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert checksum(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
