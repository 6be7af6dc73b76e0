"""`exoalign judge` against a real server of the OpenAI protocol: `transformers serve`, started and stopped here."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoalign import cli
from exoalign.data.table import read_table

TRANSFORMERS = Path(sys.executable).parent / "transformers"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """The URL of a server of the model in the folder, which is stopped at the end."""
    port = free_port()
    command = [TRANSFORMERS, "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as out, subprocess.Popen(list(map(str, command)), stdout=out, stderr=out) as server:
        try:
            deadline = time.monotonic() + 180
            while server.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                time.sleep(0.5)
            else:
                pytest.fail(f"the server did not come up:\n{log.read_text()[-2000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture
def judged(tmp_path, monkeypatch, capsys):
    """Has the model in a folder judge some pairs: metrics, the groups and the server's URL."""
    if not TRANSFORMERS.exists() or shutil.which(str(TRANSFORMERS)) is None:
        pytest.skip("transformers' command line is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    questions = ["How do I boil an egg?", "What is the capital of France?", "Name a colour."]
    good = ["Put it into boiling water for eight minutes.", "The capital of France is Paris.", "Blue is a colour."]
    rows = [
        {"prompt": [{"role": "user", "content": q}], "chosen": g, "rejected": "xyz xyz xyz"}
        for q, g in zip(questions, good, strict=True)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(folder: Path, *options: str) -> dict:
        with serving(folder, tmp_path / "server.log") as url:
            arguments = ["--data", "pairs.jsonl", "--url", url, "--judge-model", str(folder), "--out", "judged"]
            monkeypatch.setattr(sys, "argv", ["exoalign", "judge", *arguments, "--json", *options])
            with pytest.raises(SystemExit) as stop:
                cli.main()
        found = capsys.readouterr()
        assert stop.value.code == 0, found.err
        return json.loads(found.out)

    return run


def test_a_model_without_sense_gives_no_verdicts(judged, tiny_folder, tmp_path):
    """Random weights answer random bytes: each is stored, none is taken for a verdict."""
    metrics = judged(tiny_folder, "--control", "1", "--concurrency", "1")
    assert metrics["calls"] == metrics["questions"] == 3 * 2 + 2 * 2
    assert metrics["outcomes"]["invalid"] == 3
    assert metrics["completion_tokens"] > 0
    lines = (tmp_path / "judged" / "judge" / "verdicts.jsonl").read_text().splitlines()
    assert len(lines) == 10
    assert all(json.loads(line)["verdict"] is None for line in lines)
    assert read_table(tmp_path / "judged" / "judge" / "groups.parquet") == []


@pytest.mark.slow
def test_a_real_model_judges(judged, tmp_path):
    """SmolLM2-135M is a poor judge, and what it says is counted: verdicts in both orders, contradictions, and the control."""
    from exoalign.demo_model import demo_model

    os.environ.setdefault("OMP_NUM_THREADS", "2")
    metrics = judged(Path(demo_model()), "--control", "3", "--prompt", "instruction")
    outcomes = metrics["outcomes"]
    assert sum(outcomes.values()) == 3
    assert metrics["control"]["empty"]["win_rate"] is None or 0 <= metrics["control"]["empty"]["win_rate"]["mean"] <= 1
    answers = [json.loads(x) for x in (tmp_path / "judged" / "judge" / "verdicts.jsonl").read_text().splitlines()]
    assert all(answer["answer"]["text"] for answer in answers)
    assert (tmp_path / "judged" / "judge" / "summary.json").is_file()
