"""The engine behind the endpoint by itself: rows that are shared, and what happens where something of them fails."""

import asyncio
import contextlib
import json
import threading
import weakref

import jax
import numpy as np
import pytest
from helpers import tiny_checkpoints

from jvidprune.errors import JvidpruneError
from jvidprune.llm.rows import Prompt, batches, read_rows
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import lane as lane_module
from jvidprune.models.generate import decode
from jvidprune.models.lane import Lane
from jvidprune.models.sampling import GREEDY
from jvidprune.serve.api import _Endpoint
from jvidprune.serve.chat_requests import Media, read_request
from jvidprune.serve.engine import Broken, Engine
from jvidprune.video.encode import write_mp4
from jvidprune.video.limits import Limits

LIMITS = Limits(pixels=200 * 200, frames=16, seconds=20.0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny_checkpoints.write("qwen2_5_vl", tmp_path_factory.mktemp("tiny") / "m"))


def test_a_longer_prompt_waits_until_others_have_room_behind_it(llm):
    """A row may still write 60 tokens: a prompt that moves the shared slot beyond that does not fit yet."""

    def read(question, lane):
        (rows,) = batches(llm, [Prompt([], question)], reserve=1, batch=1, min_fill=0.0)
        size = rows.used[0].size
        return *read_rows(llm, rows, lane.capacity - size), size

    vocab = llm.loaded.config.text.vocab
    lane = Lane(llm.loaded.model, rows=2, capacity=288, vocab=vocab, eos_ids=())
    logits, cache, size = read("Who?", lane)
    assert lane.fits(size, 100)
    seen, key = np.zeros(vocab, bool), jax.random.key(0)
    row, token = lane.put(logits, cache, size, 100, GREEDY, key, seen)
    assert not lane.fits(192, 5)
    found = [token]
    while not lane.fits(192, 5):
        found += lane.go_on()[row].tolist()
    assert 12 <= len(found) < 100
    other_logits, other_cache, wide = read("Who? " * 24, lane)
    assert wide == 192
    other, first = lane.put(other_logits, other_cache, wide, 5, GREEDY, key, seen)
    rest = lane.go_on()
    lane.free(other)
    while len(found) + rest.shape[1] < 100:
        rest = np.concatenate([rest, lane.go_on()], axis=1)
    wanted = llm.loaded.model
    again, cache, _ = read("Who?", lane)
    expected = np.asarray(decode(wanted, again, cache, max_new_tokens=100)[0])[0]
    assert [*found, *rest[row].tolist()][:100] == expected.tolist()
    again, cache, _ = read("Who? " * 24, lane)
    expected = np.asarray(decode(wanted, again, cache, max_new_tokens=5)[0])[0]
    assert [first, *rest[other].tolist()[:4]] == expected.tolist()
    with pytest.raises(JvidpruneError, match="do not fit the 288 slots"):
        lane.fits(256, 50)


def request_for(text, most=6, **more):
    raw = {"messages": [{"role": "user", "content": text}], "max_tokens": most, **more}
    return read_request(raw, longest=64, defaults="greedy", files=None)


class Told:
    """Asks an engine, and ends as the endpoint does where there is an error."""

    def __init__(self, engine, request):
        self.engine, self.samples, self.over = engine, request.samples, threading.Event()
        self.ended, self.errors, self.job = {}, [], None
        self.job = engine.ask(request, self.tell)

    def tell(self, piece):
        if piece.error is not None:
            self.errors.append(piece.error)
            if self.job is not None:
                self.job.wanted = False
        if piece.ended is not None:
            self.ended[piece.sample] = piece.ended.text
        if self.errors or len(self.ended) == self.samples:
            self.over.set()

    def wait(self):
        assert self.over.wait(120)
        return self


@pytest.fixture
def engine(llm):
    made = Engine(llm, rows=3, context=288, limits=LIMITS, reducer="uniform", ratio=0.5)
    yield made
    made.close()


def test_a_request_whose_rows_end_together_ends_nobody_elses(engine, llm, monkeypatch):
    """Two answers of one request are late at the same step, in rows before that of another request."""
    go_on = Lane.go_on
    jobs = []

    def late(lane):
        if len(engine._answering) == 3:
            jobs[0].deadline = 0.0
        return go_on(lane)

    monkeypatch.setattr(Lane, "go_on", late)
    two = Told(engine, request_for("Who are you?", 60, n=2, temperature=3.0, seed=1))
    jobs.append(two.job)
    other = Told(engine, request_for("Who are you?", 40))
    assert "took longer" in str(two.wait().errors[0])
    assert other.wait().ended == {0: llm.ask(None, "Who are you?", max_new_tokens=40).text}


def test_a_prompt_that_cannot_be_put_into_its_row_leaves_empty_rows(engine, llm, monkeypatch):
    def fails(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(lane_module, "_put", fails)
        broken = Told(engine, request_for("Who are you?", n=2)).wait()
    assert str(broken.errors[0]) == "no memory"
    assert not engine._lane.busy
    again = Told(engine, request_for("Who are you?", 9)).wait()
    assert again.ended == {0: llm.ask(None, "Who are you?", max_new_tokens=9).text}


def test_an_engine_without_rows_says_so(engine, monkeypatch):
    """The old rows are given back before new ones are made; where these cannot be, nothing hangs."""
    old, left, gate = weakref.ref(engine._lane), [], threading.Event()

    def fails(lane):
        assert gate.wait(60)
        raise RuntimeError("a step failed")

    def no_rows():
        left.append(old())
        raise MemoryError("no rows")

    monkeypatch.setattr(Lane, "go_on", fails)
    monkeypatch.setattr(engine, "_rows", no_rows)
    first = Told(engine, request_for("Who are you?"))
    second = Told(engine, request_for("Who are you?"))
    gate.set()
    assert str(first.wait().errors[0]) == "a step failed"
    assert "MemoryError: no rows" in str(second.wait().errors[0])
    assert left == [None]
    with pytest.raises(Broken, match="answers nothing any more, start the server again: MemoryError: no rows"):
        engine.ask(request_for("Who are you?"), print)
    answer = asyncio.run(_Endpoint(engine, "tiny", 1, 1, "greedy", None).health(None))
    assert answer.status_code == 503
    assert json.loads(answer.body)["error"]["code"] == "broken"


def test_methods_that_take_turns_encode_no_more_than_twice(llm, tmp_path, monkeypatch):
    write_mp4(tmp_path / "one.mp4", np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), np.uint8), fps=4)
    made, seen = Engine(llm, rows=1, context=288, limits=LIMITS, reducer="uniform", ratio=0.5), []
    made.close()
    encode = VideoLLM.encode
    monkeypatch.setattr(VideoLLM, "encode", lambda *args, needs: seen.append(needs) or encode(*args, needs=needs))
    file, asked = Media(None, tmp_path / "one.mp4", "one"), request_for("What?", frames=8)
    for needs in ({"keys"}, {"attention_last"}) * 3:
        video = made._encoded(file, asked, frozenset(needs))
        assert needs <= video.tokens.evidence.keys()
    assert seen == [{"keys"}, {"keys", "attention_last"}]


def test_the_longest_answer_holds_for_requests_that_name_no_length(llm):
    folder = llm.loaded.folder / "generation_config.json"
    folder.write_text(json.dumps({"max_new_tokens": 40}))
    try:
        with contextlib.closing(Engine(llm, rows=3, context=288, limits=LIMITS)) as made:
            for defaults in ("greedy", "folder"):
                raw = {"messages": [{"role": "user", "content": "Who are you?"}]}
                told = Told(made, read_request(raw, longest=5, defaults=defaults, files=None)).wait()
                assert told.ended == {0: llm.ask(None, "Who are you?", max_new_tokens=5).text}
    finally:
        folder.unlink()
