"""A judge that is down, slow, wrong or contradicts itself: what is asked again, what fails at once, what is kept."""

import email.utils
import json
import socket
import threading
import time

import pytest
from judge_server import completion, question
from pytest_httpserver import HTTPServer
from werkzeug import Response

from exoalign.config_judge import JudgeSection
from exoalign.errors import ConfigError, JudgeError, StoreError
from exoalign.rewards.judge import Judge, Question
from exoalign.rewards.judge_client import Answer, JudgeClient

PATH = "/v1/chat/completions"
QUESTIONS = [Question(f"question {i}", f"data.jsonl:{i + 1}") for i in range(6)]


@pytest.fixture
def section(httpserver):
    def make(**settings) -> JudgeSection:
        return JudgeSection(**{"url": httpserver.url_for("/v1"), "model": "m", "retries": 1, **settings})

    return make


@pytest.fixture
def judge(section, tmp_path):
    return lambda **settings: Judge(section(**settings), tmp_path / "rows.sqlite")


def once(httpserver, *responses):
    """The server gives these answers, one after another, and then says that A is better."""
    waiting = list(responses)

    def handler(request):
        found = waiting.pop(0) if waiting else completion("Verdict: A")
        return found() if callable(found) and not isinstance(found, Response) else found

    httpserver.expect_request(PATH).respond_with_handler(handler)


def test_what_is_sent(httpserver, judge):
    once(httpserver)
    assert judge(max_tokens=5).ask(QUESTIONS[:1]) == [Answer("Verdict: A", "stop", None, 10, 2)]
    (request, _) = httpserver.log[0]
    assert request.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "question 0"}],
        "temperature": 0,
        "max_tokens": 5,
    }


def test_identical_questions_are_asked_once_and_answers_come_in_order(httpserver, judge):
    httpserver.expect_request(PATH).respond_with_handler(lambda request: completion(question(request)))
    asked = [QUESTIONS[i] for i in (2, 0, 2, 1, 0)]
    assert [answer.text for answer in judge(concurrency=3).ask(asked)] == [q.text for q in asked]
    assert len(httpserver.log) == 3
    assert [a.text for a in judge().ask(asked)] == [q.text for q in asked]  # of another process, as it were
    assert len(httpserver.log) == 3


@pytest.mark.parametrize("change", [{"model": "n"}, {"max_tokens": 17}])
def test_other_settings_are_other_questions(httpserver, judge, change):
    once(httpserver)
    judge().ask(QUESTIONS[:1])
    judge(**change).ask(QUESTIONS[:1])
    assert len(httpserver.log) == 2


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_waited_for(httpserver, judge, date):
    # a date has whole seconds: two seconds from now are more than one away
    after = email.utils.formatdate(time.time() + 2, usegmt=True) if date else "1"
    once(httpserver, Response("slow down", status=429, headers={"Retry-After": after}))
    began = time.monotonic()
    assert judge().ask(QUESTIONS[:1])[0].text == "Verdict: A"
    assert 0.9 < time.monotonic() - began < 5  # the client's own first pause is 0.5 s at most
    assert len(httpserver.log) == 2


HTML = Response("<html><body>Sign in</body></html>", content_type="text/html")
WRONG = Response(json.dumps({"error": {"message": "upstream is away"}}), content_type="application/json")


@pytest.mark.parametrize("broken", [Response("oops", status=500), Response("busy", status=503), HTML, WRONG])
def test_a_failure_that_passes_is_asked_again(httpserver, judge, broken):
    once(httpserver, broken)
    assert judge().ask(QUESTIONS[:1])[0].text == "Verdict: A"
    assert len(httpserver.log) == 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            Response("<h1>oops</h1>", status=500),
            r"fails with status 500: <h1>oops</h1>; try again later\. At most 2 tries",
        ),
        (Response("slow down", status=429), r"fails with status 429: slow down; it limits the rate"),
        (HTML, r"something else than a completion \(<html><body>Sign in</body></html>\); check judge\.url"),
        (WRONG, r"something else than a completion \(.*upstream is away"),
        (Response("", content_type="application/json"), r"something else than a completion \(an empty body\)"),
        (
            Response('{"choices": [', content_type="application/json"),
            r"something else than a completion \(\{\"choices\": \[",
        ),
    ],
)
def test_tries_are_bounded(httpserver, judge, broken, message):
    httpserver.expect_request(PATH).respond_with_response(broken)
    with pytest.raises(JudgeError, match=message):
        judge().ask(QUESTIONS[:1])
    assert len(httpserver.log) == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"status 401: not so; check the key in the environment variable OPENAI_API_KEY"),
        (403, r"status 403: not so; check the key"),
        (404, r"status 404: not so; check judge\.url, which as a rule ends in /v1, and judge\.model"),
        (400, r"status 400: not so; the question was on data\.jsonl:1"),
        (422, r"status 422: not so; the question was on data\.jsonl:1"),
    ],
)
def test_what_will_not_pass_fails_at_once(httpserver, judge, status, message):
    body = json.dumps({"error": {"message": "not so"}})
    httpserver.expect_request(PATH).respond_with_response(
        Response(body, status=status, content_type="application/json")
    )
    with pytest.raises(JudgeError, match=message):
        judge(retries=5, concurrency=1).ask(QUESTIONS)
    assert len(httpserver.log) == 1


def test_a_time_out_is_told(httpserver, judge):
    once(httpserver, *[lambda: time.sleep(0.6) or completion("late")] * 2)
    with pytest.raises(JudgeError, match=r"gave no answer within 0\.2 s; raise judge\.timeout"):
        judge(timeout=0.2).ask(QUESTIONS[:1])


def test_a_time_out_that_passes_is_asked_again(judge):
    answered, asked = threading.Event(), []

    def handler(request):
        asked.append(request)
        if len(asked) == 1:
            answered.wait(30)
            return completion("late")
        return completion("Verdict: A")

    with HTTPServer(threaded=True) as server:
        server.expect_request(PATH).respond_with_handler(handler)
        assert judge(url=server.url_for("/v1"), timeout=2.0).ask(QUESTIONS[:1])[0].text == "Verdict: A"
        answered.set()
    assert len(asked) == 2


@pytest.fixture
def resets():
    """A port that accepts connections and resets them; how many."""
    listening = socket.create_server(("127.0.0.1", 0))
    count = []

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.recv(100)
            count.append(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield listening.getsockname()[1], count
    listening.close()


def test_a_reset_is_tried_again_and_then_told(judge, resets):
    port, count = resets
    with pytest.raises(
        JudgeError, match=rf"the judge at http://127\.0\.0\.1:{port}/v1 cannot be reached: .*start it, or check"
    ):
        judge(url=f"http://127.0.0.1:{port}/v1", retries=2).ask(QUESTIONS[:1])
    assert len(count) == 3


def test_no_server_is_told(judge):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(JudgeError, match=r"cannot be reached: .*start it, or check judge\.url"):
        judge(url=f"http://127.0.0.1:{port}").ask(QUESTIONS[:1])


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (completion("", choices=[]), Answer(None, prompt_tokens=10, completion_tokens=2)),
        (completion("", choices=[{"message": None}]), Answer(None, prompt_tokens=10, completion_tokens=2)),
        (completion(None, refusal="No."), Answer(None, "stop", "No.", 10, 2)),
        (completion(7, usage=None), Answer(None, "stop")),
    ],
)
def test_an_answer_without_words_is_kept_as_it_is(httpserver, judge, response, answer):
    once(httpserver, response)
    assert judge().ask(QUESTIONS[:1]) == [answer]
    assert judge().ask(QUESTIONS[:1]) == [answer]
    assert len(httpserver.log) == 1


def test_a_content_filter_is_a_refusal(httpserver, judge):
    body = json.dumps({"error": {"code": "content_filter", "message": "filtered"}})
    once(httpserver, Response(body, status=400, content_type="application/json"))
    assert judge().ask(QUESTIONS[:1])[0].finish == "content_filter"


def test_the_budget_ends_it_and_what_is_finished_is_kept(httpserver, judge):
    once(httpserver)
    with pytest.raises(
        JudgeError, match=r"budget is spent: 4 questions were asked .*--max-calls\), 2 are left.*run it again"
    ):
        judge(max_calls=4).ask(QUESTIONS)
    assert len(httpserver.log) == 4
    assert len(judge(max_calls=4).ask(QUESTIONS)) == 6  # the second run pays for what was left
    assert len(httpserver.log) == 6


def test_at_most_so_many_are_under_way(judge):
    lock, now, most = threading.Lock(), [0], [0]

    def handler(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return completion("A")

    with HTTPServer(threaded=True) as server:
        server.expect_request(PATH).respond_with_handler(handler)
        judge(url=server.url_for("/v1"), concurrency=3).ask(QUESTIONS)
    assert most[0] == 3


def test_what_is_under_way_when_one_fails_is_kept(judge):
    failed = threading.Event()

    def handler(request):
        if question(request) == "question 0":
            failed.set()
            return Response("no", status=400)
        failed.wait(30)
        time.sleep(0.5)  # until the failure has come
        return completion("A")

    with HTTPServer(threaded=True) as server:
        server.expect_request(PATH).respond_with_handler(handler)
        url = server.url_for("/v1")
        with pytest.raises(JudgeError, match="400"):
            judge(url=url, concurrency=3).ask(QUESTIONS)
        assert len(server.log) == 3
        missing = judge(url=url).missing(QUESTIONS)
    assert {q.text for q in missing} == {"question 0", "question 3", "question 4", "question 5"}


def test_an_interrupt_keeps_what_is_under_way(httpserver, judge, monkeypatch):
    httpserver.expect_request(PATH).respond_with_handler(lambda request: time.sleep(0.2) or completion("A"))
    from exoalign.rewards import judge as module

    real, calls = module.wait, []

    def interrupted(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge(concurrency=2).ask(QUESTIONS)
    assert len(httpserver.log) == 2
    assert len(judge().missing(QUESTIONS)) == 4


def test_answers_that_cannot_be_kept_end_it(httpserver, judge, tmp_path):
    once(httpserver)
    (tmp_path / "rows.sqlite").write_bytes(b"no database " * 100)
    with pytest.raises(StoreError, match="not a database"):
        judge().ask(QUESTIONS)
    assert httpserver.log == []


# The key.


def test_a_local_server_needs_no_key(httpserver, judge, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    once(httpserver)
    judge().ask(QUESTIONS[:1])
    assert httpserver.log[0][0].headers["Authorization"] == "Bearer none"


def test_the_key_comes_from_the_variable_that_is_named(httpserver, judge, monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-mine\n")
    once(httpserver)
    judge(api_key_env="MY_KEY").ask(QUESTIONS[:1])
    assert httpserver.log[0][0].headers["Authorization"] == "Bearer sk-mine"


def test_a_variable_that_is_named_must_be_set(judge, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"judge\.api_key_env: the environment variable MY_KEY is not set"):
        judge(api_key_env="MY_KEY")


def test_a_key_with_a_line_end_in_it_is_not_shown(judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters that no key has") as raised:
        judge()
    assert "sk-" not in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:x/v1"])
def test_an_address_that_is_none_is_told(section, url):
    with pytest.raises(ValueError, match="expected the address of a server, such as http://localhost:8000/v1"):
        section(url=url)


@pytest.mark.parametrize("url", ["http://me:sk-canary@host/v1", "http://host/v1?key=sk-canary"])
def test_secrets_in_the_address_are_refused_and_not_shown(section, url):
    with pytest.raises(ValueError, match="what is secret belongs into the environment") as raised:
        section(url=url)
    assert "sk-canary" not in str(raised.value)


def test_the_key_in_place_of_its_variable_is_refused_and_not_shown(section):
    with pytest.raises(ValueError, match="never the key itself") as raised:
        section(api_key_env="sk-canary-1")
    assert "sk-canary" not in str(raised.value)


def test_a_key_over_plain_http_is_told(section, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    (note,) = JudgeClient(section(url="http://judge.example/v1")).notes
    assert note == "the key in OPENAI_API_KEY goes to judge.example unencrypted; use https"
    assert JudgeClient(section()).notes == JudgeClient(section(url="https://judge.example/v1")).notes == []
