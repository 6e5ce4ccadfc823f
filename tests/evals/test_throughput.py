"""Speed and memory beside accuracies: opt-in, resumable, no part of what a run is; what does not fit is halved."""

import json
import types

import jax
import numpy as np
import pytest
from helpers.sweeps import exit_code, results, sweep

from jvidprune.costs.memory import ask_need, video_shape
from jvidprune.errors import JvidpruneError
from jvidprune.evals import peak, throughput
from jvidprune.evals.peak import PeakWatch, programs_peak
from jvidprune.evals.throughput import Speed, Throughput, out_of_memory, planned_batch
from jvidprune.evals.throughput_table import gain, throughput_notes, throughput_records, throughput_rows
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural

FEW = ["--clips", "1", "--methods", "random", "--ratios", "0.25"]


def records(folder):
    return [json.loads(line) for line in (folder / "throughput.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_is_measured_on_demand_and_changes_no_answer(home, model, tmp_path):
    out = sweep(home, model, tmp_path / "run", *FEW)
    assert not (out / "throughput.jsonl").exists()
    assert 'id="throughput"' not in (out / "report.html").read_text()
    answers, settings = (out / "samples.jsonl").read_bytes(), (out / "run.json").read_bytes()

    sweep(home, model, out, *FEW, "--throughput", "--largest-batch", "2")
    assert (out / "samples.jsonl").read_bytes() == answers
    assert (out / "run.json").read_bytes() == settings
    runs = [("random", 0.25), ("none", 1.0)]
    whole = records(out)
    # Shortest prompts first, and all alone before any in batches.
    assert [(r["method"], r["ratio"], r["part"], r["batch"]) for r in whole] == [
        *((*run, "alone", 1) for run in runs),
        *((*run, "largest", 2) for run in runs),
    ]
    for record in whole:
        assert all(record[name] > 0 for name in ("encode", "reduce", "prefill", "generate", "decoding", "memory"))
        assert record["memory_from"] == "programs"
    page = (out / "report.html").read_text()
    assert "measured on a CPU" in page
    assert "median of 3 runs behind one that compiles and warms up" in page
    shown = json.loads((out / "throughput.json").read_text())
    assert [row["method"] for row in shown["rows"]] == ["none", "random"]
    assert shown["rows"][0]["gain"] == 1.0
    assert (out / "throughput.csv").read_text().count("\n") == 3

    # What was killed on the way goes on; what is there is not measured again.
    lines = (out / "throughput.jsonl").read_bytes().splitlines(keepends=True)
    (out / "throughput.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    sweep(home, model, out, *FEW, "--throughput", "--largest-batch", "2")
    assert (out / "throughput.jsonl").read_bytes().splitlines(keepends=True)[:3] == lines[:3]
    assert [(r["method"], r["part"]) for r in records(out)] == [(r["method"], r["part"]) for r in whole]
    # What was measured stays in the report of a run that does not ask for it.
    sweep(home, model, out, *FEW)
    assert 'id="throughput"' in (out / "report.html").read_text()
    assert results(out) == [json.loads(line) for line in sorted(answers.splitlines(), key=_order)]


def _order(line):
    record = json.loads(line)
    return record["clip"], record["question"], record["method"], record["ratio"]


def test_a_batch_of_none_is_refused(home, model, tmp_path, capfd):
    assert exit_code(home, model, tmp_path / "run", *FEW, "--largest-batch", "0") == 2
    assert "the largest batch is at least 1, got 0" in capfd.readouterr().err


@pytest.fixture(scope="module")
def asked(model):
    """The model, a clip, what is left of it and a question."""
    llm = VideoLLM.load(model)
    item = Procedural("test", clips=1, side=56)[0]
    clip = item.load()
    video = llm.reduce(llm.encode(clip), reducer="random", ratio=0.25)
    return llm, clip, video, item.questions[0].prompt()


def test_answers_of_full_length_begin_as_those_that_end(asked):
    llm, _, video, question = asked
    (short,) = answer_many(llm, [Prompt(video, question)], max_new_tokens=6)
    (full,) = answer_many(llm, [Prompt(video, question)], max_new_tokens=6, ends=False)
    assert full.generated == 6
    assert full.token_ids[: len(short.token_ids)] == short.token_ids
    # A model that ends at once shows that nothing else ends it.
    ending = types.SimpleNamespace(**{name: getattr(llm, name) for name in ("loaded", "tokenizer", "lay_out")})
    ending.newline, ending.prompts, ending.eos_ids = llm.newline, llm.prompts, (full.token_ids[0],)
    (none,) = answer_many(ending, [Prompt(video, question)], max_new_tokens=6)
    (all_of_it,) = answer_many(ending, [Prompt(video, question)], max_new_tokens=6, ends=False)
    assert (none.generated, all_of_it.generated) == (1, 6)


def test_the_plan_halves_until_it_fits(asked):
    llm, clip, video, question = asked
    (reply,) = answer_many(llm, [Prompt(video, question)], max_new_tokens=4)
    config, shape = llm.loaded.config, video_shape(llm.loaded.config, len(clip.frames), video.video.tokens.layout())

    def need(batch):
        sizes = {"kept": reply.kept, "text": reply.prompt - reply.kept, "max_new_tokens": 4}
        return ask_need(config, shape, **sizes, dtype=llm.loaded.dtype, batch=batch).peak

    assert need(64) < need(128)
    for available, wanted in ((need(256), 256), (need(128), 128), (need(128) - 1, 64), (1, 1)):
        found = planned_batch(llm, clip, video, reply, most=4, limit=256, available=available)
        # Small batches of a small model need no more than its encoding does.
        assert found == wanted
    assert planned_batch(llm, clip, video, reply, most=4, limit=3, available=need(256)) == 3


def test_what_does_not_fit_is_halved_and_other_errors_are_not(asked, monkeypatch):
    llm, _, video, question = asked
    tried = []

    def fails_above(room, words="RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."):
        def speed(llm, video, question, batch, most, watch):
            tried.append(batch)
            if batch > room:
                raise jax.errors.JaxRuntimeError(words)
            return batch

        monkeypatch.setattr(throughput, "_speed", speed)
        return throughput._fitting(llm, video, question, 12, 4, PeakWatch())

    assert (fails_above(3), tried) == (3, [12, 6, 3])
    with pytest.raises(JvidpruneError, match="one question does not fit"):
        fails_above(0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fails_above(3, "INTERNAL: a kernel failed.")
    assert out_of_memory(MemoryError())


def test_memory_of_the_programs_grows_with_the_batch_and_holds_the_weights(asked):
    llm, _, video, question = asked
    found = []
    for batch in (1, 8):
        prompts = [Prompt(video, question)] * batch
        answer_many(llm, prompts, max_new_tokens=4, batch=batch, min_fill=0.0)
        found.append(programs_peak(llm, video, prompts, max_new_tokens=4))
    weights = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(llm.loaded.model))
    assert [source for _, source in found] == ["programs", "programs"]
    assert weights < found[0][0] < found[1][0]
    # Beside the weights at least keys and values of all rows are held, of the prompt alone.
    text, (reply,) = llm.loaded.config.text, answer_many(llm, [Prompt(video, question)], max_new_tokens=1)
    assert found[1][0] - weights > 8 * reply.prompt * 2 * text.layers * text.kv_heads * text.head_dim * 4


def test_a_peak_of_the_device_counts_only_where_it_rose(monkeypatch):
    now = {"peak_bytes_in_use": 70}
    device = types.SimpleNamespace(memory_stats=lambda: now)
    monkeypatch.setattr(peak.jax, "local_devices", lambda: [device])
    watch = PeakWatch()
    assert watch.risen() == (0, "")
    now["peak_bytes_in_use"] = 90
    assert watch.risen() == (90, "device")
    device.memory_stats = lambda: None
    assert PeakWatch().risen() == (0, "")


def one(method, ratio, *, batch=4, source="programs", platform="gpu", encode=0.05):
    alone = Speed(1, 0.2, 0.1, 2, float("nan"), 2**20, source)
    largest = Speed(batch, 0.4, 0.2, 2, 500.0, 2**22, source)
    known = {"clip": "a", "device": "a card", "platform": platform, "kept": 10, "prompt": 20}
    return Throughput(
        method, ratio, **known, encode=encode, reduce=0.05, alone=alone, largest=largest, planned=8, limit=8
    )


def test_rates_are_of_clips_from_their_frames_and_notes_say_what_they_hold():
    whole, half = one("none", 1.0), one("evs", 0.5, encode=0.0)
    assert whole.first_token == pytest.approx(0.3)
    assert whole.answers(whole.alone) == pytest.approx(1 / 0.4)
    assert whole.answers(whole.largest) == pytest.approx(4 / (4 * 0.1 + 0.6))
    assert whole.from_tokens(whole.largest) == pytest.approx(4 / 0.6)
    assert gain(half, [whole, half]) == pytest.approx((4 / 0.8) / 4)
    assert throughput_rows([half], {"evs": "EVS"}) == [
        ["EVS", "50 %", "250.0", "1", "2.86", "3.33", "–", "1*", "4 (planned 8)", "5.00", "6.67", "500", "4*"]
    ]
    (record,) = throughput_records([half])
    assert (record["gain"], record["alone_decoding"], record["largest_batch"]) == (None, None, 4)
    notes = throughput_notes([whole, one("evs", 0.5, source="device", batch=8)])
    assert not any("CPU" in note for note in notes)
    assert any("For 1 of 2 rows the largest batch is the limit" in note for note in notes)
    assert any("compiled programs" in note and "all other peaks are the device's own" in note for note in notes)
    assert any("CPU" in note for note in throughput_notes([one("evs", 0.5, platform="cpu")]))
    assert throughput_notes([]) == []
