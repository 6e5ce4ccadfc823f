"""Smaller and fewer frames: what is encoded, answers as of such a video, refusals, costs, sweeps and drawings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.reducer_checks import refused
from helpers.tiny import write_checkpoint

import jvidprune
from jvidprune import EncodedVideo, Layout, reducers
from jvidprune.cli.sweep import SweepChoice
from jvidprune.costs.flops import count_ratio
from jvidprune.evals.controls import is_control
from jvidprune.evals.items import Item
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.results import make_table
from jvidprune.evals.runner import run_sweep
from jvidprune.evals.throughput import measure_throughput
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.checkpoint.published import published
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers import registry
from jvidprune.reducers.frames import Downscale, FewerFrames
from jvidprune.video.decode import Clip
from jvidprune.video.preprocess import QWEN2_5_VL, QWEN3_VL, QwenUtils, patchify, qwen_patches
from jvidprune.video.resize import resize_frames
from jvidprune.viz.decision import decision_of
from jvidprune.viz.overlay import contact_sheet
from jvidprune.viz.report import reduction_page

QWEN = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def clip():
    """Seven frames of a file of 50 frames at 10 a second: four grid frames of pairs, the last frame twice."""
    rng = np.random.default_rng(0)
    indices = np.array([0, 8, 16, 24, 33, 41, 49])
    return Clip(rng.integers(0, 256, (7, 80, 120, 3), dtype=np.uint8), indices, indices / 10, 10.0, 50)


@pytest.fixture(scope="module", params=QWEN)
def llm(request, tmp_path_factory):
    return VideoLLM.load(write_checkpoint(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(scope="module", params=("llava_onevision", "molmo2"))
def fixed(request, tmp_path_factory):
    """Models whose towers read frames of one size."""
    return VideoLLM.load(tiny_checkpoints.write(request.param, tmp_path_factory.mktemp("fixed") / request.param))


@pytest.mark.parametrize("grid", [(14, 14), (9, 20), (1, 7), (3, 3), (30, 5)])
def test_grids_are_those_of_the_specification(grid):
    h, w = grid
    for ratio in (0.01, 0.1, 0.3, 0.5, 0.9, 1.0):
        k = max(1, round(ratio * h * w))
        rows, columns = Downscale().seen(Layout(6, grid), ratio).grid
        found = [(a, b) for a in range(1, h + 1) for b in range(1, w + 1) if a * b <= k]
        found = [(a, b) for a, b in found if max(a * w, b * h) <= 2 * min(a * w, b * h)]
        most = max((a * b for a, b in found), default=1)
        assert rows * columns == most
        kept = Downscale(keep_aspect=True).seen(Layout(6, grid), ratio).grid
        down = max(1, math.floor(math.sqrt(k * h / w)))
        assert kept == (min(h, down), min(w, max(1, k // min(h, down))))
        assert FewerFrames().seen(Layout(6, grid), ratio) == Layout(max(1, round(6 * ratio)), grid)
    assert Downscale().seen(Layout(6, grid), 1.0).grid == grid
    assert [Downscale().seen(Layout(2, (14, 14)), k / 196).grid for k in (20, 19, 49, 2)] == [
        *((4, 5), (3, 6), (7, 7), (1, 2))
    ]


@pytest.mark.parametrize("family", [QWEN2_5_VL, QWEN3_VL], ids=QWEN)
@pytest.mark.parametrize("utils", [None, QwenUtils()], ids=["processor", "qwen-vl-utils"])
def test_pixels_are_the_original_frames_resized_once_whatever_the_limits(clip, family, utils):
    unit = family.patch * family.merge
    made = qwen_patches(clip.frames, family, utils=utils, size=(unit, 2 * unit))
    assert unit * 2 * unit < family.min_pixels or family.rule == "volume", "the processor's rule would enlarge it"
    resized = resize_frames(
        clip.frames, (unit, 2 * unit), filter="torchvision" if utils is None else "torchvision_float"
    )
    alone = qwen_patches(resized.transpose(0, 2, 3, 1), dataclasses.replace(family, do_resize=False))
    assert made.grid == alone.grid == (4, 2, 4)
    np.testing.assert_array_equal(made.values, alone.values)
    ordinary = qwen_patches(clip.frames, family, utils=utils)
    again = resize_frames(clip.frames, (unit * ordinary.grid[1] // 2, unit * ordinary.grid[2] // 2))
    twice = patchify(resize_frames(again.transpose(0, 2, 3, 1), (unit, 2 * unit)), family)
    assert (twice.values != patchify(resized, family).values).any(), "of frames that were resized before"


@pytest.mark.parametrize("text", ["downscale", "downscale(keep_aspect=True)", "fewer_frames"])
@pytest.mark.slow
def test_an_answer_is_that_of_a_video_of_such_frames(llm, clip, text):
    ratio = 0.3
    encoded = llm.encode(clip)
    whole = encoded.tokens.layout()
    seen = llm.reducer(text).seen(whole, ratio)
    picks = np.arange(7)
    if text == "fewer_frames":
        assert seen.frames == 1
        picks = np.array([1, 5])  # the middles of two stretches of three and a half frames
    some = dataclasses.replace(clip, **{n: getattr(clip, n)[picks] for n in ("frames", "indices", "timestamps")})
    published_pixels = {"qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}[llm.loaded.family]
    pixels = dataclasses.replace(published_pixels, patch=4, do_resize=False)
    size = 8 * seen.grid[0], 8 * seen.grid[1]
    resized = resize_frames(some.frames, size, filter="torchvision_float")
    small = jax.tree.map(jnp.asarray, qwen_patches(resized.transpose(0, 2, 3, 1), pixels))
    tokens = llm.loaded.model.encode(small)
    by_hand = llm.ask(EncodedVideo(tokens, some), "What?", reducer="none", ratio=1.0, max_new_tokens=4)

    for source in (clip, encoded):
        answer = llm.ask(source, "What?", reducer=text, ratio=ratio, max_new_tokens=4)
        assert answer.token_ids == by_hand.token_ids
        assert (answer.kept, answer.visual, answer.prompt) == (seen.total, whole.total, by_hand.prompt)
    # Of a file or frames nothing else is encoded, so nothing is reduced.
    stages = llm.ask(clip, "What?", reducer=text, ratio=ratio, max_new_tokens=1).stages
    assert [stage.name for stage in stages] == ["decode", "encode", "prefill", "generate"]
    assert stages[1].tokens == seen.total
    one = llm.reduce(encoded, reducer=text, ratio=ratio)
    np.testing.assert_allclose(one.reduced.tokens[: one.kept], tokens.features.reshape(-1, 64), atol=1e-5)
    np.testing.assert_array_equal(one.video.clip.timestamps, some.timestamps)


def test_the_whole_ratio_is_the_video_itself(llm, clip):
    encoded = llm.encode(clip)
    plain = llm.ask(encoded, "What?", reducer="none", ratio=1.0, max_new_tokens=3)
    for text in ("downscale", "fewer_frames"):
        one = llm.reduce(encoded, reducer=text, ratio=1.0)
        assert one.video is encoded
        assert llm.ask(one, "What?", max_new_tokens=3).token_ids == plain.token_ids
        assert llm.ask(clip, "What?", reducer=text, ratio=1.0, max_new_tokens=3).token_ids == plain.token_ids


def test_towers_of_one_size_refuse_smaller_frames_and_take_fewer(fixed):
    rng = np.random.default_rng(1)
    clip = Clip.from_frames(rng.integers(0, 256, (6, 50, 60, 3), dtype=np.uint8), fps=2.0)
    for call in (
        lambda: fixed.reducer("downscale"),
        lambda: fixed.ask(clip, "?", reducer=Downscale(), ratio=0.3),
        lambda: fixed.reduce(fixed.encode(clip), reducer=Downscale(), ratio=0.3),
    ):
        refused(call, "downscale needs a tower .* pool_space")
    some = dataclasses.replace(
        clip, frames=clip.frames[[1, 4]], indices=clip.indices[[1, 4]], timestamps=clip.timestamps[[1, 4]]
    )
    by_hand = fixed.ask(some, "What?", reducer="none", ratio=1.0, max_new_tokens=3)
    found = fixed.ask(clip, "What?", reducer="fewer_frames", ratio=0.3, max_new_tokens=3)
    assert found.token_ids == by_hand.token_ids
    assert (found.kept, found.visual) == (32, 96)


def test_what_has_no_frames_cannot_be_made_of_others(llm, clip):
    tokens = llm.encode(clip).tokens
    for name in registry.framed():
        refused(lambda name=name: jvidprune.reduce(name, tokens, 0.3), "tokens alone cannot be reduced by")
        refused(lambda name=name: reducers.from_text(f"stop(base={name})"), "cannot wrap")
        refused(lambda name=name: reducers.from_text(f"{name}+divprune"), "cannot chain")
        refused(lambda name=name: llm.reduce(EncodedVideo(tokens), reducer=name, ratio=0.3), "were not kept")
        refused(lambda name=name: reducers.get(name).plan(tokens, 0, capacity=1), "have no plan")
        assert name in [info.name for info, _ in registry.listing()]
        assert reducers.from_text(reducers.expression(reducers.get(name))) == reducers.get(name)


def test_the_tower_becomes_cheaper(llm):
    for name in ("qwen2.5-vl-7b", "qwen3-vl-8b"):
        config, layout = published(name), Layout(16, (14, 14))
        whole, tenth, pooled = (
            count_ratio(config, layout, reducer=reducers.get(text), ratio=ratio)
            for text, ratio in (("none", 1.0), ("downscale", 0.1), ("pool_space", 0.1))
        )
        small = count_ratio(config, Layout(16, (4, 5)), reducer=reducers.get("none"), ratio=1.0)
        assert tenth.of("tower", "projector", "prefill") == small.of("tower", "projector", "prefill")
        assert tenth.of("tower") < whole.of("tower") / 9
        assert tenth.visual == whole.visual
        assert pooled.of("tower") == whole.of("tower")
        assert pooled.of("prefill") == tenth.of("prefill")
    fewer = count_ratio(published("llava-onevision-7b"), OV, reducer=FewerFrames(), ratio=0.25)
    assert fewer.of("tower") == count_ratio(
        published("llava-onevision-7b"), OV._replace(frames=8), reducer=reducers.get("none"), ratio=1.0
    ).of("tower")


OV = Layout(32, (14, 14), (27, 27))


def test_pictures_show_what_was_encoded(llm, clip):
    encoded = llm.encode(clip)
    whole = encoded.tokens.layout()
    made = [decision_of(llm.reduce(encoded, reducer=n, ratio=0.3), n) for n in ("downscale", "fewer_frames", "random")]
    small, few, plain = made
    seen = Downscale().seen(whole, 0.3)
    assert (small.grid, small.frames, small.count) == (seen.grid, 4, seen.total)
    assert small.kept().all()
    assert small.achieved == seen.total / whole.total
    assert (few.grid, few.frames) == (whole.grid, 4)
    assert few.per_frame().tolist() == [0, 0, whole.tokens, 0]
    for one in made:
        assert sum(one.fates().values()) == whole.total == one.total
    assert plain.whole is None
    assert contact_sheet(clip.frames[::2], made, list("abcd"), width=40).shape[2] == 3
    page = reduction_page(clip.frames[::2], made, list("abcd"), title="T", subtitle="S", width=40)
    assert page.replace(" ", "").count(f'"total":{whole.total}') == 3


@pytest.mark.slow
def test_a_sweep_encodes_a_clip_once_a_ratio(tmp_path):
    llm = VideoLLM.load(tiny_checkpoints.write("qwen3_vl", tmp_path / "model"))
    item = Procedural("test", clips=1, side=56)[0]
    controls = {name: llm.reducer(name) for name in ("downscale", "pool_space")}
    task, plan = OneQuestion(item), SweepPlan({}, (0.3, 0.1), 1, controls=controls)
    found = run_sweep(llm, task, plan, tmp_path / "out")
    own, others = (
        {one["ratio"]: one for one in found.batches if one["method"] == name} for name in ("downscale", "pool_space")
    )
    assert list(own) == [0.3, 0.1]
    encode = {one["encode"] for one in found.batches if one["method"] != "downscale"}
    assert len(encode) == 1
    assert not encode & {one["encode"] for one in own.values()}
    kept = {(one["method"], one["ratio"]): (one["kept"], one["visual"]) for one in found.samples}
    for ratio, one in own.items():
        assert one["reduce"] == 0.0 < one["encode"]
        assert kept["downscale", ratio] == kept["pool_space", ratio]
        assert one["tflops"] < others[ratio]["tflops"]
        assert one["prefill_tflops"] == others[ratio]["prefill_tflops"]
        alone = llm.ask(item.load(), item.questions[0].prompt(), reducer="downscale", ratio=ratio, max_new_tokens=1)
        (sample,) = (r for r in found.samples if (r["method"], r["ratio"]) == ("downscale", ratio))
        assert sample["prediction"] == alone.text
    speeds = {
        one.method: one for one in measure_throughput(llm, task, single(plan), found, limit=1) if one.ratio == 0.1
    }
    small, pooled = speeds["downscale"], speeds["pool_space"]
    assert small.reduce == 0.0 < pooled.reduce
    assert small.encode != pooled.encode
    assert small.kept == pooled.kept
    assert small.alone.memory <= pooled.alone.memory, "its tower holds less"
    table = make_table(found, task, {name: registry.title(name) for name in controls}, draws=10)
    assert table.controls == ("downscale", "pool_space")


def single(plan):
    """The plan at its last ratio alone: enough to measure."""
    return dataclasses.replace(plan, ratios=plan.ratios[-1:])


@dataclasses.dataclass
class OneQuestion:
    """A task of one question."""

    item: Item
    name = "one"
    categories = ("all",)

    def chance(self, question):
        return 0.5

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return dataclasses.replace(self.item, questions=self.item.questions[:1])

    def fingerprint(self):
        return {}


def test_it_is_a_control_by_default_where_the_tower_reads_frames_of_any_size(llm, fixed):
    assert "downscale" in SweepChoice().controls_for(llm)
    assert SweepChoice().controls_for(fixed) == [n for n in SweepChoice().controls_for(llm) if n != "downscale"]
    assert SweepChoice(controls="downscale,pool_time").controls_for(fixed) == ["downscale", "pool_time"], "asked for"
    assert all(is_control(name) for name in registry.framed())
