"""A reward server: POST {"prompts": [...], "completions": [...]} -> {"rewards": [...]}, a number for each completion.

Requests run side by side; one that fails for a time (no connection, a time-out, 429, 5xx) is sent again after a pause, which
the server's `Retry-After` may set. Everything else (400, 401, a web page, a wrong count, NaN) will not mend itself and ends it.
"""

from __future__ import annotations

import email.utils
import json
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from exoalign.errors import RewardError
from exoalign.groups import Group, completion_text, prompt_text

if TYPE_CHECKING:
    import httpx2

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds: the first pause, which doubles each time, and the longest that is waited for."""

Row = tuple[str, str, str]
"""A prompt, a completion and where they come from."""


class ServerScorer:
    """Scores completions by a reward server. It is a `Scorer`.

    Args:
        url: where the requests go.
        name: of its column.
        batch_size: completions in a request.
        concurrency: requests under way at a time.
        timeout: seconds until an answer must be there.
        retries: how often a request is sent again.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "server",
        batch_size: int = 32,
        concurrency: int = 4,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self.url, self.name, self.batch_size, self.concurrency = url, name, batch_size, concurrency
        self.timeout, self.retries = timeout, retries
        self.shown = urlunsplit(urlsplit(url)._replace(query="", fragment=""))  # a key may stand in the query

    def identity(self) -> dict[str, Any]:
        """The address: what stands behind it cannot be known."""
        return {"server": self.url}

    def __call__(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """A number for each completion.

        Raises:
            RewardError: if the server cannot be reached, refuses a request or answers something else than K numbers, with
                the row that the request began with.
        """
        import httpx2

        rows = [
            (prompt_text(group.prompt), completion_text(c), f"{group.where}, completion {k + 1}")
            for group in groups
            for k, c in enumerate(group.completions)
        ]
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        ended = threading.Event()
        with httpx2.Client(timeout=self.timeout) as client, ThreadPoolExecutor(self.concurrency) as pool:
            asked = [pool.submit(self._ask, client, batch, ended) for batch in batches]
            try:
                found = iter([value for future in asked for value in future.result()])
            finally:
                ended.set()  # after an error the others neither wait nor begin
                pool.shutdown(cancel_futures=True)
        return [tuple(next(found) for _ in range(group.k)) for group in groups]

    def _ask(self, client: httpx2.Client, rows: Sequence[Row], ended: threading.Event) -> list[float]:
        """The rewards of one request."""
        import httpx2

        content = {"prompts": [prompt for prompt, _, _ in rows], "completions": [text for _, text, _ in rows]}
        for attempt in range(self.retries + 1):
            pause = FIRST_PAUSE * 2**attempt
            try:
                response = client.post(self.url, json=content)
            except httpx2.TransportError as error:
                late = isinstance(error, httpx2.TimeoutException)
                fault = f"no answer within {self.timeout:g} s" if late else f"{type(error).__name__}: {error}"
            else:
                if response.status_code not in (408, 429) and response.status_code < 500:
                    return self._rewards(response, rows)
                fault = self._answer(response)
                pause = _asked_pause(response) or pause
            if attempt == self.retries:
                break
            if pause > LONGEST_PAUSE:
                raise self._error(
                    rows, f"{fault}; it asks to wait {pause:.0f} s, more than the {LONGEST_PAUSE:g} s waited for"
                )
            if _paused(pause, ended):
                break
        raise self._error(rows, f"{fault}, after {self.retries + 1} attempts")

    def _rewards(self, response: httpx2.Response, rows: Sequence[Row]) -> list[float]:
        """The numbers of an answer, checked."""
        if response.status_code != 200:
            raise self._error(rows, self._answer(response))
        try:
            found = json.loads(response.text)
        except ValueError:
            raise self._error(rows, f"{self._answer(response)}, which is no JSON") from None
        values = found.get("rewards") if isinstance(found, dict) else None
        if not isinstance(values, list):
            raise self._error(rows, f'{self._answer(response)}; expected {{"rewards": [...]}}')
        if len(values) != len(rows):
            raise self._error(rows, f"it answered {len(values)} rewards for {len(rows)} completions")
        for value, (_, _, where) in zip(values, rows, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self._error(rows, f"the reward at {where} is {json.dumps(value)[:60]}; expected a finite number")
        return [float(value) for value in values]

    def _answer(self, response: httpx2.Response) -> str:
        """What was answered, for a message."""
        kind = response.headers.get("content-type", "no content type").partition(";")[0]
        beginning = " ".join(response.text[:200].split())[:80]
        return f"it answered {response.status_code} ({kind}: {beginning!r})"

    def _error(self, rows: Sequence[Row], fault: str) -> RewardError:
        return RewardError(
            f"reward server {self.shown}: {fault}; the request began at {rows[0][2]}. Mend the server and run the same"
            " again: what is scored is kept"
        )


def _paused(seconds: float, ended: threading.Event) -> bool:
    """Wait; True where it was ended meanwhile."""
    return ended.wait(seconds)


def _asked_pause(response: httpx2.Response) -> float | None:
    """Seconds that `Retry-After` asks to wait, given as such or as a date; None where it says nothing."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
