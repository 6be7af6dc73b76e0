"""`exoalign runs`: what stands in the folders of runs, whatever stands there, and nothing is changed by looking."""

import datetime
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from exoalign.errors import StoreError
from exoalign.listing import list_runs
from exoalign.store import RunFolder
from exoalign.tables import runs_table

HOLD = """
import sys, time
from exoalign.store import RunFolder
with RunFolder(sys.argv[1], "mine") as folder:
    folder.stage("align", {}, lambda p: ((p / "half").write_text("ha"), print("held", flush=True), time.sleep(60)))
"""


def at(path: Path, minute: int) -> None:
    seconds = datetime.datetime(2026, 1, 2, 3, minute, tzinfo=datetime.timezone.utc).timestamp()
    os.utime(path, (seconds, seconds))


def stage(run: Path, name: str, minute: int, **more: object) -> Path:
    """A stage's folder with 100 bytes in `deep/a.bin`, beside its manifest."""
    folder = run / name
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.bin").write_bytes(bytes(100))
    manifest = {
        "stage": name,
        "what": f"{name} was done",
        "made_from": {},
        "versions": {},
        "files": {"deep/a.bin": "0"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | more))
    at(folder / "manifest.json", minute)
    return folder


def run_at(path: Path, name: object = "mine") -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"name": name}))
    return path


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def run(tmp_path):
    """Two stages that are done, in the order in which they were, and one that was interrupted."""
    path = run_at(tmp_path / "runs" / "one")
    stage(path, "sft", 9, seconds=61.0)
    stage(path, "align", 10)
    (path / "align" / "timing.json").write_text('{"seconds": 2.5, "ended": "2026-01-02T03:10:00+00:00"}')
    (path / ".evaluate.partial").mkdir()
    (path / ".evaluate.partial" / "rows.sqlite").write_bytes(bytes(1000))
    (path / ".evaluate.made_from.json").write_text("{}")
    (path / "report").mkdir()
    (path / "report" / "index.html").write_text("<html>")
    return path


def test_stages_come_in_the_order_they_were_done_with_state_time_size_and_what(run):
    (found,) = list_runs([run])
    assert [(s.name, s.state, s.seconds, s.what) for s in found.stages] == [
        ("sft", "done", 61.0, "sft was done"),
        ("align", "done", 2.5, "align was done"),
        ("evaluate", "unfinished", None, ""),
    ]
    assert found.stages[0].when == datetime.datetime(2026, 1, 2, 3, 9, tzinfo=datetime.timezone.utc)
    assert [s.size for s in found.stages] == [size(run / "sft"), size(run / "align"), 1000]
    assert (found.name, found.folder, found.state, found.seconds, found.size) == (
        "mine",
        run,
        "unfinished",
        63.5,
        size(run),
    )
    assert found.when == found.stages[-1].when


def test_a_folder_of_runs_and_a_run_are_both_taken_and_nothing_twice(run, tmp_path):
    other = run_at(tmp_path / "runs" / "another", "theirs")
    stage(other, "sample", 1)
    (tmp_path / "runs" / "notes.txt").write_text("not a run")
    (tmp_path / "runs" / "folder").mkdir()
    run_at(tmp_path / "runs" / "folder" / "deeper")
    (tmp_path / "link").symlink_to(run)
    assert [(found.name, found.state) for found in list_runs([tmp_path / "runs", run, tmp_path / "link"])] == [
        ("theirs", "done"),
        ("mine", "unfinished"),
    ]


def test_runs_is_where_they_are_looked_for(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [found.folder for found in list_runs()] == [Path("runs/one")]
    monkeypatch.chdir(run)
    assert list_runs() == []


def test_a_folder_that_is_missing_or_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for name, what in {"none": "does not exist", "file": "is a file"}.items():
        with pytest.raises(StoreError) as error:
            list_runs([tmp_path / name])
        assert str(error.value) == f"{tmp_path / name} {what}; expected a run's folder, or one in which runs lie"


def test_what_the_store_leaves_is_read(tmp_path):
    def work(folder: Path) -> str:
        (folder / "b.bin").write_bytes(bytes(50))
        return "50 bytes"

    with RunFolder(tmp_path / "run", "mine") as folder:
        folder.stage("sample", {}, work)
        with pytest.raises(RuntimeError):
            folder.stage("reward", {}, lambda partial: (_ for _ in ()).throw(RuntimeError("the power went")))
    (found,) = list_runs([tmp_path / "run"])
    assert [(s.name, s.state, s.what) for s in found.stages] == [
        ("sample", "done", "50 bytes"),
        ("reward", "unfinished", ""),
    ]
    assert found.stages[0].seconds is not None
    assert abs(found.when.timestamp() - (tmp_path / "run" / ".reward.partial").stat().st_mtime) < 1


def test_a_run_that_goes_on_is_running_until_its_process_ends(tmp_path):
    path = run_at(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            (found,) = list_runs([path])
            assert (found.state, [(s.name, s.state) for s in found.stages]) == ("running", [("align", "running")])
            assert list_runs([path]) == [found]  # looking does not end it
        finally:
            holder.kill()
            holder.wait()
    (found,) = list_runs([path])
    assert (found.state, [(s.name, s.state) for s in found.stages]) == ("unfinished", [("align", "unfinished")])


def test_looking_changes_nothing_and_keeps_nobody_out(run):
    before = snapshot(run)
    list_runs([run])
    assert snapshot(run) == before  # no lock file where there was none
    with RunFolder(run, "mine"):
        pass
    before = snapshot(run)
    list_runs([run])
    assert snapshot(run) == before
    with RunFolder(run, "mine"):
        pass


# Foreign and damaged folders


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", b"\xff\xfe", '{"what": 3, "files": {}}', '{"what": "", "files": []}', "[" * 100_000]
)
def test_a_damaged_manifest_is_a_damaged_stage(run, text):
    (run / "sft" / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (found,) = list_runs([run])
    (damaged,) = [s for s in found.stages if s.name == "sft"]
    assert (found.state, damaged.state, damaged.what, damaged.seconds) == (
        "damaged",
        "damaged",
        "manifest.json is damaged",
        None,
    )


def test_missing_files_are_named(run):
    (run / "sft" / "deep" / "a.bin").unlink()
    stage(run, "sample", 3, files={"b": "0", "a": "0", "x" * 999: "0", "a\0b": "0"})
    found = {s.name: (s.state, s.what) for s in list_runs([run])[0].stages}
    assert found["sft"] == ("damaged", "deep/a.bin missing")
    assert found["sample"] == ("damaged", "a and 3 more missing")


@pytest.mark.parametrize("seconds", [None, "61", True, float("nan"), float("inf"), -1, [61]])
def test_a_time_that_is_none_is_not_known(tmp_path, seconds):
    path = run_at(tmp_path / "run")
    stage(path, "sft", 1, seconds=seconds)
    (found,) = list_runs([path])
    assert (found.state, found.stages[0].state, found.stages[0].seconds) == (
        "done",
        "done",
        1.0 if seconds is True else None,
    )


@pytest.mark.parametrize("name", [None, 3, {"a": 1}])
def test_a_run_file_without_a_name_is_damaged_and_goes_by_its_folder(tmp_path, name):
    path = run_at(tmp_path / "run", name)
    (found,) = list_runs([path])
    assert (found.name, found.state, found.stages) == ("run", "damaged", ())


def test_foreign_files_and_links_do_no_harm(run, tmp_path):
    bytes_of_files = size(run)
    (run / "loop").symlink_to(run)
    (run / "gone").symlink_to(tmp_path / "nowhere")
    (run / ".hidden").mkdir()
    (run / ".hidden" / "manifest.json").write_text("{}")
    os.utime(run / ".evaluate.partial" / "rows.sqlite", (1e14, 1e14))  # later than any year that Python knows
    os.mkfifo(run / "pipe")  # reading it would wait for ever
    (found,) = list_runs([run])
    assert [s.name for s in found.stages] == ["sft", "align", "evaluate"]
    assert found.size == bytes_of_files + 2  # the hidden manifest


# On the terminal


def printed(runs, width=160) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=width < 100, color_system=None)
    runs_table(runs, console)
    return console.file.getvalue()


def test_the_table_says_it_in_units_that_people_read(run):
    (run / "align" / "big").write_bytes(bytes(2_500_000))
    (found,) = list_runs([run])
    rows = [line.split() for line in printed([found]).splitlines() if line.strip()]
    assert rows[0] == ["run", "state", "time", "size", "when", "what"]
    assert rows[2][:5] == ["mine", "unfinished", "1", "min", "04"]
    assert rows[2][-1] == str(run)
    when = found.stages[0].when.strftime("%Y-%m-%d %H:%M").split()
    assert rows[3] == [
        "sft",
        "done",
        "1",
        "min",
        "01",
        "s",
        str(size(run / "sft")),
        "bytes",
        *when,
        "sft",
        "was",
        "done",
    ]
    assert rows[4][:6] == ["align", "done", "2", "s", "2.5", "MB"]
    assert rows[5][:4] == ["evaluate", "unfinished", "1.0", "kB"]


def test_a_narrow_terminal_leaves_the_dates_out(run):
    rows = [line.split() for line in printed(list_runs([run]), width=80).splitlines() if line.strip()]
    assert rows[0] == ["run", "state", "time", "size", "what"]
    assert max(map(len, printed(list_runs([run]), width=80).splitlines())) <= 80


def test_names_and_words_of_others_are_inert(tmp_path):
    path = run_at(tmp_path / "run", "[red]\x1b[31m")
    stage(path, "[b]", 1, what="[/foo] \x1b[31m")
    text = printed(list_runs([path]))
    assert "[red]\\x1b[31m" in text
    assert "  [b]" in text
    assert "[/foo] \\x1b[31m" in text
    assert "\x1b" not in text


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "exoalign", "runs", *arguments], capture_output=True, text=True, cwd=cwd, timeout=60
    )


def test_the_command_prints_json_or_a_table(run, tmp_path):
    done = cli("--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(done.stdout)
    assert {key: found[key] for key in ("name", "folder", "state", "seconds", "bytes")} == {
        "name": "mine",
        "folder": "runs/one",
        "state": "unfinished",
        "seconds": 63.5,
        "bytes": size(run),
    }
    assert found["stages"][2]["bytes"] == 1000
    assert datetime.datetime.fromisoformat(found["stages"][0]["when"]).timestamp() == (
        (run / "sft" / "manifest.json").stat().st_mtime
    )
    assert "sft was done" in cli("runs/one", cwd=tmp_path).stdout


def test_no_runs_is_no_error(tmp_path):
    done = cli(cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no runs in runs\n")
    assert cli("--json", cwd=tmp_path).stdout == "[]\n"
    assert cli("nowhere", cwd=tmp_path).returncode == 2
