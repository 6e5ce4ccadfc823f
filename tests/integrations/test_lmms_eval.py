"""The real lmms-eval, from its own command line, on generated clips: the same scores as our own runner, and resuming.

Not in the default run: `pip install -e '.[test,lmms-eval]'` (it brings PyTorch), then `python -m pytest -m lmms_eval`.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.packaged import accuracies

from jvidprune.evals.datasets import open_dataset
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.runner import run_sweep
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.procedural.benchmark import in_setting
from jvidprune.procedural.export import export
from jvidprune.reducers.serialise import load_settings

pytestmark = pytest.mark.lmms_eval

TASK, METHOD, RATIO = "jvidprune_exported", "fastvid", 0.25


@pytest.fixture(scope="module", autouse=True)
def installed():
    # Whoever asks for these tests wants them run: a missing tool is a failure, no skip.
    assert importlib.util.find_spec("lmms_eval"), "lmms-eval is not installed: pip install -e '.[test,lmms-eval]'"


BENCHMARK = in_setting(load_settings(EMBEDDED).benchmark or "default", "test", 6)
"""Clips that the embedded model was trained for."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    export(BENCHMARK, folder)
    return folder


def command(clips: Path, out: Path, *, tasks: str = TASK, extra: str = "") -> list[str]:
    settings = f"reducer={METHOD},ratio={RATIO},max_frames_num={BENCHMARK.frames}{extra}"
    words = ["--model", "jvidprune", "--model_args", settings, "--tasks", tasks, "--batch_size", "4", "--log_samples"]
    more = ["--include_path", str(clips / "lmms_eval"), "--output_path", str(out)]
    return [sys.executable, "-m", "lmms_eval", *words, *more]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def results(out: Path) -> dict[str, dict]:
    (path,) = out.rglob("*_results.json")
    return json.loads(path.read_text())["results"]


def samples(out: Path, task: str = TASK) -> list[dict]:
    (path,) = out.rglob(f"*_samples_{task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(clips, tmp_path_factory):
    out, home = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("hf")
    done = subprocess.run(
        command(clips, out, tasks=f"{TASK},{TASK}_choice"), env=environment(home), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"|{TASK} " in done.stdout
    return out


def test_the_printed_score_is_that_of_our_own_runner(clips, evaluated, tmp_path):
    llm = VideoLLM.load(EMBEDDED)
    task = open_dataset("exported", clips, frames=BENCHMARK.frames, rule=llm.settings.rule)
    plan = SweepPlan({METHOD: llm.reducer(METHOD)}, (RATIO,), max_new_tokens=8)
    records = [record for record in run_sweep(llm, task, plan, tmp_path).samples if record["method"] == METHOD]
    listed = samples(evaluated)
    assert [sample["filtered_resps"] for sample in listed] == [record["prediction"] for record in records]
    assert [sample["accuracy"] for sample in listed] == [float(record["correct"]) for record in records]
    mean = sum(record["correct"] for record in records) / len(records)
    assert results(evaluated)[TASK]["accuracy,none"] == pytest.approx(mean)
    # A quarter of the tokens answers nearly what all tokens do.
    assert mean > 0.875 * float(accuracies()["all"]["accuracy"])
    counts = [sample["token_counts"][0]["input_tokens"] for sample in listed]
    assert counts == [record["prompt"] for record in records]


def test_the_prompts_are_those_of_the_benchmark_in_memory(evaluated):
    asked = {q.id: q for item in BENCHMARK for q in item.questions}
    listed = samples(evaluated)
    assert [sample["input"] for sample in listed] == [question.prompt() for question in asked.values()]
    assert [sample["target"] for sample in listed] == [question.answer for question in asked.values()]


def test_a_video_that_cannot_be_read_costs_no_other_and_is_tried_again(clips, evaluated, tmp_path):
    data = tmp_path / "clips"
    export(BENCHMARK, data)
    bad = data / "videos" / "test-2.mp4"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    home = environment(tmp_path / "hf")
    words = command(data, tmp_path / "first", extra=f",resume={tmp_path / 'kept'}")
    done = subprocess.run(words, env=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    listed, known = samples(tmp_path / "first"), samples(evaluated)
    documents = [json.loads(line) for line in (data / "lmms_eval" / "questions.jsonl").read_text().splitlines()]
    empty = [sample["doc_id"] for sample in listed if documents[sample["doc_id"]]["video"] == str(bad)]
    assert [sample["doc_id"] for sample in listed if not sample["filtered_resps"]] == empty
    assert f"{len(empty)} of {len(listed)} documents could not be answered" in done.stdout + done.stderr
    failures = [json.loads(line) for line in (tmp_path / "kept" / "failures.jsonl").read_text().splitlines()]
    assert {str(bad) in failure["reason"] for failure in failures} == {True}
    assert (tmp_path / "kept" / "answers.jsonl").read_text().count("\n") == len(listed) - len(empty)
    for sample, other in zip(listed, known, strict=True):
        assert sample["doc_id"] in empty or sample["filtered_resps"] == other["filtered_resps"]
    strict = command(data, tmp_path / "strict", extra=",strict=True")
    done = subprocess.run(strict, env=home, capture_output=True, text=True)
    assert f"{bad}" in done.stdout + done.stderr
    assert not list((tmp_path / "strict").rglob("*_results.json"))
    bad.write_bytes(whole)
    words = command(data, tmp_path / "second", extra=f",resume={tmp_path / 'kept'}")
    subprocess.run(words, env=home, check=True, capture_output=True)
    assert [sample["filtered_resps"] for sample in samples(tmp_path / "second")] == [s["filtered_resps"] for s in known]
    assert (tmp_path / "kept" / "answers.jsonl").read_text().count("\n") == len(listed)


def test_likelihoods_choose_the_letter_with_the_smallest_loss(evaluated):
    listed = samples(evaluated, f"{TASK}_choice")
    right = []
    for sample in listed:
        losses = [float(pair[0]) for pair in sample["filtered_resps"]]
        assert all(loss > 0 for loss in losses)
        right.append("ABCDEFGHIJ"[losses.index(min(losses))] == sample["target"])
    assert results(evaluated)[f"{TASK}_choice"]["acc,none"] == pytest.approx(sum(right) / len(right))


def test_a_killed_evaluation_goes_on_where_it_was(clips, evaluated, tmp_path):
    kept = tmp_path / "kept" / "answers.jsonl"
    words = command(clips, tmp_path / "first", extra=f",resume={kept.parent}")
    first = subprocess.Popen(
        words, env=environment(tmp_path / "hf"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (kept.exists() and kept.read_text().count("\n")) and first.poll() is None:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    begun = kept.read_text()
    assert 0 < begun.count("\n") < len(samples(evaluated))
    words = command(clips, tmp_path / "second", extra=f",resume={kept.parent}")
    subprocess.run(words, env=environment(tmp_path / "hf"), check=True, capture_output=True)
    assert kept.read_text().startswith(begun[: begun.rindex("\n") + 1])
    assert kept.read_text().count("\n") == len(samples(evaluated))
    answers = [sample["filtered_resps"] for sample in samples(tmp_path / "second")]
    assert answers == [sample["filtered_resps"] for sample in samples(evaluated)]
    assert results(tmp_path / "second")[TASK] == results(evaluated)[TASK]


def test_errors_are_the_sentences_of_the_package(clips, tmp_path):
    words = command(clips, tmp_path / "out", extra=",frames=3")
    done = subprocess.run(words, env=environment(tmp_path / "hf"), capture_output=True, text=True)
    assert "unknown model argument 'frames'" in done.stdout + done.stderr
