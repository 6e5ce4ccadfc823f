"""An OpenAI-compatible endpoint over one model: chat completions with videos and pictures, streamed or whole.

Loopback by default, nothing fetched from anywhere, sizes and times limited; errors are OpenAI's error objects.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, reason
from jvidprune.extras import need
from jvidprune.llm.generation import Defaults
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.serve.chat_requests import ChatRequest, chunk, read_request
from jvidprune.serve.engine import Broken, Busy, Engine, Job, Piece, TooLate, context_of
from jvidprune.serve.server import LIMITS, LOOPBACK, Address, check_page
from jvidprune.video.limits import Limits


@contextlib.contextmanager
def serving(
    llm: VideoLLM,
    *,
    name: str = "jvidprune",
    host: str = "127.0.0.1",
    port: int = 8000,
    body_mb: float = 64.0,
    max_new_tokens: int = 1024,
    rows: int = 4,
    context: int = 4096,
    waiting: int = 32,
    seconds: float = 300.0,
    limits: Limits = LIMITS,
    files: Path | None = None,
    reducer: str = "flashvid",
    ratio: float = 0.1,
    defaults: Defaults = "greedy",
    frames: int | None = None,
    fps: float | None = None,
) -> Iterator[Address]:
    """Serves the endpoint while the block runs.

    Args:
      llm: the model.
      name: that requests may ask for the model by; any name is answered that is empty or this.
      host, port: address to bind; port 0 for any free one. There is no log-in.
      body_mb: largest request in megabytes.
      max_new_tokens: longest answer.
      rows, context, waiting, seconds: see `engine.Engine`.
      limits: what is accepted of a video file.
      files: folder whose files requests may name by file:// addresses; None for none.
      reducer, ratio: of requests that name none, where the checkpoint names none itself.
      defaults: where settings come from that a request leaves out, see `llm.generation.Defaults`.
      frames, fps: sampled from a video where a request names neither, as for `VideoLLM.sample`.

    Raises:
      JvidpruneError: starlette or uvicorn is not installed, the port is taken, the server does not start, or a setting
        makes no sense.
    """
    check_page(host, port, body_mb)
    need("the endpoint", "starlette", "uvicorn")
    import uvicorn

    with _bound(host, port) as bound, contextlib.ExitStack() as ends:
        engine = Engine(
            llm,
            rows=rows,
            context=context_of(context),
            waiting=waiting,
            seconds=seconds,
            limits=limits,
            reducer=reducer,
            ratio=ratio,
            frames=frames,
            fps=fps,
        )
        ends.callback(engine.close)
        way = _Endpoint(engine, name, int(body_mb * 1e6), max_new_tokens, defaults, files)
        config = uvicorn.Config(
            way.app(host in LOOPBACK),
            log_level="warning",
            lifespan="off",
            timeout_keep_alive=30,
            ws="none",
            # Bodies that are still coming, and clients that wait between two requests, stand beside those that wait.
            limit_concurrency=2 * waiting + 16,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            if not server.started:
                raise JvidpruneError(f"the server on {host}:{port} did not start; its log says why.")
            at = bound.getsockname()[1]
            shown = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
            yield Address(f"http://{shown}:{at}/v1", at)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def _bound(host: str, port: int) -> socket.socket:
    """A socket of the address."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise JvidpruneError(f"cannot serve on {host}:{port}: {reason(error)}.") from error
    return bound


class _Endpoint:
    """The routes."""

    def __init__(self, engine: Engine, name: str, largest: int, longest: int, defaults: Defaults, files: Path | None):
        self._engine, self._name, self._largest, self._longest = engine, name, largest, longest
        self._defaults, self._files = defaults, files

    def app(self, loopback: bool) -> Any:
        """The ASGI application; on loopback names that others let resolve to this machine are refused."""
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route

        known = [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])] if loopback else []
        routes = [
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
        ]
        return Starlette(routes=routes, middleware=known, exception_handlers={404: _missing, 405: _missing})

    async def health(self, _: Any) -> Any:
        """Whether the server answers."""
        if (broken := self._engine.broken) is not None:
            return _failed(broken)
        return _json({"status": "ok"})

    def _described(self) -> dict[str, Any]:
        family = self._engine.llm.loaded.family
        own = {"max_model_len": self._engine.context, "family": family}
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "jvidprune", **own}

    async def models(self, _: Any) -> Any:
        """The one model."""
        return _json({"object": "list", "data": [self._described()]})

    async def model(self, request: Any) -> Any:
        """The model by its name."""
        if request.path_params["name"] != self._name:
            return _unknown(request.path_params["name"], self._name)
        return _json(self._described())

    async def complete(self, request: Any) -> Any:
        """A chat completion."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # A page of another site can send other types without asking.
            return _error(415, "a request is application/json.", code="unsupported_media_type")
        # At least a second: a limit below it is one for answers.
        seconds = max(self._engine.seconds, 1.0)
        try:
            async with asyncio.timeout(seconds):
                body = await self._body(request)
            if body is None:
                return _error(413, f"a request has at most {self._largest / 1e6:g} MB here.", code="too_large")
            raw = await asyncio.to_thread(_parsed, body)
            read = await asyncio.to_thread(
                read_request, raw, longest=self._longest, defaults=self._defaults, files=self._files
            )
        except TimeoutError:
            said = f"the body did not come within the {seconds:g} seconds that a request may take."
            return _error(408, said, kind="timeout_error", code="timeout")
        except JvidpruneError as error:
            return _error(400, str(error))
        if read.model not in ("", self._name):
            return _unknown(read.model, self._name)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def tell(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        try:
            job = self._engine.ask(read, tell)
        except Busy as error:
            return _error(429, str(error), kind="rate_limit_error", code="too_many_requests")
        except Broken as error:
            return _failed(error)
        answer = _Pieces(pieces, job, self._engine, request)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._name}
        try:
            # What is wrong with a request is known before its first event, and told by the status.
            about = (await answer.next()).about or {}
        except BaseException as error:
            answer.close()
            return _failed(error)
        if read.stream:
            from starlette.responses import StreamingResponse

            events = _events(answer, read, head, about)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        try:
            return _json(await _whole(answer, read, head, about))
        except BaseException as error:
            return _failed(error)
        finally:
            answer.close()

    async def _body(self, request: Any) -> bytes | None:
        """The body, None where it is too large; no more of it is read than is allowed."""
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > self._largest:
            return None
        found = bytearray()
        async for part in request.stream():
            found += part
            if len(found) > self._largest:
                return None
        return bytes(found)


class _Pieces:
    """The pieces of a job as they come; errors are raised, and a client that has gone ends it."""

    def __init__(self, pieces: "asyncio.Queue[Piece]", job: Job, engine: Engine, request: Any):
        self._pieces, self._job, self._engine, self._request = pieces, job, engine, request
        self._closed = False

    async def next(self) -> Piece:
        """The next piece."""
        while True:
            try:
                piece = await asyncio.wait_for(self._pieces.get(), 1.0)
            except TimeoutError:
                if await self._request.is_disconnected():
                    raise ConnectionError("the client has gone") from None
                if time.monotonic() > self._job.deadline + 1:
                    said = f"the request took longer than the {self._engine.seconds:g} seconds that it may."
                    raise TooLate(said) from None
                continue
            if piece.error is not None:
                raise piece.error
            return piece

    def close(self) -> None:
        """Nobody waits any more."""
        if not self._closed:
            self._closed = True
            self._engine.finished(self._job)


async def _whole(answer: _Pieces, read: ChatRequest, head: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    ended: dict[int, Any] = {}
    while len(ended) < read.samples:
        piece = await answer.next()
        if piece.ended is not None:
            ended[piece.sample] = piece.ended
    choices = [
        {
            "index": sample,
            "message": {"role": "assistant", "content": ended[sample].text, "refusal": None},
            "finish_reason": ended[sample].finish,
            "logprobs": None,
        }
        for sample in range(read.samples)
    ]
    usage = _usage(about, sum(len(one.ids) for one in ended.values()))
    own = {name: about[name] for name in ("kept", "visual", "reducer", "ratio")}
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage, "jvidprune": own}


async def _events(
    answer: _Pieces, read: ChatRequest, head: dict[str, Any], about: dict[str, Any]
) -> AsyncIterator[str]:
    """The server-sent events of a stream."""
    made, left = 0, read.samples
    try:
        for sample in range(read.samples):
            delta = {"role": "assistant", "content": ""}
            yield _event(chunk(head, [{"index": sample, "delta": delta, "finish_reason": None}]))
        while left:
            piece = await answer.next()
            if piece.text:
                choice = {"index": piece.sample, "delta": {"content": piece.text}, "finish_reason": None}
                yield _event(chunk(head, [choice]))
            if piece.ended is not None:
                left, made = left - 1, made + len(piece.ended.ids)
                yield _event(chunk(head, [{"index": piece.sample, "delta": {}, "finish_reason": piece.ended.finish}]))
        if read.usage:
            yield _event(chunk(head, [], usage=_usage(about, made)))
        yield "data: [DONE]\n\n"
    except ConnectionError:
        return
    except Exception as error:
        yield _event(json.loads(_failed(error).body))
    finally:
        answer.close()


def _usage(about: dict[str, Any], made: int) -> dict[str, int]:
    return {"prompt_tokens": about["prompt"], "completion_tokens": made, "total_tokens": about["prompt"] + made}


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise JvidpruneError("the body is no JSON.") from None


def _json(value: Any, status: int = 200) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status)


def _error(status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> Any:
    return _json({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def _unknown(asked: str, name: str) -> Any:
    return _error(404, f"there is no model {asked[:80]!r} here, only {name!r}.", code="model_not_found")


def _failed(error: BaseException) -> Any:
    if isinstance(error, TooLate):
        return _error(504, str(error), kind="timeout_error", code="timeout")
    if isinstance(error, Broken):
        return _error(503, str(error), kind="server_error", code="broken")
    if isinstance(error, JvidpruneError):
        return _error(400, str(error))
    if not isinstance(error, Exception):
        raise error
    return _error(500, f"the server failed: {reason(error)}.", kind="server_error")


async def _missing(_: Any, error: Any) -> Any:
    return _error(error.status_code, "there is no such address; POST /v1/chat/completions is one.", code="not_found")
