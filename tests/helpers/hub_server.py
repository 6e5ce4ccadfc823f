"""A hub on this machine: folders under owner/name, and a list of the files that were asked for."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What a test may look at.

    Attributes:
      asked: names of the files that were downloaded, in order.
      revisions: that were asked for.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = dict(folders)
        self.asked: list[str] = []
        self.revisions: list[str] = []

    @property
    def weights(self) -> list[str]:
        """The files among them that hold weights."""
        return [name for name in self.asked if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf"))]


@contextlib.contextmanager
def serving(folders: Mapping[str, Path], cache: Path) -> Iterator[Hub]:
    """Makes huggingface_hub talk to a server of these folders alone, with a cache of its own."""
    from huggingface_hub import constants

    hub = Hub(folders)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body):
            path = self.path.partition("?")[0].strip("/")
            parts = path.removeprefix("api/models/").split("/")
            folder = hub.folders.get("/".join(parts[:2]))
            if folder is None:
                return self.say(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            if path.startswith("api/models/"):
                hub.revisions += parts[3:4] if parts[2:3] in (["revision"], ["tree"]) else []
                names = [file.relative_to(folder).as_posix() for file in files]
                if parts[2:3] == ["tree"]:
                    sizes = {n: f.stat().st_size for n, f in zip(names, files, strict=True)}
                    rows = [{"type": "file", "path": n, "size": s, "oid": n} for n, s in sizes.items()]
                    return self.say(200, json.dumps(rows).encode(), {})
                siblings = [{"rfilename": name} for name in names]
                listing = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings}
                return self.say(200, json.dumps(listing).encode(), {})
            name = "/".join(parts[4:])
            if not (folder / name).is_file():
                return self.say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            content = (folder / name).read_bytes()
            if body:
                hub.asked.append(name)
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.say(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"}, body=body)

        def say(self, code, content, headers, *, body=True):
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and self.command == "GET":
                self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
