"""One question to a server that speaks OpenAI's protocol: what it answers, or what went wrong in words that hold no key.

Retries with growing pauses, and pauses as long as `Retry-After` asks for, are those of the `openai` client (408, 409, 429, 5xx,
time-outs, broken connections). A body that is no answer (a page of a proxy, an error under status 200) is tried again here.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from exoalign.config_judge import JudgeSection
from exoalign.errors import ConfigError, JudgeError

_NO_KEY = "none"  # the client insists on one, which a local server does not read
_HINTS = {
    401: "check the key in the environment variable {key}",
    403: "check the key in the environment variable {key}, and what it is allowed to do",
    404: "check judge.url, which as a rule ends in /v1, and judge.model",
    429: "it limits the rate, or the account is used up: ask with less concurrency, or later",
}


@dataclass(frozen=True)
class Answer:
    """What the judge said, and what it cost.

    Attributes:
        text: the answer as it came, None where there was none.
        finish: why it ended: `stop`, `length`, `content_filter`, ...
        refusal: the words of a refusal, if it is marked as one.
        prompt_tokens, completion_tokens: as the server counts them, 0 where it does not.
    """

    text: str | None
    finish: str | None = None
    refusal: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class JudgeClient:
    """Asks one judge; safe to call from several threads.

    Raises:
        ConfigError: if `openai` is not installed, or the variable that is to hold the key does not hold one.
    """

    def __init__(self, section: JudgeSection) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError("a judge needs the `openai` package; run: pip install 'exoalign[judge]'") from error
        self.section = section
        self._key = _key_of(section)
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=section.url,
            api_key=self._key or _NO_KEY,
            max_retries=section.retries,
            timeout=section.timeout,
        )

    @property
    def notes(self) -> list[str]:
        """What the user should mind before anything is sent."""
        parts = urlsplit(self.section.url)
        if self._key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            return [f"the key in {self.section.api_key_env} goes to {parts.hostname} unencrypted; use https"]
        return []

    def request(self, text: str) -> dict[str, Any]:
        """What is sent, and all that an answer depends on besides the server."""
        return {
            "model": self.section.model,
            "messages": [{"role": "user", "content": text}],  # some chat templates know no system turn
            "temperature": 0,
            "max_tokens": self.section.max_tokens,
        }

    def ask(self, text: str, where: str) -> Answer:
        """The answer to one question.

        Args:
            text: the question.
            where: the row that it is about, for errors.

        Raises:
            JudgeError: when the server refuses it, or no try brought an answer.
        """
        body = ""
        for attempt in range(self.section.retries + 1):
            if attempt:
                time.sleep(min(0.5 * 2 ** (attempt - 1), 8.0))
            said = self._send(text, where)
            if isinstance(said, Answer):
                return said
            body = said
        raise JudgeError(
            self._told(f"answers with something else than a completion ({_short(body)})", "check judge.url")
        )

    def _send(self, text: str, where: str) -> Answer | str:
        """The answer, or the body that is none. Errors are raised behind `except`: the client's hold the key."""
        failure: tuple[str, str]
        try:
            raw = self._client.chat.completions.with_raw_response.create(**self.request(text))
            return self._answer(self._without_key(raw.http_response.text))  # a traceback may show locals
        except self._openai.APIStatusError as error:
            body, code = self._without_key(error.response.text), error.status_code
            if code == 400 and _code(body) == "content_filter":
                return Answer(None, "content_filter", "the server's content filter")
            hint = _HINTS.get(code, f"the question was on {where}" if code < 500 else "try again later")
            failure = f"fails with status {code}: {_short(_message(body))}", hint.format(key=self.section.api_key_env)
        except self._openai.APITimeoutError:
            failure = (
                f"gave no answer within {self.section.timeout:g} s",
                "raise judge.timeout, or ask with less concurrency",
            )
        except self._openai.APIConnectionError as error:
            reason = _short(self._without_key(str(error.__cause__ or error)))
            failure = f"cannot be reached: {reason}", "start it, or check judge.url"
        raise JudgeError(self._told(*failure))

    def _answer(self, body: str) -> Answer | str:
        try:
            found = json.loads(body)
        except ValueError:
            return body
        if not isinstance(found, dict) or not isinstance(found.get("choices"), list):
            return body
        choice = next(iter(found["choices"]), None)
        choice = choice if isinstance(choice, dict) else {}
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        usage = found.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Answer(
            _text(message.get("content")),
            _text(choice.get("finish_reason")),
            _text(message.get("refusal")),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )

    def _told(self, what: str, hint: str) -> str:
        tries = self.section.retries + 1
        return f"the judge at {self.section.url} {what}; {hint}. At most {tries} tries a question. What it answered is kept"

    def _without_key(self, text: str) -> str:
        """What a server says, which may be the key that it was sent."""
        return text.replace(self._key, "***") if self._key else text


def _key_of(section: JudgeSection) -> str:
    """The key, empty where there is none. What is wrong with it is told without it."""
    name = section.api_key_env
    key = os.environ.get(name, "").strip()
    if not key and name != JudgeSection.model_fields["api_key_env"].default:
        raise ConfigError(
            f"judge.api_key_env: the environment variable {name} is not set; set it, or leave api_key_env out"
        )
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"the environment variable {name} holds characters that no key has (a space, a line end, ...)"
        )
    return key


def _message(body: str) -> str:
    """What a server says of an error, whatever the form."""
    try:
        found: Any = json.loads(body)
        for name in ("error", "message", "detail"):
            found = found.get(name, found) if isinstance(found, dict) else found
    except ValueError:
        return body
    return found if isinstance(found, str) else json.dumps(found)


def _code(body: str) -> Any:
    try:
        found = json.loads(body)
        return found["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _short(text: str) -> str:
    text = " ".join(text.split())
    return (text if len(text) <= 300 else f"{text[:297]}...") or "an empty body"
