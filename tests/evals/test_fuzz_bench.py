"""Damaged and hostile files of the benchmarks: annotations, frame folders, records of a run, golden files, settings."""

import io
import json

import numpy as np
import pytest
from helpers.fuzzing import bounded, broken_text, damaged, fuzz, one_sentence
from helpers.layouts import LAYOUTS
from hypothesis import strategies as st
from PIL import Image

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets import names, open_dataset
from jvidprune.evals.keys import BATCH_KEY, SAMPLE_KEY
from jvidprune.evals.metrics import summarise
from jvidprune.evals.records import is_batch, is_sample
from jvidprune.evals.results import make_table
from jvidprune.evals.runner import RunFiles, SweepRecords
from jvidprune.evals.store import RecordStore
from jvidprune.expressions import split_list
from jvidprune.parity.core import run_folder
from jvidprune.parity.registry import comparers
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.reducers.registry import from_text

OPTIONS = ["a cat", "a dog", "a bird", "a fish"]
ASKED = {"question": "What barks?", "candidates": OPTIONS, "answer": "a dog", "video": "a.mp4"}
ROWS = {
    "videomme/test.json": (
        "videomme",
        [{"videoID": "a", "question_id": "1", "question": "?", "options": OPTIONS, "answer": "B"}],
    ),
    "json/action_sequence.json": ("mvbench", [ASKED | {"start": 0.5, "end": 1.5}, ASKED | {"start": "0", "end": "1"}]),
    "questions.json": (
        "egoschema",
        [{"q_uid": "a", "question": "?", **{f"option {i}": o for i, o in enumerate(OPTIONS)}}],
    ),
    "subset_answers.json": ("egoschema", {"a": 1}),
    "lvb_val.json": (
        "longvideobench",
        [{"id": "1", "video_path": "a.mp4", "question": "?", "candidates": OPTIONS, "correct_choice": 1}],
    ),
    "json/2_needle.json": ("mlvu", [ASKED | {"question_type": "findNeedle"}]),
    "test.csv": ("nextqa", "video,question,answer,qid,type,a0,a1,a2,a3,a4\na,what,1,6,TN,x,y,z,u,v\n"),
    "mix_questions.json": (
        "eventhallusion_descriptions",
        [{"id": "a", "told": "A film.", "questions": [{"question": "Did it?", "answer": "yes"}]}],
    ),
    "test-subtitled.json": (
        "videomme_w_subtitle",
        [{"videoID": "a", "question_id": "1", "question": "?", "options": OPTIONS, "answer": "B"}],
    ),
    "activitynet_comp_val.json": (
        "videocomp",
        [
            {"video_id": "a", "question": "?", "options": OPTIONS, "answer": "B", "key": "k"}
            | {"query_video/start_time": 1, "query_video/end_time": 2.5}
        ],
    ),
    "charades.json": ("charades_timelens", {"a": {"duration": 2.0, "spans": [[0, 1]], "queries": ["it barks"]}}),
    "activitynet.json": ("activitynet_timelens", {"a": {"duration": 2.0, "spans": [[[0, 1]]], "queries": ["it is"]}}),
    "generic_qa.json": ("vcgbench", [{"Q": "?", "A": "a dog", "video_name": "a"}]),
    "temporal_qa.json": ("vcgbench", [{"Q": "?", "A": "a dog", "video_name": "a"}]),
    "consistency_qa.json": ("vcgbench", [{"Q1": "?", "Q2": "Who?", "A": "a dog", "video_name": "a"}]),
    "multi-choice.json": (
        "tempcompass",
        [{"video_id": "a", "question": "?\nA. a\nB. b", "answer": "B. b", "dim": "action"}],
    ),
    "yes_no.json": ("tempcompass", [{"video_id": "a", "question": "?", "answer": "no", "dim": "action"}]),
    "caption_matching.json": (
        "tempcompass",
        [{"video_id": "a", "question": "?\nOption 1: a\nOption 2: b", "answer": "Option 1: a", "dim": "order"}],
    ),
    "captioning.json": (
        "tempcompass_captioning",
        [{"video_id": "a", "question": "?", "answer": "x", "dim": "a", "mc_question": "?", "mc_answer": "A. a"}],
    ),
    "tomato.json": (
        "tomato",
        [{"id": "1", "question": "?", "options": OPTIONS, "answer": 1, "video_path": "a.mp4"}],
    ),
    "motion.json": (
        "motionbench",
        [{"key": "k", "video_path": "a.mp4", "qa": [{"uid": "1", "question": "?\nA. a\nB. b", "answer": "B"}]}],
    ),
    "perception.json": (
        "perceptiontest",
        [{"video_name": "a", "question": "?", "question_id": 1, "options": OPTIONS[:3], "answer_id": 1}],
    ),
    "lv.json": ("lvbench", [{"key": "a", "qa": [{"uid": "1", "question": "?\n(A) a\n(B) b", "answer": "B"}]}]),
    "evalpro.json": (
        "videoevalpro",
        [{"video": "a.mp4", "question": "?", "options": OPTIONS, "answer": "B"}],
    ),
    "evalpro-open.json": ("videoevalpro_open", [{"video": "a.mp4", "question": "?", "answer_text": "a dog"}]),
    "entire_questions.json": ("eventhallusion", [{"id": "a", "questions": [{"question": "Did it?", "answer": "yes"}]}]),
}


@bounded(200, more=50)
def test_hostile_annotations(tmp_path, examples):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.mp4").write_bytes(b"no film")
    (tmp_path / "secret").mkdir()

    def texts(path):
        rows = ROWS[path][1]
        broken = damaged(rows.encode()) if isinstance(rows, str) else broken_text(rows)
        return st.tuples(st.just(path), broken)

    def check(drawn):
        path, data = drawn
        name = ROWS[path][0]
        mine = [other for other in ROWS if ROWS[other][0] == name]
        for other in mine:
            rows = ROWS[other][1]
            (tmp_path / "data" / other).parent.mkdir(exist_ok=True)
            (tmp_path / "data" / other).write_text(rows if isinstance(rows, str) else json.dumps(rows))
        (tmp_path / "data" / path).write_bytes(data)
        with one_sentence():
            task = open_dataset(name, tmp_path / "data", frames=4)
            json.dumps(task.fingerprint())
            for item in (task[i] for i in range(len(task))):
                assert all(question.prompt() for question in item.questions)
                item.load()
        for other in mine:
            (tmp_path / "data" / other).unlink()

    fuzz(examples, st.sampled_from(sorted(ROWS)).flatmap(texts), check)


def test_annotations_cannot_name_folders_outside(tmp_path):
    """A video may be a folder of frames: those beside the benchmark are not taken for one."""
    (tmp_path / "secret").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "secret" / "0.png")
    (tmp_path / "data" / "json").mkdir(parents=True)
    for video in ("../secret", str(tmp_path / "secret"), "json/../../secret", ".", "", "é" * 300, "\0", "\ud800"):
        rows = [ASKED | {"video": video}]
        (tmp_path / "data" / "json" / "episodic_reasoning.json").write_text(json.dumps(rows))
        with pytest.raises(JvidpruneError, match="none of the 1 videos"):
            open_dataset("mvbench", tmp_path / "data", frames=2)


@bounded(60, more=50)
def test_damaged_parquet_and_frames(tmp_path, examples):
    film = render(ClipSpec(frames=2, size=(32, 32), cuts=0)).frames
    wholes = {}
    for name in ("videomme", "mvbench"):
        folder = tmp_path / name
        LAYOUTS[name](folder, film)
        path = next(p for p in sorted(folder.rglob("*")) if p.suffix in (".parquet", ".png"))
        wholes[name] = (path, path.read_bytes())

    def check(drawn):
        name, data = drawn
        path, whole = wholes[name]
        path.write_bytes(data)
        with one_sentence():
            task = open_dataset(name, tmp_path / name, frames=2)
            for i in range(len(task)):
                task[i].load()
        path.write_bytes(whole)

    fuzz(
        examples, st.sampled_from(sorted(wholes)).flatmap(lambda n: st.tuples(st.just(n), damaged(wholes[n][1]))), check
    )


SAMPLE = {
    "clip": "c",
    "key": "k",
    "question": "q",
    "method": "m",
    "ratio": 0.1,
    "category": "colour",
    "prediction": "A",
    "answer": "A",
}
SAMPLE |= {"correct": True, "kept": 7, "visual": 70, "prompt": 30}
BATCH = {
    "clip": "c",
    "key": "k",
    "method": "m",
    "encode": 0.1,
    "ratio": 0.1,
    "refused": "",
    "reduce": 0.1,
    "prefill": 0.1,
}
BATCH |= {"generate": 0.1, "compile": 1.0, "memory": 9, "tflops": 0.1, "prefill_tflops": 0.1}


class _Task:
    categories = ("colour",)

    def __len__(self):
        return 0


@bounded(150, more=50)
def test_damaged_records_are_dropped_and_the_rest_makes_a_table(tmp_path, examples):
    """Whatever happens to some lines, a run opens again, keeps its whole records and can be summarised."""
    lines = {
        "samples.jsonl": [SAMPLE | {"question": f"q{i}"} for i in range(3)],
        "batches.jsonl": [BATCH | {"clip": f"c{i}"} for i in range(3)],
    }
    files = st.sampled_from(sorted(lines)).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(broken_text(lines[n][0]) | damaged(json.dumps(lines[n][1]).encode()), max_size=3)
        )
    )

    def check(drawn):
        name, broken = drawn
        for other, records in lines.items():
            extra = broken if other == name else []
            (tmp_path / other).write_bytes(b"\n".join([*extra, *(json.dumps(r).encode() for r in records), b""]))
        samples = RecordStore(tmp_path / "samples.jsonl", SAMPLE_KEY, is_sample)
        batches = RecordStore(tmp_path / "batches.jsonl", BATCH_KEY, is_batch)
        assert {r["question"] for r in samples.records()} >= {"q0", "q1", "q2"}
        assert {r["clip"] for r in batches.records()} >= {"c0", "c1", "c2"}
        samples.append([SAMPLE | {"question": "new"}])
        found = SweepRecords(
            RunFiles(tmp_path), {"ratios": [0.1]}, [("m", 0.1)], samples.records(), batches.records(), 0
        )
        make_table(found, _Task(), {"m": "M"}, draws=10)
        summarise(samples.records(), [("m", 0.1)], draws=10)
        samples.close()
        batches.close()

    fuzz(examples, files, check)


@bounded(60, more=50)
def test_damaged_golden_files_are_rows_of_the_report(tmp_path, examples):
    buffer = io.BytesIO()
    arrays = {"frames": np.arange(12.0).reshape(3, 4), "kept": np.arange(3), "config": json.dumps({"method": "evs"})}
    np.savez(buffer, **arrays)

    def check(data):
        (tmp_path / "a.npz").write_bytes(data)
        with one_sentence():
            reports = list(run_folder(tmp_path, comparers()))
            assert not reports[0].passed

    fuzz(examples, damaged(buffer.getvalue(), head=200), check)


@bounded(300, more=50)
def test_any_text_for_a_method(examples):
    """What is typed for --methods and --reducer is a method or a sentence."""
    names_ = st.sampled_from(["flashvid", "stop", "aot", "visionzip", "random", "sequential", "nosuch", "a b", ""])
    keys = st.sampled_from(["alpha", "base", "first", "second", "split", "seed", "cost", "mu_s", "nosuch", "", " "])
    values = st.sampled_from(
        ["1", "0.5", "-1", "nan", "None", "True", "'x'", "[1]", "{}", "(", "fastvid", "(flashvid:alpha=2)", "9" * 5000]
    )
    pair = st.tuples(keys, st.sampled_from(["=", "==", ""]), values).map("".join)
    listed = st.lists(pair, max_size=3).map(",".join)
    texts = st.tuples(names_, st.sampled_from([":", "", "+", "::"]), listed).map("".join)
    closed = st.sampled_from([")", "", "))"])
    texts |= st.tuples(names_, st.sampled_from(["(", "((", ":("]), listed, closed).map("".join)
    anything = texts | st.text(max_size=20) | st.lists(texts, min_size=2, max_size=3).map("+".join)

    def check(text):
        with one_sentence():
            for part in split_list(text):
                hash(from_text(part))

    fuzz(examples, anything, check)


def test_every_benchmark_is_fuzzed():
    assert {name for name, _ in ROWS.values()} == set(names())
