"""Training on packed clips: rows say what the benchmark says, runs resume bit for bit, a mesh gives the same losses."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import tiny_checkpoints
from helpers.places import import_paths

from jvidprune.cli.train import TrainChoice, read_rates
from jvidprune.errors import JvidpruneError
from jvidprune.llm.batch import Prompt, score_many
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.clips import ClipSpec, render
from jvidprune.reducers.serialise import FILE, FolderSettings
from jvidprune.stts import Scorer, SiglipTower, STTSConfig, attach
from jvidprune.training import loop, step
from jvidprune.training.clips import open_clips
from jvidprune.training.data import ExampleEncoder, Pipeline, Shape, rows_for
from jvidprune.training.loss import Trainee, rows_loss
from jvidprune.training.step import Placing
from jvidprune.training.stts import Pruned, open_run, prune_at, publish
from jvidprune.training.tuning import ACCURACY, Tuner, Tuning
from jvidprune.video.encode import write_mp4
from jvidprune.video.limits import Limits

TASK = Procedural("train", clips=64, side=56, questions=3, difficulty=0.2)
HELD = Procedural("validation", clips=4, frames=12, side=56, questions=2, difficulty=0.2)
CONFIG = STTSConfig(prune_at=0, removed=0.5)
KEPT = 4 * 16
SHAPE = Shape(rows=4, clips=2, slots=832, answers=28)
LONGEST, ANSWERS = 416, 14
TUNING = Tuning(
    steps=20,
    rates={"scorer": 1e-3, "tower": 1e-3, "connector": 1e-3, "llm": 1e-3},
    shape=Shape(rows=1, clips=1, slots=448, answers=16),
    warmup=2,
    log=2,
    every=4,
    measure_every=8,
    measure_steps=1,
    measure_frames=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def llm(folder):
    return VideoLLM.load(folder)


@pytest.fixture(scope="module")
def pipeline(llm):
    return Pipeline(TASK, ExampleEncoder(llm, 8, KEPT, LONGEST, ANSWERS), kept=KEPT, shape=SHAPE, threads=2)


def scorer_of(llm, seed=0):
    return Scorer(SiglipTower(llm.loaded.model.vision).sizes, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def batches(pipeline):
    found = pipeline.iterate(0, None)
    return [next(found) for _ in range(4)]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_positions", [False, True])
@pytest.mark.slow
def test_rows_cost_what_the_model_says_to_each_question_alone(llm, batches, keep_positions):
    rows, config = batches[0][0], dataclasses.replace(CONFIG, keep_positions=keep_positions)
    scorer = scorer_of(llm)
    trainee, params = Trainee.split(model=llm.loaded.model, scorer=scorer)
    reader = Pruned(llm.loaded.config, config, 8)
    loss, metrics = jax.jit(lambda p: rows_loss(trainee, reader, p, rows, jax.random.key(0), z=0.0))(params)
    assert float(metrics["auxiliary"]) > 0
    attached, total, tokens, greedy = attach(llm, config, scorer), 0.0, 0, 0
    method = attached.reducer("stts")
    # The clips of the rows by their pixels: packing may have changed their order.
    for index in range(len(TASK)):
        item = TASK[index]
        pixels = llm.pixels(item.load().frames)
        if not any(np.array_equal(pixels, clip) for row in rows.pixels for clip in row):
            continue
        video = attached.reduce(attached.encode(item.load(), reducer=method), reducer=method, ratio=0.5)
        assert video.kept == KEPT
        fits = ExampleEncoder(llm, 8, KEPT, LONGEST, ANSWERS)
        asked = [q for q in item.questions if any(_asked(llm, rows, q))]
        assert len(asked) == int(fits.tokens(item)["question"].max())
        prompts = [Prompt(video, question.prompt()) for question in asked]
        answers = [[question.answer + "<|im_end|>", question.answer] for question in asked]
        for whole, bare in score_many(attached, prompts, answers):
            total, tokens, greedy = total + whole.log_likelihood, tokens + whole.tokens, greedy + bare.greedy
    assert tokens == (rows.weight > 0).sum()
    np.testing.assert_allclose(loss - metrics["auxiliary"], -total / tokens, rtol=1e-5)
    assert (int(metrics["hits/all"]), int(metrics["asked/all"])) == (
        greedy,
        sum(len(set(q[q >= 0])) for q in rows.question),
    )


def _asked(llm, rows, question):
    ids = llm.tokenizer.encode(llm.prompts.texts(question.prompt())[-1])
    for row in rows.ids:
        windows = np.lib.stride_tricks.sliding_window_view(row, len(ids))
        yield (windows == ids).all(axis=1).any()


def test_the_input_goes_on_where_it_stopped(pipeline, batches):
    saved = json.loads(json.dumps(batches[1][1]))
    again = pipeline.iterate(2, saved)
    for rows, place in batches[2:]:
        found, where = next(again)
        assert where == place
        for a, b in zip(found, rows, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose([rows.weight.sum() for rows, _ in batches], 1, rtol=1e-6)
    np.testing.assert_allclose([rows.share.sum() for rows, _ in batches], 1, rtol=1e-6)


def test_processes_read_clips_of_their_own(llm):
    taken = []
    for process in range(2):
        encode = functools.partial(_number, TASK)
        part = Pipeline(TASK, encode, kept=1, shape=Shape(8, 1, 1, 1), process=(process, 2), threads=0)
        rows = [rows for (rows, _), _ in zip(part.iterate(0, None), range(4), strict=False)]
        taken.append({int(number) for batch in rows for number in batch.ids[:, 0]})
        np.testing.assert_allclose(rows[0].weight.sum(), 0.5)
    assert taken[0] | taken[1] == set(range(64))
    assert not taken[0] & taken[1]


def _number(task, item):
    one = np.ones(1, np.int32)
    number = np.full(1, int(item.id.split("-")[1]), np.int32)
    names = ("visual", "branch", "position", "slot", "target", "judged", "question")
    return {"pixels": np.zeros((1, 1)), "ids": number, **dict.fromkeys(names, one)}


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_of_a_step_add_up_and_frozen_groups_stay(llm, batches):
    rates = step.rates_of_groups({"llm": 1e-2, "connector": 1e-3, "scorer": 1e-3})
    trainee, params = Trainee.split(model=llm.loaded.model, scorer=scorer_of(llm))
    learned, frozen = step.split_groups(step.stored(params, "float32"), rates)
    assert {step.group_of(path) for path in learned} == {"llm", "connector", "scorer"}
    assert {step.group_of(path) for path in frozen} == {"tower"}
    tx = step.optimiser(rates, steps=10, warmup=0)
    reader = Pruned(llm.loaded.config, CONFIG, 8)
    run = step.training_step(functools.partial(rows_loss, trainee, reader), tx)
    found = [run(step.begin(learned, tx, 0), frozen, step.split_batch(batches[0][0], parts)) for parts in (1, 2)]
    for name, value in found[0][1].items():
        np.testing.assert_allclose(value, found[1][1][name], rtol=1e-4, err_msg=name)
    for path, before in learned.items():
        whole, parts = (state.params[path] for state, _ in found)
        # A first step of Adam moves every entry by its group's rate, whatever the size of the gradient.
        # The bias of the pooler's keys alone has no slope: a softmax does not see what all its logits share.
        moved = float(jnp.abs(whole - before).max()) / rates[step.group_of(path)]
        assert moved < 1e-3 if path == "scorer.pooler.k.bias" else 0.5 < moved < 1.01, path
        close = jnp.abs(whole - parts) < 0.02 * rates[step.group_of(path)]
        assert close.mean() > 0.98, path
    with pytest.raises(JvidpruneError, match="4 rows cannot be divided into 3 parts"):
        step.split_batch(batches[0][0], 3)


def test_rates_warm_up_and_fall_to_a_tenth():
    rates = step.rates_of_groups({"llm": 1.0, "scorer": 10.0})
    params = {"lm.x": jnp.zeros(2), "scorer.x": jnp.zeros(2), "lm.y": jnp.zeros((2, 2))}
    tx = step.optimiser(rates, steps=12, warmup=2, clip=1e9, decay=0.5)
    state, moves = tx.init(params), []
    ones = jax.tree.map(jnp.ones_like, params)
    for _ in range(13):
        updates, state = tx.update(ones, state, ones)
        moves.append([-float(updates[name].ravel()[0]) for name in params])
    moves = np.array(moves)
    np.testing.assert_allclose(moves[:3, 0], [0, 0.5, 1], atol=1e-5)
    np.testing.assert_allclose(moves[12, 0], 0.1, atol=1e-5)
    np.testing.assert_allclose(moves[:, 1], 10 * moves[:, 0], rtol=1e-4)
    np.testing.assert_allclose(moves[:, 2], 1.5 * moves[:, 0], rtol=1e-4)


# --- runs ------------------------------------------------------------------------------------------------------------


def tuner(folder, tuning=TUNING, **options):
    """The run that all tests share, from a checkpoint folder."""
    llm = VideoLLM.load(folder)
    options = {"reader": reader_of(llm), "task": TASK, "held": HELD, "modules": {"scorer": scorer_of(llm)}} | options
    return Tuner(llm, tuning, **options)


def reader_of(llm):
    return lambda frames: Pruned(llm.loaded.config, CONFIG, frames, KEPT)


_CHILD = """
import os, signal, sys
import test_train_stts as t
def report(line):
    if line["step"] == 10:
        os.kill(os.getpid(), signal.SIGKILL)
t.tuner(sys.argv[1]).run(sys.argv[2], report=report)
"""

_MESH = """
import dataclasses, json, sys
import jax
import test_train_stts as t
from jvidprune import parallel
assert jax.device_count() == 8
# Of "splash": the kernel that a TPU takes, interpreted.
t.CONFIG = dataclasses.replace(t.CONFIG, attention=sys.argv[2])
print(json.dumps(t.losses(sys.argv[1], parallel.make_mesh(data=2, fsdp=2, tensor=2))))
"""


def child(code, *arguments, **environment):
    paths = import_paths(Path(__file__).parent)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths} | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, tuner(folder).run(out, tensorboard=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_parameters_and_curve(folder, whole, tmp_path):
    done = child(_CHILD, folder, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in loop.read_curve(tmp_path)] == [2, 4, 6, 8, 10]
    # The newest one is written in the background and may have been cut off.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} & {"4", "8"}
    again = tuner(folder).run(tmp_path)
    for path, value in whole[1].params.items():
        np.testing.assert_array_equal(value, again.params[path], err_msg=path)
    for name in (loop.CURVE, "metrics.csv"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.slow
def test_a_run_learns_keeps_its_best_checkpoint_and_refuses_others(folder, whole):
    out, trained = whole
    curve = trained.curve
    assert np.mean([line["answer"] for line in curve[-3:]]) < curve[0]["answer"]
    measured = {line["step"]: line[ACCURACY] for line in curve if ACCURACY in line}
    assert sorted(measured) == [8, 16, 20]
    assert measured[trained.step] == max(measured.values())
    kept = {int(path.name) for path in (out / "checkpoints").iterdir()}
    assert kept == {trained.step, 16, 20}
    assert list((out / "tensorboard").glob("events*"))
    assert (out / "metrics.csv").read_text().splitlines()[0].startswith("step,answer,")
    # Asked again it is done already.
    assert tuner(folder).run(out).curve == curve
    with pytest.raises(JvidpruneError, match="holds a run with other settings"):
        tuner(folder, dataclasses.replace(TUNING, seed=1)).run(out)


@pytest.mark.slow
def test_what_is_published_prunes_and_answers_as_it_was_trained(llm, whole, tmp_path):
    choice = TrainChoice(steps=10, eval_clips=4)
    publish(tmp_path / "model", open_run(llm, choice, read_rates(choice.rates)), whole[1])
    loaded = VideoLLM.load(tmp_path / "model")
    # The folder says how positions were counted in training.
    assert loaded.loaded.model.stts == dataclasses.replace(CONFIG, keep_positions=False)
    parts = whole[1].modules()
    for name, module in (("model", loaded.loaded.model.base), ("scorer", loaded.loaded.model.scorer)):
        for a, b in zip(jax.tree.leaves(nnx.state(parts[name])), jax.tree.leaves(nnx.state(module)), strict=True):
            np.testing.assert_array_equal(a, b)
    frames, method = TASK[0].load().frames, loaded.reducer("stts")
    video = loaded.reduce(loaded.encode(frames, reducer=method), reducer=method, ratio=0.5)
    assert (video.kept, video.visual, video.title) == (KEPT, 128, "STTS")
    tokens = reader_of(llm)(8)(parts, jnp.asarray(llm.pixels(frames))[None], jax.random.key(0)).tokens
    np.testing.assert_allclose(video.reduced.tokens[:KEPT], tokens[0], atol=1e-5)
    assert loaded.ask(video, "What is it?", max_new_tokens=2).kept == KEPT
    assert loaded.settings.convention == llm.settings.convention == "released"
    assert json.loads((tmp_path / "model" / FILE).read_text()) == {"format": 1, "convention": "released"}
    # Training goes on from a trained checkpoint with its scorer.
    again = open_run(loaded, choice, read_rates(choice.rates))
    assert again.scorer is loaded.loaded.model.scorer


@pytest.mark.slow
def test_what_is_published_is_read_in_the_convention_of_its_training(folder, whole, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    (source / FILE).write_text(FolderSettings(positions="renumbered", convention="transformers").text())
    choice = TrainChoice(steps=10, eval_clips=4)
    for number, convention in enumerate((None, "lmms-eval")):
        llm = VideoLLM.load(source, convention=convention)
        target = tmp_path / str(number)
        publish(target, open_run(llm, choice, read_rates(choice.rates)), whole[1])
        # Of the caller, else of the folder that training began with; what else that said stays.
        named = convention or "transformers"
        assert json.loads((target / FILE).read_text()) == {
            "format": 1,
            "positions": "renumbered",
            "convention": named,
        }
        assert VideoLLM.load(target).settings == dataclasses.replace(llm.settings, declared_positions="renumbered")
        assert VideoLLM.load(target).settings.convention == named
        assert VideoLLM.load(target, convention="released").settings.convention == "released"


def losses(folder, mesh=None):
    """Loss and gradient norm of three steps, on one device or a mesh."""
    llm = VideoLLM.load(folder)
    tuning = dataclasses.replace(TUNING, shape=Shape(4, 1, 448, 16), steps=3, log=1, every=3, measure_every=0, warmup=1)
    placing = Placing(mesh, llm.loaded.family, llm.loaded.config.units)
    run = tuner(folder, tuning, placing=placing)
    with tempfile.TemporaryDirectory() as out:
        curve = run.run(out).curve
    return [[line["loss"], line["gradient"]] for line in curve]


@pytest.mark.parametrize("attention", ["auto", pytest.param("splash", marks=pytest.mark.long)])
@pytest.mark.slow
def test_a_mesh_of_data_fsdp_and_tensor_gives_the_same_losses(folder, attention):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = child(_MESH, folder, attention, XLA_FLAGS=flags, NPROC="32", JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), losses(folder), rtol=2e-5)


@pytest.mark.slow
def test_a_run_computes_in_bfloat16_and_computes_layers_again(folder, whole, tmp_path):
    short = {"steps": 2, "log": 2, "every": 2, "measure_every": 0, "warmup": 1}
    first = whole[1].curve[0]
    for settings in ({"precision": "bfloat16"}, {"remat": True}):
        run = tuner(folder, dataclasses.replace(TUNING, **short, **settings))
        found = run.run(tmp_path / next(iter(settings)))
        assert found.curve[0]["loss"] == pytest.approx(first["loss"], rel=1e-5 if "remat" in settings else 0.02)
        assert all(value.dtype == jnp.float32 for path, value in found.params.items())


def test_settings_that_make_no_run_are_refused_in_a_sentence(folder):
    for settings, said in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"every": 3}, "no multiple of log"),
        ({"measure_every": 6}, "no multiple of 4"),
        ({"rates": {"lm": 1.0}}, "there is no group lm of parameters"),
        ({"rates": {"llm": 0.0}}, "nothing would be trained"),
        ({"precision": "half"}, "precision is one of"),
        ({"parts": 2}, "1 rows cannot be divided into 2 parts"),
        ({"shape": Shape(1, 1, 100, 8)}, "a clip alone takes"),
        ({"frames": 6}, "has 8 frames, but training reads 6"),
        ({"frames": 2}, "64 windows cannot stay of 2 frames with 16 each"),
    ):
        with pytest.raises(JvidpruneError, match=said):
            tuner(folder, dataclasses.replace(TUNING, **settings))._pipeline.encode(TASK[0])


# --- data and the command line ---------------------------------------------------------------------------------------


def test_a_local_benchmark_is_divided_into_clips_to_learn_from_and_to_measure(llm, tmp_path):
    film, columns = render(ClipSpec(seed=1, frames=12, size=(48, 64))).frames, "video,question,answer,qid,type"
    lines = [f"{columns},a0,a1,a2,a3,a4"]
    for number in range(3):
        write_mp4(tmp_path / "NExTVideo" / f"{number}.mp4", film, 6.0)
        lines += [f"{number},what is it,{q},{q},DO,cat,dog,bird,fish,cow" for q in range(2)]
    (tmp_path / "val.csv").write_text("\n".join(lines))
    wish = {"frames": 4, "held_frames": 6, "questions": 8, "held": 1}
    learned, held = open_clips(llm, "nextqa", tmp_path, **wish)
    assert (len(learned), len(held)) == (2, 1)
    assert [learned[0].id, learned[1].id, held[0].id] == [f"NExTVideo/{number}.mp4" for number in range(3)]
    assert learned.fingerprint() != held.fingerprint()
    shape = rows_for(llm, learned, frames=4, kept=20, rows=2, clips=2)
    encode = ExampleEncoder(llm, 4, 20, shape.slots, shape.answers)
    rows, _ = next(Pipeline(learned, encode, kept=20, shape=shape).iterate(0, None))
    assert rows.pixels.shape == (2, 2, 4, 3, 32, 32)
    # A letter and the end of the turn for each of two questions about each of four clips.
    assert {llm.tokenizer.decode([token]) for token in rows.target[rows.question >= 0]} == {"A", "B"}
    assert (rows.weight > 0).sum() == 16
    for task, data, changed, said in (
        ("nextqa", tmp_path, {"limits": Limits(pixels=100)}, "more than the 100 allowed"),
        ("nextqa", tmp_path, {"held": 3}, "has 3 clips: too few"),
        ("nextqa", None, {}, "say where with --data"),
        ("procedural", tmp_path, {}, "reads no files"),
        ("nextqa", tmp_path, {"questions": 0}, "a question about each"),
    ):
        with pytest.raises(JvidpruneError, match=said):
            open_clips(llm, task, data, **(wish | changed))[0][0].load()


def test_clips_that_cannot_be_read_are_passed_over_and_listed(llm, tmp_path):
    film = render(ClipSpec(seed=1, frames=12, size=(48, 64))).frames
    lines = ["video,question,answer,qid,type,a0,a1,a2,a3,a4"]
    for number in range(4):
        write_mp4(tmp_path / "NExTVideo" / f"{number}.mp4", film, 6.0)
        lines.append(f"{number},what is it,1,{number},DO,cat,dog,bird,fish,cow")
    lines += ["3,what is it,9,9,DO,cat,dog,bird,fish,cow", "7,what is it,1,7,DO,cat,dog,bird,fish,cow"]
    (tmp_path / "val.csv").write_text("\n".join(lines))
    bad = tmp_path / "NExTVideo" / "1.mp4"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    wish = {"frames": 4, "held_frames": 4, "questions": 8, "held": 1}
    learned, _ = open_clips(llm, "nextqa", tmp_path, **wish)
    known = learned.fingerprint()
    assert [one.item for one in learned.left_out] == ["row 4", "NExTVideo/7.mp4"]
    shape = rows_for(llm, learned, frames=4, kept=20, rows=2, clips=1)
    encode = ExampleEncoder(llm, 4, 20, shape.slots, shape.answers)
    told = []
    pipeline = Pipeline(learned, encode, kept=20, shape=shape, report=told.append)
    steps = pipeline.iterate(0, None)
    rows = [next(steps)[0] for _ in range(4)]
    assert all((row.segment.max(1) == 1).all() for row in rows)
    (left,) = pipeline.left_out.values()
    assert told == [left]
    assert (left.item, left.file) == ("NExTVideo/1.mp4", str(bad))
    assert str(bad) in left.reason
    with pytest.raises(JvidpruneError, match=r"1\.mp4"):
        list(zip(range(4), Pipeline(learned, encode, kept=20, shape=shape, strict=True).iterate(0, None), strict=False))
    with pytest.raises(JvidpruneError, match=r"row 4 of .* cannot be asked"):
        open_clips(llm, "nextqa", tmp_path, **wish, strict=True)
    # A mended clip is no other run.
    bad.write_bytes(whole)
    assert open_clips(llm, "nextqa", tmp_path, **wish)[0].fingerprint() == known
    for number in range(3):
        (tmp_path / "NExTVideo" / f"{number}.mp4").write_bytes(b"")
    with pytest.raises(JvidpruneError, match="none of the 3 clips can be read; the first: "):
        next(Pipeline(learned, encode, kept=20, shape=shape).iterate(0, None))


def test_the_verb_refuses_in_a_sentence_and_fills_in_what_is_left_open(llm):
    choice = TrainChoice(steps=10, eval_clips=4, eval_frames=12)
    run = open_run(llm, choice, read_rates(choice.rates))
    assert (run.kept, run.whole, run.config.prune_at) == (64, 128, 0)
    assert (run.tuner.tuning.warmup, run.tuner.tuning.measure_frames) == (1, 12)
    assert [prune_at(layers) for layers in (2, 4, 12, 26)] == [0, 1, 3, 3]
    for changed, said in (
        ({"topk": 1.0}, "must lie in"),
        ({"prune_at": 1}, "too deep for a tower of 2 blocks"),
        ({"rates": "scorer"}, "written as in scorer=1e-4"),
        ({"rates": "eyes=1"}, "no group eyes"),
        ({"mesh": "data=3"}, "needs 3 devices"),
        ({"accumulate": 3}, "4 rows cannot be divided into 3 parts"),
        ({"slots": 50}, "a clip alone takes"),
        ({"prune_method": "random"}, "the learning rate of scorer"),
    ):
        wanted = dataclasses.replace(choice, **changed)
        with pytest.raises(JvidpruneError, match=said):
            open_run(llm, wanted, read_rates(wanted.rates))
