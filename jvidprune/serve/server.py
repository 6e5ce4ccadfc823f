"""Runs the page on this machine: loopback by default, uploads limited, nothing fetched, nothing left behind."""

import contextlib
import functools
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jvidprune.errors import JvidpruneError, reason
from jvidprune.inference.pipeline import VideoLLM
from jvidprune.serve.compare import Comparer
from jvidprune.serve.examples import write_examples
from jvidprune.serve.uploads import Uploads
from jvidprune.video.limits import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Where this machine finds a page that is bound to every address."""

UPLOAD_MB = 64
"""Largest upload by default."""

KEPT_UPLOADS = 16
"""Uploads of the largest size that are kept, or as many bytes of smaller ones; those unused for longest go first."""

LIMITS = Limits(pixels=4096 * 4096, frames=256, bytes=2 << 30, total=200_000, seconds=3600.0)
"""What the page accepts of a video file by default."""

_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "frame-ancestors 'self'; form-action 'self'"
)
"""The browser itself refuses whatever would go to another server."""


class Address(NamedTuple):
    """Where a running page is."""

    url: str
    port: int


@contextlib.contextmanager
def running(
    llm: VideoLLM,
    *,
    source: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    upload_mb: float = UPLOAD_MB,
    limits: Limits = LIMITS,
    max_new_tokens: int = 64,
    frames: int | None = None,
    fps: float | None = None,
    examples: bool = True,
) -> Iterator[Address]:
    """Serves the page while the block runs; uploads and examples are gone behind it.

    Until then uploads stay, `KEPT_UPLOADS` times the largest size in all.

    Args:
      llm: the model.
      source: checkpoint it was loaded from, None for the embedded one.
      host: address to bind; anything but loopback lets others in, as there is no log-in.
      port: port, 0 for any free one.
      upload_mb: largest upload in megabytes.
      limits: what is accepted of a video file.
      max_new_tokens: longest answer.
      frames, fps: sampled from a video, as for `VideoLLM.sample`.
      examples: offer generated clips.

    Raises:
      JvidpruneError: gradio is not installed, the port is taken, or a limit makes no sense.
    """
    if not 0 < upload_mb <= 1 << 20:
        raise JvidpruneError(f"uploads are limited to a number of megabytes above 0, not {upload_mb:g}.")
    if not 0 <= port < 1 << 16:
        raise JvidpruneError(f"a port lies in 0..65535, not {port}.")
    # Read when gradio is imported: no usage statistics, no look for newer versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise JvidpruneError("the page needs gradio: pip install 'jvidprune[serve]'.") from None
    from jvidprune.serve.page import build_page, style, theme

    port = port or _free_port(host)
    wish: dict[str, Any] = {"frames": frames, "fps": fps, "max_new_tokens": max_new_tokens}
    comparer = Comparer(llm, source=source, limits=limits, **wish)
    reads = "the embedded model, which knows clips of moving shapes" if source is None else f"{llm.loaded.family}"
    # Brackets tell an IPv6 address from its port.
    name = f"[{host}]" if ":" in host else host
    with tempfile.TemporaryDirectory(prefix="jvidprune-serve-") as folder, _uploads_in(Path(folder) / "uploads"):
        largest = int(upload_mb * 1e6)
        uploads = Uploads(Path(folder) / "uploads", KEPT_UPLOADS * largest)
        clips = Path(folder) / "examples"
        clips.mkdir()
        shown = write_examples(clips, embedded=source is None) if examples else []
        page = build_page(comparer, shown, uploads=uploads, subtitle=reads)
        options: dict[str, Any] = {"theme": theme(), "css": style(), "allowed_paths": [str(clips)], "share": False}
        middleware = _middleware(host, functools.partial(uploads.make_room, largest))
        options |= {"app_kwargs": {"middleware": middleware}, "max_file_size": largest}
        options |= {"server_name": name, "server_port": port, "ssr_mode": False, "footer_links": [], "quiet": True}
        try:
            page.launch(**options, prevent_thread_lock=True, show_error=True, enable_monitoring=False, mcp_server=False)
        except OSError as error:
            raise JvidpruneError(f"cannot serve on {name}:{port}: {reason(error)}.") from error
        # Gradio's copies of the examples.
        uploads.fix()
        try:
            yield Address(f"http://{_ANY.get(host, name)}:{port}", port)
        finally:
            page.close(verbose=False)
            gradio.close_all(verbose=False)


@contextlib.contextmanager
def _uploads_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise JvidpruneError(f"cannot serve on {host}: {reason(error)}.") from error
        return probe.getsockname()[1]


def _middleware(host: str, make_room: Callable[[], None]) -> list[Any]:
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    async def closed(request: Any, proceed: Any) -> Any:
        if request.method == "POST" and request.url.path.endswith("/upload"):
            await run_in_threadpool(make_room)
        response = await proceed(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    # A page of another site must not reach a loopback server through a name that it lets resolve to this machine.
    known = [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])] if host in LOOPBACK else []
    return [*known, Middleware(BaseHTTPMiddleware, dispatch=closed)]
