"""Mixture of depths: schedules for a ratio, counts, routers from files, costs, and a question end to end."""

import dataclasses

import numpy as np
import pytest
from helpers import reducer_checks as checks
from helpers import tiny_checkpoints as tiny

from jvidprune import reducers
from jvidprune.costs.flops import count_ratio
from jvidprune.costs.flops_model import segments
from jvidprune.evals.identity import plain
from jvidprune.evals.pairs import possible_ratios
from jvidprune.llm import rows
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.checkpoint.published import published
from jvidprune.reducers.mod import MoD, Truncated, mean_share
from jvidprune.reducers.serialise import SavedPruning, load_pruning, save_pruning
from jvidprune.reducers.videollm_mod import AtLeastOne, VideoLLMMoD
from jvidprune.tokens import Layout
from jvidprune.weights import Weights

LAYERS, WIDTH = tiny.LAYERS, tiny.WIDTH


def router(layers=(1,), width=WIDTH, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {f"layers.{layer}.weight": (scale * rng.normal(size=width)).astype("f4") for layer in layers}
    return Weights.of(arrays | {f"layers.{layer}.bias": np.float32(0.2) for layer in layers})


def schedule(reducer, ratio):
    return [(stage.layer, stage.kept.share) for stage in reducer.inner(ratio)]


def test_the_released_schedule_is_that_of_its_mean():
    """Layers 8 to 31 of 32 from 0.844 to 0.15: 53.8 % of the KV cache, as its README says."""
    given = MoD(factor=0.5).shares(1.0)
    assert mean_share(given, 32) == pytest.approx(0.5375, abs=1e-4)
    found = MoD().shares(mean_share(given, 32))
    assert [layer for layer, _ in found] == list(range(8, 32))
    np.testing.assert_allclose([share for _, share in found], [share for _, share in given], atol=1e-9)


@pytest.mark.parametrize("depth", [24, 28, 32])
@pytest.mark.parametrize("name", ["shiftedcos_decay", "shiftedlinear_decay", "interleave", "deep_all"])
def test_the_mean_share_over_layers_is_the_ratio(depth, name):
    """A curve has steps where a layer leaves it, of a layer's part at most; it never keeps more than was asked for."""
    made = MoD(schedule=name, depth=depth)
    for ratio in (0.55, 0.7, 0.9):
        found = mean_share(made.shares(ratio), depth)
        step = (1 - made.highest) / depth if name.endswith("_decay") else 0.0
        assert ratio - step - 1e-9 <= found <= ratio + 1e-9
    assert mean_share(made.shares(1.0), depth) == pytest.approx(1.0)


def test_counts_are_float32_products_cut_off():
    """0.29 * 100 is 28.999999999999996 in float64 and 29 in float32."""
    assert Truncated(0.29).count(100) == int(np.float32(100) * np.float32(0.29)) == 29
    assert [Truncated(0.5).count(n) for n in (0, 1, 7)] == [0, 0, 3]
    assert [AtLeastOne(0.2).count(n) for n in (0, 1, 2, 12, 13, 196)] == [0, 1, 1, 2, 3, 39]


def test_every_other_layer_with_the_share_of_the_ratio():
    assert schedule(VideoLLMMoD(depth=32), 0.6) == [(layer, 0.2) for layer in range(1, 32, 2)]
    assert schedule(VideoLLMMoD(depth=4, share=0.25), 0.1) == [(1, 0.25), (3, 0.25)]
    assert {stage.rule.by_frame for stage in VideoLLMMoD().inner(0.6)} == {True}
    assert schedule(reducers.get("videollm_mod", "qwen3_vl", 36), 1.0)[-1] == (35, 1.0)
    assert reducers.get("mod", "llava_video", 24).depth == 24


def test_shares_that_no_schedule_has_are_refused(tmp_path):
    checks.refused(lambda: MoD(schedule="interleave").inner(0.4), "mean share of at least 0.5 over 32 layers, got 0.4")
    checks.refused(lambda: MoD().inner(0.1), "at least 0.15 over 32 layers, got 0.1.*lowest=")
    checks.refused(lambda: VideoLLMMoD().inner(0.4), "routes 14 of 28 layers.*more than 0.5, got 0.4")
    checks.refused(lambda: MoD(lowest=0.9), "lowest=0.9 and highest=0.85")
    checks.refused(lambda: MoD(schedule="interleave", factor=1.5), r"must lie in \[0, 1\], got 1.5")
    checks.refused(lambda: MoD(norm="relu_1_1"), "the gate of a router is tanh")
    checks.refused(lambda: MoD(choice="random", router=router()), "choice 'random' reads no router")
    checks.refused(lambda: MoD(router=3), "router must be weights, or the path of a safetensors file or None, got 3")
    checks.refused(lambda: MoD(router=str(tmp_path / "none")), "cannot be read as a safetensors file")
    one_layer = MoD(schedule="interleave", factor=0.5, depth=4, router=router((1,)))
    checks.refused(lambda: one_layer.inner(0.8), "the router has no layers.3.weight and layers.3.bias, but layer 3")


def test_a_sweep_leaves_out_ratios_that_the_layers_cannot_have():
    video = checks.make_video()
    possible, refused = possible_ratios(VideoLLMMoD(), video, (0.3, 0.6, 0.0))
    assert possible == (0.6, 0.0)
    assert "got 0.3" in refused[0.3]


def test_a_router_is_known_by_its_file_and_its_content(tmp_path):
    first, second = router(seed=1).write(tmp_path / "one.safetensors"), router(seed=2)
    settings = {"schedule": "interleave", "factor": 0.5, "depth": LAYERS}
    made = reducers.from_text(f"mod(schedule='interleave', factor=0.5, depth={LAYERS}, router='{first.path}')")
    assert made == MoD(**settings, router=first)
    assert hash(made) == hash(MoD(**settings, router=first))
    assert made != MoD(**settings, router=second)
    assert made.inner(0.7)[0].shared != dataclasses.replace(made, router=second).inner(0.7)[0].shared
    np.testing.assert_array_equal(made.inner(0.7)[0].weights.arrays["weight"], first.arrays["layers.1.weight"])
    # What identifies a run changes with the content, under the same path.
    second.write(tmp_path / "one.safetensors")
    other = MoD(**settings, router=first.path)
    assert plain(other)["router"]["path"] == plain(made)["router"]["path"]
    assert plain(other)["router"]["digest"] != plain(made)["router"]["digest"]
    assert reducers.from_text(reducers.expression(other)) == other
    save_pruning(tmp_path, SavedPruning(other, 0.7))
    assert load_pruning(tmp_path).reducer == other
    checks.refused(lambda: SavedPruning(MoD(router=second), 0.7).record(), "router of mod stands in no file")


def test_routed_layers_cost_the_tokens_that_run():
    """Every other layer at 0.2: 0.6 of the matrices and of the cache; the layers between read everything."""
    config, layout = published("llava-onevision-7b"), Layout(32, (14, 14), (27, 27))
    text, visual = config.text, layout.total
    made = reducers.get("videollm_mod", "llava_onevision", text.layers, share=0.2)
    parts = segments(made.inner(0.6), text.layers, tokens=visual + 60, visual=visual)
    assert [(part.start, part.stop) for part in parts] == [(layer, layer + 1) for layer in range(28)]
    ran = round(0.2 * visual) + 60
    assert [part.tokens for part in parts] == [visual + 60, ran] * 14
    assert [part.cached for part in parts] == [visual + 60, ran] * 14
    whole = count_ratio(config, layout, reducer=reducers.get("none"), ratio=1.0)
    report = count_ratio(config, layout, reducer=made, ratio=0.6)
    matrices = [
        sum(stage.terms["matrices"] for stage in one.stages if stage.name == "prefill") for one in (report, whole)
    ]
    assert matrices[0] / matrices[1] == pytest.approx(0.6, abs=0.01)
    assert report.of("reducer") == 2 * 14 * visual * text.width
    assert report.of("decode") <= whole.of("decode")
    # A schedule behind a cut counts what is left there.
    cut = reducers.get("fastv", layer=2).inner(0.25)
    both = segments((*cut, *made.inner(0.6)), text.layers, tokens=visual + 60, visual=visual)
    left = cut[0].kept.count(visual)
    assert [part.tokens for part in both[:4]] == [visual + 60, ran, left + 60, round(0.2 * left) + 60]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(tiny.write("llava_video", tmp_path_factory.mktemp("llm") / "llava_video"))


@pytest.fixture(scope="module")
def video(llm):
    frames = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return llm.encode(frames, fps=2.0)


@pytest.mark.slow
def test_questions_of_one_batch_are_answered_as_alone(llm, video, monkeypatch):
    """Two shares under one router share a batch; another router has a batch of its own. Newlines compete in frames."""
    seen, read = [], rows.prefill

    def spy(*args, **options):
        logits, cache = read(*args, **options)
        seen.append([segment.valid.sum(axis=1).tolist() for segment in cache.segments])
        return logits, cache

    monkeypatch.setattr(rows, "prefill", spy)
    first, second = router(seed=1, scale=20), router(seed=2, scale=20)
    settings = [(0.25, first), (0.5, first), (0.5, second)]
    made = [VideoLLMMoD(depth=LAYERS, share=share, router=held) for share, held in settings]
    reduced = [llm.reduce(video, reducer=one, ratio=0.9) for one in made]
    prompts = [Prompt(one, "What is shown?") for one in reduced]
    together = answer_many(llm, prompts, max_new_tokens=2, likeliest=5)
    assert len(seen) == 2
    (whole, routed), (_, other) = seen
    # 4 frames of 16 tokens and a newline behind each of their 4 rows.
    assert [n - m for n, m in zip(whole, routed, strict=True)] == [4 * 15, 4 * 10]
    assert whole[0] - other[0] == 4 * 10
    for prompt, reply in zip(prompts, together, strict=True):
        (alone,) = answer_many(llm, [prompt], max_new_tokens=2, likeliest=5)
        assert alone.token_ids == reply.token_ids
        np.testing.assert_allclose([p for _, p in alone.likeliest], [p for _, p in reply.likeliest], atol=1e-4)
    likeliest = [[p for _, p in reply.likeliest] for reply in together]
    assert np.abs(np.subtract(likeliest[1], likeliest[2])).max() > 1e-5


def test_a_router_of_another_width_is_refused(llm, video):
    wide = MoD(schedule="interleave", factor=0.5, depth=LAYERS, router=router(width=WIDTH + 1))
    checks.refused(
        lambda: llm.ask(video, "What?", reducer=wide, ratio=0.8, max_new_tokens=1), f"width {WIDTH + 1}.*have {WIDTH}"
    )
