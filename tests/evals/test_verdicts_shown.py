"""What table, report and files of a sweep say of its methods, from small records whose answers are known."""

import csv
import re

import pytest
from helpers.pages import check_page

import jvidprune
from jvidprune import VideoTokens
from jvidprune.cli.sweep_shown import show_sweep, sweep_table
from jvidprune.evals.items import Question
from jvidprune.evals.paired import write_pairs
from jvidprune.evals.plan import OneFrame, SweepPlan
from jvidprune.evals.results import make_table, write_csv
from jvidprune.evals.runner import RunFiles, SweepRecords
from jvidprune.synthetic import synthetic_tokens
from jvidprune.viz.sweep_report import sweep_page

QUESTIONS = 30
COSTS = {"encode": 0.1, "reduce": 0.1, "compile": 0.0, "memory": 1, "tflops": 1.0, "prefill_tflops": 0.5}
TITLES = {"good": "Good", "weak": "Weak", "idle": "Idle", "random": "Random", "pool_space": "Spatial pooling"}
RUNS = {
    # Right answers of the first of 30 questions, tokens kept and merged of 100, and how the logits move.
    ("none", 1.0): (28, 100, 0, 0.0),
    ("no video", 0.0): (2, 0, 0, -1.0),
    ("one frame", 1.0): (26, 12, 0, -0.5),
    ("good", 0.1): (26, 10, 60, -0.5),
    ("weak", 0.1): (14, 11, 0, -0.5),
    ("idle", 0.1): (28, 100, 0, 0.0),
    ("random", 0.1): (12, 10, 0, -0.5),
    ("pool_space", 0.1): (10, 9, 91, -0.5),
}


class Task:
    """One question a clip."""

    name, categories = "fake", ("colour",)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        class Item:
            questions = (Question("q", "Which?", "colour", "choice", ("red", "blue"), "A"),)

        return Item

    def chance(self, question):
        return 0.5


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    samples, batches = [], []
    for (method, ratio), (right, kept, merged, moved) in RUNS.items():
        for i in range(QUESTIONS):
            clip = {"clip": f"{i:02}", "method": method, "ratio": ratio}
            texts = {"question": "q", "category": "colour", "answer": "A", "prediction": "A" if i < right else "B"}
            counts = {"correct": i < right, "kept": kept, "visual": 100, "prompt": kept + 5}
            samples.append(clip | texts | counts)
            places = {"places_kept": kept, "places_merged": merged, "places_dropped": 100 - kept - merged}
            logits = {"logits": {"q": [[4, -0.2 + moved], [5, -3.0]]}}
            batches.append(clip | {"refused": ""} | COSTS | places | logits)
    identity = {"ratios": [0.1], "task": {"name": "fake"}, "model": {"dtype": "float32"}}
    found = SweepRecords(RunFiles(tmp_path_factory.mktemp("run")), identity, list(RUNS), samples, batches, 0)
    return make_table(found, Task(), TITLES, draws=200)


def test_the_table_knows_controls_standings_and_pairs(table):
    assert table.controls == ("random", "pool_space")
    outcomes = {run: standing.outcome for run, standing in table.standings.items()}
    # Idle keeps all tokens; only controls with far fewer are at hand, and none with as many or more.
    assert outcomes == {("good", 0.1): "beats", ("weak", 0.1): "open", ("idle", 0.1): "more tokens"}
    assert table.standings["good", 0.1].rival.run == ("random", 0.1)
    assert [run for run, effect in table.effects.items() if effect.flags] == [("idle", 0.1)]
    assert len(table.pairs[0.1]) == 5 * 4 // 2
    best = table.best_two(0.1)
    assert (best.second[0], best.first[0], best.gained, best.lost) == ("good", "weak", 12, 0)


def test_the_page_marks_what_beats_no_control_and_what_did_nothing(table):
    page = sweep_page(table, model="a model")
    cells = dict(re.findall(r'<tr data-method="(\w+)">.*?<td[^>]*>([\d.]+[†‡]*)', page, re.S))
    assert cells == {"good": "86.7", "weak": "46.7†", "idle": "93.3†‡", "random": "40.0", "pool_space": "33.3"}
    held = re.findall(r'data-outcome="([\w ]+)"[^>]*><span class="(\w*)">([+-][\d.]+)</span>', page)
    assert held == [("beats", "yes", "+46.7"), ("open", "", "+6.7"), ("more tokens", "", "+53.3")]
    assert "10 : 10 tokens" in page
    assert "11 : 10 tokens" in page
    assert "Idle at 10 % did not act: kept every token; no logits differ from the unpruned model&#39;s" in page
    # What did nothing is no best method.
    assert "at 10 % the two best are Good and Weak: +40.0 points" in page
    assert '<b>Good</b><div class="big">86.7 %</div>' in page
    assert "<td>Good</td><td>10 %</td><td>10.0</td><td>60.0</td><td>30.0</td><td>30 of 30</td>" in page
    check_page(page)


def test_what_one_frame_answers_is_marked_and_the_clips_that_it_takes_are_told(table):
    # 26 of the 28 that all tokens answer.
    assert table.frozen == ["colour"]
    page = sweep_page(table, model="a model")
    assert "<th>colour ◦</th>" in page
    assert "at least 90 % of the unpruned model" in page
    assert page.count("<th>middle frame alone</th>") == 2
    needed = table.resolution(0.1)
    assert (needed.here, needed.ratio) == (30, 0.1)
    assert needed.clips == needed.questions > 100
    assert f"about {needed.clips:,} clips" in page


def test_the_middle_frame_is_asked_alone_where_it_is_wanted():
    video = synthetic_tokens(frames=5, grid=(3, 3), dim=4)
    kept = jvidprune.reduce(OneFrame(), video, 0.2)
    assert kept.index[kept.valid].tolist() == list(range(18, 27))
    padded = VideoTokens.create(video.features, frame_mask=[True] * 4 + [False])
    kept = jvidprune.reduce(OneFrame(), padded, 1.0)
    assert kept.index[kept.valid].tolist() == list(range(18, 27))
    names = [name for name, _ in SweepPlan({}, (0.1,), single=True).runs()]
    assert names == ["none", "no video", "one frame"]
    assert len(SweepPlan({}, (0.1,)).runs()) == 2


def test_the_terminal_says_it_too(table):
    from rich.console import Console

    class Plain(Console):
        def print(self, *parts, plain=False, unbroken=False, **more):
            super().print(*parts, **more)

    record = {"did_not_act": ["Idle at 10 % did not act"], "untrained": False, "left_out": [], "resumed_samples": 0}
    console = Plain(width=140)
    with console.capture() as seen:
        show_sweep(console, table, record | {"samples": 7, "report": "report.html"})
    said = seen.get()
    assert re.search(r"Weak\s+46.7 \d+–\d+†", said)
    assert re.search(r"Good\s+86.7 \d+–\d+ ", said)
    assert "† not shown to beat the best control" in " ".join(said.split())
    assert "beats the best control: Good at 10 %" in said
    assert "beats only controls that keep fewer tokens: Idle at 10 %" in said
    assert re.search(r"middle frame alone\s+86.7", said)
    assert "one frame answers nearly as much as all of them in: colour" in said
    assert "to detect a difference of 5 points; this run has 30." in " ".join(said.split())
    assert "Idle at 10 % did not act" in said
    assert "the two best are Good and Weak" in said
    assert sweep_table(table, intervals=False).caption.count("†") == 1


def test_the_files_have_the_numbers(table, tmp_path):
    write_csv(table, tmp_path / "table.csv")
    rows = {r["method"]: r for r in csv.DictReader((tmp_path / "table.csv").open()) if r["category"] == "all"}
    good = rows["good"]
    assert (good["outcome"], good["control"], good["control_kept"], good["kept"]) == ("beats", "random", "10", "10")
    # 14 gained and none lost, one of four comparisons at most: p is 2 / 2^14.
    assert float(good["p"]) == pytest.approx(2 / 2**14, rel=1e-5)
    assert (good["merged"], good["dropped"], good["logits_differ"], good["did_not_act"]) == ("0.6", "0.3", "1", "")
    assert (rows["idle"]["logits_differ"], rows["idle"]["answers_differ"]) == ("0", "0")
    assert rows["random"]["outcome"] == rows["none"]["outcome"] == ""
    write_pairs(table.pairs, tmp_path / "pairs.csv")
    pairs = {(r["first"], r["second"]): r for r in csv.DictReader((tmp_path / "pairs.csv").open())}
    # d = c = 2/30: (1.959964 sqrt(d) + 0.841621 sqrt(d - c^2))^2 / c^2 = 115.4.
    assert (pairs["idle", "good"]["lost"], pairs["idle", "good"]["questions_needed"]) == ("2", "116")
