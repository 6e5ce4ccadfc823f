"""What a nominal ratio really uses: counts against costs worked out by hand, in records, table, page and record."""

import csv
import json
import math
import re
from typing import get_args

import numpy as np
import pytest
from helpers.sweeps import sweep

from jvidprune.cli.sweep import SweepChoice
from jvidprune.evals.counts import AXES, RECORDED, Against, count_replies, counts_of, counts_row, known_axes, share
from jvidprune.evals.matching import UNITS, Match
from jvidprune.evals.metrics import summarise
from jvidprune.llm.batch import Reply
from jvidprune.llm.video_llm import VideoLLM

RUNS = [("none", 1.0), ("fastv", 0.1)]


def records(method, ratio, clips):
    """Samples and costs; `clips` maps an id to (questions, visual tokens kept, recorded counts or None)."""
    samples, batches = [], []
    for clip, (questions, kept, counts) in clips.items():
        base = {"clip": clip, "method": method, "ratio": ratio}
        row = base | {"category": "a", "correct": True, "kept": kept, "visual": 100, "prompt": kept + 9}
        samples += [row | {"question": str(i)} for i in range(questions)]
        found = {} if counts is None else dict(zip(RECORDED, counts, strict=True))
        batches.append(base | {"refused": "", "prefill_tflops": kept / 10} | found)
    return samples, batches


def test_counts_are_means_over_questions_and_shares_of_the_unpruned_model():
    full = {"a": (3, 100, (2, 4, 100, 106, 1000)), "b": (1, 100, (2, 4, 100, 106, 1000))}
    cut = {"a": (3, 100, (2, 4, 20, 26, 300)), "b": (1, 100, (2, 8, 40, 50, 700))}
    parts = [records(*run, clips) for run, clips in zip(RUNS, (full, cut), strict=True)]
    samples, batches = ([row for part in parts for row in part[side]] for side in (0, 1))
    cells = {(c.method, c.ratio, c.category): c for c in summarise(samples, RUNS, draws=2)}
    found = counts_of(samples, batches, cells)
    one = found["fastv", 0.1]
    # Three questions about the first clip, one about the second.
    assert (one.tokens, one.tokens_all) == (100, 100 + 2 + (3 * 4 + 8) / 4)
    assert (one.layer_tokens, one.layer_all) == ((3 * 20 + 40) / 4, (3 * 26 + 50) / 4)
    assert (one.prefill_tflops, one.kv_bytes) == (10, (3 * 300 + 700) / 4)
    wanted = {"tokens": 1.0, "nominal": 0.1, "tokens_all": 107 / 106, "layer_tokens": 0.25, "kv_bytes": 0.4}
    assert {name: share(found, RUNS[1], name) for name in wanted} == pytest.approx(wanted)
    assert known_axes(found) == list(AXES)
    assert counts_row(one, "FastV")[:5] == ["FastV", "10 %", "100.0", "107.0", "25.0"]
    # Records of an older version know the tokens at the input and the FLOPs alone, and say nothing else.
    old = counts_of(samples, [*batches[:2], *(records(*RUNS[1], {"a": (3, 100, None)})[1])], cells)
    assert known_axes(old) == ["tokens", "nominal", "prefill_tflops"]
    assert counts_row(old["fastv", 0.1], "FastV")[3:6] == ["–", "–", "–"]
    assert math.isnan(old["fastv", 0.1].kv_bytes)
    assert known_axes({}) == []


def test_the_option_offers_what_the_page_has():
    assert get_args(get_args(SweepChoice.__annotations__["against"])[0]) == get_args(Against) == tuple(AXES)
    assert get_args(get_args(SweepChoice.__annotations__["match"])[0]) == get_args(Match) == tuple(UNITS)
    assert [SweepChoice(match=match).drawn_against() for match in UNITS] == [
        "layer_tokens",
        "prefill_tflops",
        "kv_bytes",
    ]
    assert (SweepChoice().drawn_against(), SweepChoice(match="kv", against="nominal").drawn_against()) == (
        "tokens",
        "nominal",
    )


@pytest.fixture(scope="module")
def llm(model):
    return VideoLLM.load(model)


def reply(kept, prompt, cached, *, generated=1, newlines=1):
    return Reply("", (), generated, kept, kept, prompt, newlines=newlines, cached=cached)


def test_layers_and_bytes_of_a_cut_are_those_worked_out_by_hand(llm):
    text, question = llm.loaded.config.text, "Which?"
    words = sum(len(llm.tokenizer.encode(part)) for part in llm.prompts.texts(question))
    entry = 2 * text.kv_heads * text.head_dim * 4
    # 40 visual tokens, one newline behind them, which stays, and 3 markers; 10 of the 40 from the second layer on.
    prompt, deep = words + 3 + 40 + 1, text.layers - 1
    cached = ((1, prompt), (deep, prompt - 30))
    fastv = llm.reducer("fastv(layer=1)")
    found = count_replies(llm, fastv, 0.25, [(question, reply(40, prompt, cached, generated=3))])
    mean = (40 + deep * 10) / text.layers
    assert (found["newlines"], found["markers"]) == (1, 3)
    assert (found["layer_tokens"], found["layer_all"]) == pytest.approx((mean, mean + 4))
    assert found["kv_bytes"] == entry * (prompt + 2 + deep * (prompt - 30 + 2))
    # PruneVid also takes tokens from the cache of the first layers, which have read them all the same.
    trimmed = llm.reducer("prunevid(selected_layer=0, inner_share=0.5)")
    found = count_replies(llm, trimmed, 0.25, [(question, reply(40, prompt, ((text.layers, prompt - 20),)))])
    assert found["layer_tokens"] == pytest.approx((40 + deep * 20) / text.layers)
    assert found["kv_bytes"] == entry * text.layers * (prompt - 20)


@pytest.mark.slow
def test_a_sweep_tells_them_everywhere(home, model, llm, tmp_path):
    words = ["--methods", "random,fastv(layer=1)", "--ratios", "0.25", "--clips", "1", "--against", "layer_tokens"]
    out = sweep(home, model, tmp_path / "run", *words)
    rows = {r["method"]: r for r in csv.DictReader((out / "table.csv").open()) if r["category"] == "all"}
    layers, full = llm.loaded.config.text.layers, float(rows["none"]["kept"])
    assert float(rows["none"]["layer_tokens"]) == full
    assert float(rows["random"]["layer_tokens"]) == float(rows["random"]["kept"]) == full / 4
    deep = rows["fastv(layer=1)"]
    assert float(deep["kept"]) == full
    assert float(deep["layer_tokens"]) == pytest.approx((full + (layers - 1) * full / 4) / layers, abs=0.1)
    assert float(rows["random"]["kv_bytes"]) < float(deep["kv_bytes"]) < float(rows["none"]["kv_bytes"])
    assert float(rows["no video"]["layer_tokens"]) == 0
    for record in map(json.loads, (out / "batches.jsonl").read_text().splitlines()):
        assert set(RECORDED) <= record.keys()
        assert record["newlines"] in (0, 1)
    page = (out / "report.html").read_text()
    shown = re.findall(r'<div data-against="([a-z_]+)"( hidden)?>', page)
    assert [name for name, hidden in shown if not hidden] == ["layer_tokens"]
    assert [name for name, _ in shown] == list(AXES)
    assert re.search(r'<option value="layer_tokens" selected>', page)
    assert "visual tokens of a layer" in (out / "retention.svg").read_text()
    # No two of them share a part that one of them may hide.
    ids = [set(re.findall(r'<clipPath id="([^"]+)"', part)) for part in page.split("<div data-against=")[1:]]
    assert not set.intersection(*ids)
    assert np.isfinite(float(deep["prefill_tflops"]))
