"""The calls users make: reduce, sweep, batches, a reducer of one's own, and the sentences for bad input."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvidprune
from jvidprune import JvidpruneError, Layout, VideoTokens, reducers
from jvidprune.expressions import split_list
from jvidprune.ops.compact import selection_plan
from jvidprune.reducers import registry
from jvidprune.reducers.exported import export_reducer
from jvidprune.reducers.programs import run_budgets


class KeepBudget(NamedTuple):
    keep: np.int32


@dataclasses.dataclass(frozen=True)
class EveryNth:
    """A user's reducer: any object of the protocol's shape, no base class and no registration."""

    needs: frozenset[str] = frozenset()

    def budget(self, layout: Layout, ratio: float) -> KeepBudget:
        return KeepBudget(np.int32(max(1, round(layout.tokens * ratio))))

    def capacity(self, layout: Layout, ratio: float) -> int:
        return layout.frames * int(self.budget(layout, ratio).keep)

    def plan(self, video: VideoTokens, budget: KeepBudget, *, capacity: int):
        keep = jnp.arange(video.features.shape[1]) < budget.keep
        return selection_plan((video.frame_mask[:, None] & keep[None, :]).reshape(-1), capacity)


def video(frames=3, tokens=16, dim=5, **kwargs):
    features = np.random.default_rng(0).normal(size=(frames, tokens, dim)).astype(np.float32)
    return VideoTokens.create(features, **kwargs)


def test_a_users_reducer_needs_no_registration():
    reduced = jvidprune.reduce(EveryNth(), video(), 0.25)
    assert int(reduced.count) == 12
    np.testing.assert_array_equal(reduced.tokens[:4], video().features[0, :4])


def test_a_sweep_compiles_once_and_equals_single_runs():
    ratios = [0.1, 0.25, 0.5, 0.75, 1.0]
    run_budgets.clear_cache()
    swept = jvidprune.sweep(EveryNth(), video(), ratios)
    assert run_budgets._cache_size() == 1
    jvidprune.sweep(EveryNth(), video(), [0.2, 0.3, 0.4, 0.6, 1.0])
    assert run_budgets._cache_size() == 1
    for number, ratio in enumerate(ratios):
        single = jvidprune.reduce(EveryNth(), video(), ratio, capacity=swept.index.shape[1])
        for one, many in zip(jax.tree.leaves(single), jax.tree.leaves(swept), strict=True):
            np.testing.assert_array_equal(one, many[number])


def test_padding_frames_change_nothing_for_the_real_ones():
    short = video(frames=2)
    padded = VideoTokens.create(
        np.concatenate([short.features, np.full((2, 16, 5), 7.0)]), frame_mask=[True, True, False, False]
    )
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), padded)
    alone = jvidprune.reduce(EveryNth(), short, 0.5)
    for reduced in [
        jvidprune.reduce(EveryNth(), padded, 0.5),
        jax.tree.map(lambda a: a[1], jvidprune.reduce_batch(EveryNth(), batch, 0.5)),
    ]:
        count = int(alone.count)
        assert int(reduced.count) == count
        np.testing.assert_array_equal(reduced.index[:count], alone.index[:count])
        np.testing.assert_array_equal(reduced.tokens[:count], alone.tokens[:count])


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan"), "much", None])
def test_ratios_outside_zero_to_one_are_refused(ratio):
    with pytest.raises(JvidpruneError, match=r"\(0, 1\]"):
        jvidprune.reduce(EveryNth(), video(), ratio)


def test_bad_input_is_named_in_one_sentence():
    bad = video()
    bad = dataclasses.replace(bad, features=bad.features.at[1, 2, 3].set(jnp.nan))
    with pytest.raises(JvidpruneError, match="features hold 1 NaN"):
        jvidprune.reduce(EveryNth(), bad, 0.5)
    with pytest.raises(JvidpruneError, match="needs the evidence attention_last"):
        jvidprune.reduce(EveryNth(frozenset({"attention_last"})), video(), 0.5)
    with pytest.raises(JvidpruneError, match="capacity 3 is too small"):
        jvidprune.reduce(EveryNth(), video(), 0.5, capacity=3)
    with pytest.raises(JvidpruneError, match="at least one"):
        jvidprune.sweep(EveryNth(), video(), [])
    with pytest.raises(JvidpruneError, match="no real frame"):
        jvidprune.reduce(EveryNth(), video(frame_mask=[False] * 3), 0.5)
    with pytest.raises(JvidpruneError, match="must follow"):
        jvidprune.reduce(EveryNth(), video(frame_mask=[True, False, True]), 0.5)
    with pytest.raises(JvidpruneError, match=r"grid 3x4 has 12 cells"):
        video(grid=(3, 4))
    with pytest.raises(JvidpruneError, match="unknown evidence 'attn'"):
        video(evidence={"attn": np.zeros((3, 16))})
    with pytest.raises(JvidpruneError, match="mask must have shape"):
        video(frame_mask=[True, True])
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), video())
    with pytest.raises(JvidpruneError, match="capacity 3 is too small"):
        jvidprune.reduce_batch(EveryNth(), batch, 0.5, capacity=3)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("attention_last", (2, 16), r"\(3, 16\)"),
        ("attention_last", (3, 9), r"\(3, 16\)"),
        ("keys", (3, 16), r"\(3, 16, Dk\)"),
        ("attention_deep", (3, 16), r"\(3, 64\)"),
        ("features_unpooled", (3, 64, 4), r"\(3, 64, 5\)"),
        ("newline", (4,), r"\(5\)"),
        ("text", (5,), r"\(L, 5\)"),
        ("attention_last", (), r"\(3, 16\)"),
    ],
)
def test_evidence_has_the_shape_that_its_name_stands_for(name, shape, wanted):
    with pytest.raises(JvidpruneError, match=f"evidence '{name}' must have shape {wanted}, got"):
        video(evidence={name: np.zeros(shape)}, unpooled_grid=(8, 8))


def test_budgets_inside_jit_count_the_frames_they_are_told():
    padded = VideoTokens.create(
        np.concatenate([video(frames=2).features, np.zeros((2, 16, 5))]), frame_mask=[True, True, False, False]
    )
    alone = jvidprune.reduce(EveryNth(), padded, 0.5)
    inside = jax.jit(lambda v: jvidprune.reduce(EveryNth(), v, 0.5, frames=2))(padded)
    assert int(inside.count) == int(alone.count)
    with pytest.raises(JvidpruneError, match="has 2 real frames, but frames is 3"):
        jvidprune.reduce(EveryNth(), padded, 0.5, frames=3)
    with pytest.raises(JvidpruneError, match="1 to 4 real ones, got 5"):
        jax.jit(lambda v: jvidprune.reduce(EveryNth(), v, 0.5, frames=5))(padded)


def test_a_method_that_runs_the_tower_is_refused_where_features_are_all_there_is(tmp_path):
    class RunsTheTower(EveryNth):
        def run_budgets(self, video, budgets, *, capacity, diagnostics):
            raise AssertionError("not reached")

    method = RunsTheTower()
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), video())
    with pytest.raises(JvidpruneError, match="reduce_batch cannot run RunsTheTower"):
        jvidprune.reduce_batch(method, batch, 0.5)
    with pytest.raises(JvidpruneError, match="SToP cannot wrap RunsTheTower"):
        reducers.get("stop", base=method)
    with pytest.raises(JvidpruneError, match="cannot export RunsTheTower"):
        export_reducer(tmp_path / "x", method, video(), 0.5)


def test_names_are_resolved_and_the_nearest_one_is_offered():
    with pytest.raises(JvidpruneError, match="Did you mean 'flashvid'"):
        reducers.get("flashvit")
    with pytest.raises(JvidpruneError, match="unknown backbone 'llava'"):
        reducers.get("flashvid", backbone="llava")
    with pytest.raises(JvidpruneError, match=r"unknown hyper-parameter of flashvid 'alhpa'.*Did you mean 'alpha'"):
        reducers.get("flashvid", alhpa=1)
    assert reducers.get("flashvid", backbone="qwen2_5_vl").min_segments == 4


def test_methods_are_written_with_their_settings_as_text():
    texts = split_list("aot, flashvid:alpha=0.5,distinct=True,stop:base=fastvid , none")
    assert texts == ["aot", "flashvid:alpha=0.5,distinct=True", "stop:base=fastvid", "none"]
    flashvid = registry.from_text(texts[1], backbone="qwen2_5_vl")
    assert (flashvid.alpha, flashvid.distinct, flashvid.min_segments) == (0.5, True, 4)
    with pytest.raises(JvidpruneError, match="key=value"):
        registry.from_text("flashvid:fast")


def test_texts_nest_and_chain_reducers():
    texts = ["stop:base=(flashvid:alpha=0.5,eps=1e-6),mu_s=0.1", "visionzip+flashvid:eps=1e+3,distinct=True", "evs"]
    assert split_list(",".join(texts)) == texts
    titles = ["SToP (base=(flashvid:alpha=0.5,eps=1e-6), mu_s=0.1)", "VisionZip → FlashVID (eps=1e+3, distinct=True)"]
    assert [registry.title(text) for text in texts] == [*titles, reducers.info("evs").title]
    stop, chain, _ = (registry.from_text(text, "llava_video") for text in texts)
    assert (stop.base.alpha, stop.base.eps, stop.mu_s) == (0.5, 1e-6, 0.1)
    assert stop.base.pruning_layer is None, "the settings of SToP's runs hold where none is given"
    assert chain.first == reducers.get("visionzip", "llava_video")
    assert chain.second == reducers.get("flashvid", "llava_video", eps=1000.0, distinct=True)
    written = "sequential:first=(stop:base=visionzip),second=(visionzip+flashvid),split=0.3"
    nested = registry.from_text(written, "llava_video")
    assert (nested.first.base.layout, nested.second.second.method, nested.split) == ("grid", "attn_div_v2", 0.3)
    with pytest.raises(JvidpruneError, match="cannot be the first stage"):
        registry.from_text("flashvid+visionzip")


def test_unknown_settings_in_a_text_are_refused():
    with pytest.raises(JvidpruneError, match="Did you mean 'alpha'"):
        registry.from_text("flashvid:alhpa=1")


def test_reduce_can_be_called_inside_jit():
    tokens = video()
    inside = jax.jit(lambda v: jvidprune.reduce(EveryNth(), v, 0.5))(tokens)
    np.testing.assert_array_equal(inside.index, jvidprune.reduce(EveryNth(), tokens, 0.5).index)
