"""`exoalign judge`, whole: against a server that answers as it is told; killed, short of budget, and with a key to keep."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from judge_server import completion, prefers_good, question
from pytest_httpserver import HTTPServer
from werkzeug import Response

from exoalign import cli
from exoalign.config_judge import JudgeSection
from exoalign.data.table import read_table, write_table
from exoalign.errors import JudgeError
from exoalign.groups import Group
from exoalign.stages_judge import judge, judging

CANARY = "sk-canary-3f9a7c51"
PATH = "/v1/chat/completions"


@pytest.fixture
def exoalign(monkeypatch, capsys):
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["exoalign", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def pairs(tmp_path):
    """Six prompts, of which the winner says `good`."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def arguments(httpserver, pairs, tmp_path):
    url = httpserver.url_for("/v1")
    return ["judge", "--data", pairs, "--url", url, "--judge-model", "m", "--out", tmp_path / "judged", "--control", 2]


def contents(folder):
    """All that a later stage or a user reads."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ("timing.json", "manifest.json")}


def test_pairs_become_winners_with_numbers(exoalign, httpserver, arguments, tmp_path):
    httpserver.expect_request(PATH).respond_with_handler(prefers_good)
    code, said, err = exoalign(*arguments, "--json", "--concurrency", 1)  # in order
    assert code == 0, err
    found = json.loads(said)
    assert found["agreement"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["first_place"]["mean"] == 0.5
    assert found["outcomes"] == {"left": 6, "right": 0, "tie": 0, "inconsistent": 0, "invalid": 0}
    assert found["calls"] == found["questions"] == len(httpserver.log) == 6 * 2 + 2 * 2 * 2  # both orders; two controls
    assert found["control"]["empty"]["win_rate"]["mean"] == 0.0
    assert (found["prompt_tokens"], found["completion_tokens"]) == (200, 40)
    assert found["warnings"] == []
    folder = tmp_path / "judged" / "judge"
    assert [group.winner for group in read_table(folder / "groups.parquet")] == [0] * 6
    lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    assert lines[1]["question"] == question(httpserver.log[1][0])
    assert lines[1] | {"question": ""} == {
        "where": f"{arguments[2]}:1",
        "group": 0,
        "completions": [0, 1],
        "control": None,
        "outcome": "left",
        "order": 1,
        "verdict": "second",
        "invalid": None,
        "answer": {
            "text": "Verdict: B",
            "finish": "stop",
            "refusal": None,
            "prompt_tokens": 10,
            "completion_tokens": 2,
        },
        "question": "",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert {"label": "invalid", "value": 0.0, "note": "answers that are no verdict; left out"} in summary["numbers"]
    assert exoalign(*arguments)[0] == 0
    assert len(httpserver.log) == 20  # done before


def test_the_win_rate_of_one_file_against_another(exoalign, httpserver, arguments, tmp_path):
    httpserver.expect_request(PATH).respond_with_handler(prefers_good)
    ours = [Group(f"q{i}", ("good 1", "dull" if i < 3 else "good 2")) for i in range(4)]
    theirs = [Group(f"q{i}", ("plain", "dull")) for i in range(4)]
    for name, groups in (("ours", ours), ("theirs", theirs)):
        write_table(groups, tmp_path / f"{name}.parquet")
    arguments[2] = tmp_path / "ours.parquet"
    code, said, err = exoalign(*arguments, "--against", tmp_path / "theirs.parquet")
    assert code == 0, err
    # three prompts of one win and one pair of equal texts, one of two wins: (3 * 0.75 + 1) / 4
    assert "win rate" in said
    metrics = json.loads((tmp_path / "judged" / "judge" / "metrics.json").read_text())
    assert metrics["win_rate"]["mean"] == (3 * 0.75 + 1) / 4
    groups = read_table(tmp_path / "judged" / "judge" / "groups.parquet")
    assert [(g.completions, g.winner) for g in groups] == [(("good 1", "plain"), 0)] * 4 + [(("good 2", "dull"), 0)]


def test_nonsense_and_contradictions_are_counted_and_never_ties(exoalign, httpserver, arguments):
    def handler(request):
        text = question(request)
        return completion(
            "Verdict: A" if "question 0" in text else "What a lovely day." if "question 1" in text else ""
        )

    httpserver.expect_request(PATH).respond_with_handler(handler)
    code, said, _ = exoalign(*arguments, "--json")
    found = json.loads(said)
    assert code == 0
    assert found["outcomes"] == {"left": 0, "right": 0, "tie": 0, "inconsistent": 1, "invalid": 5}
    assert found["invalid_answers"] == {"empty": 8, "no verdict in it": 2}
    assert found["left_out"] == {"inconsistent": 1, "invalid": 5}
    assert found["groups"] == 0
    assert found["warnings"][0].startswith(
        "83% of the verdicts are invalid and left out (answers: 8 empty, 2 no verdict"
    )


def test_scores_become_rewards(exoalign, httpserver, arguments, tmp_path):
    def handler(request):
        text = question(request)
        return completion("Score: 9" if "good" in text.split("The reply:")[1].split("end]")[0] else "3/10")

    httpserver.expect_request(PATH).respond_with_handler(handler)
    code, said, err = exoalign(*arguments, "--kind", "pointwise", "--json")
    assert code == 0, err
    assert json.loads(said)["score"]["mean"] == 6.0
    assert json.loads(said)["control"]["injection"]["win_rate"]["mean"] == 0.0
    groups = read_table(tmp_path / "judged" / "judge" / "groups.parquet")
    assert [(group.rewards, group.winner) for group in groups] == [((9.0, 3.0), None)] * 6


def test_a_judge_that_obeys_the_reply_is_found_out(exoalign, httpserver, arguments):
    def handler(request):
        text = question(request)
        return completion(
            "Verdict: A" if "choose this one" in text.split("Reply B:")[0].split("Reply A:")[1] else "Verdict: B"
        )

    httpserver.expect_request(PATH).respond_with_handler(handler)
    _, said, _ = exoalign(*arguments, "--json")
    found = json.loads(said)
    assert found["control"]["injection"]["win_rate"]["mean"] == 1.0
    assert any("a constant reply (injection) wins 100%" in warning for warning in found["warnings"])


def test_a_spent_budget_is_an_error_and_the_next_run_goes_on(exoalign, httpserver, arguments):
    httpserver.expect_request(PATH).respond_with_handler(prefers_good)
    code, said, err = exoalign(*arguments, "--max-calls", 15)
    assert (code, said) == (2, "")
    assert "error: the budget is spent: 15 questions were asked" in err
    assert "5 are left" in err
    code, _, err = exoalign(*arguments, "--max-calls", 15)
    assert code == 0
    assert "20 questions to m, 15 of them answered already" in err
    assert len(httpserver.log) == 20


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--kind", "triplewise"), "--kind: `kind` is 'triplewise'; expected 'pairwise' or 'pointwise'"),
        (("--max-calls", "0"), "--max-calls: `max_calls` is 0; input should be greater than or equal to 1"),
        (("--kind", "pointwise", "--write", "pairs"), "`write` has no effect with pointwise scores"),
        (("--kind", "pointwise", "--against", "pairs.jsonl"), "leave the second file out"),
        (("--prompt", "poetry"), "judge.prompt is 'poetry'"),
        (("--api-key-env", CANARY), "never the key itself"),
    ],
)
def test_wrong_options_are_told(exoalign, arguments, monkeypatch, pairs, option, message):
    monkeypatch.chdir(pairs.parent)
    code, said, err = exoalign(*arguments, *option)
    assert (code, said) == (2, "")
    assert message in err
    assert CANARY not in err


def test_another_run_asks_only_what_is_new(exoalign, httpserver, arguments, tmp_path):
    httpserver.expect_request(PATH).respond_with_handler(prefers_good)
    assert exoalign(*arguments)[0] == 0
    arguments[arguments.index("--out") + 1] = tmp_path / "again"
    assert exoalign(*arguments)[0] == 0
    assert len(httpserver.log) == 20
    assert exoalign(*arguments, "--max-tokens", 8, "--redo")[0] == 0  # another question
    assert len(httpserver.log) == 40


# Killed.


@pytest.fixture
def server():
    """A server of many threads, so that a request can be held."""
    with HTTPServer(threaded=True) as one:
        yield one


def start(arguments, server, out, *more) -> subprocess.Popen:
    command = [sys.executable, "-m", "exoalign", *map(str, arguments), *map(str, more)]
    command[command.index("--url") + 1] = server.url_for("/v1")
    command[command.index("--out") + 1] = str(out)
    own = os.environ | {"EXOALIGN_CACHE": f"{out}_cache"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own)


def test_after_a_kill_no_call_is_made_twice(server, arguments, tmp_path):
    """With one question at a time only the one that was under way, which the server did not answer, is asked again."""
    asked, held, go = [], threading.Event(), threading.Event()

    def handler(request):
        asked.append(question(request))
        if len(asked) == 8:
            held.set()
            go.wait(30)
        return prefers_good(request)

    server.expect_request(PATH).respond_with_handler(handler)
    process = start(arguments, server, tmp_path / "killed", "--concurrency", 1)
    assert held.wait(60), process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    go.set()
    again = start(arguments, server, tmp_path / "killed", "--concurrency", 1)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "20 questions to m, 7 of them answered already" in err
    assert len(asked) == 21
    assert asked[7] == asked[8]
    assert len(set(asked)) == 20


def test_killed_at_random_moments_it_ends_with_the_same_files(server, arguments, tmp_path):
    count, waited = [], random.Random(0)
    server.expect_request(PATH).respond_with_handler(
        lambda request: (count.append(1), time.sleep(0.05), prefers_good(request))[2]
    )
    assert start(arguments, server, tmp_path / "whole").wait(60) == 0
    assert len(count) == 20
    for _ in range(4):
        before = len(count)
        process = start(arguments, server, tmp_path / "killed", "--concurrency", 2)
        while len(count) == before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(waited.random() * 0.1)
        process.kill()
        process.communicate()
    assert start(arguments, server, tmp_path / "killed").wait(60) == 0
    assert 20 + 20 <= len(count) <= 20 + 20 + 4 * 2  # at most those that were under way are asked again
    assert contents(tmp_path / "killed" / "judge") == contents(tmp_path / "whole" / "judge")


def test_the_order_in_which_answers_come_changes_nothing(server, pairs, tmp_path):
    draw = random.Random(1)
    server.expect_request(PATH).respond_with_handler(
        lambda request: (time.sleep(draw.random() / 50), prefers_good(request))[1]
    )
    groups = [Group(f"q{i}", ("good 1", "bad", "ugly")) for i in range(4)]
    found = []
    for concurrency in (1, 8):
        section = JudgeSection(url=server.url_for("/v1"), model="m", concurrency=concurrency, write="rewards")
        folder = tmp_path / str(concurrency)
        folder.mkdir()
        judge(judging(section, groups), folder, show=False)
        found.append({p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("rows.")})
    assert found[0] == found[1]
    assert [group.rewards for group in read_table(folder / "groups.parquet")] == [(1.0, 0.25, 0.25)] * 4


# The key appears nowhere.

ECHO = {"error": {"message": f"Incorrect API key provided: {CANARY} in Bearer {CANARY}"}}
ERRORS = {
    "401": Response(json.dumps(ECHO), status=401, content_type="application/json"),
    "400": Response(f"bad request from {CANARY}", status=400),
    "404": Response(f"<p>{CANARY}</p>", status=404, content_type="text/html"),
    "429": Response(json.dumps(ECHO), status=429, headers={"Retry-After": "0.01"}),
    "500": Response(CANARY, status=500),
    "html": Response(f"<html>{CANARY}</html>", content_type="text/html"),
    "error in 200": Response(json.dumps(ECHO), content_type="application/json"),
    "answer": completion(f"Your key is {CANARY}"),
    "refusal": completion(None, refusal=f"Not with {CANARY}", finish=CANARY),
}


@pytest.mark.parametrize("name", [*ERRORS, "time-out", "reset"])
def test_a_key_appears_nowhere(name, httpserver, arguments, tmp_path):
    """Everything that is logged, said, raised or written, in a process of its own with all logs of all libraries on."""

    def handler(request):
        assert request.headers["Authorization"] == f"Bearer {CANARY}"
        if name == "time-out":
            time.sleep(0.3)
        return ERRORS.get(name, completion("A"))

    httpserver.expect_request(PATH).respond_with_handler(handler)
    if name == "reset":
        arguments[4] = "http://127.0.0.1:9/v1"
    log, out = tmp_path / "all.log", tmp_path / "judged"
    code = (
        f"import logging, sys; logging.basicConfig(filename={str(log)!r}, level=1); from exoalign import cli;"
        " sys.argv[0] = 'exoalign'; cli.main()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments), "--retries", "1", "--timeout", "0.2"]
    environment = os.environ | {"OPENAI_API_KEY": CANARY, "OPENAI_LOG": "debug", "HTTPX_LOG_LEVEL": "trace"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == (0 if name in ("answer", "refusal") else 2), done.stderr
    assert len(httpserver.log) > (-1 if name == "reset" else 0)
    httpserver.check_assertions()
    assert CANARY not in done.stdout
    assert CANARY not in done.stderr
    assert ("***" in done.stderr) == (name in ERRORS and name not in ("answer", "refusal"))
    cache = Path(os.environ["EXOALIGN_CACHE"])
    files = [path for path in (log, *out.rglob("*"), *cache.rglob("*")) if path.is_file()]
    assert log.stat().st_size > 1000
    assert any(path.name.startswith("answers.sqlite") or path.name == "verdicts.jsonl" for path in files)
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", ["401", "400", "500", "html", "error in 200"])
def test_a_traceback_holds_no_key(name, httpserver, monkeypatch, tmp_path):
    """Of whoever uses the library: with all that is chained to the error, and the locals of its frames."""
    import traceback

    from exoalign.rewards.judge import Judge, Question

    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    httpserver.expect_request(PATH).respond_with_response(ERRORS[name])
    section = JudgeSection(url=httpserver.url_for("/v1"), model="m", retries=0)
    with pytest.raises(JudgeError) as raised:
        Judge(section, tmp_path / "rows.sqlite").ask([Question("q", "w")])
    assert raised.value.__context__ is raised.value.__cause__ is None
    told = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
    assert "***" in str(raised.value)
    assert CANARY not in told


# Its page.

PAGE = (Path(__file__).parents[1] / "docs" / "judge.md").read_text()


@pytest.mark.parametrize("command", re.findall(r"^exoalign judge .*$", PAGE, re.MULTILINE))
def test_the_commands_of_its_page_run(command, exoalign, httpserver, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = prefers_good if "pointwise" not in command else lambda request: completion("Score: 7")
    httpserver.expect_request(PATH).respond_with_handler(handler)
    for name, text in (("groups", "good 1"), ("aligned", "good 2"), ("base", "plain")):
        write_table([Group(f"q{i}", (text, "dull")) for i in range(2)], tmp_path / f"{name}.parquet")
    code, said, err = exoalign(*shlex.split(command.replace("http://localhost:8000", httpserver.url_for("")))[1:])
    assert code == 0, err
    assert "verdicts.jsonl" in said
