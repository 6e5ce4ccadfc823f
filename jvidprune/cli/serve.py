"""`jvidprune serve`: the page, until it is stopped."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from jvidprune.cli.options import MODEL, OUTPUT, Common, Model, ModelChoice
from jvidprune.extras import need

if TYPE_CHECKING:
    from jvidprune.cli.console import Console


@dataclasses.dataclass(frozen=True)
class ServeChoice:
    """Where the page is, and what it accepts."""

    host: str = "127.0.0.1"
    """Address to bind; there is no log-in, so anything but loopback lets everyone in who reaches it."""
    port: int = 7860
    """Port of the page, 0 for any free one."""
    max_mb: float = 64.0
    """Largest upload in megabytes."""
    max_new_tokens: int = 64
    """Longest answer."""
    methods: str = ""
    """To offer beside jvidprune's, separated by commas: with settings, or of your own as in "my_module:Mine"."""


CHOICE = ServeChoice()


def serve(
    *,
    choice: Annotated[ServeChoice, OmitArgPrefixes] = CHOICE,
    model: Model = MODEL,
    out: Common = OUTPUT,
) -> None:
    """Serve a local page to look and try: one video and one question, several methods side by side."""
    need("the page", "gradio")
    run_page(choice, model=model, console=out.console(), as_json=out.json)


def run_page(choice: ServeChoice, *, model: ModelChoice, console: "Console", as_json: bool) -> None:
    """Loads the model, serves the page, and waits for Ctrl-C or SIGTERM; then uploads and examples are removed.

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

    check_page(choice.host, choice.port, choice.max_mb)
    check_sampling(choice.max_new_tokens, 0.0, 1.0)
    check_reading(model)
    methods = split_list(choice.methods)
    for text in methods:
        from_text(text)
    limits = Limits.from_text(model.limits, LIMITS)
    with console.working():
        llm = open_model(model, console)
    page = running(
        llm,
        source=None if model.model is None else str(llm.loaded.folder),
        host=choice.host,
        port=choice.port,
        upload_mb=choice.max_mb,
        limits=limits,
        max_new_tokens=choice.max_new_tokens,
        frames=model.frames,
        fps=model.fps,
        methods=methods,
    )
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with page as at:
            if choice.host not in LOOPBACK:
                console.note(f"there is no log-in: whoever reaches {choice.host} can upload videos and ask")
            print(json.dumps({"url": at.url}) if as_json else f"{at.url}  (Ctrl-C ends it)", flush=True)
            stop.wait()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
