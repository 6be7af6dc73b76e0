"""`exoalign judge`, whole: a server that answers as it is told, and what lies in the folder afterwards."""

import json
import sys

import pytest
from werkzeug import Request, Response

from exoalign import cli
from exoalign.data.table import read_table

CANARY = "sk-canary-3f9a7c51"


def completion(text: str, **more) -> Response:
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    return Response(json.dumps(body | more), content_type="application/json")


@pytest.fixture
def exoalign(monkeypatch, capsys):
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
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


def prefers_good(request: Request) -> Response:
    """A judge of sense: the reply that says `good`, wherever it stands; a tie where none does."""
    text = request.json["messages"][0]["content"]
    good, reply_b = text.find("good "), text.find("Reply B:")
    return completion("Verdict: tie" if good < 0 else "Verdict: A" if good < reply_b else "Verdict: B")


def test_pairs_become_winners_with_a_win_rate(exoalign, httpserver, pairs, tmp_path):
    httpserver.expect_request("/v1/chat/completions").respond_with_handler(prefers_good)
    out = tmp_path / "judged"
    arguments = ["judge", "--data", pairs, "--url", httpserver.url_for("/v1"), "--judge-model", "m", "--out", out]
    code, said, err = exoalign(*arguments, "--json", "--control", 2)
    assert code == 0, err
    found = json.loads(said)
    assert found["agreement"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["first_place"]["mean"] == 0.5
    assert found["outcomes"] == {"left": 6, "right": 0, "tie": 0, "inconsistent": 0, "invalid": 0}
    assert found["calls"] == 6 * 2 + 2 * 2 * 2  # both orders; two constant replies, two prompts, both orders
    assert len(httpserver.log) == found["calls"]
    assert [group.winner for group in read_table(out / "judge" / "groups.parquet")] == [0] * 6
