"""The endpoint, driven by the real OpenAI client: answers as `ask` gives them, streams, batches, errors and limits."""

import base64
import concurrent.futures
import io
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
from helpers import tiny_checkpoints

from jvidprune.errors import JvidpruneError
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.serve.api import serving
from jvidprune.serve.compare import SideBySide
from jvidprune.video.encode import write_mp4
from jvidprune.video.limits import Limits

LIMITS = Limits(pixels=200 * 200, frames=16, seconds=20.0)
OURS = {"reducer": "uniform", "ratio": 0.5, "frames": 8}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny_checkpoints.write("qwen2_5_vl", tmp_path_factory.mktemp("tiny") / "m"))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with two clips and a picture."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for name in ("one", "two"):
        write_mp4(folder / f"{name}.mp4", rng.integers(0, 255, (16, 32, 32, 3), np.uint8), fps=4)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / "one.png")
    return folder


@pytest.fixture(scope="module")
def server(llm, media):
    options = {"rows": 3, "context": 1024, "waiting": 12, "body_mb": 0.2, "max_new_tokens": 64, "limits": LIMITS}
    with serving(llm, name="tiny", port=0, files=media, reducer="uniform", ratio=0.5, **options) as at:
        yield at


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=120) as made:
        yield made


def data(path, kind="video/mp4"):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(path, question="What?"):
    """One message with a clip before a question."""
    parts = [{"type": "video_url", "video_url": {"url": data(path)}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def complete(client, messages, **more):
    extra = {**OURS, **more.pop("extra_body", {})}
    return client.chat.completions.create(model="tiny", messages=messages, extra_body=extra, **more)


def asked(llm, path, question="What?", **how):
    """The same by the model object."""
    video = llm.reduce(llm.encode(llm.sample(path, frames=8)), reducer="uniform", ratio=0.5)
    return llm.ask(video, question, **how)


def test_the_models_are_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.family, model.max_model_len) == ("tiny", "qwen2_5_vl", 1024)
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_completion_is_what_ask_answers(client, llm, media):
    found = complete(client, about(media / "one.mp4"), max_tokens=9)
    expected = asked(llm, media / "one.mp4", max_new_tokens=9)
    (choice,) = found.choices
    assert (choice.message.content, choice.message.role) == (expected.text, "assistant")
    assert choice.finish_reason == expected.finish
    assert found.usage.prompt_tokens == expected.prompt
    assert found.jvidprune["kept"] == expected.kept < found.jvidprune["visual"] == expected.visual
    assert (found.jvidprune["reducer"], found.jvidprune["ratio"]) == ("Uniform", 0.5)
    fewer = complete(client, about(media / "one.mp4"), max_tokens=9, extra_body={"ratio": 0.25})
    assert fewer.usage.prompt_tokens < found.usage.prompt_tokens


def test_a_stream_is_the_whole(client, llm, media):
    how = {"temperature": 3.0, "seed": 4, "top_p": 0.9}
    expected = asked(llm, media / "one.mp4", max_new_tokens=20, top_k=50, repetition_penalty=1.1, **how)
    extra = {"top_k": 50, "repetition_penalty": 1.1}
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 20}
    events = list(complete(client, about(media / "one.mp4"), extra_body=extra, **options, **how))
    *texts, last = events
    assert "".join(event.choices[0].delta.content or "" for event in texts) == expected.text
    assert [event.choices[0].finish_reason for event in texts][-1] == expected.finish
    assert not last.choices
    assert last.usage.prompt_tokens == expected.prompt
    whole = complete(client, about(media / "one.mp4"), extra_body=extra, max_tokens=20, **how)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage == last.usage


def test_requests_side_by_side_answer_as_alone(client, llm, media):
    """More requests than rows, of different lengths, clips, methods and settings, so that rows change hands."""
    wanted = []
    for number in range(8):
        path = media / ("one.mp4", "two.mp4")[number % 2]
        how = {"temperature": 2.0, "seed": number} if number % 3 == 0 else {}
        wanted.append((path, "Why? " * (number % 4 + 1), 4 + 5 * (number % 3), how))

    def one(given):
        path, question, most, how = given
        return complete(client, about(path, question), max_tokens=most, **how).choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, wanted))
    for text, (path, question, most, how) in zip(found, wanted, strict=True):
        assert text == asked(llm, path, question, max_new_tokens=most, **how).text


def test_pictures_conversations_samples_and_stops(client, llm, media):
    """A system message, a picture and a clip in two turns, and text alone."""
    picture = data(media / "one.png", "image/png")
    talk = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": picture}}],
        },
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, *about(media / "one.mp4")[0]["content"]]},
    ]
    both = complete(client, talk, max_tokens=5)
    one = complete(client, talk[:2], max_tokens=5)
    assert both.jvidprune["visual"] > one.jvidprune["visual"] > 0
    alone = complete(client, [{"role": "user", "content": "Who are you?"}], max_tokens=5)
    assert alone.choices[0].message.content == llm.ask(None, "Who are you?", max_new_tokens=5).text
    assert alone.jvidprune["reducer"] is None
    several = complete(client, about(media / "one.mp4"), n=3, temperature=3.0, seed=7, max_tokens=12)
    expected = asked(llm, media / "one.mp4", max_new_tokens=12, temperature=3.0, seed=7, samples=3)
    assert tuple(choice.message.content for choice in several.choices) == expected.texts
    stop = expected.text[3:5]
    cut = complete(client, about(media / "one.mp4"), temperature=3.0, seed=7, max_tokens=12, stop=[stop])
    assert cut.choices[0].message.content == expected.text.split(stop)[0].strip()
    assert cut.choices[0].finish_reason == "stop"


def test_methods_that_act_inside_the_model_are_answered_by_themselves(client, llm, media):
    extra = {"reducer": "fastv(layer=1)"}
    found = complete(client, about(media / "one.mp4"), max_tokens=6, extra_body=extra)
    video = llm.reduce(llm.encode(llm.sample(media / "one.mp4", frames=8)), reducer="fastv(layer=1)", ratio=0.5)
    assert found.choices[0].message.content == llm.ask(video, "What?", max_new_tokens=6).text


def test_files_of_the_servers_folder_can_be_named(client, media, tmp_path):
    def named(address):
        parts = [{"type": "video_url", "video_url": {"url": address}}, {"type": "text", "text": "What?"}]
        return complete(client, [{"role": "user", "content": parts}], max_tokens=4).choices[0].message.content

    same = complete(client, about(media / "one.mp4"), max_tokens=4).choices[0].message.content
    assert named((media / "one.mp4").as_uri()) == same
    (tmp_path / "out.mp4").write_bytes((media / "one.mp4").read_bytes())
    (media / "link.mp4").symlink_to(tmp_path / "out.mp4")
    for outside in ((tmp_path / "out.mp4").as_uri(), f"{media.as_uri()}/../x.mp4", (media / "link.mp4").as_uri()):
        with pytest.raises(openai.BadRequestError, match="no such file in the server's folder"):
            named(outside)
    with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        named("https://example.com/clip.mp4")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"extra_body": {"reducer": "flashvit"}}, "Did you mean 'flashvid'"),
        ({"extra_body": {"reducer": "os:path"}}, "."),
        ({"extra_body": {"reducer": "covipal(module='/etc/hostname')"}}, "weights are not read from files"),
        ({"extra_body": {"reducer": "./a\0.py:Mine"}}, "."),
        ({"extra_body": {"reducer": f"./{'a' * 400}/json.py:Mine"}}, "cannot read"),
        ({"extra_body": {"ratio": 0}}, r"ratio must lie in \(0, 1\], got 0"),
        ({"extra_body": {"sampler": 1}}, "unknown field sampler"),
        ({"max_tokens": 65}, "at most 64"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"logprobs": True}, "logprobs True is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty 0.5 is not supported"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"n": 9}, "at most 8 answers"),
    ],
)
def test_what_cannot_be_done_is_an_error_object(client, media, more, says):
    with pytest.raises(openai.BadRequestError, match=says) as error:
        complete(client, about(media / "one.mp4"), **more)
    assert error.value.body["type"] == "invalid_request_error"
    assert "\n" not in error.value.body["message"]
    assert str(media) not in error.value.body["message"]


def test_broken_media_and_odd_messages_are_error_objects(client, media):
    broken = "data:video/mp4;base64," + base64.b64encode(bytes(range(256)) * 9).decode()
    part = {"type": "video_url", "video_url": {"url": broken}}
    with pytest.raises(openai.BadRequestError, match="the file of a video_url"):
        complete(client, [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}])
    with pytest.raises(openai.BadRequestError, match="a conversation has a system message first"):
        complete(client, [{"role": "assistant", "content": "?"}])
    with pytest.raises(openai.BadRequestError, match="do not fit the 1024 slots of a row"):
        complete(client, [{"role": "user", "content": "long " * 300}])
    with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
        client.chat.completions.create(model="other", messages=about(media / "one.mp4"))
    with pytest.raises(openai.APIStatusError, match=r"at most 0\.2 MB") as error:
        complete(client, [{"role": "user", "content": "x" * 300_000}])
    assert error.value.status_code == 413
    # The server goes on.
    assert complete(client, about(media / "one.mp4"), max_tokens=3).choices


def test_other_addresses_bodies_and_hosts(server):
    def post(path, body, **headers):
        headers = {"Content-Type": "application/json"} | headers
        request = urllib.request.Request(server.url + path, body, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        return error.value.code, error.value.read().decode()

    code, text = post("/chat/completions", b"{")
    assert code == 400
    assert json.loads(text)["error"]["message"] == "the body is no JSON."
    assert post("/chat/completions", b"[" * 100_000)[0] == 400
    assert post("/completions", b"{}")[0] == 404
    assert post("/chat/completions", b"{}", Host="evil.example")[0] == 400
    assert post("/chat/completions", b"{}", **{"Content-Type": "text/plain"})[0] == 415
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/health") as found:
        assert json.load(found) == {"status": "ok"}


def test_a_client_that_leaves_frees_its_row(client, media):
    for _ in range(4):
        stream = complete(client, about(media / "one.mp4"), stream=True, max_tokens=60, temperature=3.0)
        next(iter(stream))
        stream.close()
    assert complete(client, about(media / "one.mp4"), max_tokens=3).choices


def test_requests_beyond_those_that_may_wait_and_late_ones_are_refused(llm, media):
    """A server of its own: no request may wait, and none has any time."""
    with (
        serving(llm, name="tiny", port=0, rows=1, context=640, waiting=1, seconds=1e-6, limits=LIMITS) as at,
        openai.OpenAI(base_url=at.url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError, match="took longer than the 1e-06 seconds") as error:
            complete(client, about(media / "one.mp4"), max_tokens=3)
        assert error.value.status_code == 504
    with (
        serving(llm, name="tiny", port=0, rows=1, context=640, waiting=1, limits=LIMITS) as at,
        openai.OpenAI(base_url=at.url, api_key="none", max_retries=0) as client,
    ):
        gate = threading.Barrier(4)

        def one(_):
            gate.wait()
            try:
                return complete(client, about(media / "one.mp4"), max_tokens=60, temperature=3.0).choices
            except openai.RateLimitError as error:
                return error.body["code"]

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(one, range(4)))
        assert "too_many_requests" in found
        assert any(isinstance(one, list) for one in found)


def test_nothing_stays_of_a_server_that_cannot_be_made(llm, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The error holds the frames, and so would hold the socket.
    with (
        pytest.raises(JvidpruneError, match="Did you mean 'flashvid'") as error,
        serving(llm, port=port, reducer="flashvit"),
    ):
        pass
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))
    assert error.traceback
    limits = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: limits.append(server.config.limit_concurrency))
    with pytest.raises(JvidpruneError, match="did not start"), serving(llm, port=0, rows=3, context=1024, waiting=7):
        pass
    assert limits == [30]


def test_a_visitor_of_the_page_names_no_files_of_weights(llm):
    page = SideBySide(llm, source=None, limits=LIMITS)
    with pytest.raises(JvidpruneError, match="weights are not read from files"):
        page._named("covipal(module='/etc/hostname')")


def test_the_verb_serves_until_it_is_stopped(llm):
    words = [sys.executable, "-m", "jvidprune.cli", "serve", "--api", "--port", "0", "--model", llm.loaded.folder]
    process = subprocess.Popen([*map(str, words), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = io.TextIOWrapper(process.stdout).readline()
        url = json.loads(line)["url"]
        with openai.OpenAI(base_url=url, api_key="none") as client:
            assert [model.id for model in client.models.list()] == ["m"]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
