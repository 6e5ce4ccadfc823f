"""Requests of the endpoint that need no model: what is read of them, and what is refused."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from jvidprune.errors import JvidpruneError
from jvidprune.reducers.registry import from_text
from jvidprune.serve.api import _Endpoint
from jvidprune.serve.chat_requests import read_messages, read_request
from jvidprune.weights import files_refused


def test_messages_are_read_in_order():
    raw = [{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "?"}]}]
    messages, media = read_messages(raw)
    assert [(message.role, message.text) for message in messages] == [("system", "s"), ("user", "?")]
    assert media == ()
    for odd, says in (
        ([], "messages must be a list"),
        ([{"role": "tool", "content": ""}], "a message has a role of"),
        ([{"role": ["user"], "content": ""}], "a message has a role of"),
        ([{"role": {}, "content": ""}], "a message has a role of"),
        ([{"role": "user", "content": "\ud800"}], "half of a character"),
        ([{"role": "user", "content": 3}], "must be a text or a list of parts"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "a part is text, image_url or video_url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}], "must be base64"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,*"}}]}], "no base64"),
    ):
        with pytest.raises(JvidpruneError, match=says):
            read_messages(odd)
    seeds = {
        read_request({"messages": raw}, longest=9, defaults="greedy", files=None).generating.get("seed")
        for _ in range(4)
    }
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("file:///a%00b", "no such file in the server's folder"),
        ("file:///" + "a" * 5000, "no such file in the server's folder"),
        ("{}/" + "a" * 300, "no such file in the server's folder"),
        ("{}/%00", "no such file in the server's folder"),
        ("{}/loop", "no such file in the server's folder"),
        ("file://[x", "is no address"),
        ("http://[x", "is no address"),
    ],
)
def test_addresses_of_no_file_are_refused_in_a_sentence(tmp_path, address, says):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    part = {"type": "video_url", "video_url": {"url": address.format(tmp_path.as_uri())}}
    with pytest.raises(JvidpruneError, match=says) as error:
        read_messages([{"role": "user", "content": [part]}], tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def posted(app, parts):
    """Status and object of a request whose body comes in these parts, and no further."""
    sent = []

    async def run():
        waiting = list(parts)

        async def receive():
            if not waiting:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": ""}
        await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(run(), 30))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_body_that_does_not_come_is_given_up():
    engine: Any = SimpleNamespace(seconds=0.1)
    way = _Endpoint(engine, "tiny", 1000, 9, "greedy", None)
    status, body = posted(way.app(True), [b'{"messages": '])
    assert status == 408
    assert body["error"]["message"] == "the body did not come within the 1 seconds that a request may take."


@pytest.mark.parametrize(
    "text",
    [
        "covipal(module='{}')",
        "visionzip + covipal(module='{}')",
        "aot(intra_transport=Transport(cost=LearnedCost('{}')))",
    ],
)
def test_weights_of_texts_of_others_are_read_from_no_file(tmp_path, text):
    for name in ("there", "not_there"):
        (tmp_path / "there").write_bytes(b"x")
        with files_refused(), pytest.raises(JvidpruneError, match="weights are not read from files"):
            from_text(text.format(tmp_path / name))
        with pytest.raises(JvidpruneError, match="cannot be read as a safetensors file"):
            from_text(text.format(tmp_path / name))
