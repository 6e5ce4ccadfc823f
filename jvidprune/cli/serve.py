"""`jvidprune serve`: the page, or an OpenAI-compatible endpoint, until it is stopped."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice
from jvidprune.extras import need

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


@dataclasses.dataclass(frozen=True)
class ServeChoice:
    """Where the page is, and what it accepts."""

    api: bool = False
    """Serve an OpenAI-compatible endpoint (chat completions) in place of the page."""
    host: str = "127.0.0.1"
    """Address to bind; there is no log-in, so anything but loopback lets everyone in who reaches it."""
    port: int | None = None
    """Port, 0 for any free one; by default 7860 for the page and 8000 for the endpoint."""
    max_mb: float = 64.0
    """Largest upload, or request, in megabytes."""
    max_new_tokens: int | None = None
    """Longest answer; by default 64 on the page and 1024 at the endpoint."""
    methods: str = ""
    """To offer beside jvidprune's, separated by commas: with settings, or of your own as in "my_module:Mine"."""
    name: str | None = None
    """Endpoint: what requests call the model; by default the last part of --model, or "jvidprune"."""
    rows: int = 4
    """Endpoint: answers side by side."""
    context: int = 4096
    """Endpoint: slots of each: a prompt, its answer, and what the others write while it goes on."""
    waiting: int = 32
    """Endpoint: requests that may be open at once."""
    seconds: float = 300.0
    """Endpoint: that a request may take, waiting included."""
    files: Path | None = None
    """Endpoint: folder whose files requests may name by file:// addresses."""
    reducer: str = "flashvid"
    """Endpoint: method of requests that name none, where the checkpoint names none."""
    ratio: float = 0.1
    """Endpoint: retention ratio, likewise."""
    generation: Literal["greedy", "folder"] = "greedy"
    """Endpoint: settings of answers that requests leave out: "folder" reads the checkpoint's generation_config.json."""


CHOICE = ServeChoice()


def serve(
    *,
    choice: Annotated[ServeChoice, OmitArgPrefixes] = CHOICE,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Serve a local page to look and try, or with --api an OpenAI-compatible endpoint."""
    if choice.api:
        need("the endpoint", "starlette", "uvicorn")
    else:
        need("the page", "gradio")
    run_server(choice, model=model, console=out.console(), as_json=out.json)


def run_server(choice: ServeChoice, *, model: ModelChoice, console: "Console", as_json: bool) -> None:
    """Loads the model, serves, and waits for Ctrl-C or SIGTERM; then uploads and examples are removed.

    Args:
      choice: where, and what is accepted.
      model: which model; its limits go on top of the page's own.
      console: how to talk.
      as_json: print the address as JSON.
    """
    import signal
    import threading

    from jvidprune.cli.reading import check_reading, open_model
    from jvidprune.expressions import split_list
    from jvidprune.models.sampling import check_sampling
    from jvidprune.reducers.registry import from_text
    from jvidprune.serve.server import LIMITS, LOOPBACK, check_page, running
    from jvidprune.video.limits import Limits

    port = choice.port if choice.port is not None else 8000 if choice.api else 7860
    longest = choice.max_new_tokens if choice.max_new_tokens is not None else 1024 if choice.api else 64
    check_page(choice.host, port, choice.max_mb)
    check_sampling(longest, 0.0, 1.0)
    check_reading(model)
    methods = split_list(choice.methods)
    for text in methods:
        from_text(text)
    from_text(choice.reducer)
    limits = Limits.from_text(model.limits, LIMITS)
    with console.working():
        llm = open_model(model, console)
    if choice.api:
        from jvidprune.serve.api import serving

        found = serving(
            llm,
            name=choice.name or ("jvidprune" if model.model is None else Path(model.model).name),
            host=choice.host,
            port=port,
            body_mb=choice.max_mb,
            max_new_tokens=longest,
            rows=choice.rows,
            context=choice.context,
            waiting=choice.waiting,
            seconds=choice.seconds,
            limits=limits,
            files=choice.files,
            frames=model.frames,
            fps=model.fps,
            reducer=choice.reducer,
            ratio=choice.ratio,
            defaults=choice.generation,
        )
    else:
        found = running(
            llm,
            source=None if model.model is None else str(llm.loaded.folder),
            host=choice.host,
            port=port,
            upload_mb=choice.max_mb,
            limits=limits,
            max_new_tokens=longest,
            frames=model.frames,
            fps=model.fps,
            methods=methods,
        )
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with found as at:
            if choice.host not in LOOPBACK:
                console.note(f"there is no log-in: whoever reaches {choice.host} can upload videos and ask")
            print(json.dumps({"url": at.url}) if as_json else f"{at.url}  (Ctrl-C ends it)", flush=True)
            stop.wait()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
