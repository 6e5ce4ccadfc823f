"""Training of pruning modules and routers beside a frozen model: what is learned, what stays, and runs that go on."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import reducer_checks as checks
from helpers import tiny_checkpoints

from jvidprune.covipal import PPM, CoViPAL
from jvidprune.covipal.module import made_of, module_of, parameters_of
from jvidprune.cuts.routers import RouterTopK
from jvidprune.evals.tasks import benchmark_of
from jvidprune.llm.batch import Prompt, score_many
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.tokenizer import END_TOKENS
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers.full import Full
from jvidprune.reducers.mod import layer_weights
from jvidprune.reducers.videollm_mod import AtLeastOne
from jvidprune.tokens import InnerStage
from jvidprune.training import pruners
from jvidprune.training.clips import frames_of
from jvidprune.training.data import ExampleEncoder, Pipeline, rows_for
from jvidprune.training.inside import FirstQuestions, RowPrompt, WholeVideo
from jvidprune.training.loss import Trainee, rows_loss
from jvidprune.training.pruners import MODULE, Guided, PrunerChoice, SoftlyPruned, guidance_layer, train_pruner
from jvidprune.training.routers import train_router
from jvidprune.weights import Weights

FRAMES = 8
TASK = FirstQuestions(Procedural("train", clips=32, frames=FRAMES, side=56, questions=2, difficulty=0.2))
SIZES = {"width": 24, "blocks": 1, "hidden": 32, "heads": 2}
CHOICE = PrunerChoice(steps=(6, 4), rates=(3e-3, 1e-3), **SIZES, rows=2, log=2, every=2, guidance=1)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("model") / "model")
    return VideoLLM.load(folder)


@pytest.fixture(scope="module")
def run(llm):
    """What a loss needs: reader, prompt, two rows, and the modules apart."""
    reader = WholeVideo(llm, FRAMES)
    shape = rows_for(llm, TASK, frames=FRAMES, kept=reader.kept, rows=2, clips=1)
    encode = ExampleEncoder(llm, FRAMES, reader.kept, shape.slots, shape.answers)
    rows = next(Pipeline(TASK, encode, kept=reader.kept, shape=shape, shuffle=False, threads=0).iterate(0, None))[0]
    module = PPM(llm.loaded.config.text.width, width=24, blocks=1, hidden=32, heads=2, rngs=nnx.Rngs(0))
    trainee, params = Trainee.split(model=llm.loaded.model, **{MODULE: module})
    return reader, RowPrompt.of(llm, reader, shape), rows, trainee, params


def test_rows_know_where_the_video_and_the_question_stand(llm, run):
    reader, prompt, rows, *_ = run
    grid = reader.grid
    assert reader.kept == FRAMES * grid[0] * grid[1]
    np.testing.assert_array_equal(np.where(prompt.visual, np.arange(prompt.slots), -1) >= 0, rows.visual[0] >= 0)
    for template in (False, True):
        asked = np.asarray(prompt.asked(rows, template=template))
        for row in range(2):
            question = TASK[row].questions[0]
            ids = rows.ids[row][asked[row]].tolist()
            whole, answer = ExampleEncoder(llm, FRAMES, reader.kept, 999, 99).question(question)
            assert ids == (whole if template else llm.tokenizer.encode(question.prompt()))
            assert rows.target[row][: len(answer)].tolist() == answer
    # The same places as a video in front of the language model has.
    frame, row, column = (prompt.places()[prompt.visual].T[i] for i in range(3))
    np.testing.assert_array_equal((frame * grid[0] + row) * grid[1] + column, np.arange(reader.kept))


def loss_of(run, made, params=None):
    reader, _, rows, trainee, held = run
    return made(trainee, reader, held if params is None else params, rows, jax.random.key(0), z=0.0)


@pytest.mark.long
def test_with_everything_kept_the_second_stage_is_the_unpruned_model(llm, run):
    reader, prompt, rows, trainee, params = run
    whole = SoftlyPruned(prompt, 0, (1.0,), 0.1, 2, True)
    loss, metrics = jax.jit(functools.partial(loss_of, run, whole))()
    plain, other = jax.jit(lambda: rows_loss(trainee, reader, params, rows, jax.random.key(0), z=0.0))()
    np.testing.assert_allclose(loss, plain, rtol=1e-5)
    np.testing.assert_allclose(metrics["unpruned"], other["answer"], rtol=1e-5)
    assert abs(float(metrics["apart"])) < 1e-6
    assert int(metrics["hits/all"]) == int(other["hits/all"])


@pytest.mark.parametrize("place", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.slow
def test_what_is_learned_from_is_what_the_method_answers_with(llm, run, place):
    """The loss of the second stage is the mean log-likelihood that the pruned prompts give their answers."""
    reader, prompt, rows, trainee, params = run
    end = ExampleEncoder(llm, FRAMES, reader.kept, 999, 99).end
    made = SoftlyPruned(prompt, place, (0.25,), 0.0, 2, True)
    loss = float(jax.jit(functools.partial(loss_of, run, made))()[0])
    module = pruners.module_weights(trainee.merge(params)[MODULE], place)
    reducer = CoViPAL(module, positions="original")
    end = next(token for token in END_TOKENS if llm.tokenizer.token_id(token) == end)
    found, tokens = [], []
    for row in range(2):
        item = TASK[row]
        question = item.questions[0]
        video = llm.encode(item.load(), reducer=reducer, question=question.prompt())
        reduced = llm.reduce(video, reducer=reducer, ratio=0.25)
        ((score,),) = score_many(llm, [Prompt(reduced, question.prompt())], [[question.answer + end]])
        found.append(score.log_likelihood)
        tokens.append(score.tokens)
    assert sum(tokens) == int((rows.weight > 0).sum())
    assert loss == pytest.approx(-sum(found) / sum(tokens), rel=1e-4)


def same(one, other):
    assert one.arrays.keys() == other.arrays.keys()
    for name, value in one.arrays.items():
        np.testing.assert_array_equal(value, other.arrays[name])


def stopped_at(number):
    """Ends a run at its checkpoint of this number."""
    calls = iter(range(1, 99))
    return lambda: next(calls) == number


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(llm, tmp_path):
    """The first stage alone, stopped at its second checkpoint; its file is a method."""
    choice = dataclasses.replace(CHOICE, steps=(6, 0))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    lines = []
    guided = train_pruner(llm, TASK, whole, choice, frames=FRAMES, report=lines.append)[0]
    train_pruner(llm, TASK, parts, choice, frames=FRAMES, stop_at=stopped_at(2))
    assert not (parts / "guided.safetensors").exists()
    same(train_pruner(llm, TASK, parts, choice, frames=FRAMES)[0], guided)
    curves = [(where / "guided" / "curve.jsonl").read_text() for where in (whole, parts)]
    assert curves[0] == curves[1]
    fresh = pruners.module_weights(PPM(llm.loaded.config.text.width, **SIZES, rngs=nnx.Rngs(CHOICE.seed)))
    # A softmax over scores has no slope in what moves all of them alike.
    still = {name for name, x in guided.arrays.items() if np.allclose(x, fresh.arrays[name], atol=1e-6)}
    assert {name for name in still if not name.startswith("made.")} <= {"score.bias", "blocks.0.k.bias"}
    assert made_of(guided) == (2, True, 0)
    assert 0 < lines[0]["recall"] < 1
    other = dataclasses.replace(choice, rows=1)
    checks.refused(lambda: train_pruner(llm, TASK, parts, other, frames=FRAMES), "holds a run with other settings")
    method = llm.reducer(f"covipal(module='{whole / 'guided.safetensors'}')")
    frames = TASK[0].load().frames
    assert llm.ask(frames, "What is it?", reducer=method, ratio=0.25, fps=1.0, max_new_tokens=2).kept == 32


@pytest.mark.long
@pytest.mark.slow
def test_both_stages_go_on_to_the_same_bits(llm, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    made = train_pruner(llm, TASK, whole, CHOICE, frames=FRAMES)
    train_pruner(llm, TASK, parts, CHOICE, frames=FRAMES, stop_at=stopped_at(4))
    assert (parts / "guided.safetensors").exists()
    assert not (parts / "pruner.safetensors").exists()
    again = train_pruner(llm, TASK, parts, CHOICE, frames=FRAMES)
    for one, other in zip(again, made, strict=True):
        same(one, other)
    assert any((made[0].arrays[name] != x).any() for name, x in made[1].arrays.items())


@pytest.mark.long
@pytest.mark.slow
def test_a_module_learns_what_a_deep_layer_of_a_trained_model_looks_at(tmp_path):
    """On the embedded model: nearer to the guidance than equal scores, and its best quarter on held-out clips too."""
    embedded = VideoLLM.load(None, dtype="float32")
    task = FirstQuestions(benchmark_of(embedded, "train", 400))
    deep = guidance_layer(0, embedded.loaded.config.text.layers, None)
    settings = {"steps": (60, 0), "guidance": deep, "rows": 4, "width": 32, "hidden": 64, "log": 20, "every": 20}
    lines, frames = [], frames_of(embedded, "procedural", None)
    choice = dataclasses.replace(CHOICE, **settings)
    guided = train_pruner(embedded, task, tmp_path, choice, frames=frames, report=lines.append)[0]
    assert lines[-1]["loss"] < lines[-1]["uniform"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    held = FirstQuestions(benchmark_of(embedded, "validation", 8))
    reader = WholeVideo(embedded, frames)
    shape = rows_for(embedded, held, frames=frames, kept=reader.kept, rows=8, clips=1)
    encode = ExampleEncoder(embedded, frames, reader.kept, shape.slots, shape.answers)
    rows = next(Pipeline(held, encode, kept=reader.kept, shape=shape, shuffle=False, threads=0).iterate(0, None))[0]
    module = module_of(parameters_of(guided), 2, True)
    trainee, params = Trainee.split(model=embedded.loaded.model, **{MODULE: module})
    loss = Guided(RowPrompt.of(embedded, reader, shape), 0, deep)
    _, found = jax.jit(lambda: loss(trainee, reader, params, rows, jax.random.key(0), z=0.0))()
    assert float(found["recall"]) > 1.2 * pruners.RECALLED


@dataclasses.dataclass(frozen=True)
class FirstLayer(Full):
    """Routes layer 0: what is routed in the last layer alone moves no answer, so that its router learns nothing."""

    router: Any = None

    def inner(self, ratio):
        weights = layer_weights(self.router, 0)
        return (InnerStage(0, RouterTopK(by_frame=True), AtLeastOne(ratio), weights=weights),)


@pytest.mark.long
@pytest.mark.slow
def test_a_router_learns_and_goes_on_to_the_same_bits(llm, tmp_path):
    settings = {"steps": 6, "rows": 2, "frames": FRAMES, "log": 2, "every": 2, "rate": 0.1}
    whole = train_router(llm, TASK, tmp_path / "whole", FirstLayer(), 0.25, **settings)
    train_router(llm, TASK, tmp_path / "parts", FirstLayer(), 0.25, **settings, stop_at=stopped_at(2))
    same(train_router(llm, TASK, tmp_path / "parts", FirstLayer(), 0.25, **settings), whole)
    assert sorted(whole.arrays) == ["layers.0.bias", "layers.0.weight"]
    assert all(np.abs(x).max() > 0 for x in whole.arrays.values())
    read = Weights.read(tmp_path / "whole" / "router.safetensors")
    assert read == whole
    video = llm.encode(TASK[0].load())
    replies = [
        llm.ask(video, "What?", reducer=FirstLayer(router), ratio=0.25, max_new_tokens=1) for router in (None, read)
    ]
    assert [reply.kept for reply in replies] == [128, 128]


def test_guidance_has_to_be_deeper_than_the_module():
    assert [guidance_layer(0, layers, None) for layers in (8, 28, 32)] == [5, 17, 19]
    assert guidance_layer(2, 4, None) == 3
    checks.refused(lambda: guidance_layer(2, 8, 2), "behind the module's place, 2, and before 8.*got 2")
    checks.refused(lambda: guidance_layer(0, 4, 4), "got 4")
    checks.refused(lambda: PrunerChoice(shares=(0.0,)), "shares")
