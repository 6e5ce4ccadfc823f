"""VidCom2: golden files of both implementations, a plain numpy version, counts, padding."""

import numpy as np
from helpers import reducer_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune import Layout, VideoTokens
from jvidprune.reducers.vidcom2 import VidCom2


def by_hand(x, ratio, exact):
    """Ids kept, in float64 and with plain loops over frames."""
    frames, n, d = x.shape
    channels = np.sort(np.argsort(x.reshape(-1, d).var(axis=0), kind="stable")[: max(d // 2, int(exact))])
    s = x[:, :, channels]
    z = s / np.maximum(np.linalg.norm(s, axis=-1, keepdims=True), 1e-12)

    def kernel(centre):
        squared = ((z - centre) ** 2).sum(-1)
        return sum(np.exp(-squared / (2 * alpha)) for alpha in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    video = kernel(z.reshape(-1, z.shape[-1]).mean(0))
    score = video + kernel(z.mean(axis=1, keepdims=True))
    unusual = -video.mean(axis=1)
    heat = np.exp((unusual - unusual.max()) / 0.01)
    scale = np.minimum(ratio * (1 + heat / heat.sum() - 1 / frames), 1.0)
    counts = np.maximum(np.round(scale * n), 1).astype(int)
    keep = np.zeros((frames, n), bool)
    for t in range(frames):
        keep[t, np.argsort(score[t], kind="stable")[: counts[t]]] = True
    if exact:
        target = min(max(frames, int(frames * n * (1 - (1 - ratio)))), frames * n)
        order = np.lexsort((score.reshape(-1), ~keep.reshape(-1)))[:target]
        return np.sort(order)
    return np.flatnonzero(keep)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 99), ratio=st.sampled_from([0.01, 0.25, 0.6, 1.0]), exact=st.booleans())
def test_kept_tokens_equal_a_plain_version(seed, ratio, exact):
    video = checks.make_video(frames=5, dim=9, seed=seed)
    reducer = VidCom2(variant="vllm" if exact else "official")
    reduced = checks.reduce(reducer, video, ratio)
    expected = by_hand(np.asarray(video.features, np.float64), ratio, exact)
    np.testing.assert_array_equal(checks.valid_rows(reduced)[0], expected)
    checks.check_copies(video, reduced)


def test_deepstack_levels_change_the_scores_like_wider_features():
    video = checks.make_video()
    levels = np.asarray(video.evidence["features_deepstack"]).reshape(6, 20, -1)
    wide = VideoTokens.create(np.concatenate([video.features, levels], axis=-1), grid=(4, 5))
    ours = checks.reduce(VidCom2(variant="vllm", deepstack=True), video, 0.4)
    np.testing.assert_array_equal(ours.index, checks.reduce(VidCom2(variant="vllm"), wide, 0.4).index)
    assert not np.array_equal(ours.index, checks.reduce(VidCom2(variant="vllm"), video, 0.4).index)


def test_one_frame_one_channel_and_identical_frames():
    assert int(checks.reduce(VidCom2(), checks.make_video(frames=1), 0.25).count) == 5
    thin = VideoTokens.create(np.asarray(checks.make_video(frames=2).features)[..., :1], grid=(4, 5))
    assert int(checks.reduce(VidCom2(variant="vllm"), thin, 0.5).count) == 20
    # No channel is left for the authors' code: all scores tie, the lowest ids stay.
    ids, _ = checks.valid_rows(checks.reduce(VidCom2(), thin, 0.5))
    np.testing.assert_array_equal(ids, [*range(10), *range(20, 30)])
    frame = np.asarray(checks.make_video(frames=1).features)
    still = VideoTokens.create(np.repeat(frame, 4, axis=0), grid=(4, 5))
    ids, _ = checks.valid_rows(checks.reduce(VidCom2(), still, 0.3))
    np.testing.assert_array_equal(np.bincount(ids // 20), [6, 6, 6, 6])


def test_the_exact_variant_counts_like_vllm():
    layout = Layout(16, (10, 10))
    assert int(VidCom2(variant="vllm").budget(layout, 0.1).target) == int(1600 * (1 - 0.9)) == 159
    assert int(VidCom2(variant="vllm").budget(layout, 0.001).target) == 16


def test_impossible_settings_are_refused():
    checks.refused(lambda: VidCom2(variant="b"), "variant 'b'")
    checks.refused(lambda: VidCom2(temperature=0.0), "temperature must be at least 1e-06, got 0")
