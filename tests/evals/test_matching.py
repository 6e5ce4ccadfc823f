"""Equal cost: settings against closed forms and brute force, what is out of reach, and a sweep that is resumed."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from helpers.sweeps import results, sweep

from jvidprune.costs.flops import count_ratio
from jvidprune.errors import JvidpruneError
from jvidprune.evals.controls import against_controls, told
from jvidprune.evals.keys import RecordKeys
from jvidprune.evals.matching import TEXT, Costing, Matcher, matched_runs, unreached
from jvidprune.evals.metrics import summarise
from jvidprune.evals.plan import SweepPlan
from jvidprune.models.checkpoint.published import published
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers import registry
from jvidprune.reducers.controls import Random
from jvidprune.reducers.fastv import FastV
from jvidprune.tokens import Layout

CONFIG = published("llava-onevision-7b")
LAYOUT = Layout(32, (14, 14), (27, 27))
TOTAL, DEPTH = 32 * 196, 28


@pytest.fixture(scope="module", params=["tokens", "flops", "kv"])
def matcher(request):
    return Matcher(Costing(CONFIG, request.param))


def test_a_plain_selection_is_asked_for_the_ratio_itself(matcher):
    for name in ("random", "uniform", "aot"):
        found = matcher.setting(LAYOUT, registry.for_model(name, CONFIG), 0.1)
        assert (found.ratio, found.distance) == (0.1, 0.0)


def test_targets_are_the_costs_of_a_plain_selection(matcher):
    kept = round(0.1 * TOTAL)
    plain = count_ratio(CONFIG, LAYOUT, reducer=Random(), ratio=0.1)
    # One newline behind the video.
    size = 2 * CONFIG.text.kv_heads * CONFIG.text.head_dim * 2
    wanted = {"tokens": kept, "flops": plain.of("prefill"), "kv": size * DEPTH * (kept + 1 + TEXT)}
    assert matcher.costing.target(LAYOUT, 0.1) == pytest.approx(wanted[matcher.costing.match])


def test_a_cut_inside_the_model_is_found_as_its_closed_form_says():
    # Two layers read everything, 26 a share r: (2 + 26 r) / 28 of all tokens in the mean.
    matcher = Matcher(Costing(CONFIG, "tokens"))
    for ratio in (0.5, 0.25, 0.1):
        found = matcher.setting(LAYOUT, FastV(), ratio)
        assert found.ratio == pytest.approx((28 * ratio - 2) / 26, abs=1 / TOTAL)
        # Off by less than half of what one token more costs behind the cut, and a rounding of the target.
        assert abs(found.cost - found.target) <= 0.5 * 26 / 28 + 1e-6


@pytest.mark.parametrize("name", ["fastv", "flashvid", "holitom", "information_horizon", "pool_space", "dycoke"])
def test_no_other_ratio_comes_nearer(matcher, name):
    reducer = registry.for_model(name, CONFIG)
    found = matcher.setting(LAYOUT, reducer, 0.3)
    costs = []
    for ratio in np.linspace(0.02, 1.0, 300):
        try:
            costs.append(matcher.costing(LAYOUT, reducer, float(ratio)))
        except JvidpruneError:
            continue
    assert abs(found.cost - found.target) <= min(abs(cost - found.target) for cost in costs) + 1e-9
    # The same whoever looks, and in whatever order.
    assert Matcher(matcher.costing).setting(LAYOUT, reducer, 0.3) == found


def test_what_is_out_of_reach_is_said_in_one_sentence():
    matcher = Matcher(Costing(CONFIG, "tokens"))
    # All tokens in two layers and 6 in 26: (2 * 6272 + 26 * 6) / 28 = 453.6.
    with pytest.raises(
        JvidpruneError, match=r"selection of 5 % does, 314 tokens a layer: its nearest are 453.6 \(\+44 %"
    ):
        matcher.setting(LAYOUT, FastV(), 0.05)
    with pytest.raises(JvidpruneError, match="every fourth frame whole"):
        Matcher(Costing(CONFIG, "kv")).setting(Layout(3, (14, 14)), registry.get("dycoke"), 0.1)
    why = "FastV cannot cost what a plain selection of 5 % does, 314 tokens a layer: its nearest are 454 (+45 %)."
    assert unreached({"fastv": {0.05: why, 0.02: why}, "dycoke": {0.1: "DyCoke keeps every fourth frame."}}) == [
        why + " (1 more ratio alike)"
    ]


def test_distances_are_told_over_the_clips():
    def record(setting, target, reached, **more):
        row = {"method": "fastv", "ratio": 0.1, "refused": "", "setting": setting, "target": target}
        return row | {"reached": reached} | more

    rows = [record(0.03, 600.0, 606.0), record(0.05, 200.0, 178.0), record(0.9, 1, 1, refused="no")]
    (found,) = matched_runs([*rows, {"method": "none", "ratio": 1.0, "refused": ""}], "tokens").values()
    assert (found.low, found.high, found.target, found.reached) == (0.03, 0.05, 400.0, 392.0)
    assert (found.distance, found.worst) == pytest.approx((-0.02, -0.11))
    assert found.texts("FastV") == ["FastV", "10 %", "0.03 to 0.05", "392", "400", "-2.0 %", "-11.0 %"]
    assert matched_runs(rows, None) == {}


def test_at_equal_cost_the_controls_of_the_same_ratio_are_the_rivals():
    def run(method, ratio, right, kept):
        row = {"question": "q", "method": method, "ratio": ratio, "category": "a", "kept": kept, "prompt": kept}
        return [row | {"clip": f"{i:02}", "correct": i < right} for i in range(40)]

    runs = [("fastv", 0.1, 30, 200), ("random", 0.1, 10, 20), ("random", 0.5, 39, 100)]
    rows = [row for one in runs for row in run(*one)]
    cells = {(c.method, c.ratio, c.category): c for c in summarise(rows, [one[:2] for one in runs], draws=50)}
    (one,) = against_controls(rows, cells, ["random"], draws=100, matched=True).values()
    assert (one.rival.run, one.even, one.outcome) == (("random", 0.1), True, "beats")
    loses = dataclasses.replace(one.rival, difference=one.rival.difference.turned())
    weak = dataclasses.replace(one, below=loses, above=loses)
    assert told([weak], {})[0] == "no method is shown to beat the best control at equal cost"
    (one,) = against_controls(rows, cells, ["random"], draws=100).values()
    assert (one.rival.run, one.outcome) == (("random", 0.5), "below")


def test_records_are_filed_apart_but_for_the_baselines():
    task, plan = Procedural("test", clips=1), SweepPlan({"random": Random()}, (0.1,))
    keys = [RecordKeys(task, dataclasses.replace(plan, match=match), {}) for match in (None, "tokens", "flops")]
    assert len({key.batch(0, "random") for key in keys}) == 3
    assert len({key.batch(0, "none") for key in keys}) == 1
    with pytest.raises(JvidpruneError, match="costs are matched by tokens, flops, kv, got 'time'"):
        dataclasses.replace(plan, match="time")


@pytest.mark.slow
def test_a_sweep_at_equal_cost_resumes_and_loses_nothing_of_the_others(home, model, tmp_path):
    cut = "fastv(layer=1)"
    words = ["--clips", "1", "--methods", f"random,{cut}", "--ratios", "0.5,0.25", "--match", "tokens"]
    out = sweep(home, model, tmp_path / "run", *words)
    found, rows = results(out), [r for r in csv.DictReader((out / "table.csv").open()) if r["category"] == "all"]
    table = {(r["method"], float(r["ratio"])): r for r in rows}
    # One of three layers reads everything: a quarter of the tokens is out of reach, for a half a quarter stays.
    assert set(table) == {("none", 1.0), ("no video", 0.0), ("random", 0.5), ("random", 0.25), (cut, 0.5)}
    full = float(table["none", 1.0]["kept"])
    assert float(table[cut, 0.5]["layer_tokens"]) == float(table["random", 0.5]["layer_tokens"]) == full / 2
    told = [float(table[cut, 0.5][name]) for name in ("target", "reached", "distance", "setting_low", "kept")]
    assert told == pytest.approx([full / 2, full / 2, 0.0, 0.25, full], abs=0.01)
    page = (out / "report.html").read_text()
    assert "At equal cost" in page
    assert f"FastV cannot cost what a plain selection of 25 % does, {full / 4:g} tokens a layer" in page
    assert json.loads((out / "run.json").read_text())["match"] == "tokens"
    # What is lost is made again as it was; nothing else is.
    lines = (out / "batches.jsonl").read_text().splitlines(keepends=True)
    (out / "batches.jsonl").write_text("".join(line for line in lines if cut not in line))
    before = (out / "samples.jsonl").read_bytes()
    sweep(home, model, out, *words)
    again = [json.loads(line) for line in (out / "batches.jsonl").read_text().splitlines()]
    assert sorted(r["setting"] for r in again if r["method"] == cut and not r["refused"]) == pytest.approx(
        [0.25], abs=0.01
    )
    assert (out / "samples.jsonl").read_bytes() == before
    assert results(out) == found
