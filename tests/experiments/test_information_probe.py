"""The information probe against cuts of the library that keep one window, on families with every kind of prompt."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny

from experiments.information_horizon import Windows, horizon, lay_out, measure, tails_of
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.protocol import Chosen, CutRule
from jvidprune.evals.tasks import benchmark_of
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.prefill import prefill
from jvidprune.models.qwen import pixels as qwen_pixels
from jvidprune.tokens import InnerStage, Kept
from jvidprune.video.preprocess import qwen_patches

QUESTION = "What?"


@dataclasses.dataclass(frozen=True)
class KeepBlock(CutRule):
    """Of the visual tokens those of one block, the stage's seed."""

    def choose(self, inputs, state):
        stays = ~state.visual | (state.block == inputs.seed)
        return Chosen(state.hidden, stays, stays.astype(np.float32))


def small_patches(config, given):
    """Qwen's pixels without the lower limit of 128 tokens a frame."""
    rules = dataclasses.replace(qwen_pixels._PIXELS[config.family], patch=config.vision.patch_size, min_pixels=64)
    return functools.partial(qwen_patches, family=rules)


def reduced_video(family, folder):
    llm = VideoLLM.load(tiny.write(family, folder / family, pooling_head=False))
    pair = 1
    if llm.settings.grid is not None:
        llm, pair = dataclasses.replace(llm, settings=dataclasses.replace(llm.settings, pixels=small_patches)), 2
    frames = np.random.default_rng(0).integers(0, 256, (3 * pair, 32, 32, 3), dtype=np.uint8)
    return llm, llm.reduce(llm.encode(frames, fps=2.0), reducer="none", ratio=1.0)


def cut_probability(llm, video, question, windows, prompt, layer, window, label, *, compact):
    """What the library's own prefill gives with a cut that keeps one window, or none of them (window None)."""
    slots, ids = llm.lay_out([video], question, reserve=1)
    held, size = slots.source - len(ids) - 1, len(slots.source)
    of = windows.of(video.video.tokens.features.shape[0], video.video.tokens.grid)
    row = np.asarray(video.reduced.index)[np.maximum(held, 0)]
    visual = slots.valid & (held >= -1)
    block = np.where(held >= 0, of[np.minimum(row, len(of) - 1)], size - 1)
    stage = InnerStage(
        layer, KeepBlock(), Kept(number=int(np.bincount(of).max())), seed=size - 2 if window is None else window
    )
    inner = Inner.create(
        [stage],
        visual[None],
        slots.valid[None],
        layers=llm.loaded.config.text.layers,
        compact=compact,
        block=block[None],
    )
    parts = {"deepstack": prompt.deepstack, "bidirectional": prompt.bidirectional, "inner": inner}
    logits, _ = prefill(llm.loaded.model, prompt.embeds, prompt.positions, prompt.valid, capacity=size, **parts)
    return float(jax.nn.softmax(logits[0])[label])


def check(llm, video, question, windows, cases):
    prompt = lay_out(llm, video, question, windows)
    label = 65
    full, scores, best = measure(llm.loaded.model, prompt, label)
    layers = llm.loaded.config.text.layers
    assert scores.shape == (layers - 1, len(prompt.index))
    assert best.shape == (layers,)
    parts = {"deepstack": prompt.deepstack, "bidirectional": prompt.bidirectional}
    logits, _ = prefill(
        llm.loaded.model, prompt.embeds, prompt.positions, prompt.valid, capacity=prompt.embeds.shape[1], **parts
    )
    assert full == pytest.approx(float(jax.nn.softmax(logits[0])[label]), rel=1e-4)
    for layer, window in cases:
        found = scores[layer - 1, -1 if window is None else window]
        for compact in (False, True):
            wanted = cut_probability(llm, video, question, windows, prompt, layer, window, label, compact=compact)
            assert found == pytest.approx(wanted, rel=2e-4), (layer, window, compact)
    return prompt, label, scores


@pytest.mark.parametrize("family", ["llava_onevision", "llava_video", "qwen3_vl", "molmo2"])
@pytest.mark.slow
def test_tails_equal_the_librarys_cuts(family, tmp_path):
    llm, video = reduced_video(family, tmp_path)
    _, _, scores = check(llm, video, QUESTION, Windows(2), [(1, 0), (1, 7), (1, None)])
    assert len(set(scores[0].tolist())) > 6


@pytest.mark.slow
def test_every_layer_of_the_embedded_model_equals_the_librarys_cuts_and_parts_equal_the_whole():
    llm = VideoLLM.load()
    item = benchmark_of(llm, "test", 1)[0]
    video = llm.reduce(llm.encode(item.load()), reducer="none", ratio=1.0)
    # A quarter of the frames and of the picture each.
    frames, (rows, columns) = video.video.tokens.features.shape[0], video.video.tokens.grid
    assert rows == columns
    windows = Windows(rows // 2, frames=frames // 4)
    question = item.questions[0].prompt()
    last = llm.loaded.config.text.layers - 1
    prompt, label, scores = check(llm, video, question, windows, [(1, 3), (4, 0), (last, 15), (4, None)])
    assert scores.shape[1] == 4 * 4 + 1
    np.testing.assert_allclose(measure(llm.loaded.model, prompt, label, at_once=7)[1], scores, rtol=1e-4, atol=1e-7)


def test_windows_are_blocks_in_raster_order_and_smaller_at_the_edges():
    found = Windows(2, frames=2).of(3, (3, 4)).reshape(3, 3, 4)
    np.testing.assert_array_equal(found[0], [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]])
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0] + 4)


def test_tails_hold_all_text_and_one_window_in_order():
    window = np.array([-1, 0, 1, 0, -1, 1, -1, -1])
    text = np.array([True, False, False, False, True, False, True, False])
    index, there = tails_of(window, text, 2)
    kept = [row[used].tolist() for row, used in zip(index, there, strict=True)]
    assert kept == [[0, 1, 3, 4, 6], [0, 2, 4, 5, 6], [0, 4, 6]]


def test_the_horizon_is_where_the_spread_stays_small():
    assert horizon([0.5, 0.01, 0.3, 0.01, 0.0], 1, 0.02) == 4
    assert horizon([0.0, 0.01], 1, 0.02) == 1
    assert horizon([0.5, 0.3], 1, 0.02) is None
