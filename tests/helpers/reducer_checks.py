"""Videos for tests of reducers, and checks that some of their files make; `reducers/test_common.py` has the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import GOLDEN

import jvidprune
from jvidprune import VideoTokens
from jvidprune.parity import core
from jvidprune.reducers.programs import bucket_capacity, run_budgets
from jvidprune.reducers.protocol import with_defaults
from jvidprune.tokens import stack_budgets


def make_video(frames=6, grid=(4, 5), dim=8, seed=0, dtype=np.float32, **kwargs):
    """A video with drifting content, so that neighbouring frames are alike but never equal."""
    rng = np.random.default_rng(seed)
    n = grid[0] * grid[1]
    still = rng.normal(size=(1, n, dim))
    features = still + np.cumsum(0.4 * rng.normal(size=(frames, n, dim)), axis=0)
    evidence = {
        "attention_last": (rng.random((frames, n)) ** 3 + 1e-3).astype(np.float32),
        "keys": rng.normal(size=(frames, n, 6)).astype(np.float32),
        "features_deepstack": rng.normal(size=(frames, n, 2, dim)).astype(np.float32),
    }
    return VideoTokens.create(features.astype(dtype), evidence, grid=grid, **kwargs)


def pad(video, extra):
    """The same video with `extra` loud padding frames behind it."""

    if extra == 0:
        return video

    def tail(array):
        return jnp.concatenate([array, jnp.full((extra, *array.shape[1:]), 9.0, array.dtype)])

    whole = ("text", "joint_text", "newline")
    evidence = {name: value if name in whole else tail(value) for name, value in video.evidence.items()}
    frames = video.features.shape[0]
    mask = np.arange(frames + extra) < frames
    features, unpooled = tail(video.features), video.unpooled_grid
    return VideoTokens.create(features, evidence, grid=video.grid, frame_mask=mask, unpooled_grid=unpooled)


def valid_rows(reduced):
    """(ids, tokens) of the rows in use."""
    count = int(reduced.count)
    return np.asarray(reduced.index)[:count], np.asarray(reduced.tokens)[:count]


def reduce(reducer, video, ratio):
    """Reduced to all rows there can be, so that tests with many ratios compile once."""
    return jvidprune.reduce(reducer, video, ratio, capacity=video.layout().total)


def golden_files(method):
    return sorted((GOLDEN / method).glob("*.npz"))


def check_golden(path, comparers):
    """Every row of a golden file passes and none is left out."""
    report = core.report_file(path.name, core.load_golden(path), comparers)
    assert report.rows
    assert [row for row in report.rows if row.verdict != "ok"] == []


def check_others_refused(method, comparers):
    """The comparers of a method take none of the golden files of the other methods."""
    others = [path for path in GOLDEN.rglob("*.npz") if method not in path.relative_to(GOLDEN).parts]
    for path in others:
        golden = core.load_golden(path)
        assert not any(comparer.recognises(golden) for comparer in comparers), path.name


def check_sweep(reducer, video, ratios):
    """One compile for all ratios, rows equal to those of a plain vmap of `plan` over the budgets."""
    run_budgets.clear_cache()
    swept = jvidprune.sweep(reducer, video, ratios)
    capacity = swept.index.shape[1]
    backwards = jvidprune.sweep(reducer, video, ratios[::-1], capacity=capacity)
    assert run_budgets._cache_size() == 1
    np.testing.assert_array_equal(backwards.index[::-1], swept.index)
    budgets = stack_budgets([reducer.budget(video.layout(), ratio) for ratio in ratios])
    plans = jax.jit(jax.vmap(lambda budget: reducer.plan(video, budget, capacity=capacity)))(budgets)
    np.testing.assert_array_equal(plans.ids, swept.index)
    np.testing.assert_array_equal(plans.count, swept.count)
    for ratio, count in zip(ratios, plans.count, strict=True):
        assert 0 < int(count) <= reducer.capacity(video.layout(), ratio)


def check_padding(reducer, video, ratio):
    """Padding frames change nothing for any video of a batch."""
    tokens_of_video = video.layout().total
    alone = reduce(reducer, video, ratio)
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), pad(video, 3))
    batched = jvidprune.reduce_batch(reducer, batch, ratio)
    ids, tokens = valid_rows(alone)
    for number in range(2):
        other_ids, other_tokens = valid_rows(jax.tree.map(lambda leaf, n=number: leaf[n], batched))
        np.testing.assert_array_equal(np.minimum(other_ids, tokens_of_video), ids)
        np.testing.assert_allclose(other_tokens, tokens, atol=1e-6)


def check_copies(video, reduced):
    """A selecting method returns its tokens unchanged, each once, and zeros behind them."""
    ids, tokens = valid_rows(reduced)
    flat = np.asarray(video.features).reshape(-1, video.features.shape[-1])
    assert len(set(ids.tolist())) == len(ids)
    np.testing.assert_array_equal(tokens, flat[ids])
    np.testing.assert_array_equal(np.asarray(reduced.tokens)[len(ids) :], 0)
    slot = np.asarray(reduced.slot)
    np.testing.assert_array_equal(slot[ids], np.arange(len(ids)))
    assert (slot >= 0).sum() == len(ids)


def check_bf16(reducer, video, ratio):
    """bf16 in, bf16 out, the same number of tokens."""
    half = VideoTokens.create(video.features.astype(jnp.bfloat16), video.evidence, grid=video.grid)
    reduced = jvidprune.reduce(reducer, half, ratio)
    assert reduced.tokens.dtype == jnp.bfloat16
    assert int(reduced.count) == int(jvidprune.reduce(reducer, video, ratio).count)
    assert bool(jnp.isfinite(reduced.tokens.astype(jnp.float32)).all())


def check_gradient(reducer, video, ratio):
    """Gradients equal those of the frozen plan and are finite."""
    capacity = bucket_capacity(reducer.capacity(video.layout(), ratio), video.layout().total)
    budget = reducer.budget(video.layout(), ratio)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(capacity, video.features.shape[-1])), jnp.float32)

    def replace(features):
        return VideoTokens(features, video.evidence, video.frame_mask, video.grid, video.unpooled_grid)

    def loss(features, plan=None):
        found = reducer.plan(jax.lax.stop_gradient(replace(features)), budget, capacity=capacity)
        return jnp.sum(weight * with_defaults(reducer).apply(plan or found, replace(features)).tokens)

    frozen = jax.jit(lambda: reducer.plan(video, budget, capacity=capacity))()
    through = jax.jit(jax.grad(loss))(video.features)
    np.testing.assert_allclose(through, jax.jit(jax.grad(loss))(video.features, frozen), atol=1e-6)
    assert bool(jnp.isfinite(through).all())
    assert bool((through != 0).any())


def refused(call, words):
    """One sentence, with these words in it."""
    with pytest.raises(jvidprune.JvidpruneError, match=words) as caught:
        call()
    assert str(caught.value).endswith((".", "?"))
    assert "\n" not in str(caught.value)
