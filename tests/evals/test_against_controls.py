"""Methods against controls: rivals at equal tokens, chosen from below and above; what is established is said."""

import json

import pytest
from helpers.sweeps import results, sweep

from jvidprune.errors import JvidpruneError
from jvidprune.evals.controls import against_controls, is_control, told
from jvidprune.evals.metrics import summarise
from jvidprune.evals.plan import SweepPlan
from jvidprune.reducers.controls import Random, Uniform

QUESTIONS = 40


def run(method, ratio, right, kept):
    """Records of a run that gets the first `right` of 40 questions right, one question a clip."""
    names = ("clip", "question", "method", "ratio", "category", "correct", "kept", "prompt")
    rows = [(f"{i:02}", "q", method, ratio, "all of them", i < right, kept, kept) for i in range(QUESTIONS)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def standings(*runs, controls=("random", "pool_space")):
    rows = [row for one in runs for row in run(*one)]
    found = summarise(rows, list(dict.fromkeys((name, ratio) for name, ratio, *_ in runs)), draws=200)
    cells = {(c.method, c.ratio, c.category): c for c in found}
    return against_controls(rows, cells, controls, draws=200)


def test_the_rival_is_the_strongest_control_at_as_many_tokens():
    found = standings(
        ("none", 1.0, 40, 200),
        ("no video", 0.0, 1, 0),
        ("flashvid", 0.1, 30, 20),
        ("random", 0.1, 10, 20),
        ("pool_space", 0.1, 18, 18),
        ("pool_space", 0.2, 39, 40),
    )
    assert list(found) == [("flashvid", 0.1)]
    one = found["flashvid", 0.1]
    assert (one.rival.run, one.rival.kept, one.kept) == (("pool_space", 0.1), 18, 20)
    assert (one.rival.difference.gained, one.rival.difference.lost) == (12, 0)
    # From above stand random at as many tokens and pooling at twice as many, which is stronger.
    assert (one.above.run, one.above.difference.change) == (("pool_space", 0.2), pytest.approx(-9 / 40))
    assert (one.even, one.outcome) == (True, "beats")
    # Two comparisons are made: the smaller p-value counts twice.
    assert one.rival.difference.adjusted == pytest.approx(2 * 2 / 2**12)


def test_what_is_not_established_is_no_win():
    found = standings(("flashvid", 0.1, 22, 20), ("random", 0.1, 18, 20))
    assert found["flashvid", 0.1].rival.difference.p == pytest.approx(2 / 16)
    assert found["flashvid", 0.1].outcome == "open"
    found = standings(("flashvid", 0.1, 5, 20), ("random", 0.1, 30, 20))
    assert found["flashvid", 0.1].outcome == "below"
    assert told(found.values(), {"flashvid": "FlashVID"}) == [
        "no method is shown to beat the best control at as many tokens",
        "below the best control: FlashVID at 10 %",
    ]


def test_beating_a_control_of_fewer_tokens_is_no_win_unless_the_next_larger_one_loses_too():
    small, large = ("random", 0.1, 10, 20), ("random", 0.2, 28, 40)
    one = standings(("flashvid", 0.1, 30, 30), small, large)["flashvid", 0.1]
    assert (one.even, one.below.run, one.above.run, one.outcome) == (False, small[:2], large[:2], "more tokens")
    one = standings(("flashvid", 0.1, 40, 30), small, large)["flashvid", 0.1]
    assert one.outcome == "beats"
    # No control keeps as few: a larger one that loses is beaten, one that wins proves nothing.
    one = standings(("flashvid", 0.1, 40, 10), small)["flashvid", 0.1]
    assert (one.below, one.rival.run, one.outcome) == (None, small[:2], "beats")
    assert standings(("flashvid", 0.1, 0, 10), small)["flashvid", 0.1].outcome == "open"
    # Only fewer: how it would stand at as many tokens is not known.
    assert standings(("flashvid", 0.1, 40, 30), small)["flashvid", 0.1].outcome == "more tokens"


def test_of_controls_with_equal_tokens_that_of_the_same_ratio_is_taken():
    runs = [("inner_random", ratio, right, 200) for ratio, right in ((0.25, 30), (0.1, 20), (0.05, 10))]
    found = standings(("fastv", 0.1, 40, 200), *runs, controls=("inner_random",))
    assert found["fastv", 0.1].rival.run == ("inner_random", 0.1)


def test_without_controls_nothing_is_judged():
    assert standings(("flashvid", 0.1, 30, 20), controls=()) == {}
    assert [is_control(name) for name in ("random(seed=3)", "random:seed=3", "./mine.py:random", "attention_topk")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_plan_refuses_a_control_that_is_a_method_or_a_baseline():
    with pytest.raises(JvidpruneError, match="random is one of the methods"):
        SweepPlan({"random": Random()}, controls={"random": Random()})
    with pytest.raises(JvidpruneError, match="'none' is part of every sweep"):
        SweepPlan({"random": Random()}, controls={"none": Uniform()})


@pytest.mark.slow
def test_controls_join_a_run_and_leave_its_name_and_its_records_as_they_are(home, model, tmp_path):
    out = sweep(home, model, tmp_path / "run")
    before, first = (out / "samples.jsonl").read_bytes(), json.loads((out / "run.json").read_text())
    assert "controls" not in first
    sweep(home, model, out, "--controls", "random,sample_space")
    after, second = (out / "samples.jsonl").read_bytes(), json.loads((out / "run.json").read_text())
    assert after.startswith(before)
    added = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert {row["method"] for row in added} == {"sample_space"}
    assert (second.pop("controls").keys(), second) == ({"sample_space"}, first)
    page = (out / "report.html").read_text()
    assert "Against the best control" in page
    assert "Grid sampling" in page
    head, *lines = (out / "table.csv").read_text().splitlines()
    rows = [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]
    judged = {(row["method"], row["ratio"]): row for row in rows if row["outcome"]}
    assert set(judged) == {("dycoke", "0.25")}
    assert judged["dycoke", "0.25"]["control"] in ("random", "sample_space")
    sweep(home, model, out)
    assert "controls" not in json.loads((out / "run.json").read_text())
    assert len(results(out)) == len(after.splitlines())
