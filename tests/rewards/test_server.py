"""A reward server that answers, and all the ways in which one does not."""

import json
import socket
import threading
import time

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from exoalign.errors import RewardError
from exoalign.groups import Group, Message
from exoalign.rewards import server
from exoalign.rewards.server import ServerScorer

GROUPS = [
    Group("Say:", ("a", "bb", "ccc"), provenance={"source": "p:1"}),
    Group((Message("user", "Hi"),), ("dddd",), provenance={"source": "p:2"}),
    Group("B", ("", "ee"), provenance={"source": "p:3"}),
]
LENGTHS = [(1.0, 2.0, 3.0), (4.0,), (0.0, 2.0)]


def lengths(request: Request) -> Response:
    texts = request.get_json()["completions"]
    return Response(json.dumps({"rewards": [len(text) for text in texts]}), content_type="application/json")


@pytest.fixture
def asked(monkeypatch):
    """The pauses that were made, none of them waited for."""
    pauses = []
    monkeypatch.setattr(server, "_paused", lambda seconds, ended: pauses.append(seconds))
    return pauses


@pytest.fixture
def threaded():
    """A server that answers several requests at a time."""
    with HTTPServer(threaded=True) as running:
        yield running


def scorer(httpserver, **settings):
    return ServerScorer(httpserver.url_for("/score"), **{"concurrency": 1, "retries": 2, **settings})


def test_every_completion_gets_its_number_in_order(threaded):
    bodies = []

    def handler(request):
        bodies.append(request.get_json())
        time.sleep(0.05 if len(bodies) == 1 else 0)  # the first answer comes last
        return lengths(request)

    threaded.expect_request("/score", method="POST").respond_with_handler(handler)
    assert scorer(threaded, batch_size=4, concurrency=3)(GROUPS) == LENGTHS
    assert sorted(bodies, key=lambda body: len(body["prompts"])) == [
        {"prompts": ["B", "B"], "completions": ["", "ee"]},
        {"prompts": ["Say:", "Say:", "Say:", "Hi"], "completions": ["a", "bb", "ccc", "dddd"]},
    ]
    assert scorer(threaded)([]) == []


def test_no_more_requests_are_under_way_than_asked_for(threaded):
    now, most, lock = [0], [0], threading.Lock()

    def handler(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return lengths(request)

    threaded.expect_request("/score").respond_with_handler(handler)
    assert scorer(threaded, batch_size=1, concurrency=2)(GROUPS) == LENGTHS
    assert most[0] == 2


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (Response("busy", 429, {"Retry-After": "7"}), 7.0),
        (Response("busy", 429, {"Retry-After": "Fri, 01 Jan 2021 00:00:00 GMT"}), 0.5),  # long ago
        (Response("busy", 429, {"Retry-After": "soon"}), 0.5),
        (Response("<html>oh no</html>", 500, content_type="text/html"), 0.5),
        (Response("", 503), 0.5),
        (Response("", 408), 0.5),
    ],
)
def test_what_fails_for_a_time_is_asked_again(httpserver, asked, answer, pause):
    httpserver.expect_ordered_request("/score").respond_with_response(answer)
    httpserver.expect_ordered_request("/score").respond_with_handler(lengths)
    assert scorer(httpserver)(GROUPS) == LENGTHS
    assert asked == [pause]


def test_attempts_are_bounded_and_pauses_double(httpserver, asked):
    httpserver.expect_request("/score").respond_with_data("<html>down</html>", 502, content_type="text/html")
    with pytest.raises(
        RewardError, match=r"answered 502 \(text/html: '<html>down</html>'\), after 4 attempts.* p:1, comp"
    ):
        scorer(httpserver, retries=3)(GROUPS)
    assert asked == [0.5, 1.0, 2.0]
    assert len(httpserver.log) == 4


def test_a_pause_that_is_too_long_ends_it(httpserver, asked):
    httpserver.expect_request("/score").respond_with_data("", 429, {"Retry-After": "3600"})
    with pytest.raises(RewardError, match=r"answered 429 .*it asks to wait 3600 s, more than the 60 s"):
        scorer(httpserver)(GROUPS)
    assert len(httpserver.log) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
def test_what_will_not_mend_itself_ends_it_at_once(httpserver, asked, status):
    httpserver.expect_request("/score").respond_with_data("no such key", status)
    with pytest.raises(RewardError, match=f"answered {status} .*'no such key'.*what is scored is kept"):
        scorer(httpserver)(GROUPS)
    assert len(httpserver.log) == 1
    assert asked == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<!DOCTYPE html><p>Log in", "answered 200 .*'<!DOCTYPE html><p>Log in'.*which is no JSON"),
        ("", "which is no JSON"),
        ("[1, 2, 3, 4, 0, 2]", r'expected \{"rewards": \[\.\.\.\]\}'),
        ('{"reward": 1}', r'expected \{"rewards"'),
        ('{"rewards": "6"}', r'expected \{"rewards"'),
        ('{"rewards": [1, 2, 3]}', "answered 3 rewards for 6 completions"),
        ('{"rewards": [1, 2, 3, NaN, 0, 2]}', "the reward at p:2, completion 1 is NaN; expected a finite number"),
        ('{"rewards": [1, 2, 3, null, 0, 2]}', "the reward at p:2, completion 1 is null"),
        ('{"rewards": [1, "2", 3, 4, 0, 2]}', 'the reward at p:1, completion 2 is "2"'),
        ('{"rewards": [1, true, 3, 4, 0, 2]}', "the reward at p:1, completion 2 is true"),
    ],
)
def test_an_answer_that_is_no_reward_is_told(httpserver, asked, body, message):
    httpserver.expect_request("/score").respond_with_data(body)
    with pytest.raises(RewardError, match=message):
        scorer(httpserver)(GROUPS)
    assert asked == []


def test_a_late_answer_is_asked_for_again(httpserver, asked):
    def late(request):
        time.sleep(0.5)
        return lengths(request)

    httpserver.expect_ordered_request("/score").respond_with_handler(late)
    with pytest.raises(RewardError, match=r"no answer within 0\.1 s, after 1 attempts"):
        scorer(httpserver, timeout=0.1, retries=0)(GROUPS)


def test_a_connection_that_breaks_is_told(asked):
    """A server that takes the connection and resets it."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken = []

    def reset():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.close()

    thread = threading.Thread(target=reset)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/score?key=hunter2"
    try:
        with pytest.raises(RewardError, match=r"Error: .*, after 3 attempts; the request began at p:1") as error:
            ServerScorer(url, concurrency=1, retries=2)(GROUPS)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    assert len(taken) == 3
    assert "hunter2" not in str(error.value)


def test_after_an_error_no_request_waits_any_longer(threaded):
    def handler(request):
        if "a" in request.get_json()["completions"]:
            time.sleep(0.2)
            return Response("bad", 400)
        return Response("busy", 429, {"Retry-After": "30"})

    threaded.expect_request("/score").respond_with_handler(handler)
    began = time.monotonic()
    with pytest.raises(RewardError, match="answered 400"):
        scorer(threaded, batch_size=1, concurrency=3)(GROUPS)
    assert time.monotonic() - began < 10
