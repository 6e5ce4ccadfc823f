"""Open answers in a sweep stand in no accuracy until a judge reads them; spans of seconds have a table of their own."""

import dataclasses
import json

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


def test_a_task_of_open_answers_alone_ends_in_its_records(run, model, tmp_path):
    eventhallusion(tmp_path / "data", render(ClipSpec(seed=1, frames=8, size=(48, 64))).frames)
    words = ["sweep", "--model", str(model), "--task", "eventhallusion_descriptions", "--data", str(tmp_path / "data")]
    words += ["--methods", "random", "--controls", "none", "--ratios", "0.25", "--frames", "4", "--max-new-tokens", "2"]
    code, out, _ = run(*words, "--out", str(tmp_path / "run"), "--json")
    record = json.loads(out)
    assert (code, record["complete"], record["unjudged"], len(record["left_out"])) == (0, True, 6, 1)
    assert {row["correct"] for row in results(tmp_path / "run")} == {None}
    code, out, _ = run(*words, "--out", str(tmp_path / "run"))
    assert (code, "6 open answers, which a judge has to read" in out) == (0, True)


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
