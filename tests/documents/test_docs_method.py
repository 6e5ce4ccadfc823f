"""The method of docs/adding-a-method.md runs as it stands, and does what its text says."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import untrained
from helpers.places import REPOSITORY

from jvidprune.cuts.inner import Inner
from jvidprune.llm.prompt_cuts import prompt_inner
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.prefill import prefill

TEXT = (REPOSITORY / "docs" / "adding-a-method.md").read_text(encoding="utf8")
SNIPPETS = dict(re.findall(r"^<!-- (\w+) -->\n```python\n(.*?)^```", TEXT, flags=re.M | re.S))


@pytest.fixture(scope="module")
def method():
    names = {"__name__": "my_method"}
    exec(compile(SNIPPETS["method"], "docs/adding-a-method.md", "exec"), names)
    return names


def test_the_method_is_about_thirty_lines():
    assert len([line for line in SNIPPETS["method"].splitlines() if line.strip()]) <= 32


def test_the_snippet_prints_its_two_cuts(method, capsys):
    exec(compile(SNIPPETS["show"], "docs/adding-a-method.md", "exec"), dict(method))
    lines = capsys.readouterr().out.splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [("1", "40"), ("2", "20")]


@pytest.mark.slow
def test_the_method_answers_and_cuts_where_it_says(method, tmp_path):
    llm = VideoLLM.load(untrained.write(tmp_path))
    reducer = method["KeyPyramid"]()
    frames = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    video = llm.encode(frames)
    assert len(llm.ask(video, "What?", reducer=reducer, ratio=0.4, max_new_tokens=3).token_ids) > 0
    one = llm.reduce(video, reducer=reducer, ratio=0.4)
    slots, text = llm.lay_out([one], "What?", 3)
    inner = prompt_inner(one.inner, slots, len(text), newline=llm.newline, layers=3)
    x = jnp.zeros((1, len(slots.source), llm.loaded.config.text.width))
    rotary = np.asarray(slots.rotary)
    _, cache = prefill(llm.loaded.model, x, rotary, slots.valid[None], capacity=x.shape[1] + 2, inner=inner)
    visual, whole = one.kept, slots.length
    lengths = [whole - visual + n for n in (visual, -(-visual * 4 // 10), -(-visual * 2 // 10))]
    assert [int(part.valid.sum()) for part in cache.segments] == lengths
    assert [0 if part.shift is None else int(part.shift[0]) for part in cache.segments] == [
        whole - length for length in lengths
    ]


def test_the_rule_that_routes_runs_its_share_in_every_other_layer(method):
    names = dict(method)
    exec(compile(SNIPPETS["route"], "docs/adding-a-method.md", "exec"), names)
    visual, valid = np.arange(12)[None] < 8, np.ones((1, 12), bool)
    inner = Inner.create(names["EveryOtherLayer"](depth=4).inner(0.25), visual, valid, layers=4)
    assert [(route.layer, route.capacity) for route in inner.routes] == [(1, 6), (3, 6)]
    x = np.random.default_rng(0).normal(size=(1, 12, 5)).astype("f4")
    runs, *_ = inner.routes[0].choose(inner.start(jnp.asarray(x), np.arange(12)[None], jnp.asarray(valid)))
    largest = np.argsort(-np.linalg.norm(x[0, :8], axis=-1))[:2]
    assert np.flatnonzero(runs[0]).tolist() == [*sorted(largest), 8, 9, 10, 11]


def test_the_rule_with_a_bias_lowers_the_keys_that_point_away(method):
    names = dict(method)
    exec(compile(SNIPPETS["bias"], "docs/adding-a-method.md", "exec"), names)
    visual, valid = np.arange(12)[None] < 8, np.arange(12)[None] < 11
    x = np.random.default_rng(0).normal(size=(1, 12, 5)).astype("f4")
    direction = np.arange(5, dtype="f4")
    inner = Inner.create([names["fading"](direction)], visual, valid, layers=4)
    state = inner.start(jnp.asarray(x), np.arange(12)[None], jnp.asarray(valid))
    after, record, _ = inner.cuts[0].apply(state)
    lowered = np.where(visual, np.minimum(x @ direction, 0), 0)[:, : after.bias.shape[1]]
    np.testing.assert_allclose(after.bias, lowered, rtol=1e-5)
    assert int(record.count[0]) == valid.sum()
