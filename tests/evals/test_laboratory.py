"""Transports side by side: measures are those of each method alone, by brute force; runs go on; own costs enter."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from helpers import tiny_checkpoints

import jvidprune
from jvidprune import JvidpruneError
from jvidprune.cli.console import Console
from jvidprune.cli.costs import CostsChoice, compare_costs, embedded_clips, video_files
from jvidprune.cli.options import ModelChoice
from jvidprune.evals import laboratory
from jvidprune.evals.laboratory import LabClip, Laboratory, procedural_clips, run_laboratory
from jvidprune.evals.laboratory_table import Mean, change, mean, of, pooled, rows, shown
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.runner import run_sweep
from jvidprune.evals.tasks import benchmark_of, clip_side, open_task
from jvidprune.evals.transport_settings import settings, with_epsilon
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.ops.transport import Dustbin, Sinkhorn, Transport
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.export import export
from jvidprune.reducers import AOT, DivPrune, OTTVid
from jvidprune.synthetic import synthetic_tokens
from jvidprune.video.encode import write_mp4

RATIOS = (0.2, 0.4)
GONE = ModelChoice("/nowhere/at/all")
"""A model that cannot be opened."""
MINE = """
import dataclasses
import jax
from jvidprune.ops.transport import cosine, distance

@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MyCost:
    place: float = 1.0
    def __call__(self, x, y):
        return 1 - cosine(x, y) + self.place * distance(x, y)
"""


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("model") / "model")
    return VideoLLM.load(folder)


@pytest.fixture(scope="module")
def lab(llm):
    base = AOT(window=4, inter=False)
    methods = settings(base, costs=("own", "TokenCost(0.5, 3.0)"), epsilons=(0.1, 0.5))
    methods |= {"other": OTTVid(), "plain": DivPrune()}
    return Laboratory(llm, methods, RATIOS)


@pytest.mark.slow
def test_measures_are_those_of_each_method_alone(lab):
    video = synthetic_tokens(seed=1, frames=4, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))
    labels = np.random.default_rng(0).integers(0, 3, (4, 4, 4))
    measures, reductions = lab.measure(video, labels)
    assert set(measures) == set(lab.methods)
    # Numbers of costs and temperatures travel in budgets: four settings are one loop of the program.
    assert [len(names) for _, names in lab.groups(video.layout())[0]] == [4, 1, 1]
    x, flat = np.asarray(video.features, np.float64).reshape(64, 8), labels.reshape(-1)
    for name, method in lab.methods.items():
        for place, ratio in enumerate(RATIOS):
            alone = jvidprune.reduce(method, video, ratio, diagnostics=True)
            count = int(alone.count)
            made = reductions[name][place]
            assert int(made.count) == count
            np.testing.assert_allclose(made.tokens[:count], alone.tokens[:count], atol=1e-5)
            index, y = np.asarray(alone.index)[:count], np.asarray(alone.tokens, np.float64)[:count]
            apart = ((x[:, None] - y[None]) ** 2).sum(-1)
            gone = ~np.isin(np.arange(64), index)
            error = apart[gone].min(1).sum() / ((x[gone] - x[gone].mean(0)) ** 2).sum()
            recall = (flat[index[apart.argmin(1)]] == flat)[flat > 0].mean()
            found = jax.tree.map(lambda leaf, place=place: float(leaf[place]), measures[name])
            assert found.error == pytest.approx(error, rel=1e-3)
            assert found.recall == pytest.approx(recall, abs=1e-6)
            if isinstance(method, AOT):
                shown_ = alone.diagnostics
                off = np.mean(np.asarray(shown_["intra_row_error"]) + np.asarray(shown_["intra_column_error"]))
                assert found.marginal == pytest.approx(off, abs=1e-5)
                assert found.iterations == pytest.approx(np.mean(np.asarray(shown_["intra_iterations"])))
            if isinstance(method, DivPrune):
                assert math.isnan(found.marginal)


@pytest.mark.slow
def test_a_run_goes_on_and_answers_are_those_of_ask(llm, lab, tmp_path):
    benchmark = Procedural("test", clips=2, side=56, questions=2, difficulty=0.2)
    clips = procedural_clips(benchmark)
    chosen = dataclasses.replace(lab, methods={k: lab.methods[k] for k in ("own eps 0.1", "other")}, ratios=(0.3,))
    before = laboratory._all_groups._cache_size()
    stop = iter((False, True))
    part = run_laboratory(chosen, clips, tmp_path, until=lambda: next(stop))
    assert {record["clip"] for record in part} == {"test-0"}
    whole = run_laboratory(chosen, clips, tmp_path)
    assert laboratory._all_groups._cache_size() == before + 1
    assert [record for record in whole if record["clip"] == "test-0"] == part
    assert len(whole) == 4
    video = llm.encode(benchmark.clip(1), needs=chosen.needs)
    for record in of(whole, "own eps 0.1", 0.3):
        if record["clip"] == "test-1":
            made = llm.reduce(video, reducer=chosen.methods["own eps 0.1"], ratio=0.3)
            assert record["kept"] == made.kept
            for question in benchmark[1].questions:
                said = llm.ask(made, question.prompt(), max_new_tokens=4).text
                right = laboratory.is_correct(said, question.answer, question.kind, question.options)
                assert record["right"][question.id] == right
    # Another cost under the same name is another setting.
    assert laboratory.setting_keys({"a": AOT()}) != laboratory.setting_keys({"a": AOT(window=3)})
    with pytest.raises(JvidpruneError, match="does not reduce the tokens of a video alone"):
        Laboratory(llm, {"fastv": llm.reducer("fastv(layer=1)")}, (0.5,))


def test_settings_are_every_combination_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_cost.py").write_text(MINE)
    made = settings(AOT(), costs=("own", "my_cost.py:MyCost(0.25)"), masses=("Uniform",), where="inside")
    assert list(made) == ["own", "my_cost.py:MyCost(0.25)"]
    own: Any = made["my_cost.py:MyCost(0.25)"]
    assert own.intra_transport.cost.place == 0.25
    assert own.inter_transport == AOT().inter_transport
    both = settings(OTTVid(), solvers=("Sinkhorn", "FixedSinkhorn"), epsilons=(0.1, 0.2))
    assert list(both) == ["Sinkhorn eps 0.1", "Sinkhorn eps 0.2", "FixedSinkhorn eps 0.1", "FixedSinkhorn eps 0.2"]
    assert with_epsilon(Dustbin(Sinkhorn(0.5)), 0.25) == Dustbin(Sinkhorn(0.25))
    with pytest.raises(JvidpruneError, match="moves nothing by optimal transport"):
        settings(DivPrune())
    with pytest.raises(JvidpruneError, match="has no epsilon to vary"):
        with_epsilon(lambda cost, mu, nu: None, 0.1)
    text = "aot(intra_transport=Transport(my_cost.py:MyCost(0.25), solver=Dustbin(Sinkhorn(0.5))))"
    read: Any = jvidprune.reducers.registry.from_text(text)
    assert read.intra_transport.cost == own.intra_transport.cost
    assert read.intra_transport.solver.solver.epsilon == 0.5
    with pytest.raises(JvidpruneError, match="each once, got TokenCost"):
        Transport(cost="TokenCost(0.5, w_feat=1.0)")
    with pytest.raises(JvidpruneError, match="has a setting without a name"):
        jvidprune.reducers.registry.from_text("aot(0.5)")


def test_tables_are_means_over_clips_and_pairs():
    records = [
        {
            "clip": c,
            "setting": s,
            "ratio": 0.1,
            "error": e,
            "recall": None,
            "marginal": 0.0,
            "iterations": 1.0,
            "kept": 9,
        }
        | {"right": {"q": r, "p": True}}
        for c, s, e, r in [("a", "x", 1.0, False), ("b", "x", 2.0, True), ("b", "y", 1.0, False), ("a", "y", 0.5, True)]
    ]
    first, second = of(records, "x", 0.1), of(records, "y", 0.1)
    assert mean(first, "error").value == 1.5
    assert mean(first, "accuracy").value == 0.75
    assert math.isnan(mean(first, "recall").value)
    moved = change(first, second, "error")
    assert (moved.value, moved.low, moved.high) == (-0.75, -1.0, -0.5)
    assert shown(moved, sign=True) == "**-0.750 [-1.000, -0.500]**"
    assert shown(Mean(-4.2e-5, -0.0011, -1e-6), sign=True) == "**-4e-05 [-0.001, -1e-06]**"
    assert shown(Mean(0.0, 0.0, 0.0), sign=True) == "+0.000 [+0.000, +0.000]"
    assert change(first, second, "accuracy").value == 0.0
    both = pooled(records, ["x", "y"], 0.1)
    assert [one["error"] for one in both] == [0.75, 1.5]
    assert [one["right"] for one in both] == [{"q": 0.5, "p": 1.0}] * 2
    gained = change(first, both, "accuracy")
    assert (gained.value, gained.low, gained.high) == (0.0, -0.25, 0.25)
    assert [row["setting"] for row in rows(records, ["x", "y"], [0.1])] == ["x", "y"]


def test_a_folder_of_clips_and_an_own_cost_become_a_table_and_a_figure(llm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_cost.py").write_text(MINE)
    (tmp_path / "clips").mkdir()
    benchmark = Procedural("test", clips=1, side=56)
    write_mp4(tmp_path / "clips" / "one.mp4", benchmark.clip(0).frames, 1)
    choice = CostsChoice(cost="own,my_cost.py:MyCost(0.5)", ratios=(0.2, 0.4), reducer="aot(inter=False)", clips=3)
    model = ModelChoice(str(llm.loaded.folder))
    record = compare_costs(tmp_path / "clips", tmp_path / "out", choice, model, Console(quiet=True))
    assert record["clips"] == 1
    assert [row["setting"] for row in record["rows"]] == ["own", "own", *["my_cost.py:MyCost(0.5)"] * 2]
    assert all(row["error"] > 0 and row["accuracy"] is None for row in record["rows"])
    page = (tmp_path / "out" / "costs.md").read_text()
    assert "my_cost.py:MyCost(0.5)" in page
    assert "## 40 %" in page
    assert (tmp_path / "out" / "costs.svg").read_text().count("<svg") == 1
    with pytest.raises(JvidpruneError, match="there is no folder"):
        video_files(tmp_path / "nothing")
    with pytest.raises(JvidpruneError, match="has no video"):
        video_files(tmp_path / "out")
    with pytest.raises(JvidpruneError, match="unknown cost"):
        compare_costs(None, tmp_path / "new", CostsChoice(cost="Toke"), model, Console(quiet=True))


def test_questions_that_a_folder_does_not_have_are_refused_before_anything_is_loaded(tmp_path):
    for wanted in ("all", "answerable"):
        with pytest.raises(JvidpruneError, match="has no questions"):
            compare_costs(tmp_path, tmp_path / "out", CostsChoice(questions=wanted), GONE, Console(quiet=True))
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(JvidpruneError, match="is not known: ask --questions all or none"):
        compare_costs(tmp_path, tmp_path / "out", CostsChoice(questions="answerable"), GONE, Console(quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_questions_of_an_exported_folder_are_asked_as_a_sweep_asks_them(tmp_path):
    model, llm = ModelChoice(), VideoLLM.load()
    export(benchmark_of(llm, "test", 2, questions=2), tmp_path / "bench")
    choice = CostsChoice(cost="own", ratios=(0.4,), reducer="aot(inter=False)")
    compare_costs(tmp_path / "bench", tmp_path / "out", choice, model, Console(quiet=True))
    (records,) = (tmp_path / "out").glob("transports-*.jsonl")
    found = {one["clip"]: one["right"] for one in map(json.loads, records.read_text().splitlines())}
    task = open_task("exported", tmp_path / "bench", llm)
    swept = run_sweep(llm, task, SweepPlan({"aot": llm.reducer("aot(inter=False)")}, (0.4,)), tmp_path / "swept")
    wanted = {}
    for one in swept.samples:
        if one["method"] == "aot":
            wanted.setdefault(one["clip"], {})[one["question"]] = one["correct"]
    assert found == wanted
    answers = [right for one in found.values() for right in one.values()]
    assert len(answers) == 4
    assert any(answers)
    choice = dataclasses.replace(choice, questions="none")
    compare_costs(tmp_path / "bench", tmp_path / "none", choice, model, Console(quiet=True))
    (records,) = (tmp_path / "none").glob("transports-*.jsonl")
    assert [json.loads(line)["right"] for line in records.read_text().splitlines()] == [{}, {}]


@pytest.mark.slow
def test_clips_of_a_folder_have_no_objects(lab):
    video = synthetic_tokens(seed=1, frames=4, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))
    measures, _ = lab.measure(video, None)
    assert all(np.isnan(measured.recall).all() for measured in measures.values())
    assert LabClip("a", lambda: None, lambda: 0).questions == ()  # pyright: ignore[reportArgumentType]


def test_other_clips_of_the_same_name_and_other_frames_are_measured_anew(llm, tmp_path, monkeypatch):
    benchmark = Procedural("test", clips=2, side=56)
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_mp4(tmp_path / name / "one.mp4", benchmark.clip(number).frames, 1)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "one.mp4").write_bytes((tmp_path / "a" / "one.mp4").read_bytes())
    measured, records = [], Laboratory.records

    def counted(lab, clip, keys):
        measured.append(clip.name)
        return records(lab, clip, keys)

    monkeypatch.setattr(Laboratory, "records", counted)
    choice = CostsChoice(cost="own", ratios=(0.2, 0.4), reducer="aot(inter=False)")

    def found(name, out="out", **model):
        asked = ModelChoice(str(llm.loaded.folder), **model)
        before = len(measured)
        record = compare_costs(tmp_path / name, tmp_path / out, choice, asked, Console(quiet=True))
        return [row["error"] for row in record["rows"]], len(measured) - before

    (first, runs), (second, others) = found("a"), found("b")
    assert (runs, others) == (1, 1)
    assert first != second
    # Each goes on with its own, the same file elsewhere too; another folder of records says the same.
    assert (found("a"), found("b"), found("moved")) == ((first, 0), (second, 0), (first, 0))
    assert found("b", "fresh") == (second, 1)
    few = found("a", frames=4)
    assert few[1] == 1
    assert few[0] != first
    assert found("a", frames=4) == (few[0], 0)
    known = laboratory.model_identity
    monkeypatch.setattr(laboratory, "model_identity", lambda llm: known(llm) | {"code": "edited"})
    assert found("a") == (first, 1)
    assert set(measured) == {"one.mp4"}
    assert "one.mp4" in (next((tmp_path / "out").glob("transports-*.jsonl"))).read_text()


def test_a_mark_is_of_the_clip_the_questions_and_the_run():
    benchmark = Procedural("test", clips=1, side=56, questions=2)
    (clip,) = procedural_clips(benchmark)
    (drawn,) = procedural_clips(dataclasses.replace(benchmark, frames=9))
    marks = [
        laboratory.clip_mark(one, run)
        for one, run in (
            (clip, "run"),
            (clip, "other run"),
            (clip._replace(questions=clip.questions[:1]), "run"),
            (clip._replace(questions=(dataclasses.replace(clip.questions[0], text="What?"),)), "run"),
            (clip._replace(questions=()), "run"),
            (clip._replace(labels=None), "run"),
            (drawn._replace(questions=clip.questions), "run"),
        )
    ]
    assert len(set(marks)) == len(marks)
    assert laboratory.clip_mark(procedural_clips(benchmark)[0], "run") == marks[0]


def test_the_embedded_benchmark_has_the_frames_that_are_asked_for_and_the_size_of_the_tower(llm, tmp_path):
    none = CostsChoice(clips=1, questions="none")
    (clip,) = embedded_clips(llm, none, 9)
    assert len(clip.load().frames) == 9
    assert clip.labels is not None
    assert clip.labels((4, 4)).shape == (9, 4, 4)
    (clip,) = embedded_clips(llm, none)
    assert clip.load().frames.shape[:2] == (Procedural.frames, clip_side(llm))
    model = ModelChoice(str(llm.loaded.folder), fps=1.0)
    with pytest.raises(JvidpruneError, match="say how many with --frames"):
        compare_costs(None, tmp_path / "out", none, model, Console(quiet=True))
    assert not (tmp_path / "out").exists()
    for vision, side in (({"image_size": 28}, 56), ({"image_size": 384}, 384), ({}, 392)):
        config = SimpleNamespace(vision=SimpleNamespace(**vision))
        assert clip_side(SimpleNamespace(loaded=SimpleNamespace(config=config))) == side  # pyright: ignore
