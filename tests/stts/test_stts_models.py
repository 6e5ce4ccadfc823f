"""STTS on the towers of every family, and as a method of a model that has a scorer."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import reducer_checks as checks
from helpers import tiny, tiny_checkpoints
from safetensors.numpy import load_file, save_file

from jvidprune.llm.encoded import sweep_video
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.checkpoint.load import load_model
from jvidprune.reducers import registry
from jvidprune.stts import (
    Scorer,
    ScorerSizes,
    STTSConfig,
    attach,
    encode,
    encoder_of,
    one_video,
    scorer_tensors,
    windows_kept,
)
from jvidprune.stts.attach import attach_released
from jvidprune.stts.grid_tower import window_numbers
from jvidprune.stts.reducer import STTS
from jvidprune.stts.saved import released_scorer
from jvidprune.video.preprocess import Patches

PLAIN = STTSConfig(prune_at=0, attention="plain")
FRAMES = 4

GRIDS = {"qwen2_5_vl": (FRAMES, 8, 12), "qwen3_vl": (FRAMES, 6, 8), "video_llama_3": (FRAMES, 6, 8), "molmo2": None}


@functools.cache
def case(family):
    """Model, scorer with spread scores, and what its tower reads."""
    model = load_model(tiny.MODELS / family, dtype=jnp.float32).model
    grid, vision = GRIDS[family], model.config.vision
    if grid is None:
        shape = (FRAMES, 3, vision.image_size, vision.image_size)
    else:
        shape = (grid[0] * grid[1] * grid[2], vision.patch_values)
    pixels = jax.random.normal(jax.random.key(0), shape)
    return model, made_scorer(encoder_of(model, 1, grid)), pixels, grid


def made_scorer(encoder):
    scorer = Scorer(encoder.tower.sizes, rngs=nnx.Rngs(1))
    return jax.tree.map(lambda x: 2.5 * x, scorer)


@functools.partial(jax.jit, static_argnames=("config", "kept", "grid"))
def run(model, scorer, pixels, remove, *, config, kept, grid):
    video = one_video(FRAMES, remove)
    return encode(encoder_of(model, config.window, grid), pixels, video, config, kept=kept, scorer=scorer)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-5 + 2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("family", GRIDS)
@pytest.mark.slow
def test_every_tower_runs_packed_as_masked_and_whole_as_itself(family):
    model, scorer, pixels, grid = case(family)
    windows = encoder_of(model, 1, grid).windows.count
    kept = windows_kept(FRAMES, windows, 0.5)
    remove = FRAMES * windows - kept
    found, wanted = (
        run(model, scorer, pixels, remove, config=dataclasses.replace(PLAIN, packing=packing), kept=kept, grid=grid)
        for packing in ("flat", "masked")
    )
    # Pruning cuts through frames, and what is kept is not what the dense tower says.
    assert (found.keep.sum(axis=1) > 0).sum() > 2
    np.testing.assert_array_equal(found.index, np.flatnonzero(np.asarray(found.keep)))
    close(found.tokens, wanted.tokens)
    dense = jax.jit(model.encode)(pixels if grid is None else Patches(pixels, grid))
    tokens = dense.features.reshape(FRAMES * windows, -1)
    assert float(jnp.abs(found.tokens - tokens[found.index]).max()) > 1e-3
    whole = run(model, scorer, pixels, 0, config=PLAIN, kept=FRAMES * windows, grid=grid)
    close(whole.tokens, tokens)
    if found.deepstack is not None:
        close(found.deepstack, wanted.deepstack)
        levels = dense.evidence["features_deepstack"].reshape(whole.deepstack.shape)
        close(whole.deepstack, levels)


def test_attention_windows_are_numbered_as_the_tower_cuts_them():
    model, _, _, grid = case("qwen2_5_vl")
    cut = model.vision.tables(grid).windows
    numbers = window_numbers(cut)
    split = np.asarray(cut.split(jnp.asarray(numbers)[None, :, None] + 1))[..., 0]
    for number, members in enumerate(split):
        assert set(members[members > 0]) == {number + 1}
    assert len(split) == numbers.max() + 1 > 1


@functools.cache
def asked(tmp):
    """A LLaVA model with a scorer, and the frames of a video."""
    llm = VideoLLM.load(tiny.write_checkpoint(tmp, "llava_onevision"))
    model = llm.loaded.model
    side = model.config.vision.image_size
    frames = np.random.default_rng(0).integers(0, 255, (5, side, side, 3)).astype(np.uint8)
    return llm, attach(llm, PLAIN, made_scorer(encoder_of(model))), frames


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return asked(tmp_path_factory.mktemp("llava"))


@pytest.mark.slow
def test_a_model_with_a_scorer_is_asked_like_any_other(scored):
    plain, llm, frames = scored
    method = llm.reducer("stts")
    video = llm.encode(frames, reducer=method)
    halves = sweep_video(video, method, [1.0, 0.5])
    whole, half = halves
    assert whole.kept == whole.visual == 2 * half.kept
    assert half.title == "STTS"
    np.testing.assert_allclose(
        whole.reduced.tokens, plain.encode(frames).tokens.features.reshape(whole.visual, -1), atol=2e-5
    )
    # A sweep gives what one encoding does, and its plan tells which tokens stay.
    model, windows = llm.loaded.model, encoder_of(plain.loaded.model).windows.count
    kept = windows_kept(5, windows, 0.5)
    pixels = jnp.asarray(llm.pixels(frames))
    direct = jax.jit(
        lambda: encode(
            encoder_of(model.base), pixels, one_video(5, 5 * windows - kept), PLAIN, kept=kept, scorer=model.scorer
        )
    )()
    np.testing.assert_array_equal(half.reduced.index[: half.kept], direct.index)
    np.testing.assert_allclose(half.reduced.tokens[: half.kept], direct.tokens, atol=2e-5)
    plan = method.plan(video.tokens, method.budget(video.tokens.layout(), 0.5), capacity=half.kept)
    np.testing.assert_array_equal(plan.ids, direct.index)
    assert (half.reduced.slot >= 0).sum() == half.kept
    answer = llm.ask(half, "?", max_new_tokens=2)
    assert (answer.kept, answer.reducer) == (half.kept, "STTS")
    assert llm.ask(video, "?", reducer=llm.reducer("random"), ratio=0.5, max_new_tokens=2).kept == half.kept
    apart = attach(plain, dataclasses.replace(PLAIN, keep_positions=True), llm.loaded.model.scorer)
    kept_places = dataclasses.replace(half, reducer=apart.reducer("stts"))
    slots, counted = (llm.lay_out([one], "?", 1)[0] for one in (kept_places, half))
    assert (slots.length, counted.positions) == (counted.length, None)
    assert int(slots.positions.max()) == int(slots.next_position) - 1 == slots.length + whole.kept - half.kept - 1


@pytest.mark.parametrize("text", ["stts:method=easy", "stts:method=random,seed=3"])
def test_baselines_of_the_tower_are_methods_too(scored, text):
    _, llm, frames = scored
    method = llm.reducer(text)
    video = llm.encode(frames, reducer=method)
    assert llm.reduce(video, reducer=method, ratio=0.5).kept == video.tokens.layout().total // 2
    checks.refused(lambda: method.plan(video.tokens, None, capacity=1), "has no plan")


def test_released_scorers_are_found_among_the_tensors(scored, tmp_path):
    plain, llm, _ = scored
    folder = tmp_path / "released"
    shutil.copytree(plain.loaded.folder, folder)
    tensors = scorer_tensors(llm.loaded.model.scorer, "image_vit.transformer.temporal_token_scorer.")
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")
    found = released_scorer(folder, llm.loaded.config.vision.heads)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(llm.loaded.model.scorer), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert released_scorer(plain.loaded.folder, 2) is None
    # Three blocks are too few for the released settings.
    moved = dataclasses.replace(plain, loaded=dataclasses.replace(plain.loaded, folder=folder))
    checks.refused(lambda: attach_released(moved), "prune_at 3 is too deep")


def test_a_released_checkpoint_prunes_by_itself(tmp_path, monkeypatch):
    # Seven blocks, of which the connector reads the biased one and the last.
    shape = tiny_checkpoints.CONFIGS["molmo2"]
    vision, adapter = shape["vision_config"], shape["adapter_config"]
    deeper = {"vision_config": vision | {"num_hidden_layers": 7}}
    deeper["adapter_config"] = adapter | {"vision_feature_layer": [6, 4]}
    monkeypatch.setitem(tiny_checkpoints.CONFIGS, "molmo2", shape | deeper)
    folder = tiny_checkpoints.write("molmo2", tmp_path / "molmo2")
    scorer = scorer_tensors(Scorer(ScorerSizes(16, 2, 16), rngs=nnx.Rngs(0)))
    scorer = {name: np.ascontiguousarray(value) for name, value in scorer.items()}
    save_file(load_file(folder / "model.safetensors") | scorer, folder / "model.safetensors")
    llm = VideoLLM.load(folder)
    frames = np.random.default_rng(0).integers(0, 255, (6, 48, 48, 3)).astype(np.uint8)
    method = llm.reducer("stts")
    assert (method.config.refill, method.config.prune_at) == ("official", 3)
    video = llm.encode(frames, reducer=method, fps=2.0)
    whole, half = sweep_video(video, method, [1.0, 0.5])
    np.testing.assert_allclose(whole.reduced.tokens, video.tokens.features.reshape(96, -1), atol=1e-5)
    # Pruned placeholders leave the prompt, frame markers and time stamps stay.
    lengths = [llm.lay_out([one], "?", 1)[0].length for one in (whole, half)]
    assert lengths[0] - lengths[1] == whole.kept - half.kept == 48


def test_what_has_no_scorer_or_does_not_fit_is_refused(scored):
    plain, _, frames = scored
    checks.refused(lambda: plain.reducer("stts"), "a model with a scorer")
    checks.refused(lambda: registry.from_text("stts:method=best"), "method 'best'")
    unbound = registry.from_text("stts")
    assert isinstance(unbound, STTS)
    video = plain.encode(frames)
    checks.refused(lambda: plain.reduce(video, reducer=unbound, ratio=0.5), "tower_scores")
    wide = Scorer(dataclasses.replace(made_scorer(encoder_of(plain.loaded.model)).sizes, width=64, heads=2))
    checks.refused(lambda: attach(plain, PLAIN, wide), "towers of width 64")
    checks.refused(lambda: encoder_of(case("qwen3_vl")[0]), "depend on the grid")
