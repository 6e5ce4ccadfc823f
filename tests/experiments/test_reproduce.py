"""The published tables as data: they resolve, print both columns, run end to end, and say what is missing."""

import dataclasses
import importlib.util
import re

import pytest
from helpers import tiny_checkpoints
from helpers.layouts import LAYOUTS
from helpers.places import REPOSITORY

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets import names as datasets
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
        assert all(0 < ratio <= 1 for ratio in table.ratios)
        run = {(method, ratio) for method, texts in table.methods.items() for ratio in texts}
        assert ("none", 1.0) in table.reported
        assert any(table.reported[key] for key in table.reported.keys() & run), "nothing would stand beside our numbers"
        for values in table.reported.values():
            assert all(0 < value < 105 for value in values.values())


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


def test_a_table_runs_on_other_weights_and_small_data(tool, tmp_path, capsys, monkeypatch):
    table = tool.read("ottvid")
    methods = table.methods | {"Mixed": {0.1: "uniform", 0.5: "none"}}
    monkeypatch.setattr(tool, "read", lambda name: dataclasses.replace(table, methods=methods))
    film = render(ClipSpec(seed=1, frames=12, size=(48, 64))).frames
    model = tiny_checkpoints.write("llava_onevision", tmp_path / "tiny")
    data = tmp_path / "data"
    for task in ("mvbench", "videomme", "mlvu", "longvideobench"):
        LAYOUTS[task](data / task, film)
    words = ["ottvid", "--model", model, "--data", data, "--frames", "4", "--out", tmp_path / "out"]
    assert tool.main([str(word) for word in words]) == 0
    out, _ = capsys.readouterr()
    number = r"\d+\.\d"
    # Weights at random may answer nothing right, and a share of nothing is no number.
    share = rf"({number}|–)"
    assert re.search(rf"\| unpruned \| 100\.0 \|( {number} / – \|){{4}} {share} / 100\.0 \|", out)
    assert re.search(rf"\| OTT-Vid at 10 % \| {number} \|( {number} / – \|){{4}} {share} / 95\.8 \|", out)
    kept = dict(re.findall(r"\| (\S+ at \d+ %) \| (\d+\.\d) \|", out))
    assert kept.keys() == {"OTT-Vid at 10 %", "Mixed at 50 %", "Mixed at 10 %"}
    assert float(kept["Mixed at 10 %"]) < 20 < float(kept["Mixed at 50 %"]) == 100
    assert (tmp_path / "out" / "ottvid" / "table.md").read_text() == out.removesuffix("\n")
    # The videos that the small copies lack are listed.
    assert out.count("\n- Left out: ") == 5
    assert "- Left out: mlvu: the video video/2_needle/gone.mp4 is missing" in out
    runs = sorted(path.name for path in (tmp_path / "out" / "ottvid").iterdir() if path.is_dir())
    assert runs == ["longvideobench", "mlvu", "mvbench", "videomme"]
    # A benchmark of which nothing can be asked costs the others nothing; with --strict it ends the run.
    (data / "mlvu" / "json" / "2_needle.json").write_text("[]")
    assert tool.main([str(word) for word in words]) == 0
    out, _ = capsys.readouterr()
    assert "- Left out: the annotations of mlvu in" in out
    assert tool.main([str(word) for word in [*words, "--strict"]]) == 2
    assert "is missing" in capsys.readouterr().err
