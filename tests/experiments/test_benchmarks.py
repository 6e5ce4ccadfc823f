"""All benchmarks in one run and one report, on generated copies with everything in them that can be wrong."""

import csv
import json
import re

import pytest
from helpers import tiny_checkpoints
from helpers.layouts import LAYOUTS
from helpers.pages import check_page
from helpers.spoiled import spoil

from experiments import benchmarks
from jvidprune.evals.datasets import names, open_dataset
from jvidprune.procedural.clips import ClipSpec, render

OPEN = ("vcgbench", "tempcompass_captioning", "eventhallusion_descriptions", "videoevalpro_open")


@pytest.fixture(scope="module")
def film():
    return render(ClipSpec(seed=1, frames=12, size=(48, 64))).frames


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("models") / "tiny")


def copies(folder, film, tasks):
    """Whole and spoiled copies of benchmarks, the questions of the whole ones, and what was added."""
    asked, added = {}, {}
    for name in tasks:
        LAYOUTS[name](folder / "whole" / name, film)
        LAYOUTS[name](folder / "data" / name, film)
        task = open_dataset(name, folder / "whole" / name, frames=4, rule="llava_video_force")
        asked[name] = {(task[i].id, q.id) for i in range(len(task)) for q in task[i].questions}
        added[name] = spoil(folder / "data" / name)
    return asked, added


def check_run(out, asked, added, shown):
    """That nothing was lost and all that is wrong is listed: in the runs of the benchmarks, and in the joined page."""
    page = (out / "report.html").read_text()
    check_page(page)
    listed = re.findall(r"<li><b>(.*?)</b> (.*?)</li>", page)
    assert len(listed) == len(shown["left_out"])
    assert f"{len(listed):,} left out, not counted in any number below" in page
    for name, questions in asked.items():
        samples = [json.loads(line) for line in (out / name / "samples.jsonl").read_text().splitlines()]
        found = {(r["clip"], r["question"]) for r in samples if r["method"] == "none"}
        assert questions <= found, name
        assert any(added[name].odd in clip for clip, _ in found), name
        # Each of them was asked under every method, once.
        runs = {(r["method"], r["ratio"]) for r in samples}
        assert len(samples) == len(runs) * len(found), name
        bad = [one for one in shown["left_out"] if one["item"].startswith(f"{name}: ")]
        for video in added[name].bad_videos:
            assert any(video in one["file"] for one in bad), (name, video)
        reasons = " ".join(one["reason"] for one in bad)
        assert not added[name].no_question or " has no q" in reasons, name
        assert not added[name].no_object or "is no object" in reasons or "number of" in reasons, name
        row = re.search(rf"<tr>(<td>{name}</td>.*?)</tr>", page)
        cells = re.findall(r"<td>(.*?)</td>", row.group(1))
        assert cells[2] == str(len({clip for clip, _ in found}))
        assert cells[-1] == str(len(bad))
        counts = "–" if name not in OPEN else str(len(found)), str(len(found)) if name not in OPEN else "0"
        assert (cells[5], cells[3]) == counts
    return page


@pytest.mark.slow
def test_several_benchmarks_end_in_one_report(tiny, film, tmp_path, capsys):
    asked, added = copies(tmp_path, film, ("mlvu", "charades_timelens", "vcgbench"))
    (tmp_path / "data" / "tomato").mkdir()
    out = tmp_path / "out"
    words = ["--data", tmp_path / "data", "--model", tiny, "--out", out, "--frames", 4, "--methods", "evs"]
    words = [str(word) for word in [*words, "--controls", "random", "--ratios", "0.25"]]
    kept = {}
    write = benchmarks.run

    def watched(args):
        kept.update(write(args))
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "run", watched)
        assert benchmarks.main(words) == 0
    page = check_run(out, asked, added, kept)
    # What could not be asked at all stands beside the others, and what is not there is told.
    assert [one for one in kept["left_out"] if one["item"] == "tomato"]
    assert re.search(r"<tr><td>tomato</td><td>–</td><td>0</td><td>0</td><td>–</td><td>–</td><td>1</td></tr>", page)
    assert "videomme" in kept["absent"]
    for part in ('id="controls"', 'id="effects"', 'id="grounding"', 'id="benchmarks"', "<h2>Costs</h2>"):
        assert part in page
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert {row["category"] for row in rows} == {"all", "mlvu", "charades_timelens"}
    whole = {(r["method"], r["category"]): r for r in rows}
    parts = [int(whole["evs", name]["questions"]) for name in ("mlvu", "charades_timelens")]
    assert int(whole["evs", "all"]["questions"]) == sum(parts)
    capsys.readouterr()


def test_nothing_to_run_is_one_sentence(tmp_path, capsys):
    assert benchmarks.main(["--data", str(tmp_path)]) == 2
    assert "has no folder named after a benchmark" in capsys.readouterr().err
    assert benchmarks.main(["--data", str(tmp_path), "--tasks", "videomm"]) == 2
    assert "videomm" in capsys.readouterr().err


@pytest.mark.long
def test_all_layouts_end_in_one_report(tiny, film, tmp_path):
    asked, added = copies(tmp_path, film, names())
    words = ["--data", tmp_path / "data", "--model", tiny, "--out", tmp_path / "out", "--frames", 4]
    words += ["--methods", "evs,flashvid", "--controls", "random,pool_space", "--ratios", "0.25,0.1", "--throughput"]
    kept = {}
    write = benchmarks.run

    def watched(args):
        kept.update(write(args))
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "run", watched)
        assert benchmarks.main([str(word) for word in [*words, "--largest-batch", 2]]) == 0
    page = check_run(tmp_path / "out", asked, added, kept)
    for part in ("controls", "effects", "grounding", "benchmarks", "throughput", "pairs"):
        assert f'id="{part}"' in page
    assert kept["absent"] == []
