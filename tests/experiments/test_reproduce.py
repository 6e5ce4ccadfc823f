"""The published tables as data: they resolve, print both columns, run end to end, and say what is missing."""

import dataclasses
import importlib.util
import json
import re

import pytest
from helpers import tiny_checkpoints
from helpers.layouts import LAYOUTS
from helpers.places import REPOSITORY

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets import names as datasets
from jvidprune.evals.judge.cases import cases_of
from jvidprune.evals.judge.verdicts import open_verdicts, verdict
from jvidprune.evals.plan import SweepPlan
from jvidprune.models import family as families
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.reducers.evs import EVS
from jvidprune.reducers.registry import from_text
from jvidprune.tokens import Layout

PATH = REPOSITORY / "experiments" / "reproduce" / "run.py"


@pytest.fixture(scope="module")
def tool():
    import sys

    spec = importlib.util.spec_from_file_location("reproduce", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module
    spec.loader.exec_module(module)
    return module


def test_every_table_resolves(tool):
    papers = {tool.read(name).paper for name in tool.names()}
    wanted = {
        "2603.01400",
        "2602.08024",
        "2604.20937",
        "2605.11803",
        "2603.18004",
        "2503.11187",
        "2505.21334",
        "2412.04467",
    }
    assert papers == wanted
    for name in tool.names():
        table = tool.read(name)
        assert set(table.tasks) <= set(datasets())
        for column in table.columns:
            assert column in tool.DERIVED or column.split(".")[0] in table.tasks
        for one in tool.settings(table.methods).values():
            from_text(one.text, table.family if table.family in families.names() else None)
        for column, made_from in table.groups.items():
            assert column in tool.DERIVED
            assert {name.split(".")[0] for name in made_from} <= set(table.tasks)
        assert set(table.frames_of) <= set(table.methods)
        assert all(0 < ratio <= 1 for ratio in table.ratios)
        run = {(method, ratio) for method, texts in table.methods.items() for ratio in texts}
        assert ("none", 1.0) in table.reported
        assert any(table.reported[key] for key in table.reported.keys() & run), "nothing would stand beside our numbers"
        for values in table.reported.values():
            assert all(0 < value < 110 for value in values.values())


def test_methods_run_with_the_settings_that_were_reported(tool):
    def at(name, method, ratio):
        table = tool.read(name)
        return from_text(table.methods[method][ratio], table.family)

    for method, layer in (("HoliTom", 18), ("HoliTom w/o M", None)):
        found = [at("holitom", method, ratio) for ratio in (0.25, 0.2, 0.15, 0.1)]
        assert [one.tau for one in found] == [0.8, 0.8, 0.8, 0.65]
        assert {one.inner_layer for one in found} == {layer}
    # SToP's runs of HoliTom know neither the smaller threshold nor the merging inside the model.
    for method, weights in (("HoliTom", (0.0, 0.0)), ("HoliTom + SToP", (0.04, 0.07))):
        stop = at("stop", method, 0.1)
        assert (stop.base.tau, stop.base.inner_layer, stop.inner(0.1)) == (0.8, None, ())
        assert (stop.rule.mu_s, stop.rule.mu_t, stop.rule.kappa) == (*weights, 0.3)
    assert at("stop", "FastVID", 0.1).needs == at("stop", "FastVID + SToP", 0.1).needs
    # FastVID's authors count int(N * ratio) tokens a frame in their own VisionZip: 9.7 % and 9.5 % at 10 %.
    for name, grid, counts in (("fastvid", 14, (49, 39, 29, 19)), ("fastvid_llava_video", 13, (42, None, None, 16))):
        for ratio, count in zip((0.25, 0.2, 0.15, 0.1), counts, strict=True):
            if count is not None:
                assert at(name, "VisionZip", ratio).tokens_per_frame(Layout(8, (grid, grid)), ratio) == count
    assert at("fastvid_llava_video", "VisionZip", 0.1).prompt.newline == "frame"
    assert list(tool.read("fastvid").methods["PruneVid"]) == [0.11]
    assert list(tool.read("fastvid_qwen2_5_vl").methods["FastVID"]) == [0.27]
    assert at("aot_llava_video", "AOT Dyn", 0.25).inter


def test_settings_of_some_ratios_are_methods_of_the_sweep_of_their_own(tool):
    texts = {
        "A": tool.by_ratio({"default": "evs", "0.1": "random"}, (0.3, 0.2, 0.1)),
        "B": tool.by_ratio("evs", (0.2,)),
    }
    found = {name: (one.method, one.text, one.ratios) for name, one in tool.settings(texts).items()}
    assert found == {
        "A": ("A", "evs", (0.3, 0.2)),
        "A, random": ("A", "random", (0.1,)),
        "B": ("B", "evs", (0.2,)),
    }
    plan = SweepPlan({"A": EVS(), "B": EVS()}, (0.3, 0.2), own_ratios={"B": (0.2,)})
    assert plan.runs()[2:] == [("A", 0.3), ("A", 0.2), ("B", 0.2)]
    for own, words in (({"C": (0.2,)}, "own ratios of 'C'"), ({"A": (0.1,)}, "ratios of its own that the sweep lacks")):
        with pytest.raises(JvidpruneError, match=words):
            dataclasses.replace(plan, own_ratios=own)


@pytest.mark.parametrize("name", ["aot", "aot_llava_video", "holitom", "fastvid"])
def test_published_averages_are_the_means_of_their_rows(tool, name):
    table, checked = tool.read(name), 0
    for (method, ratio), row in table.reported.items():
        if len(row) == len(table.columns):
            mean = sum(row[task] for task in table.tasks) / len(table.tasks)
            assert row["average"] == pytest.approx(mean, abs=0.11), (method, ratio)
            checked += 1
    assert checked >= 5


def test_means_and_losses_are_made_where_all_tasks_are_there(tool):
    tasks = ("mvbench", "videomme", "eventhallusion")
    whole = {"mvbench": 50.0, "videomme": 80.0, "eventhallusion": 20.0}
    row = {"mvbench": 40.0, "videomme": 40.0, "eventhallusion": 25.0}
    assert tool.derived(row, whole, tasks) == pytest.approx({"average": 35.0, "relative": 70.0, "drop": 35.0})
    assert tool.derived({"mvbench": 40.0}, whole, tasks) == {}
    assert set(tool.derived(row, dict.fromkeys(tasks, 0.0), tasks)) == {"average"}


def test_what_is_missing_stands_in_one_message(tool, tmp_path, capsys):
    (tmp_path / "VideoMME").mkdir()
    assert tool.main(["holitom", "--models", str(tmp_path), "--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert re.search(r"\| HoliTom at 10 % \| – \| – / 57.3 \| – / 61.2 \| – / 56.3 \| – / 56.8 \| – / 57.9 \|", out)
    assert "llava-onevision-qwen2-7b-ov below --models" in err
    assert [task for task in tool.read("holitom").tasks if f"benchmark {task} " in err] == [
        "mvbench",
        "egoschema",
        "longvideobench",
    ]
    assert tool.main(["aott"]) == 2
    assert "there is no table 'aott'; there are aot," in capsys.readouterr().err


def test_drops_and_spans_are_made_from_their_own_columns(tool):
    groups = {"drop": ("mvbench",), "fine_drop": ("eventhallusion", "videocomp.activitynet"), "grounding": ("spans",)}
    groups |= {"average": ("mvbench",), "relative": ("mvbench",)}
    whole = {"mvbench": 50.0, "eventhallusion": 40.0, "videocomp.activitynet": 80.0, "spans.miou": 30.0}
    row = {"mvbench": 45.0, "eventhallusion": 30.0, "videocomp.activitynet": 72.0, "spans.miou": 15.0}
    tasks = ("mvbench", "eventhallusion", "videocomp", "spans")
    wanted = {"average": 45.0, "relative": 90.0, "drop": 10.0, "fine_drop": 17.5, "grounding": 50.0}
    assert tool.derived(row, whole, tasks, groups) == pytest.approx(wanted)
    del row["videocomp.activitynet"]
    assert "fine_drop" not in tool.derived(row, whole, tasks, groups)


def test_ablations_are_run_with_the_settings_that_they_name(tool):
    table = tool.read("flashvid_ablations")

    def at(name):
        return from_text(table.methods[name][0.1], table.family)

    default = at("selection: both")
    assert default == at("alpha 0.7") == at("temporal threshold 0.8") == at("expansion 1.25")
    assert [at(f"alpha {alpha}").alpha for alpha in ("0.0", "0.2", "1.0")] == [0.0, 0.2, 1.0]
    assert [at(f"selection: {name}").method for name in ("attention", "diversity")] == ["attn", "div"]
    assert (at("expansion 1.00").expansion, at("temporal threshold 0.9").temporal_threshold) == (1.0, 0.9)
    # What the authors' code cannot do is shown and not run.
    assert "tree depth 4" not in table.methods
    assert table.reported["tree depth 4", 0.1] == {"relative": 99.1}
    stop = tool.read("stop_ablation")
    weights = {name: from_text(text[0.1], stop.family).rule for name, text in stop.methods.items()}
    assert [(rule.mu_s, rule.mu_t) for rule in weights.values()] == [(0, 0), (0.03, 0), (0, 0), (0.04, 0), (0.04, 0.07)]
    frames = tool.read("flashvid_qwen2_5_vl_frames")
    assert {name: (frames.frames_of[name], *texts) for name, texts in frames.methods.items()} == {
        f"FlashVID, {count} frames": (count, ratio) for count, ratio in ((48, 0.333), (64, 0.25), (80, 0.2), (160, 0.1))
    }


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A small checkpoint, and copies of benchmarks in their layouts."""
    folder = tmp_path_factory.mktemp("reproduce")
    film = render(ClipSpec(seed=1, frames=12, size=(48, 64))).frames
    data = folder / "data"
    for task in ("mvbench", "mlvu", "charades_timelens", "eventhallusion_descriptions"):
        LAYOUTS[task](data / task, film)
    model = tiny_checkpoints.write("llava_onevision", folder / "tiny")
    return ["--model", str(model), "--data", str(data), "--out", str(folder / "out")], data, folder / "out"


@pytest.mark.slow
def test_a_table_runs_on_other_weights_and_small_data(tool, places, capsys, monkeypatch):
    table = tool.read("ottvid")
    methods = table.methods | {"Mixed": {0.1: "uniform", 0.5: "none"}}
    tasks, groups = ("mvbench", "mlvu", "charades_timelens", "videomme"), table.groups
    groups = {"relative": ("mvbench", "mlvu"), "grounding": ("charades_timelens",)}
    columns = ("mvbench", "mlvu", "relative", "charades_timelens.miou", "grounding")
    changed = dataclasses.replace(table, methods=methods, tasks=tasks, groups=groups, columns=columns)
    monkeypatch.setattr(tool, "read", lambda name: changed)
    where, data, out_folder = places
    words = ["ottvid", "--frames", "4", *where]
    assert tool.main(words) == 0
    out, _ = capsys.readouterr()
    number = r"\d+\.\d"
    # Weights at random may answer nothing right, and a share of nothing is no number.
    share, tasks = rf"({number}|–)", rf"( {number} / – \|){{2}}"
    miou = rf" {number} / – \| {share} /"
    assert re.search(rf"\| unpruned \| 100\.0 \|{tasks} {share} / 100\.0 \|{miou} 100\.0 \|", out)
    assert re.search(rf"\| OTT-Vid at 10 % \| {number} \|{tasks} {share} / 95\.8 \|{miou} 73\.9 \|", out)
    kept = dict(re.findall(r"\| (\S+ at \d+ %) \| (\d+\.\d) \|", out))
    assert kept.keys() == {"OTT-Vid at 10 %", "Mixed at 50 %", "Mixed at 10 %"}
    assert float(kept["Mixed at 10 %"]) < 20 < float(kept["Mixed at 50 %"]) == 100
    assert (out_folder / "ottvid" / "table.md").read_text() == out.removesuffix("\n")
    # The videos that the small copies lack are listed, and the benchmark that is not there.
    assert out.count("\n- Left out: ") == 4
    assert "- Left out: mlvu: the video video/2_needle/gone.mp4 is missing" in out
    assert "- Not run here for want of the benchmark videomme below --data" in out
    runs = sorted(path.relative_to(out_folder / "answers").as_posix() for path in (out_folder / "answers").glob("*/*"))
    assert runs == ["tiny-4/charades_timelens", "tiny-4/mlvu", "tiny-4/mvbench"]
    # A benchmark of which nothing can be asked costs the others nothing; with --strict it ends the run.
    (data / "mlvu" / "json" / "2_needle.json").write_text("[]")
    assert tool.main(words) == 0
    out, _ = capsys.readouterr()
    assert "- Left out: the annotations of mlvu in" in out
    assert tool.main([*words, "--strict"]) == 2
    assert "is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_all_tables_share_answers_frames_are_a_methods_own_and_judged_answers_count(tool, places, capsys, monkeypatch):
    where, _, out_folder = places
    base = tool.read("stop_qwen2_5_vl")
    known = {"checkpoint": "a/b", "family": "llava_onevision", "frames": 4, "tasks": ("mvbench",)}
    known |= {"columns": ("mvbench",), "reported": {("none", 1.0): {"mvbench": 50.0}}}
    first = dataclasses.replace(base, **known, name="first", methods={"A": {0.1: "uniform"}})
    more = {"frames_of": {"Long": 6}, "methods": {"A": {0.1: "uniform"}, "Long": {0.1: "random"}}}
    second = dataclasses.replace(first, name="second", **more)
    judged = {"tasks": ("eventhallusion_descriptions",), "columns": ("eventhallusion_descriptions", "fine_drop")}
    judged |= {"groups": {"fine_drop": ("eventhallusion_descriptions",)}, "prompts": None}
    third = dataclasses.replace(first, name="third", **judged)
    fourth = dataclasses.replace(first, name="fourth", tasks=("videomme",))
    tables = {one.name: one for one in (first, second, third, fourth)}
    monkeypatch.setattr(tool, "read", tables.__getitem__)
    monkeypatch.setattr(tool, "names", lambda: list(tables))
    assert tool.main(["all", *where, "--prompts", "official"]) == 0
    out, _ = capsys.readouterr()
    assert "3 of 4 tables were run: first, second, third;" in out
    assert "- fourth: not run for want of the benchmark videomme below --data" in out
    answers = out_folder / "answers"
    assert "open answers await a judge: jvidprune judge" in out
    assert re.search(r"\| Long at 10 % \| \d+\.\d \| \d+\.\d / – \|", out)
    # One unpruned model for both tables; --prompts is part of where its answers lie.
    full = [line for line in (answers / "tiny-4/mvbench-official/samples.jsonl").open() if '"method":"none"' in line]
    longer = [json.loads(line)["method"] for line in (answers / "tiny-6/mvbench-official/samples.jsonl").open()]
    assert len(full) == len({json.loads(line)["clip"] + json.loads(line)["question"] for line in full})
    assert set(longer) == {"none", "no video", "Long"}
    assert out.count("| unpruned |") == 3

    # A judge that gives the unpruned model full marks, and half of them to the method.
    folder = answers / "tiny-4/eventhallusion_descriptions-official"
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    cases, _ = cases_of(samples)
    store = open_verdicts(folder)
    store.append([verdict(c, "me", c.rubric.top / (1 if c.run[0] == "none" else 2), "fine", 1) for c in cases])
    store.close()
    assert tool.main(["third", *where, "--prompts", "official"]) == 0
    out, _ = capsys.readouterr()
    assert "await a judge" not in out
    assert "| unpruned | – | 100.0 / – | 0.0 / – |" in out
    assert "| A at 10 % | – | 50.0 / – | 50.0 / – |" in out
