"""Towers with STTS inside: the golden tower, packed equal to masked, the attention switch, LLaVA end to end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune.models.llava_onevision import LlavaOnevision, LlavaOnevisionConfig
from jvidprune.models.siglip import Siglip, SiglipConfig
from jvidprune.ops.pool import pool_tokens
from jvidprune.stts import (
    Scorer,
    SiglipTower,
    STTSConfig,
    encoder_of,
    one_video,
    packed_examples,
    pooling_windows,
    raster_windows,
    run_tower,
    scorer_from_tensors,
    scorer_tensors,
    windows_kept,
    windows_to_remove,
)
from jvidprune.stts.attention import flat_attention, rows_attention
from jvidprune.stts.encode import encode as encode_frames
from jvidprune.stts.tower import Prefix, run_kept

SIDE, FRAMES, LAYERS = 6, 7, 4
WINDOWS = raster_windows(SIDE, 2)


@functools.cache
def tower():
    config = SiglipConfig(width=16, mlp=24, layers=LAYERS, heads=2, image_size=SIDE, patch_size=1)
    with jax.ensure_compile_time_eval():
        return Siglip(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


@functools.cache
def scorer():
    with jax.ensure_compile_time_eval():
        made = Scorer(SiglipTower(tower()).sizes, rngs=nnx.Rngs(1))
        # Scores of a new scorer are all alike: weights that spread them.
        return jax.tree.map(lambda x: 8 * x, made)


def tokens(seed=0, frames=FRAMES):
    rng = np.random.default_rng(seed)
    still = rng.normal(size=(1, SIDE**2, 16))
    return jnp.asarray(still + np.cumsum(0.4 * rng.normal(size=(frames, SIDE**2, 16)), axis=0), jnp.float32)


@functools.partial(jax.jit, static_argnames=("config", "kept", "record"))
def run(vision, scored, x, examples, *, config, kept, record=(), key=None):
    return run_tower(
        SiglipTower(vision, chunk=3), x, WINDOWS, examples, config, kept=kept, scorer=scored, record=record, key=key
    )


PLAIN = STTSConfig(prune_at=0, attention="plain")
KEPT = 9 * FRAMES - 8


@functools.partial(jax.jit, static_argnames="config")
def loss_and_gradients(vision, x, scores, examples, *, config):
    def loss(vision, x, scores):
        out = run_kept(SiglipTower(vision), Prefix(x, x, scores), WINDOWS, examples, config, kept=KEPT)
        return (out.hidden * jnp.sin(jnp.arange(out.hidden.size).reshape(out.hidden.shape))).sum() + out.loss

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(vision, x, scores)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), cut=st.integers(0, FRAMES), remove=st.tuples(st.integers(0, 30), st.integers(0, 30))
)
@pytest.mark.slow
def test_packed_equals_masked_forward_and_gradient(seed, cut, remove):
    # Two videos and a padding frame on one axis, with any budgets that the static capacity can hold.
    lengths = [cut, max(0, FRAMES - 1 - cut)]
    remove = [min(n, 9 * length) for n, length in zip(remove, lengths, strict=True)]
    if 9 * sum(lengths) - sum(remove) > KEPT:
        remove[int(lengths[1] >= lengths[0])] = min(9 * max(lengths), 8)
    examples = packed_examples([lengths], [remove], FRAMES)
    # Scores that are never close: nearly equal ones in a row have steep gradients, which lift rounding.
    scores = (np.random.default_rng(seed).permutation(9 * FRAMES).reshape(FRAMES, 9) + 0.5) / (9 * FRAMES)
    inputs = tower(), tokens(seed), jnp.asarray(scores, jnp.float32), examples
    wanted = loss_and_gradients(*inputs, config=dataclasses.replace(PLAIN, packing="masked"))
    for packing in ("flat", "rows"):
        found = loss_and_gradients(*inputs, config=dataclasses.replace(PLAIN, packing=packing))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 + 1e-4 * np.abs(theirs).max())


@pytest.mark.slow
def test_shares_are_vmapped_over_with_one_capacity():
    x = tokens(1)
    shares = (0.3, 0.5, 0.8)
    remove = jnp.asarray([windows_to_remove(FRAMES, 9, share) for share in shares])
    kept = windows_kept(FRAMES, 9, shares[0])

    def one(n):
        return run(tower(), scorer(), x, one_video(FRAMES, n), config=PLAIN, kept=kept)

    swept = jax.jit(jax.vmap(one))(remove)
    for number, n in enumerate(remove):
        alone = one(n)
        np.testing.assert_array_equal(swept.keep[number], alone.keep)
        np.testing.assert_allclose(swept.hidden[number], alone.hidden, atol=1e-5)
        assert int(alone.keep.sum()) == 9 * FRAMES - int(n)


def test_nothing_removed_is_the_tower_itself():
    x = tokens(2)
    out = run(tower(), scorer(), x, one_video(FRAMES, 0), config=PLAIN, kept=9 * FRAMES, record=(0, 1, 2))
    dense = x
    for block in range(LAYERS):
        dense, _ = jax.jit(tower().run, static_argnums=(1, 2))(dense, block, block + 1)
        found = out.recorded[block] if block < 3 else out.hidden
        np.testing.assert_allclose(found, dense, atol=1e-5)
    assert float(out.loss) == 0.0


@pytest.mark.slow
def test_refill_changes_what_kept_patches_see():
    # Each frame keeps more than half of its patches, so that every frame has a row to itself.
    x, examples = tokens(3), one_video(FRAMES, 7)
    outs = {}
    for refill, packing in (("official", "masked"), ("official", "flat"), ("official", "rows"), (False, "flat")):
        config = dataclasses.replace(PLAIN, refill=refill, packing=packing)
        outs[refill, packing] = run(tower(), scorer(), x, examples, config=config, kept=9 * FRAMES - 7)
    for packing in ("flat", "rows"):
        np.testing.assert_allclose(outs["official", packing].hidden, outs["official", "masked"].hidden, atol=1e-5)
    assert int(outs["official", "rows"].rows.used) == FRAMES
    assert int(outs["official", "flat"].refilled.sum()) == 7 * 4
    assert float(jnp.abs(outs["official", "flat"].hidden - outs[False, "flat"].hidden).max()) > 1e-2


@pytest.mark.parametrize("method", ["heuristic", "easy", "random"])
@pytest.mark.slow
def test_baselines_prune_behind_block_prune_at(method):
    config = dataclasses.replace(PLAIN, method=method, prune_at=1)
    options = {"kept": 9 * FRAMES - 31, "key": jax.random.key(0), "record": (1, 2)}
    out = run(tower(), None, tokens(4), one_video(FRAMES, 31), config=config, **options)
    assert int(out.keep.sum()) == 9 * FRAMES - 31
    assert bool((out.recorded[1] != 0).any(axis=-1).all())
    np.testing.assert_array_equal((out.recorded[2] != 0).any(axis=-1), out.active)
    assert float(out.loss) == 0.0


def test_without_bias_the_scorer_gets_no_gradient_from_behind():
    def gradient(config):
        def loss(scored):
            return (run(tower(), scored, tokens(5), one_video(FRAMES, 31), config=config, kept=32).hidden ** 2).sum()

        return jax.jit(jax.grad(loss))(scorer())

    assert not any(bool(leaf.any()) for leaf in jax.tree.leaves(gradient(dataclasses.replace(PLAIN, bias=False))))
    assert all(bool(leaf.any()) for leaf in jax.tree.leaves(gradient(PLAIN)))


def random_segments(seed=0, slots=200, longest=37):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, size=12)
    segment = np.repeat(np.arange(12), lengths)[:slots]
    segment = np.concatenate([segment, np.full(slots - len(segment), 12)])
    q, k, v = (jnp.asarray(rng.normal(size=(1, slots, 2, 8)), jnp.float32) for _ in range(3))
    return q, k, v, jnp.asarray(segment[None], jnp.int32), longest


@pytest.mark.parametrize("kind", ["plain", "xla", "splash"])
@pytest.mark.slow
def test_every_kind_of_packed_attention_gives_the_same_numbers(kind):
    q, k, v, segment, longest = random_segments()
    used = (segment[0] < 12)[None, :, None, None]
    weight = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(q, k, v, attend):
        out = jnp.where(used, attend(q, k, v), 0)
        return (out * weight).sum(), out

    def whole(q, k, v):
        return rows_attention(q, k, v, segment, which="plain")

    def packed(q, k, v):
        return flat_attention(q, k, v, segment, longest, 12, kind=kind)

    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    (wanted, found) = (jax.jit(functools.partial(grad, attend=attend))(q, k, v) for attend in (whole, packed))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


LLAVA = {
    "model_type": "llava_onevision",
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 40,
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 4,
    },
}


@functools.cache
def llava():
    model = LlavaOnevision(LlavaOnevisionConfig.from_hf(LLAVA), dtype=jnp.float32)
    model.vision.pos_embed[...] = jax.random.normal(jax.random.key(3), model.vision.pos_embed.shape)
    return model


@functools.partial(jax.jit, static_argnames=("config", "kept"))
def encode(model, scored, pixels, examples, *, config, kept):
    return encode_frames(encoder_of(model, config.window), pixels, examples, config, kept=kept, scorer=scored)


@pytest.mark.slow
def test_llava_tokens_are_those_of_the_whole_tower_at_kept_places():
    # 7x7 patches to 4x4 tokens: windows of the pooling share the patches in the middle.
    model, windows = llava(), pooling_windows(llava().config)
    pixels = jax.random.normal(jax.random.key(0), (5, 3, 28, 28))
    remove = windows_to_remove(5, windows.count, 0.5)
    kept = 5 * 16 - remove
    scored = jax.tree.map(lambda x: 8 * x, Scorer(SiglipTower(model.vision).sizes, rngs=nnx.Rngs(1)))
    video = encode(model, scored, pixels, one_video(5, remove), config=PLAIN, kept=kept)
    assert video.tokens.shape == (kept, 16)
    assert bool(video.valid.all())
    assert video.index.tolist() == np.flatnonzero(np.asarray(video.keep).ravel()).tolist()
    tower = SiglipTower(model.vision)
    out = jax.jit(
        lambda: run_tower(
            tower,
            tower.embed(pixels),
            windows,
            one_video(5, remove),
            dataclasses.replace(PLAIN, packing="masked"),
            kept=kept,
            scorer=scored,
        )
    )()
    everything = pool_tokens(model.projector(out.hidden), (7, 7), "bilinear").reshape(-1, 16)
    np.testing.assert_allclose(video.tokens, everything[video.index], atol=1e-5)
    whole = encode(model, scored, pixels, one_video(5, 0), config=PLAIN, kept=80)
    np.testing.assert_allclose(whole.tokens, jax.jit(model.encode)(pixels).features.reshape(-1, 16), atol=1e-5)


@pytest.mark.slow
def test_several_videos_on_one_axis_are_parted_again():
    model, windows = llava(), pooling_windows(llava().config)
    pixels = jax.random.normal(jax.random.key(1), (2, 3, 3, 28, 28))
    remove = windows_to_remove(3, windows.count, 0.5)
    kept = 48 - remove
    scored = Scorer(SiglipTower(model.vision).sizes, rngs=nnx.Rngs(1))
    both = packed_examples([[3], [3]], [[remove], [remove]], 3)
    # u of the frame before is that of the other video here; selection and tokens of a first frame do not read it.
    found = encode(model, scored, pixels.reshape(6, 3, 28, 28), both, config=PLAIN, kept=2 * kept)
    parted = found.tokens.reshape(2, kept, -1)
    for number in range(2):
        alone = encode(model, scored, pixels[number], one_video(3, remove), config=PLAIN, kept=kept)
        np.testing.assert_allclose(parted[number], alone.tokens, atol=1e-5)


def test_scorers_begin_as_released_and_travel_under_released_names():
    made = Scorer(SiglipTower(tower()).sizes, rngs=nnx.Rngs(0))
    tensors = scorer_tensors(made)
    prefix = "model.vision_backbone.image_vit.transformer.temporal_token_scorer."
    assert tensors[f"{prefix}mlp.w1.weight"].shape == (24, 32)
    assert not any(tensors[name].any() for name in tensors if name.endswith("bias"))
    assert abs(tensors[f"{prefix}patch_token_pooler.wq.weight"].std() - 0.02) < 0.004
    assert abs(tensors[f"{prefix}mlp.w2.weight"].std() - 24**-0.5) < 0.03
    again = scorer_from_tensors(tensors, 2)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(made), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    checks.refused(lambda: scorer_from_tensors({}, 2), "14 tensors of the scorer are missing")
    checks.refused(lambda: scorer_from_tensors(tensors | {f"{prefix}mlp.w3.bias": np.zeros(2)}, 2), "instead of")


def test_what_does_not_fit_is_refused_in_one_sentence():
    x = tokens()
    options = {"kept": 63, "scorer": scorer()}
    deep = STTSConfig(prune_at=3)
    checks.refused(lambda: run_tower(SiglipTower(tower()), x, WINDOWS, one_video(7, 0), deep, **options), "too deep")
    checks.refused(
        lambda: run_tower(SiglipTower(tower()), x[:, 1:], WINDOWS, one_video(7, 0), PLAIN, **options), "36 patches"
    )
    checks.refused(lambda: run_tower(SiglipTower(tower()), x, WINDOWS, one_video(7, 0), PLAIN, kept=63), "a scorer")
    random = dataclasses.replace(PLAIN, method="random")
    checks.refused(lambda: run_tower(SiglipTower(tower()), x, WINDOWS, one_video(7, 0), random, kept=63), "a key")
