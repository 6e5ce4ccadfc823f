"""The verb that serves the page until it is stopped."""

import json
import signal
import threading
from typing import Any

from jvidprune.cli.console import Console
from jvidprune.cli.run import check_reading, open_model
from jvidprune.serve.server import LIMITS, LOOPBACK, check_page, running
from jvidprune.video.limits import Limits


def serve(
    host: str,
    port: int,
    *,
    upload_mb: float,
    max_new_tokens: int,
    model: dict[str, Any],
    console: Console,
    as_json: bool,
) -> None:
    """Loads the model, serves the page, and waits for Ctrl-C or SIGTERM; then uploads and examples are removed.

    Args:
      host, port, upload_mb, max_new_tokens: as for `running`.
      model: the choice of a model, as for the other verbs; its limits go on top of the page's own.
      console: how to talk.
      as_json: print the address as JSON.
    """
    check_page(host, port, upload_mb)
    check_reading(model)
    limits = Limits.from_text(model.get("limits") or "", LIMITS)
    with console.working():
        llm = open_model(model, console)
    source = None if model["model"] is None else str(llm.loaded.folder)
    options: dict[str, Any] = {"source": source, "upload_mb": upload_mb, "limits": limits}
    options |= {"max_new_tokens": max_new_tokens, "frames": model["frames"], "fps": model["fps"]}
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with running(llm, host=host, port=port, **options) as at:
            if host not in LOOPBACK:
                console.note(f"there is no log-in: whoever reaches {host} can upload videos and ask")
            print(json.dumps({"url": at.url}) if as_json else f"{at.url}  (Ctrl-C ends it)", flush=True)
            stop.wait()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
