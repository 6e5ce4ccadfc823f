"""Runs the page on this machine: loopback by default, uploads limited, nothing fetched, nothing left behind."""

import contextlib
import errno
import functools
import ipaddress
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.extras import need
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.serve.compare import SideBySide
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
    methods: Sequence[str] = (),
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
      methods: further ones to offer, with settings or of the user's own.
      examples: offer generated clips.

    Raises:
      JvidpruneError: gradio is not installed, the port is taken, or a limit makes no sense.
    """
    check_page(host, port, upload_mb)
    # Read when gradio is imported: no usage statistics, no look for newer versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    need("the page", "gradio")
    import gradio

    from jvidprune.serve.page import build_page, style, theme

    port = port or _free_port(host)
    comparer = SideBySide(
        llm, source=source, limits=limits, frames=frames, fps=fps, max_new_tokens=max_new_tokens, own=methods
    )
    reads = "the embedded model, which knows clips of moving shapes" if source is None else f"{llm.loaded.family}"
    # Brackets tell an IPv6 address from its port.
    name = f"[{host}]" if ":" in host else host
    with tempfile.TemporaryDirectory(prefix="jvidprune-serve-") as folder, _uploads_in(Path(folder) / "uploads"):
        largest = int(upload_mb * 1e6)
        uploads = Uploads(Path(folder) / "uploads", KEPT_UPLOADS * largest)
        clips = Path(folder) / "examples"
        clips.mkdir()
        shown = write_examples(clips, llm, embedded=source is None) if examples else []
        page = build_page(comparer, shown, uploads=uploads, subtitle=reads)
        middleware = _middleware(host, functools.partial(uploads.make_room, largest))
        try:
            page.launch(
                server_name=name,
                server_port=port,
                share=False,
                allowed_paths=[str(clips)],
                max_file_size=largest,
                app_kwargs={"middleware": middleware},
                theme=theme(),
                css=style(),
                footer_links=[],
                show_error=True,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                enable_monitoring=False,
                mcp_server=False,
            )
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


def check_page(host: str, port: int, upload_mb: float) -> None:
    """Refuses an address that cannot be bound and impossible numbers, before a model is loaded.

    Args:
      host, port, upload_mb: as for `running`.

    Raises:
      JvidpruneError: which, and what is allowed.
    """
    if not 0 < upload_mb <= 1 << 20:
        raise JvidpruneError(f"uploads are limited to a number of megabytes above 0, not {upload_mb:g}.")
    if not 0 <= port < 1 << 16:
        raise JvidpruneError(f"a port lies in 0..65535, not {port}.")
    # Digits and colons are no name: nobody is asked for what they mean.
    if re.fullmatch(r"[\d.]+|[\da-fA-F:.]*:[\da-fA-F:.]*(%\w+)?", host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            known = "127.0.0.1 is this machine, 0.0.0.0 all its addresses"
            raise JvidpruneError(f"cannot serve on {host}, which is no IP address; {known}.") from None
    _bound(host, port)


def _free_port(host: str) -> int:
    return _bound(host, 0)


def _bound(host: str, port: int) -> int:
    """The port that a socket was bound to, and is free again."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server does it: connections that have ended are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            name = f"[{host}]" if ":" in host else host
            if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise JvidpruneError(f"cannot serve on {name}:{port}: {reason(error)}.") from error
            why = f"which is no address of this machine ({reason(error)}); 127.0.0.1 is one"
            raise JvidpruneError(f"cannot serve on {quoted(host)}, {why}.") from error
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
