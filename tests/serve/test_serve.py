"""The page over HTTP: a real server on a free port, real uploads, real answers, and what is refused."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from jvidprune.errors import JvidpruneError
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.serve.cards import cards, figures
from jvidprune.serve.compare import SideBySide
from jvidprune.serve.examples import write_examples
from jvidprune.serve.server import running
from jvidprune.serve.uploads import Uploads
from jvidprune.video.encode import write_mp4
from jvidprune.video.limits import Limits

METHODS = ["flashvid", "uniform"]
LIMITS = Limits(pixels=450 * 450, frames=16, seconds=20.0)


@pytest.fixture(scope="module")
def llm():
    return VideoLLM.load(EMBEDDED)


@pytest.fixture(scope="module")
def example(tmp_path_factory, llm):
    return write_examples(tmp_path_factory.mktemp("examples"), llm, embedded=True, count=1)[0]


@pytest.fixture(scope="module")
def page(llm):
    with running(llm, port=0, upload_mb=0.5, limits=LIMITS, max_new_tokens=6, examples=False) as at:
        yield at


@pytest.fixture(scope="module")
def client(page):
    from gradio_client import Client

    return Client(page.url, verbose=False)


def ask(client, path, question, methods=METHODS, ratio=0.2):
    """Outputs of the button: cards, legend, slider, frames and the record."""
    from gradio_client import handle_file

    video = None if path is None else handle_file(str(path))
    return client.predict(video, question, methods, ratio, api_name="/ask")


def test_an_uploaded_clip_is_answered_by_every_method(client, llm, example):
    shown, legend, slider, frames, record = ask(client, example.path, example.prompt)[:5]
    assert [row["method"] for row in record["methods"]] == METHODS
    clip = llm.sample(example.path)
    for row in record["methods"]:
        method = llm.reducer(row["method"])
        alone = llm.ask(llm.encode(clip, reducer=method), example.prompt, reducer=method, ratio=0.2, max_new_tokens=6)
        assert (row["answer"], row["kept"], row["visual"], row["prompt"]) == (
            alone.text,
            alone.kept,
            alone.visual,
            alone.prompt,
        )
        assert set(row["seconds"]) == {"reduce", "prefill", "generate"}
        assert f"{row['kept']:,} of {row['visual']:,} tokens" in shown
        assert row["answer"] in shown
    assert set(record["seconds"]) == {"decode", "encode"}
    frames_read = len(clip.frames)
    assert (slider["maximum"], slider["visible"]) == (frames_read, True)
    assert "outlined: kept" in legend
    assert frames.count("<img") == len(METHODS)
    other = client.predict(5, api_name="/show")
    assert f"frame 5 of {frames_read}" in other
    assert other.count("<img") == len(METHODS)
    assert other != frames
    # The same video again is not encoded again.
    assert ask(client, example.path, "was there a flash?")[4]["seconds"] == {}


def test_what_cannot_be_served_is_one_sentence(client, example, tmp_path):
    long_film = write_mp4(tmp_path / "long.mp4", np.zeros((24, 32, 32, 3), np.uint8), 1.0)
    wide_film = write_mp4(tmp_path / "wide.mp4", np.zeros((2, 64, 4096, 3), np.uint8), 1.0)
    (tmp_path / "cut.mp4").write_bytes(example.path.read_bytes()[:2000])
    (tmp_path / "notes.txt").write_text("no film")
    whole = (example.path, example.prompt, METHODS, 0.2)
    wrong = [
        ((None, *whole[1:]), "choose a video first"),
        ((tmp_path / "notes.txt", *whole[1:]), "notes.txt is no video file: its name must end in .mp4"),
        ((long_film, *whole[1:]), "seconds, more than the 20 allowed"),
        ((wide_film, *whole[1:]), "4096 x 64 pixels, more than the 202500 allowed"),
        ((tmp_path / "cut.mp4", *whole[1:]), "cut.mp4 "),
        ((example.path, "  ", *whole[2:]), "type a question"),
        ((example.path, "why" * 1000, *whole[2:]), "3000 characters, more than the 2000 allowed"),
        ((*whole[:2], [], 0.2), "choose 1 to 6 methods, not 0"),
        ((*whole[:2], ["flashvit"], 0.2), "unknown reducer 'flashvit'"),
        ((*whole[:2], ["flashvid:alpha=x"], 0.2), "alpha"),
    ]
    for inputs, sentence in wrong:
        shown, record = (ask(client, *inputs)[i] for i in (0, 4))
        assert sentence in record["error"], record
        assert "\n" not in record["error"]
        assert 'role="alert"' in shown


def test_uploads_are_limited_in_size(client, example, tmp_path):
    (tmp_path / "big.mp4").write_bytes(bytes(600_000))
    with pytest.raises(Exception, match=r"(?i)413|size|large"):
        ask(client, tmp_path / "big.mp4", example.prompt)


def test_the_page_asks_nothing_of_other_servers_and_answers_to_no_other_name(page):
    with urllib.request.urlopen(page.url) as response:
        policy, body = response.headers["Content-Security-Policy"], response.read().decode()
    assert policy.startswith("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:;")
    assert "fonts.googleapis" not in body
    assert "cdn" not in body.lower()
    foreign = urllib.request.Request(page.url, headers={"Host": "rebound.example:80"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(foreign)


def test_a_method_that_refuses_leaves_the_others(llm, example):
    comparer = SideBySide(llm, source=None, limits=LIMITS, max_new_tokens=2)
    found = comparer.compare(example.path, "was there a flash?", ["dycoke", "random:seed=3"], 0.02)
    refused, answered = found.columns
    assert (refused.answer, answered.refused) == (None, "")
    assert "its ratio is at least 0.25" in refused.refused
    assert answered.decision is not None
    total = len(llm.sample(example.path).frames) * math.prod(llm.loaded.config.grid)
    assert answered.decision.count == round(0.02 * total)
    assert refused.refused.split(",")[0] in cards(found)
    assert figures(found, 0).count("<img") == 1
    with pytest.raises(JvidpruneError, match="ratio"):
        comparer.compare(example.path, "was there a flash?", ["uniform"], 1.5)
    assert set(comparer.methods()) >= {"none", "flashvid", "fastvid", "aot"}


def test_methods_that_read_the_question_share_one_encoding_of_the_clip(llm, example):
    comparer = SideBySide(llm, source=None, limits=LIMITS, max_new_tokens=2)
    first = comparer.compare(example.path, "was there a flash?", ["uniform", "cdpruner"], 0.2)
    again = comparer.compare(example.path, "what colour is the circle?", ["cdpruner"], 0.2)
    assert ([stage.name for stage in first.stages], again.stages) == (["decode", "encode"], ())
    clip = llm.sample(example.path)
    for found, question in ((first, "was there a flash?"), (again, "what colour is the circle?")):
        column = found.columns[-1]
        alone = llm.ask(clip, question, reducer="cdpruner", ratio=0.2, max_new_tokens=2)
        assert (column.answer.text, column.answer.kept) == (alone.text, alone.kept)


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop_and_leaves_nothing_behind(tmp_path, example):
    from gradio_client import Client

    command = [sys.executable, "-m", "jvidprune.cli", "serve", "--port", "0", "--json"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            assert url.startswith("http://127.0.0.1:")
            found = ask(Client(url, verbose=False), example.path, "", ["none"])
            assert found[4]["error"].startswith("type a question")
            uploads = [path.name for path in tmp_path.glob("jvidprune-serve-*/uploads/**/*") if path.is_file()]
            assert example.path.name in uploads
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert not list(tmp_path.glob("jvidprune-serve-*"))


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


IPV6 = has_ipv6()


@pytest.fixture(scope="module")
def small(llm):
    """A page on IPv6's loopback that keeps no more than two large uploads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jvidprune.serve.server.KEPT_UPLOADS", 2)
        with running(llm, host="::1" if IPV6 else "127.0.0.1", port=0, upload_mb=0.5, examples=False) as at:
            yield at


@pytest.mark.skipif(not IPV6, reason="this machine has no IPv6")
def test_a_page_on_ipv6_is_where_its_address_says(small):
    assert small.url == f"http://[::1]:{small.port}"
    with urllib.request.urlopen(small.url) as response:
        assert response.status == 200
    foreign = urllib.request.Request(small.url, headers={"Host": "rebound.example:80"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(foreign)


def test_uploads_that_were_used_last_are_kept_and_the_disk_stays_bounded(small):
    import httpx

    kept = []
    for number in range(5):
        files = {"files": (f"{number}.mp4", bytes([number]) * 400_000)}
        (path,) = httpx.post(f"{small.url}/gradio_api/upload", files=files).raise_for_status().json()
        kept.append(Path(path))
        assert kept[-1].exists()
    # There is always room for one more of the largest size.
    assert [path.exists() for path in kept] == [False, False, False, True, True]


def test_a_video_and_frames_that_are_gone_are_told(small, llm, tmp_path):
    from gradio_client import Client

    comparer = SideBySide(llm, source=None, limits=LIMITS)
    with pytest.raises(JvidpruneError, match=r"gone.mp4 is no longer here: upload it again\."):
        comparer.compare(tmp_path / "gone.mp4", "what?", ["uniform"], 0.5)
    assert "ask again" in Client(small.url, verbose=False).predict(1, api_name="/show")


def test_room_is_made_by_what_was_unused_for_longest(tmp_path, llm):
    from jvidprune.serve.page import build_page

    uploads = Uploads(tmp_path / "uploads", most=100)
    uploads.make_room(1)
    paths = [tmp_path / "uploads" / str(number) / "clip.mp4" for number in range(4)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(30))
        os.utime(path, (number, number))
        if number == 0:
            uploads.fix()
    uploads.used(paths[1])
    uploads.used(tmp_path / "elsewhere.mp4")
    uploads.make_room(30)
    assert [path.exists() for path in paths] == [True, True, False, True]
    uploads.make_room(100)
    assert [path.exists() for path in paths] == [True, False, False, False]
    # Nothing else removes files, however old they are.
    page = build_page(SideBySide(llm, source=None, limits=LIMITS), [], uploads=uploads, subtitle="")
    assert page.delete_cache is None


@pytest.mark.parametrize(("wrong", "sentence"), [({"port": 70_000}, "a port lies"), ({"upload_mb": 0.0}, "above 0")])
def test_impossible_settings_are_refused_before_anything_starts(wrong, sentence):
    with pytest.raises(JvidpruneError, match=sentence), running(None, **wrong):  # pyright: ignore[reportArgumentType]
        pass
