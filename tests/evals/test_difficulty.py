"""Accuracies by length and on the questions that the downscaled control misses, from records of known answers."""

import csv
import json
import re

import pytest
from helpers.sweeps import sweep

from jvidprune.evals.difficulty import (
    LENGTHS,
    by_length,
    control_of,
    difficulty,
    hard_part,
    length_bin,
    own_lengths,
    told_hard,
    write_difficulty,
)
from jvidprune.evals.items import Question

# Right answers to ten questions, one a clip.
RIGHT = {
    ("none", 1.0): "1111111100",
    ("no video", 0.0): "1000100001",
    ("downscale", 0.1): "1111000011",
    ("flashvid", 0.1): "1110110111",
    ("fastvid", 0.1): "0111100001",
    ("flashvid", 0.2): "1111111111",
}
RUNS = list(RIGHT)


def samples(right=RIGHT):
    return [
        {"clip": f"c{i}", "question": "q", "method": method, "ratio": ratio, "category": "all of them"}
        | {"correct": mark == "1", "kept": 9, "prompt": 9}
        for (method, ratio), marks in right.items()
        for i, mark in enumerate(marks)
    ]


def test_hard_questions_are_those_that_the_full_input_answers_and_the_control_misses():
    found = hard_part(samples(), RUNS, 0.1, "downscale", draws=200)
    # The unpruned model answers 0 to 7; the control misses 4 to 7 of these.
    assert (found.hard, found.easy) == (4, 4)
    hard = {run[0]: (cell.questions, cell.accuracy) for run, cell in found.on_hard.items()}
    assert hard == {"no video": (4, 0.25), "flashvid": (4, 3 / 4), "fastvid": (4, 1 / 4)}
    easy = {run[0]: cell.accuracy for run, cell in found.on_easy.items()}
    assert easy == {"no video": 0.25, "flashvid": 3 / 4, "fastvid": 3 / 4}
    (pair,) = found.pairs
    assert (pair.second[0], pair.first[0], pair.questions, pair.gained, pair.lost) == ("flashvid", "fastvid", 4, 2, 0)
    assert (found.best_two.second[0], found.best_two.change) == ("flashvid", 0.5)
    assert hard_part(samples(), RUNS, 0.2, "downscale", draws=20) is None


def test_a_question_that_was_not_asked_of_all_counts_where_it_was():
    rows = [r for r in samples() if (r["method"], r["clip"]) not in (("flashvid", "c4"), ("downscale", "c5"))]
    found = hard_part(rows, RUNS, 0.1, "downscale", draws=20)
    assert (found.hard, found.easy) == (3, 4)
    assert found.on_hard["flashvid", 0.1, "all"].questions == 2
    # Where the control misses nothing that matters there is nothing to tell.
    same = samples(RIGHT | {("downscale", 0.1): RIGHT["none", 1.0]})
    nothing = hard_part(same, RUNS, 0.1, "downscale", draws=20)
    assert (nothing.hard, nothing.easy, nothing.on_hard, nothing.pairs) == (0, 8, {}, [])
    assert nothing.best_two is None


@pytest.mark.parametrize(
    ("names", "family", "control", "said"),
    [
        (["flashvid", "downscale"], "qwen2_5_vl", "downscale", "gets right and downscale misses"),
        (["downscale(keep_aspect=True)"], "qwen3_vl", "downscale(keep_aspect=True)", "downscale misses"),
        (["flashvid", "pool_space"], "qwen2_5_vl", None, "downscale was not run"),
        (["pool_space"], "llava_onevision", "pool_space", "not defined there: hard .* its stand-in pool_space misses"),
        (["random"], "llava_video", None, "pool_space, which could stand in for it, was not run"),
    ],
)
def test_the_control_is_named_and_stands_in_only_where_there_is_none(names, family, control, said):
    found, note = control_of(names, family)
    assert found == control
    assert re.search(said, note)
    assert note.count(". ") == 0


def test_lengths_are_the_benchmarks_own_or_bins_of_seconds():
    assert [length_bin(seconds) for seconds in (0.5, 15.0, 15.1, 180, 3600, 3601)] == [
        *("up to 15 s", "up to 15 s", "15 to 60 s", "1 to 3 min"),
        *("10 to 60 min", "over 1 h"),
    ]
    seconds = {f"c{i}": 10.0 if i < 4 else 200.0 for i in range(10)}
    batches = [{"clip": clip, "seconds": value} for clip, value in seconds.items() if clip != "c9"]
    found = by_length(samples(), batches, RUNS, {}, draws=20)
    assert (found.names, found.own) == (("up to 15 s", "3 to 10 min"), False)
    cells = {key: (cell.questions, cell.accuracy) for key, cell in found.cells.items() if key[:2] == ("flashvid", 0.1)}
    # Of the last clip nobody knows how long it is.
    assert cells == {
        ("flashvid", 0.1, "up to 15 s"): (4, 3 / 4),
        ("flashvid", 0.1, "3 to 10 min"): (5, pytest.approx(4 / 5)),
    }
    own = {(f"c{i}", "q"): "long" if i < 5 else "short" for i in range(10)}
    turned = [row | {"seconds": 5000.0 if row["clip"] < "c5" else 30.0} for row in batches]
    named = by_length(samples(), turned, RUNS, own, draws=20)
    assert (named.names, named.own) == (("short", "long"), True)
    assert by_length(samples(), [], RUNS, {}, draws=20).names == ()
    assert list(LENGTHS.values()) == sorted(LENGTHS.values())


class Task:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        class Item:
            id = "c0"
            questions = (
                Question("q", "?", "a", "short", (), "x", length="short"),
                Question("r", "?", "a", "short", (), "x"),
            )

        return Item


def test_files_and_lines_say_what_was_found(tmp_path):
    assert own_lengths(Task()) == {("c0", "q"): "short"}
    batches = [{"clip": f"c{i}", "seconds": 20.0} for i in range(10)]
    found = difficulty(samples(), batches, RUNS, [0.1, 0.2], {}, "qwen2_5_vl", draws=100)
    assert list(found.hard) == [0.1]
    (line,) = told_hard(found, 0.1, {"flashvid": "FlashVID", "downscale": "Smaller frames"})
    assert line.startswith("of the 4 questions at 10 % that Smaller frames misses and the unpruned model gets right, ")
    assert re.search(r"FlashVID gets 75.0 % \[\d+, 100\], the question alone 25.0 %$", line)
    assert told_hard(found, 0.2, {}) == [found.note]
    same = samples(RIGHT | {("downscale", 0.1): RIGHT["none", 1.0]})
    nothing = difficulty(same, batches, RUNS, [0.1], {}, "qwen2_5_vl", draws=20)
    assert told_hard(nothing, 0.1, {}) == ["at 10 % downscale misses no question that the unpruned model gets right"]
    write_difficulty(found, tmp_path)
    rows = list(csv.DictReader((tmp_path / "hard.csv").open()))
    assert [(row["method"], row["hard"], row["accuracy"], row["on_easy"]) for row in rows] == [
        ("no video", "4", "0.25", "0.25"),
        ("flashvid", "4", "0.75", "0.75"),
        ("fastvid", "4", "0.25", "0.75"),
    ]
    lengths = list(csv.DictReader((tmp_path / "lengths.csv").open()))
    assert {row["length"] for row in lengths} == {"15 to 60 s"}
    assert len(lengths) == len(RUNS)


@pytest.mark.slow
def test_a_sweep_tells_it_and_names_the_stand_in(home, model, tmp_path):
    words = ["--clips", "2", "--methods", "random", "--ratios", "0.25", "--controls", "pool_space"]
    out = sweep(home, model, tmp_path / "run", *words)
    page = (out / "report.html").read_text()
    assert "llava_onevision makes as many tokens of frames of any size" in page
    assert "its stand-in pool_space misses" in page
    assert "By length of clips" in page
    rows = [json.loads(line) for line in (out / "batches.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {row["seconds"] for row in rows} == {8.0}
    told = {r["method"]: r for r in csv.DictReader((out / "lengths.csv").open())}
    assert {row["length"] for row in told.values()} == {"up to 15 s"}
    right = [r["correct"] for r in samples if r["method"] == "random"]
    assert float(told["random"]["accuracy"]) == pytest.approx(sum(right) / len(right), abs=1e-5)
    full = {(r["clip"], r["question"]) for r in samples if r["method"] == "none" and r["correct"]}
    missed = {(r["clip"], r["question"]) for r in samples if r["method"] == "pool_space" and not r["correct"]}
    hard = list(csv.DictReader((out / "hard.csv").open()))
    assert {int(row["hard"]) for row in hard} <= {len(full & missed)}
