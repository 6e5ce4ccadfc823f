"""The sweep: killed at any moment and started again it gives the same table; a run is named by what changes results."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.sweeps import (
    WORDS,
    has_lines,
    results,
    sweep,
    table,
)

from jvidprune.cli.sweep_shown import sweep_table
from jvidprune.errors import JvidpruneError
from jvidprune.evals.metrics import Cell, bootstrap_ratio, clip_draws, summarise
from jvidprune.evals.paired import paired_difference
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.results import RunCost, SweepTable, make_table
from jvidprune.evals.runner import run_sweep
from jvidprune.evals.store import RecordStore
from jvidprune.llm import opening
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers.controls import Random
from jvidprune.viz import sweep_files
from jvidprune.viz.sweep_examples import Disagreement
from jvidprune.viz.sweep_plots import time_plot


@pytest.fixture(scope="module")
def whole(home, model):
    """The folder of a run nobody disturbed."""
    return sweep(home, model, home / "whole")


@pytest.mark.slow
def test_killed_at_several_moments_and_resumed_gives_the_undisturbed_table(home, model, whole, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "jvidprune.cli", "sweep", "--model", str(model), *WORDS, "--out", str(out)]
    environment = os.environ | {"JVIDPRUNE_CACHE": str(home)}
    for lines in (0, 17):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not has_lines(out / "samples.jsonl", lines):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    there = len(results(out))
    assert 17 <= there < len(results(whole))
    sweep(home, model, out)
    assert results(out) == results(whole)
    assert table(out) == table(whole)


@pytest.mark.slow
def test_torn_files_are_mended_wherever_they_are_cut(home, model, whole, tmp_path):
    out = tmp_path / "torn"
    out.mkdir()
    full = {name: (whole / name).read_bytes() for name in ("run.json", "samples.jsonl", "batches.jsonl")}
    for share, tail in [(0.0, b""), (0.31, b""), (0.74, b'{"clip":"test-9'), (1.0, b"\x00\x00\x00")]:
        for name, data in full.items():
            (out / name).write_bytes(data if name == "run.json" else data[: int(share * len(data))] + tail)
        sweep(home, model, out)
        assert results(out) == results(whole)
        assert table(out) == table(whole)


@pytest.mark.slow
def test_lost_batch_records_are_made_again(home, model, whole, tmp_path):
    out = tmp_path / "lost"
    shutil.copytree(whole, out)
    batches = (whole / "batches.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in batches if json.loads(line)["method"] != "random"]
    (out / "batches.jsonl").write_text("".join(kept))
    sweep(home, model, out)
    again = [json.loads(line) for line in (out / "batches.jsonl").read_text().splitlines()]
    assert {(r["clip"], r["method"], r["ratio"]) for r in again} == {
        (r["clip"], r["method"], r["ratio"]) for r in map(json.loads, batches)
    }
    assert (out / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert table(out) == table(whole)


@dataclasses.dataclass(frozen=True)
class Picky(Random):
    """Refuses a small ratio of some clips."""

    def budget(self, layout, ratio):
        if layout.frames > 8 and ratio < 0.2:
            raise ValueError("this clip is too long")
        return super().budget(layout, ratio)


class TwoLengths:
    """A clip of 8 frames and one of 9."""

    name, parts = "two", (Procedural("test", clips=1, side=56), Procedural("train", clips=1, frames=9, side=56))
    categories = parts[0].categories

    def chance(self, question):
        return 0.5

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        item = self.parts[index][0]
        return dataclasses.replace(item, questions=item.questions[:1])

    def fingerprint(self):
        return {}


@pytest.mark.slow
def test_a_method_that_refuses_a_ratio_on_some_clips_only_has_a_report(model, tmp_path, monkeypatch):
    llm, task = VideoLLM.load(model), TwoLengths()
    plan = SweepPlan({"random": Random(), "picky": Picky()}, (0.25, 0.1), 1)
    found = run_sweep(llm, task, plan, tmp_path)
    refused = {(r["clip"], r["method"], r["ratio"]) for r in found.batches if r["refused"]}
    assert refused == {(task[1].id, "picky", 0.1)}
    made = make_table(found, task, {"random": "Random", "picky": "Picky"}, draws=10)
    asked = [r for r in found.samples if r["clip"] == task[0].id and r["ratio"] == 0.1]
    records = {r["method"]: r for r in asked}
    shown = Disagreement(task[0].id, asked[0]["question"], 0.1, records)
    monkeypatch.setattr(sweep_files, "disagreements", lambda samples, ratio: [shown])
    sweep_files.write_outputs(llm, task, plan, found, made, "tiny")
    assert "Picky" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_method_that_reads_the_question_encodes_a_clip_once(model, tmp_path, monkeypatch):
    llm, runs = VideoLLM.load(model), []
    encode = opening._encoded
    monkeypatch.setattr(opening, "_encoded", lambda *args: runs.append(args) or encode(*args))
    task, plan = Procedural(clips=2), SweepPlan({"cdpruner": llm.reducer("cdpruner")}, (0.1, 0.3), max_new_tokens=3)
    found = run_sweep(llm, task, plan, tmp_path)
    assert len(runs) == 2
    # The report draws what a question of the clip keeps.
    asked = [r for r in found.samples if r["question"] == task[0].questions[1].id and r["ratio"] == 0.1]
    shown = Disagreement(task[0].id, task[0].questions[1].id, 0.1, {"cdpruner": asked[0]})
    monkeypatch.setattr(sweep_files, "disagreements", lambda samples, ratio: [shown])
    made = make_table(found, task, {"cdpruner": "CDPruner"}, draws=10)
    sweep_files.write_outputs(llm, task, plan, found, made, "tiny")
    assert "CDPruner" in (tmp_path / "report.html").read_text()
    rows = [row for row in results(tmp_path) if row["method"] == "cdpruner"]
    assert len(rows) == 2 * sum(len(task[number].questions) for number in range(2))
    for question in task[0].questions:
        for ratio in (0.1, 0.3):
            (row,) = (r for r in rows if (r["clip"], r["question"], r["ratio"]) == (task[0].id, question.id, ratio))
            asked = {"reducer": "cdpruner", "ratio": ratio, "max_new_tokens": 3}
            alone = llm.ask(task[0].load(), question.prompt(), **asked)
            assert (row["prediction"], row["kept"]) == (alone.text, alone.kept)


def test_the_mean_over_categories_counts_each_alike():
    samples = [
        {"clip": "c", "question": f"q{i}", "method": "none", "ratio": 1.0, "category": category, "correct": right}
        | {"kept": 1, "prompt": 1}
        for i, (category, right) in enumerate([("a", True), ("a", True), ("a", False), ("a", False), ("b", True)])
    ]
    cells = {(c.method, c.ratio, c.category): c for c in summarise(samples, [("none", 1.0)], draws=2)}
    table = dataclasses.replace(small_table({0.05: 1, 0.25: 1, 1.0: 1}), cells=cells, categories=["a", "b"])
    assert (table.cell("none", 1.0).accuracy, table.category_mean("none", 1.0)) == (0.6, 0.75)
    assert table.category_mean("random", 0.05) is None


def small_table(times, ratios=(0.05, 0.25)):
    """A table of one method with 40 tokens at 5 %, 200 at 25 %; `times` are milliseconds by ratio."""
    runs = [("none", 1.0), *(("random", ratio) for ratio in ratios)]
    costs = {
        (name, ratio): RunCost(name, ratio, 0.0, 0.0, times[ratio] / 1000, 0.0, 0.0, 1, 0.0, 0.0)
        for name, ratio in runs
    }
    cells = {
        (name, ratio, "all"): Cell(name, ratio, "all", 9, ratio, 0.0, 1.0, ratio, 0.0, 1.0, 800 * ratio, 9.0)
        for name, ratio in runs
    }
    identity = {"ratios": list(ratios)}
    return SweepTable(identity, Path("x"), runs, ["all"], cells, costs, {}, {"all": 0.5}, 3, {"random": "Random"})


def test_the_terminal_table_tells_tokens_and_times_of_the_smallest_ratio():
    from rich.console import Console

    console = Console(width=120)
    for ratios in ((0.05, 0.25), (0.25, 0.05)):
        with console.capture() as seen:
            console.print(sweep_table(small_table({1.0: 50.0, 0.05: 11.0, 0.25: 22.0}, ratios), intervals=False))
        row = next(line for line in seen.get().splitlines() if "Random" in line)
        assert row.split()[-4:] == ["5", "%", "40", "11.0"]


def test_a_long_name_folds_before_numbers_are_cut():
    from rich.console import Console

    table = small_table({1.0: 50.0, 0.05: 11.0, 0.25: 22.0})
    long = "AOT (intra_transport=Transport(cost=my_cost.py:MyCost(0.5)), inter=False, keep_ratio=0.2)"
    console = Console(width=60)
    with console.capture() as seen:
        console.print(sweep_table(dataclasses.replace(table, titles={"random": long}), intervals=False))
    assert "…" not in seen.get()
    row = next(line for line in seen.get().splitlines() if line.strip().startswith("AOT"))
    assert row.split()[-4:] == ["5", "%", "40", "11.0"]


def test_a_ratio_without_a_time_is_left_out_of_the_plot_over_time():
    """Ratios nearest to 10 % stand in the plot with a name; here that one was never asked alone."""
    nan = float("nan")
    page = time_plot(small_table({1.0: 50.0, 0.05: nan, 0.1: nan, 0.25: 22.0}, (0.05, 0.1, 0.25)))
    assert 'data-method="random"' in page
    page = time_plot(small_table({1.0: nan, 0.05: nan, 0.25: nan}))
    assert 'data-method="random"' not in page


def test_every_sample_is_there_once_and_refusals_are_told(whole):
    samples = results(whole)
    keys = [(r["clip"], r["question"], r["method"], r["ratio"]) for r in samples]
    assert len(keys) == len(set(keys))
    questions = {(r["clip"], r["question"]) for r in samples}
    runs = {(r["method"], r["ratio"]) for r in samples}
    assert runs == {("none", 1.0), ("no video", 0.0), ("random", 0.25), ("random", 0.1), ("dycoke", 0.25)}
    assert len(samples) == len(questions) * len(runs)
    assert {r["kept"] for r in samples if r["method"] == "no video"} == {0}
    assert {r["kept"] for r in samples if (r["method"], r["ratio"]) == ("random", 0.25)} == {32}
    refused = [json.loads(line) for line in (whole / "batches.jsonl").read_text().splitlines()]
    assert {r["ratio"] for r in refused if r["refused"]} == {0.1}


def test_the_report_is_whole_and_needs_nothing_beside_it(whole):
    page = (whole / "report.html").read_text()
    for word in ("Random", "DyCoke", "unpruned", "question alone", "prefers-color-scheme", "0.25", "are random"):
        assert word in page
    # Seven counts that accuracies are drawn against, one of them shown, and the plot over time.
    assert page.count("<svg") == 7 + 1
    assert "keeps every fourth frame whole" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "__" not in re.sub(r"<script>.*</script>", "", re.sub(r"data:image[^\"]*", "", page), flags=re.S)
    for name in ("retention.svg", "time.svg"):
        assert (whole / name).read_text().startswith("<svg")


def test_a_folder_takes_other_settings_and_keeps_what_is_there(home, model, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    before = (whole / "samples.jsonl").read_bytes()
    sweep(home, model, out, "--max-new-tokens", "3")
    after = (out / "samples.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 2 * before.count(b"\n")
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (whole, out))
    assert (first["max_new_tokens"], second["max_new_tokens"]) == (2, 3)
    assert [run["hash"] for run in second["earlier"]] == [first["hash"]]
    sweep(home, model, out)
    assert (out / "samples.jsonl").read_bytes() == after
    assert table(out) == table(whole)
    assert json.loads((out / "run.json").read_text())["hash"] == first["hash"]


@pytest.mark.slow
def test_a_published_benchmark_runs_through_the_same_verb(home, model, whole, tmp_path, capfd):
    from jvidprune.procedural.clips import ClipSpec, render
    from jvidprune.video.encode import write_mp4

    asked = [{"question": "Did it bark?", "answer": "yes"}, {"question": "Did it fly?", "answer": "no"}]
    rows = [{"id": "entire_1", "questions": asked}, {"id": "not_there", "questions": asked}]
    (tmp_path / "data" / "questions").mkdir(parents=True)
    (tmp_path / "data" / "questions" / "entire_questions.json").write_text(json.dumps(rows))
    write_mp4(tmp_path / "data" / "entire_1.mp4", render(ClipSpec(seed=2, frames=10, size=(64, 64))).frames, 5.0)
    words = ["--task", "eventhallusion", "--data", str(tmp_path / "data"), "--frames", "8"]
    sweep(home, model, tmp_path / "limited", *words, "--limits", "pixels=1000")
    assert "more than the 1000 allowed" in capfd.readouterr().err
    samples = results(sweep(home, model, tmp_path / "out", *words))
    assert {(r["clip"], r["category"]) for r in samples} == {("entire_1.mp4", "entire")}
    assert len(samples) == 2 * 5
    assert re.search(r"1 videos? (is|are) missing and left out: videos/entire/not_there.mp4", capfd.readouterr().err)
    assert "entire" in (tmp_path / "out" / "report.html").read_text()


WRITTEN = ("generation_config.json", "chat_template.jinja", "merges.txt", "tokenizer.model")


def test_the_hash_changes_with_everything_that_changes_results(model, tmp_path):
    from jvidprune.evals.identity import run_hash
    from jvidprune.evals.plan import identity
    from jvidprune.reducers import registry

    folder = shutil.copytree(model, tmp_path / "model")
    llm = VideoLLM.load(folder)
    plan, task = SweepPlan({"flashvid": registry.get("flashvid")}, (0.2, 0.1)), Procedural("test", clips=3)
    known = run_hash(identity(llm, task, plan))
    assert known == run_hash(identity(llm, Procedural("test", clips=3), dataclasses.replace(plan)))
    other = [
        dataclasses.replace(plan, ratios=(0.1, 0.2)),
        dataclasses.replace(plan, own_ratios={"flashvid": (0.1,)}),
        dataclasses.replace(plan, max_new_tokens=9),
        dataclasses.replace(plan, methods={"flashvid": registry.get("flashvid", alpha=0.6)}),
        dataclasses.replace(plan, methods={"flashvid": registry.get("fastvid")}),
    ]
    hashes = {run_hash(identity(llm, task, one)) for one in other}
    hashes |= {
        run_hash(identity(llm, one, plan)) for one in (Procedural("train", clips=3), Procedural("test", noise=1.0))
    }
    # How many clips there are is no part of what a run is.
    assert known == run_hash(identity(llm, Procedural("test", clips=4), plan))
    settings = dataclasses.replace(llm.settings, template="qwen3_vl")
    hashes.add(run_hash(identity(dataclasses.replace(llm, settings=settings), task, plan)))
    # What a model is said with and what lends it a pooling head: files of every kind that are read.
    head = tmp_path / "head"
    head.mkdir()
    lent = dataclasses.replace(llm, loaded=dataclasses.replace(llm.loaded, pooling_head=head))
    hashes.add(run_hash(identity(lent, task, plan)))
    for path in (head / "model.safetensors", *(folder / name for name in WRITTEN)):
        path.write_text('{"eos_token_id": [1]}')
        hashes.add(run_hash(identity(lent, task, plan)))
    assert len(hashes - {known}) == 9 + 1 + len(WRITTEN)


def test_two_writers_of_one_folder_are_kept_apart(tmp_path):
    from jvidprune.evals.hosts import only_writer

    refused = pytest.raises(JvidpruneError, match=r"another process is writing to .*; wait for it")
    with only_writer(tmp_path), refused, only_writer(tmp_path, patience=0):
        pass
    with only_writer(tmp_path):
        pass


def test_records_are_not_written_twice_and_damage_costs_only_what_it_hit(tmp_path):
    path = tmp_path / "records.jsonl"
    store = RecordStore(path, ("a", "b"))
    store.append([{"a": 1, "b": i, "value": i} for i in range(4)])
    store.append([{"a": 1, "b": 3, "value": 99}, {"a": 2, "b": 0, "value": 5}])
    store.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    path.write_bytes(b"".join([lines[0], lines[1][:9] + b"\n", lines[2], lines[3], lines[3], lines[4][:-1]]))
    mended = RecordStore(path, ("a", "b"))
    assert mended.dropped == 3
    assert [(r["a"], r["b"], r["value"]) for r in mended.records()] == [(1, 0, 0), (1, 2, 2), (1, 3, 3)]
    mended.append([{"a": 2, "b": 0, "value": 5}])
    mended.close()
    assert len(RecordStore(path, ("a", "b"))) == 4


def test_bootstrap_is_that_of_resampling_clips_one_by_one():
    rng = np.random.default_rng(3)
    clips, draws = 7, 400
    right, count = rng.integers(0, 4, (clips, 2)).astype(float), rng.integers(1, 5, (clips, 2)).astype(float)
    count[:, 1] = 0
    counts = clip_draws(clips, draws, seed=5)
    assert (counts.sum(1) == clips).all()
    low, high = bootstrap_ratio(counts, right, count, 0.9)
    values = []
    for draw in counts.astype(int):
        chosen = [clip for clip in range(clips) for _ in range(draw[clip])]
        values.append(sum(right[clip, 0] for clip in chosen) / sum(count[clip, 0] for clip in chosen))
    assert (low[0], high[0]) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])), abs=1e-12)
    assert np.isnan([low[1], high[1]]).all()


def test_summary_pairs_methods_with_the_unpruned_model_on_the_same_questions():
    def record(clip, question, method, ratio, category, correct, kept):
        names = ("clip", "question", "method", "ratio", "category", "correct", "kept", "prompt")
        return dict(zip(names, (clip, question, method, ratio, category, correct, kept, kept + 5), strict=True))

    rows = []
    for clip in range(4):
        for question, category in enumerate(("colour", "count")):
            name = f"{clip}-{question}"
            rows.append(record(str(clip), name, "none", 1.0, category, clip < 3, 100))
            if clip != 1:
                rows.append(record(str(clip), name, "random", 0.1, category, clip == 0 and question == 0, 10))
    cells = {(c.method, c.category): c for c in summarise(rows, [("none", 1.0), ("random", 0.1)], draws=50)}
    assert (cells["none", "all"].accuracy, cells["none", "all"].relative) == (0.75, 1.0)
    swept = cells["random", "all"]
    assert (swept.questions, swept.accuracy, swept.kept, swept.prompt) == (6, 1 / 6, 10, 15)
    assert swept.relative == pytest.approx(1 / 4)  # the unpruned model has 4 of these 6 right
    assert cells["random", "count"].accuracy == 0
    shuffled = summarise(rows[::-1], [("none", 1.0), ("random", 0.1)], draws=50)
    assert shuffled == list(cells.values())
    change = paired_difference(rows, "none", "random", 0.1)
    assert change is None  # the unpruned model stands at ratio 1
    again = [row | {"ratio": 0.1} for row in rows]
    change = paired_difference(again, "none", "random", 0.1, draws=5000)
    assert (change.questions, change.change) == (6, pytest.approx(1 / 6 - 4 / 6))
    # Changes of the three clips are -1, -2 and 0 of two questions; one resample in 27 has the last alone.
    assert (change.low, change.high, change.clear) == (-1.0, 0.0, False)
