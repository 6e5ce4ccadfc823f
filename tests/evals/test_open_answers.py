"""Open answers in a sweep stand in no accuracy until a judge reads them; spans of seconds have a table of their own."""

import dataclasses
import json

import pytest
from helpers.judges import serving
from helpers.layouts import charades_timelens, eventhallusion
from helpers.sweeps import results

from jvidprune.evals.items import Question
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.results import make_table
from jvidprune.evals.runner import run_sweep
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.reducers.controls import Random
from jvidprune.viz.judged_report import BEGIN, END
from jvidprune.viz.sweep_files import write_outputs

OPEN = Question("d", "Describe it.", "descriptions", "open", (), "A ball.")


class Mixed:
    """A clip with a question that has an answer, and one for a judge."""

    name, clips = "mixed", Procedural("test", clips=1, side=56)
    categories = (*clips.categories, OPEN.category)

    def chance(self, question):
        return 0.5

    def __len__(self):
        return 1

    def __getitem__(self, index):
        item = self.clips[index]
        return dataclasses.replace(item, questions=(item.questions[0], OPEN))

    def fingerprint(self):
        return {}


@pytest.mark.slow
def test_open_answers_stand_beside_the_accuracies_and_in_none(model, tmp_path):
    llm, task = VideoLLM.load(model), Mixed()
    plan = SweepPlan({"random": Random()}, (0.25,), 2)
    found = run_sweep(llm, task, plan, tmp_path)
    opened = [r for r in found.samples if r["question"] == "d"]
    assert [r["correct"] for r in opened] == [None] * 3
    assert all(isinstance(r["correct"], bool) for r in found.samples if r["question"] != "d")
    table = make_table(found, task, {"random": "Random"}, draws=10)
    assert (table.unjudged, {cell.questions for cell in table.cells.values()}) == (3, {1})
    assert (OPEN.category in table.categories, table.chance["all"]) == (False, 0.5)
    record = write_outputs(llm, task, plan, found, table, "tiny")
    assert (record["samples"], record["unjudged"]) == (6, 3)
    assert "3 open answers await a judge" in (tmp_path / "report.html").read_text()
    again = run_sweep(llm, task, plan, tmp_path)
    assert (again.resumed, again.samples) == (6, found.samples)


@pytest.mark.slow
def test_a_judge_writes_its_section_into_a_report_and_changes_nothing_else(run, model, tmp_path):
    llm, task = VideoLLM.load(model), Mixed()
    plan = SweepPlan({"random": Random()}, (0.25,), 2)
    found = run_sweep(llm, task, plan, tmp_path)
    table = make_table(found, task, {"random": "Random"}, draws=10)
    write_outputs(llm, task, plan, found, table, "tiny")
    before = (tmp_path / "report.html").read_text()
    code, out, _ = run("judge", tmp_path, "--json")
    ids = [json.loads(line)["id"] for line in (tmp_path / "to_judge.jsonl").read_text().splitlines()]
    (tmp_path / "said").write_text("\n".join(json.dumps({"id": one, "score": 1}) for one in ids))
    code, out, _ = run("judge", tmp_path, "--verdicts", tmp_path / "said", "--model", "<b>people</b>", "--json")
    record = json.loads(out)
    assert (code, record["unjudged"], [row["score"] for row in record["judged"]]) == (0, 0, [1, 1, 1])
    after = (tmp_path / "report.html").read_text()
    assert [page.partition(BEGIN)[0] for page in (before, after)] == [before.partition(BEGIN)[0]] * 2
    assert [page.partition(END)[2] for page in (before, after)] == [before.partition(END)[2]] * 2
    assert after.count("&lt;b&gt;people&lt;/b&gt;") == 3
    assert "await a judge" not in after
    again = make_table(run_sweep(llm, task, plan, tmp_path), task, {"random": "Random"}, draws=10)
    assert (again.unjudged, len(again.opened.rows)) == (0, 3)
    assert [cell.accuracy for cell in again.cells.values()] == [cell.accuracy for cell in table.cells.values()]
    record = write_outputs(llm, task, plan, found, again, "tiny")
    assert [row["judge"] for row in record["judged"]] == ["<b>people</b>"] * 3


def test_a_task_of_open_answers_alone_ends_in_its_records_and_a_page_for_its_judge(run, model, tmp_path, monkeypatch):
    eventhallusion(tmp_path / "data", render(ClipSpec(seed=1, frames=8, size=(48, 64))).frames)
    words = ["sweep", "--model", str(model), "--task", "eventhallusion_descriptions", "--data", str(tmp_path / "data")]
    words += ["--methods", "random", "--controls", "none", "--ratios", "0.25", "--frames", "4", "--max-new-tokens", "2"]
    code, out, _ = run(*words, "--out", str(tmp_path / "run"), "--json")
    record = json.loads(out)
    assert (code, record["complete"], record["unjudged"], len(record["left_out"])) == (0, True, 6, 1)
    assert {row["correct"] for row in results(tmp_path / "run")} == {None}
    code, out, _ = run(*words, "--out", str(tmp_path / "run"))
    assert (code, "6 open answers await a judge: jvidprune judge" in out) == (0, True)
    assert "6 open answers await a judge" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda material, before: '{"verdict": "yes"}') as (url, judge):
        code, out, _ = run("judge", tmp_path / "run", "--endpoint", url, "--model", "tiny-judge", "--json")
    assert (code, json.loads(out)["unjudged"], judge.count()) == (0, 0, json.loads(out)["new"])
    material = json.loads(judge.seen[0]["body"]["messages"][1]["content"])
    assert material["question"] == "Please describe this video in detail."
    assert "Did it bark? Yes." in material["reference"]
    code, out, _ = run(*words, "--out", str(tmp_path / "run"), "--json")
    record = json.loads(out)
    assert (code, record["unjudged"], [row["score"] for row in record["judged"]]) == (0, 0, [1, 1, 1])
    assert {row["aspect"] for row in record["judged"]} == {"events"}


@pytest.mark.slow
def test_spans_have_a_table_of_their_own_and_a_run_names_its_wording(run, model, tmp_path):
    charades_timelens(tmp_path / "data", render(ClipSpec(seed=1, frames=8, size=(48, 64))).frames)
    words = ["sweep", "--model", str(model), "--task", "charades-timelens", "--data", str(tmp_path / "data")]
    words += ["--methods", "random", "--controls", "none", "--ratios", "0.25", "--frames", "4", "--max-new-tokens", "2"]
    code, out, _ = run(*words, "--prompts", "lmms_eval", "--out", str(tmp_path / "run"), "--json")
    record = json.loads(out)
    assert (code, [row["method"] for row in record["grounding"]]) == (0, ["none", "no video", "random"])
    samples = results(tmp_path / "run")
    overlaps = [row["iou"] for row in samples if row["method"] == "random"]
    assert len(overlaps) == record["grounding"][2]["questions"] == 2
    assert record["grounding"][2]["miou"] == sum(overlaps) / 2
    assert (
        (tmp_path / "run/grounding.csv").read_text().startswith("method,ratio,questions,miou,low,high,r0.3,r0.5,r0.7")
    )
    assert "Spans found" in (tmp_path / "run/report.html").read_text()
    settings = json.loads((tmp_path / "run/run.json").read_text())["task"]["settings"]
    assert settings["prompts"] == "lmms_eval"
    code, out, _ = run(*words, "--out", str(tmp_path / "run"))
    assert (code, "R@0.5" in out) == (0, True)
    code, _, err = run(*words, "--prompts", "stop")
    assert (code, "charades_timelens is not asked with the prompts 'stop', only with lmms_eval." in err) == (2, True)
    code, _, err = run("sweep", "--prompts", "stop")
    assert (code, "the procedural benchmark has its own wording" in err) == (2, True)
