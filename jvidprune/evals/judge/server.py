"""A chat-completions server of the OpenAI protocol, asked until it replies or a bounded number of tries is over."""

import asyncio
import dataclasses
import email.utils
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.evals.judge.rubrics import Message
from jvidprune.files import parse_json

LONGEST_WAIT = 300.0
"""Seconds that a server may ask to be left alone; one that asks for more is not asked again in this run."""

LONGEST_PAUSE = 60.0
"""Seconds between two tries where the server names none."""

LARGEST = 1 << 20
"""Bytes of a reply."""

_AGAIN = frozenset({408, 409, 425, 429})
"""Status codes, beside those from 500 on, after which the same request may succeed."""

_FATAL = frozenset({401, 403, 404, 405})
"""Status codes that every other request would meet as well: wrong key, wrong address, unknown model."""

_SETTINGS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 512}


class NoReply(Exception):
    """One request has no reply, others may."""


class Unusable(Exception):
    """No further request makes sense.

    Attributes:
      passing: whether the same command may succeed later.
    """

    def __init__(self, text: str, *, passing: bool):
        super().__init__(text)
        self.passing = passing


@dataclasses.dataclass
class ChatServer:
    """Where a judge is asked.

    Attributes:
      endpoint: base address as in "http://localhost:8000/v1", or that of chat completions itself.
      model: as the server calls it.
      key: sent as a bearer token if it is not empty; nowhere else, and taken out of what the server says.
      settings: of a request; None takes one of the defaults (temperature 0, 512 tokens) out of it.
      timeout: seconds for one try.
      tries: of one request.
      pause: seconds after the first try, doubled after each further one; a server's own Retry-After counts instead.

    Raises:
      JvidpruneError: no address that can be asked, or numbers and a key that are none.
    """

    endpoint: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout: float = 120.0
    tries: int = 6
    pause: float = 1.0

    def __post_init__(self) -> None:
        from jvidprune.extras import need

        need("asking a judge", "httpx2")
        try:
            parts = urlsplit(self.endpoint)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable, parts = False, urlsplit("")
        if not usable:
            raise JvidpruneError("the endpoint is no address such as http://localhost:8000/v1.")
        if parts.username or parts.password:
            raise JvidpruneError("the endpoint holds a name or password: give the key in an environment variable.")
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise JvidpruneError("the judge's key holds characters that no key has.")
        if not self.model.strip():
            raise JvidpruneError("the judge's model has no name.")
        if not 0 < self.timeout < 1e6 or not 1 <= self.tries <= 100:
            raise JvidpruneError(
                f"a judge is asked 1 to 100 times with a timeout above 0, got {self.tries} and {self.timeout:g}."
            )
        path = parts.path.rstrip("/")
        path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        self._url = parts._replace(path=path, fragment="").geturl()
        self.shown = f"{parts.scheme}://{parts.netloc}{path}"
        """The address without what may stand behind "?"."""
        self._open_at = 0.0
        self._client: Any = None

    async def __aenter__(self) -> "ChatServer":
        import httpx2

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            self._client = httpx2.AsyncClient(headers=headers, timeout=self.timeout)
        except ValueError as error:
            raise JvidpruneError(f"the proxies of the environment cannot be used: {reason(error)}.") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def reply(self, messages: Sequence[Message]) -> str:
        """What the judge says; empty where it says nothing.

        Raises:
          NoReply: none, after all tries, or the server refuses this request.
          Unusable: the server would refuse every request, or wants to be left alone for long.
        """
        import httpx2

        body = {"model": self.model, "messages": list(messages)} | dict(_SETTINGS) | dict(self.settings)
        body = {name: value for name, value in body.items() if value is not None}
        problem = ""
        for turn in range(self.tries):
            await self._admitted()
            wait: float | None = None
            try:
                async with asyncio.timeout(self.timeout):
                    status, headers, content = await self._post(body)
            except (TimeoutError, httpx2.TimeoutException):
                problem = f"it did not reply within {self.timeout:g} seconds"
            except (httpx2.RequestError, httpx2.StreamError, httpx2.InvalidURL) as error:
                problem = f"{type(error).__name__}: {self._told(reason(error))}"
            else:
                if status == 200:
                    try:
                        return _content(content)
                    except ValueError as error:
                        problem = f"its reply is no chat completion: {self._told(reason(error))}"
                else:
                    problem = f"it replied with status {status}{self._said(content)}"
                    if status in _FATAL or 300 <= status < 400:
                        raise Unusable(f"{self.shown}: {problem}.", passing=False)
                    if status not in _AGAIN and status < 500:
                        raise NoReply(f"{problem}.")
                    wait = _retry_after(headers.get("retry-after"))
                    if wait is not None and wait > LONGEST_WAIT:
                        raise Unusable(f"{self.shown} asks to be left alone for {wait:,.0f} seconds.", passing=True)
            if turn + 1 < self.tries:
                await self._rest(turn, wait)
        raise NoReply(f"{problem}, {self.tries} times.")

    async def _post(self, body: dict[str, Any]) -> tuple[int, Any, bytes]:
        async with self._client.stream("POST", self._url, json=body) as response:
            parts, size = [], 0
            async for part in response.aiter_bytes():
                size += len(part)
                if size > LARGEST:
                    return 200, response.headers, b"longer than a reply may be"
                parts.append(part)
            return response.status_code, response.headers, b"".join(parts)

    async def _admitted(self) -> None:
        """Waits until no request is told to wait any more: limits of a server are those of all its requests."""
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _rest(self, turn: int, wait: float | None) -> None:
        if wait is None:
            # Requests that failed together should not come back together.
            await asyncio.sleep(min(LONGEST_PAUSE, self.pause * 2.0**turn) * random.uniform(0.5, 1.0))
        else:
            self._open_at = max(self._open_at, time.monotonic() + wait)

    def _told(self, text: str) -> str:
        """Words of a server or library without the key, which some servers repeat."""
        return text.replace(self.key, "***") if self.key else text

    def _said(self, content: bytes) -> str:
        """The server's own sentence about an error."""
        try:
            found = parse_json(content)
            error = found.get("error", found) if isinstance(found, dict) else None
            text = error if isinstance(error, str) else error["message"]  # type: ignore[index]
        except (ValueError, KeyError, TypeError):
            return ""
        return f": {quoted(self._told(' '.join(str(text).split())), 300).rstrip('.')}"


def _content(body: bytes) -> str:
    """The text of a chat completion.

    Raises:
      ValueError: it is none.
    """
    found = parse_json(body)
    try:
        content = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"it has no choice with a message: {quoted(repr(found), 120)}") from None
    if content is not None and not isinstance(content, str):
        raise ValueError(f"its content is no text: {quoted(repr(content), 120)}")
    return content or ""


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date; None where there is none that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
