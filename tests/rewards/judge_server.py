"""What tests of the judge share: answers as a server of OpenAI's protocol gives them, and a judge of sense."""

import json

from werkzeug import Request, Response


def completion(text, *, finish="stop", refusal=None, **more) -> Response:
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, "refusal": refusal}}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    return Response(json.dumps(body | more), content_type="application/json")


def question(request: Request) -> str:
    return request.json["messages"][0]["content"]


def prefers_good(request: Request) -> Response:
    """The reply that says `good`, wherever it stands; a tie where none does."""
    text = question(request)
    good, second = text.find("good "), text.find("Reply B:")
    return completion("Verdict: tie" if good < 0 else "Verdict: A" if good < second else "Verdict: B")
