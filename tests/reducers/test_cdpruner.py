"""CDPruner: golden files, plain determinants, both kernels, halves, relevance of every source, degenerate inputs."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

import jvidprune
from jvidprune import VideoTokens, reducers
from jvidprune.reducers.cdpruner import CDPruner

OFFICIAL = CDPruner(variant="official", relevance="joint")


def asked(seed=0, frames=4, grid=(4, 5), dim=24, **kwargs):
    """A video with a question in every form that relevance can be made from."""
    rng = np.random.default_rng(seed)
    n = grid[0] * grid[1]
    features = rng.normal(size=(1, n, dim)) + 0.7 * rng.normal(size=(frames, n, dim))
    evidence = {
        "text": rng.normal(size=(5, dim)).astype(np.float32),
        "joint_image": rng.normal(size=(frames, n, 6)).astype(np.float32),
        "joint_text": rng.normal(size=(2, 6)).astype(np.float32),
        "relevance": rng.random((frames, n)).astype(np.float32),
    }
    return VideoTokens.create(features.astype(np.float32), evidence, grid=grid, **kwargs)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def greedy(kernel, count):
    """The set grown by whichever token makes the determinant largest."""
    picks = []
    for _ in range(count):
        rest = [j for j in range(len(kernel)) if j not in picks]
        values = [np.linalg.slogdet(kernel[np.ix_([*picks, j], [*picks, j])])[1] for j in rest]
        picks.append(rest[int(np.argmax(values))])
    return picks


def authors(video, source):
    """Kernels of the frames as the authors' code makes them."""
    x = np.asarray(video.features, np.float64)
    e = {name: np.asarray(value, np.float64) for name, value in video.evidence.items()}
    rho = {
        "joint": lambda: -(unit(e["joint_image"]) @ unit(e["joint_text"]).T).mean(-1),
        "given": lambda: e["relevance"],
        "text": lambda: unit(x) @ unit(e["text"].mean(0)),
    }[source]()
    r = (rho - rho.min() + 1e-6) / (rho.max() - rho.min())
    return [a[:, None] * (v @ v.T) * a for a, v in zip(r, unit(x), strict=True)]


@settings(max_examples=9, deadline=None)
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([0.05, 0.2, 0.6]),
    source=st.sampled_from(["joint", "given", "text"]),
)
def test_the_authors_variant_grows_the_largest_determinant(seed, ratio, source):
    video = asked(seed)
    kept = max(1, int(20 * ratio + 0.5))
    expected = [20 * t + j for t, kernel in enumerate(authors(video, source)) for j in sorted(greedy(kernel, kept))]
    reduced = checks.reduce(CDPruner(variant="official", relevance=source), video, ratio)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], expected)
    checks.check_copies(video, reduced)


@settings(max_examples=9, deadline=None)
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([0.05, 0.25, 0.55]),
    setting=st.sampled_from([("mixed", True, 0.5), ("mixed", False, 0.5), ("exponential", True, 0.3)]),
)
def test_the_llm_variant_grows_the_largest_determinant_of_each_part(seed, ratio, setting):
    kernel, split, weight = setting
    video = asked(seed)
    x = np.asarray(video.features, np.float64)
    v = x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)
    text = np.asarray(video.evidence["text"], np.float64).mean(0)
    rho = v @ (text / np.sqrt((text * text).sum() + 1e-6))
    kept = max(1, int(20 * ratio + 0.5))
    parts = [(0, 10, kept // 2), (10, 20, kept - kept // 2)] if split else [(0, 20, kept)]
    expected = []
    for t in range(4):
        for start, stop, count in parts:
            r = (rho[t, start:stop] - rho[t, start:stop].min()) / (np.ptp(rho[t, start:stop]) + 1e-6)
            s = v[t, start:stop] @ v[t, start:stop].T
            if kernel == "mixed":
                joined = (1 - weight) * s + weight * r[:, None] * s * r
            else:
                r = np.exp(weight / (2 * (1 - weight)) * r)
                joined = r[:, None] * s * r
            expected += sorted(20 * t + start + j for j in greedy(joined, count))
    reduced = checks.reduce(CDPruner(kernel=kernel, split=split, weight=weight), video, ratio)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], expected)


def test_the_whole_video_can_be_one_list():
    video = asked(3)
    whole = VideoTokens.create(video.features.reshape(1, 80, -1), {"text": video.evidence["text"]}, grid=(1, 80))
    for reducer in (CDPruner(scope="video"), CDPruner("official", scope="video")):
        one, other = checks.reduce(reducer, video, 0.2), checks.reduce(reducer, whole, 0.2)
        np.testing.assert_array_equal(one.index, other.index)
        assert int(one.count) == 16


@pytest.mark.parametrize("reducer", [CDPruner(), OFFICIAL], ids=["llm_embedding", "official"])
def test_a_larger_budget_keeps_what_a_smaller_one_kept(reducer):
    swept = jvidprune.sweep(reducer, asked(frames=3), [0.1, 0.2, 0.4, 1.0])
    kept = [set(np.asarray(ids)[valid].tolist()) for ids, valid in zip(swept.index, swept.valid, strict=True)]
    assert kept[0] < kept[1] < kept[2] < kept[3] == set(range(60))


@pytest.mark.parametrize("reducer", [CDPruner("official", "given"), CDPruner(relevance="given", split=False)])
def test_repeated_zero_and_equally_relevant_tokens_still_give_k_of_them(reducer):
    features = np.ones((2, 20, 24), np.float32)
    features[:, 7] = 0.0
    video = VideoTokens.create(features, {"relevance": np.ones((2, 20), np.float32)}, grid=(4, 5))
    for ratio in (0.3, 1.0):
        reduced = checks.reduce(reducer, video, ratio)
        assert int(reduced.count) == int(reduced.valid.sum()) == 40 * ratio
        assert bool(jnp.isfinite(reduced.tokens).all())
    ids, _ = checks.valid_rows(checks.reduce(CDPruner("official", "given"), video, 0.3))
    # One of the equal ones says all; behind it the lowest indices follow.
    np.testing.assert_array_equal(ids[:6], np.arange(6))


def test_more_picks_than_directions():
    rng = np.random.default_rng(0)
    video = VideoTokens.create(rng.normal(size=(1, 36, 4)), {"relevance": rng.random((1, 36))}, grid=(6, 6))
    reduced = checks.reduce(CDPruner("official", "given"), video, 34 / 36)
    assert int(reduced.count) == int(reduced.valid.sum()) == 34


def test_the_most_relevant_token_comes_first_and_the_range_is_of_all_frames():
    video = asked(5)
    reduced = jvidprune.reduce(CDPruner("official", "given"), video, 0.05, diagnostics=True)
    relevance = np.asarray(video.evidence["relevance"])
    np.testing.assert_array_equal(np.asarray(reduced.diagnostics["order"])[:, 0, 0], relevance.argmax(1))
    assert (np.asarray(reduced.diagnostics["relevance"]) > 0.9999).sum() == 1
    each = jvidprune.reduce(CDPruner("official", "given", range="each"), video, 0.05, diagnostics=True)
    assert (np.asarray(each.diagnostics["relevance"]) > 0.9999).sum() == 4


@pytest.mark.slow
def test_odd_lists_split_in_the_middle_and_chains_carry_the_question():
    video = asked(grid=(3, 5), frames=2)
    ids, _ = checks.valid_rows(checks.reduce(CDPruner(), video, 5 / 15))
    assert [int((ids < 7).sum()), int(((ids >= 7) & (ids < 15)).sum())] == [2, 3]
    chain = reducers.registry.from_text("divprune:scope=frame+cdpruner")
    assert int(checks.reduce(chain, asked(), 0.1).count) == 8
    first = reducers.registry.from_text("cdpruner+divprune")
    assert int(checks.reduce(first, asked(), 0.1).count) == 8
    wrapped = checks.reduce(reducers.get("stop", base="cdpruner"), asked(), 0.3)
    np.testing.assert_array_equal(wrapped.index, checks.reduce(CDPruner(), asked(), 0.3).index)


def test_impossible_settings_and_missing_questions_are_refused():
    checks.refused(lambda: CDPruner(variant="openvino"), "openvino")
    checks.refused(lambda: CDPruner(relevance="clip"), "clip")
    checks.refused(lambda: CDPruner(weight=1.5), r"lie in \[0, 1\], got 1.5")
    checks.refused(lambda: checks.reduce(CDPruner(), checks.make_video(), 0.5), "needs the evidence text")
    checks.refused(lambda: checks.reduce(OFFICIAL, checks.make_video(), 0.5), "joint_image, joint_text")


@pytest.mark.slow
def test_the_whole_video_as_one_list_passes_the_common_checks():
    """Here and not with all others: more picks than the features have directions hang on rounding."""
    reducer = CDPruner(scope="video")
    checks.check_sweep(reducer, asked(frames=3), [0.05, 0.3, 0.75, 1.0])
    checks.check_padding(reducer, asked(frames=3), 0.4)
    checks.check_bf16(reducer, asked(frames=3), 0.4)
    checks.check_gradient(reducer, asked(frames=2), 0.6)
