"""One small use of what an extra is for, in an environment that has this extra alone: smoke.py EXTRA FOLDER."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np

JVIDPRUNE = [sys.executable, "-m", "jvidprune.cli"]


def verb(*words: str) -> str:
    """Standard output of a verb that must succeed."""
    return subprocess.run([*JVIDPRUNE, *words], check=True, stdout=subprocess.PIPE, text=True, timeout=900).stdout


def smoke_eval(out: Path) -> None:
    """Parquet annotations are read; the benchmark's videos are missing, which is said."""
    import pyarrow
    from pyarrow import parquet

    from jvidprune.evals.datasets.annotations import read_rows

    assert "--task" in verb("sweep", "--help")
    rows = [{"videoID": "a", "question": "?", "answer": "B"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), out / "rows.parquet")
    assert read_rows(out / "rows.parquet") == rows


def smoke_export(out: Path) -> None:
    """A reducer as a file and back."""
    from jvidprune import VideoTokens, reducers
    from jvidprune.reducers.exported import export_reducer, load_reducer

    assert "--reducer" in verb("export", "--help")
    video = VideoTokens.create(np.random.default_rng(0).normal(size=(2, 9, 8)).astype("float32"))
    path = export_reducer(out / "reducer.bin", reducers.get("random"), video, 0.5)
    assert int(load_reducer(path).reduce(video.features, video.evidence, 0.5).count) == 9


def smoke_quantise(out: Path) -> None:
    """The embedded model answers with its matrices in one byte each."""
    assert "--quantise" in verb("ask", "--help")
    words = ["ask", "--quantise", "int8", "--reducer", "random", "--ratio", "0.1", "--max-new-tokens", "2", "--json"]
    assert json.loads(verb(*words))["text"]


def smoke_train(out: Path) -> None:
    """Two steps on the embedded model, with curves for TensorBoard, and a run that is done when started again."""
    assert "--topk" in verb("train", "stts", "--help")
    sizes = "--steps 2 --rows 1 --questions 1 --log 1 --every 1 --eval-every 2 --eval-clips 2 --tensorboard"
    words = ["train", "stts", "--folder", str(out / "run"), "--json", *sizes.split()]
    first = json.loads(verb(*words))
    assert first["steps"] == 2
    assert first["notes"] == []
    assert (out / "run" / "model" / "stts.safetensors").exists()
    assert any((out / "run" / "tensorboard").iterdir())
    assert json.loads(verb(*words))["metrics"] == first["metrics"]


def smoke_serve(out: Path) -> None:
    """The page and the endpoint are there, and go away when told."""
    assert "--port" in verb("serve", "--help")
    for words, path in (((), ""), (("--api",), "/models")):
        serve = [*JVIDPRUNE, "serve", *words, "--port", "0", "--json"]
        process = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            with urllib.request.urlopen(url + path, timeout=60) as page:
                assert page.status == 200
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def smoke_judge(out: Path) -> None:
    """A server of the OpenAI protocol on loopback is asked for a verdict."""
    from jvidprune.evals.judge.server import ChatServer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = {"choices": [{"message": {"content": f"{asked['model']}: 4"}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_: object) -> None:
            pass

    async def ask(port: int) -> str:
        async with ChatServer(f"http://127.0.0.1:{port}/v1", "judge", timeout=60) as server:
            return await server.reply([{"role": "user", "content": "?"}])

    assert "--endpoint" in verb("judge", "--help")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert asyncio.run(ask(server.server_port)) == "judge: 4"


def smoke_notebooks(out: Path) -> None:
    """A cell runs in a kernel of this environment."""
    import nbformat
    from nbclient import NotebookClient

    assert "ask" in verb("--help")
    cell = nbformat.v4.new_code_cell("import jvidprune; print(len(jvidprune.reducers.names()))")
    book = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(book, timeout=300).execute()
    assert int(book.cells[0].outputs[0]["text"]) > 5
    subprocess.run([sys.executable, "-m", "jupyterlab", "--version"], check=True, stdout=subprocess.DEVNULL)


def smoke_browser(out: Path) -> None:
    """Playwright is there; the browser itself is the machine's."""
    from playwright.sync_api import sync_playwright

    assert callable(sync_playwright)


def smoke_lmms_eval(out: Path) -> None:
    """Exported clips are answered through lmms-eval's own command."""
    verb("bench", "export", str(out / "clips"), "--clips", "2")
    command = [sys.executable, "-m", "lmms_eval", "--model", "jvidprune", "--batch_size", "2"]
    command += ["--model_args", "reducer=fastvid,ratio=0.25", "--tasks", "jvidprune_exported"]
    command += ["--include_path", str(out / "clips" / "lmms_eval"), "--output_path", str(out / "logs")]
    subprocess.run([sys.executable, "-m", "lmms_eval", "--help"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(command, check=True, cwd=out, env=os.environ | {"HF_HOME": str(out / "hub")}, timeout=1800)
    assert list((out / "logs").rglob("*results.json"))


if __name__ == "__main__":
    globals()[f"smoke_{sys.argv[1].replace('-', '_')}"](Path(sys.argv[2]))
