"""Training on packed clips: rows say what the benchmark says, runs resume bit for bit, a mesh gives the same losses."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoints

from jvidprune import reducers
from jvidprune.bench.procedural import Procedural
from jvidprune.errors import JvidpruneError
from jvidprune.inference.batch import Prompt, score_many
from jvidprune.inference.pipeline import VideoLLM
from jvidprune.training import groups, loop, step
from jvidprune.training.examples import Encoder
from jvidprune.training.placing import Placing
from jvidprune.training.rows import Pipeline, Shape
from jvidprune.training.tuning import ACCURACY, Tuner, Tuning
from jvidprune.training.video_loss import Everything, Trainee, rows_loss

TASK = Procedural("train", clips=64, side=56, questions=3, difficulty=0.2)
HELD = Procedural("validation", clips=4, side=56, questions=2, difficulty=0.2)
KEPT = 8 * 16
SHAPE = Shape(rows=4, clips=2, slots=960, answers=28)
TUNING = Tuning(
    steps=20,
    rates={"tower": 1e-3, "connector": 1e-3, "llm": 1e-3},
    shape=Shape(rows=1, clips=1, slots=512, answers=16),
    warmup=2,
    log=2,
    every=4,
    measure_every=8,
    measure_steps=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoints.write("llava_onevision", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def llm(folder):
    return VideoLLM.load(folder)


@pytest.fixture(scope="module")
def pipeline(llm):
    return Pipeline(TASK, Encoder(llm, 8, KEPT, 480, 14), kept=KEPT, shape=SHAPE, threads=2)


@pytest.fixture(scope="module")
def batches(pipeline):
    found = pipeline.iterate(0, None)
    return [next(found) for _ in range(4)]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_likely_what_the_model_says_to_each_question_alone(llm, batches):
    rows = batches[0][0]
    trainee, params = Trainee.split(model=llm.loaded.model)
    reader, key = Everything(KEPT), jax.random.key(0)
    loss, metrics = rows_loss(trainee, reader, params, rows, key, z=0.0)
    total, tokens, greedy = 0.0, 0, 0
    # The clips of the rows by their pixels: packing may have changed their order.
    for index in range(len(TASK)):
        item = TASK[index]
        pixels = llm.pixels(item.load().frames)
        if not any(np.array_equal(pixels, clip) for row in rows.pixels for clip in row):
            continue
        video = llm.reduce(llm.encode(item.load().frames), reducer=reducers.get("none"), ratio=1.0)
        fits = Encoder(llm, 8, KEPT, 480, 14)
        asked = [q for q in item.questions if any(_asked(llm, rows, q))]
        assert len(asked) == int(fits.tokens(item)["question"].max())
        prompts = [Prompt(video, question.prompt()) for question in asked]
        answers = [[question.answer + "<|im_end|>", question.answer] for question in asked]
        for whole, bare in score_many(llm, prompts, answers):
            total, tokens, greedy = total + whole.log_likelihood, tokens + whole.tokens, greedy + bare.greedy
    assert tokens == (rows.weight > 0).sum()
    np.testing.assert_allclose(loss, -total / tokens, rtol=1e-5)
    assert (int(metrics["hits/all"]), int(metrics["asked/all"])) == (
        greedy,
        sum(len(set(q[q >= 0])) for q in rows.question),
    )


def _asked(llm, rows, question):
    ids = llm.tokenizer.encode(llm.prompt_texts(question.prompt())[-1])
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


def test_parts_of_a_step_add_up_and_frozen_groups_stay(llm, batches):
    rates = groups.read_rates({"llm": 1e-2, "connector": 1e-3})
    trainee, params = Trainee.split(model=llm.loaded.model)
    learned, frozen = groups.split(step.stored(params, "float32"), rates)
    assert {groups.group_of(path) for path in learned} == {"llm", "connector"}
    assert {groups.group_of(path) for path in frozen} == {"tower"}
    tx = groups.optimiser(rates, steps=10, warmup=0)
    run = step.training_step(functools.partial(rows_loss, trainee, Everything(KEPT)), tx)
    found = [run(step.begin(learned, tx, 0), frozen, step.split_batch(batches[0][0], parts)) for parts in (1, 2)]
    for name, value in found[0][1].items():
        np.testing.assert_allclose(value, found[1][1][name], rtol=1e-4, err_msg=name)
    for path, before in learned.items():
        whole, parts = (state.params[path] for state, _ in found)
        # A first step of Adam moves every entry by its group's rate, whatever the size of the gradient.
        moved = float(jnp.abs(whole - before).max())
        assert moved == pytest.approx(rates[groups.group_of(path)], rel=0.2), path
        close = jnp.abs(whole - parts) < 0.02 * rates[groups.group_of(path)]
        assert close.mean() > 0.98, path
    with pytest.raises(JvidpruneError, match="4 rows cannot be divided into 3 parts"):
        step.split_batch(batches[0][0], 3)


def test_rates_warm_up_and_fall_to_a_tenth():
    rates = groups.read_rates({"llm": 1.0, "scorer": 10.0})
    params = {"lm.x": jnp.zeros(2), "scorer.x": jnp.zeros(2), "lm.y": jnp.zeros((2, 2))}
    tx = groups.optimiser(rates, steps=12, warmup=2, clip=1e9, decay=0.5)
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
    return Tuner(llm, tuning, reader=lambda frames: Everything(KEPT), task=TASK, held=HELD, **options)


_CHILD = """
import os, signal, sys
import test_train_stts as t
def report(line):
    if line["step"] == 10:
        os.kill(os.getpid(), signal.SIGKILL)
t.tuner(sys.argv[1]).run(sys.argv[2], report=report)
"""

_MESH = """
import json, sys
import jax
import test_train_stts as t
from jvidprune import parallel
assert jax.device_count() == 8
print(json.dumps(t.losses(sys.argv[1], parallel.make_mesh(data=2, fsdp=2, tensor=2))))
"""


def child(code, *arguments, **environment):
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths} | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, tuner(folder).run(out, tensorboard=True)


def test_a_killed_run_goes_on_to_the_same_parameters_and_curve(folder, whole, tmp_path):
    done = child(_CHILD, folder, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in loop.read_curve(tmp_path)] == [2, 4, 6, 8, 10]
    assert (tmp_path / "checkpoints" / "8").exists()
    again = tuner(folder).run(tmp_path)
    for path, value in whole[1].params.items():
        np.testing.assert_array_equal(value, again.params[path], err_msg=path)
    for name in (loop.CURVE, "metrics.csv"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


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


def losses(folder, mesh=None):
    """Loss and gradient norm of three steps, on one device or a mesh."""
    llm = VideoLLM.load(folder)
    tuning = dataclasses.replace(TUNING, shape=Shape(4, 1, 512, 16), steps=3, log=1, every=3, measure_every=0, warmup=1)
    placing = Placing(mesh, llm.loaded.family, llm.loaded.config.units)
    run = Tuner(llm, tuning, reader=lambda frames: Everything(KEPT), task=TASK, placing=placing)
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        curve = run.run(out).curve
    return [[line["loss"], line["gradient"]] for line in curve]


def test_a_mesh_of_data_fsdp_and_tensor_gives_the_same_losses(folder):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = child(_MESH, folder, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), losses(folder), rtol=2e-5)


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
        ({"frames": 4}, "has 8 frames, but training reads 4"),
    ):
        with pytest.raises(JvidpruneError, match=said):
            tuner(folder, dataclasses.replace(TUNING, **settings))._pipeline.encode(TASK[0])
