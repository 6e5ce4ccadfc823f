"""Training learns, resumes exactly and publishes what it trained; the packaged model is as recorded."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.packaged import accuracies, recipe
from helpers.places import import_paths
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.tiny.batches import TEMPLATE, Prompts, Thinning, clip_batch, frame_batch
from experiments.tiny.measure import answers
from experiments.tiny.publish import write_checkpoint
from experiments.tiny.recipe import (
    LONGEST,
    ModelSizes,
    Recipe,
    RecipeStage,
    all_words,
    config_json,
    train,
    write_tokenizer,
)
from experiments.tiny.targets import IGNORE, clip_targets
from jvidprune.errors import JvidpruneError
from jvidprune.evals.tasks import benchmark_of
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.checkpoint.load import load_model
from jvidprune.models.embedded import EMBEDDED
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.paint import paint
from jvidprune.procedural.world import COLOUR_IDS, SHAPE_IDS
from jvidprune.reducers.protocol import inner_stages
from jvidprune.training import loop

TASK = Procedural("train", clips=1 << 20, side=56)
MICRO = Recipe(
    stages=(
        RecipeStage("tower", "frames", 8, 1, 1e-2, ("0.vision", "0.projector", "0.lm.embed", "1."), warmup=1, frames=4),
        RecipeStage(
            "questions", "clips", 8, 1, 1e-2, ("0.lm", "0.projector", "1."), warmup=1, asked=3, plan=Thinning(kept=12)
        ),
    ),
    sizes=ModelSizes(vision=(16, 16, 1, 2, 56, 7), text=(16, 16, 2, 2, 1)),
    task=TASK,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("words"))


# --- data ------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer[1].encode(text)
    assert tokenizer[0].decode(ids, skip_special_tokens=False) == text
    assert all(0 <= i < tokenizer[0].get_vocab_size() for i in ids)


def test_every_word_is_one_token_with_and_without_a_space(tokenizer):
    inner, plain = tokenizer
    for word in all_words():
        assert len(plain.encode(word)) == 1
        assert len(plain.encode(f" {word}")) == (
            1 if len(word) > 1 or word.isalnum() else len(plain.encode(f" {word}"))
        )
    assert inner.encode(TEMPLATE.before, add_special_tokens=False).tokens[:4] == ["<|im_start|>", "system", "Ċ", "You"]
    assert plain.encode("circles") != plain.encode("circle")


def test_a_batch_is_a_function_of_its_step_and_says_what_the_benchmark_says(tokenizer):
    prompts = Prompts(tokenizer[1], LONGEST)
    first, again, other = (
        clip_batch(TASK, step, 2, prompts, asked=4, cells=4, plan=Thinning(kept=20)) for step in (3, 3, 4)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.frames, other.frames)
    assert (np.diff(first.kept, axis=1) > 0).all()
    assert first.kept.shape == (2, 20)
    assert (np.diff(first.positions, axis=1) > 0).all()
    assert (first.positions[:, -1] == 8 * 16).all()
    decode = tokenizer[0].decode
    for clip in range(2):
        _, questions = TASK.scene(6 + clip)
        texts = {question.text for question in questions}
        asked = [decode(first.ids[clip, q, : first.length[clip, q]], skip_special_tokens=False) for q in range(4)]
        assert any(text in prompt for text in texts for prompt in asked)
        for q, prompt in enumerate(asked):
            assert prompt.startswith("\n")
            assert prompt.endswith("<|im_end|>")
            at = first.ask[clip, q]
            assert decode(first.ids[clip, q, : at + 1], skip_special_tokens=False).endswith("assistant\n")
            right = np.flatnonzero(first.truth[clip, q] == 1)
            letter = decode([first.ids[clip, q, at + 1]])
            if letter in "ABCD":
                # The letter of the answer stands in the line of the option that is marked as right.
                line = decode(first.ids[clip, q, : right[0] + 1]).splitlines()[-1]
                assert line.startswith(f"{letter}. ")
                assert decode([first.content[clip, q, 1]]) == line.split()[-1]
            else:
                assert not len(right)


def test_dense_targets_name_what_is_in_front():
    checked = 0
    for index in range(12):
        scene, _ = TASK.scene(index)
        _, owner = paint(scene)
        found = clip_targets(scene, owner, 4)
        for number, thing in enumerate(scene.things, 1):
            x, y = (thing.centre // 14).T.astype(int)
            for frame in range(thing.start, thing.stop):
                if thing.role == "clutter" or not (0 <= x[frame] < 4 and 0 <= y[frame] < 4):
                    continue
                cell = 4 * y[frame] + x[frame]
                window = owner[frame, 14 * y[frame] : 14 * (y[frame] + 1), 14 * x[frame] : 14 * (x[frame] + 1)]
                if (window == number).mean() < 0.25 or not set(np.unique(window)) <= {0, number}:
                    continue
                checked += 1
                assert found.seen[frame, cell, 0] == COLOUR_IDS[thing.colour_at(frame)]
                assert found.seen[frame, cell, 1] == SHAPE_IDS[thing.shape]
                assert found.story[frame, cell, 2] == thing.start
                assert np.abs(found.offset[frame, cell]).max() <= 0.5 + 1e-6
                if frame + 1 < len(owner):
                    assert found.story[frame + 1, cell, 4] == COLOUR_IDS[thing.colour_at(frame)]
        assert (found.story[0, :, 4:7] == IGNORE).all()
        assert (found.story[..., 1] == np.arange(8)[:, None]).all()
    assert checked > 30


def test_patches_and_cells_agree_on_a_frame():
    batch = frame_batch(TASK, 0, 2, 3, (8, 4))
    assert batch.frames.shape == (6, 56, 56, 3)
    covered = batch.mask.mean(-1)
    assert ((batch.patches[..., 0] > 0) <= (covered > 0)).all()
    assert ((covered == 1) <= (batch.patches[..., 0] > 0)).all()
    assert np.isnan(batch.offset[..., 0]).sum() == (batch.cells[..., 0] == 0).sum()


# --- learning and resuming -------------------------------------------------------------------------------------------

_CHILD = """
import os, signal, sys
import test_training as t
def report(stage, line):
    if (stage, line["step"]) == (sys.argv[2], int(sys.argv[3])):
        os.kill(os.getpid(), signal.SIGKILL)
t.train(t.MICRO, sys.argv[1], every=2, log=1, report=report)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(MICRO, folder, every=2, log=1)


@pytest.mark.slow
def test_a_few_steps_lower_both_losses(whole):
    for stage in MICRO.stages:
        curve = loop.read_curve(whole[0] / stage.name)
        assert [line["step"] for line in curve] == list(range(1, 9))
        # Every step sees clips of its own, so that single losses scatter.
        assert np.mean([line["loss"] for line in curve[-3:]]) < 0.92 * curve[0]["loss"]


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_parameters_and_curve(whole, tmp_path):
    command = [sys.executable, "-c", _CHILD, str(tmp_path), "questions", "3"]
    paths = import_paths(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(loop.read_curve(tmp_path / "questions")) == 3
    assert (tmp_path / "questions" / "checkpoints" / "2").exists()
    _, params, _ = train(MICRO, tmp_path, every=2, log=1)
    for a, b in zip(jax.tree.leaves(whole[2]), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    for stage in MICRO.stages:
        curves = [(folder / stage.name / loop.CURVE).read_bytes() for folder in (whole[0], tmp_path)]
        assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_run_with_other_settings_is_refused(whole):
    with pytest.raises(JvidpruneError, match="holds a run with other settings"):
        train(dataclasses.replace(MICRO, seed=1), whole[0], every=2, log=1)
    with pytest.raises(JvidpruneError, match="log must divide every"):
        train(MICRO, whole[0], every=3, log=2)


@pytest.mark.slow
def test_what_is_published_is_what_was_trained(whole, tokenizer, tmp_path):
    _, network, params, _ = whole
    model, _ = network.merge(params)
    raw = config_json(MICRO.sizes, tokenizer[0])
    write_checkpoint(tmp_path, model, raw, tokenizer[0], 8)
    loaded = load_model(tmp_path, dtype=jnp.float32)
    assert loaded.config == network.config
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(loaded.model)), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype(np.float16).astype(np.float32), b)


# --- the packaged model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged():
    return VideoLLM.load(EMBEDDED)


def test_the_packaged_model_is_one_that_reducers_can_be_compared_on(packaged):
    config, trained = packaged.loaded.config, recipe()
    assert config.vision.tokens > 100
    assert config.vision.pooling_head
    for name in ("fastv", "pyramiddrop", "information_horizon", "framefusion", "swiftvlm", "dstp"):
        cuts = [stage.layer for stage in inner_stages(packaged.reducer(name), 0.5)]
        assert 0 <= min(cuts) <= max(cuts) < config.text.layers - 1, name
    for name in ("pyramiddrop", "swiftvlm"):
        cuts = [stage.layer for stage in inner_stages(packaged.reducer(name), 0.5)]
        assert len({0, *cuts}) == 4, f"{name} cuts three times, with a layer in front of each"
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 6e6
    assert trained["sizes"]["text"][2] == config.text.layers
    assert trained["sizes"]["vision"][2] == config.vision.layers
    assert trained["stages"]
    assert trained["task"] == benchmark_of(packaged, "train", 1 << 30).fingerprint()
    assert trained["measured_on"] == benchmark_of(packaged, "test", trained["measured_on"]["clips"]).fingerprint()
    assert accuracies().keys() == {"all", *trained["task"]["categories"]}


@pytest.mark.slow
def test_the_recorded_accuracy_is_measured_again_on_held_out_clips(packaged):
    found, said = answers(packaged, benchmark_of(packaged, "test", 20)), accuracies()
    # These clips are the first of those that the record counts, so that both shares are of one binomial: three standard
    # deviations of the smaller sample, with one answer to spare where the record says all or nothing.
    for category, row in said.items():
        right = [result.right for result in found if category in ("all", result.question.category)]
        share = float(row["accuracy"])
        bound = 3 * (share * (1 - share) / len(right)) ** 0.5 + 1 / len(right)
        assert abs(np.mean(right) - share) <= bound, category
    # A model that guesses would not pass.
    assert np.mean([result.right for result in found]) > float(said["all"]["chance"]) + 0.1
