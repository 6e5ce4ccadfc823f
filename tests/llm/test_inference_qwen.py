"""From frames to an answer with the Qwen-VL families: prompts, positions of kept tokens, time stamps, DeepStack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import PAD, write_checkpoint

from jvidprune import reducers
from jvidprune.llm.prompts.templates import template
from jvidprune.llm.rows import kept_levels
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.generate import generate
from jvidprune.models.positions import prompt_pieces
from jvidprune.models.qwen.model import spread_levels
from jvidprune.reducers.run import reduce
from jvidprune.video.decode import Clip


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def llm(request, tmp_path_factory):
    """The golden checkpoint with a vocabulary of bytes and the markers of a prompt."""
    return VideoLLM.load(write_checkpoint(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(scope="module")
def clip():
    """Five frames of a file of 50 frames at 10 a second: three grid frames, the last frame twice."""
    rng = np.random.default_rng(0)
    indices = np.array([0, 12, 24, 37, 49])
    return Clip(rng.integers(0, 256, (5, 80, 120, 3), dtype=np.uint8), indices, indices / 10, 10.0, 50)


@pytest.fixture(scope="module")
def video(llm, clip):
    return llm.encode(clip, needs=frozenset({"attention_last"}))


def whole_prompt(llm, video, question):
    """The prompt of one string, as the processor writes it."""
    frames, tokens = video.tokens.features.shape[:2]
    block = "<|vision_start|>{}<|vision_end|>"
    if llm.loaded.family == "qwen2_5_vl":
        shown = block.format("<|video_pad|>" * frames * tokens)
    else:
        stamps = ["<0.6 seconds>", "<3.0 seconds>", "<4.9 seconds>"]
        shown = "".join(text + block.format("<|video_pad|>" * tokens) for text in stamps)
    before, after = template(llm.settings.template).parts(question)
    return np.array(llm.tokenizer.encode(before + shown + after))


@pytest.mark.slow
def test_the_prompt_equals_the_processors_with_tokens_left_out(llm, video):
    model, config, ratio = llm.loaded.model, llm.loaded.config, 0.2
    reducer = reducers.get("attention_topk")
    answer = llm.ask(video, "What?", reducer=reducer, ratio=ratio, max_new_tokens=4)

    ids = whole_prompt(llm, video, "What?")
    visual = ids == PAD
    grid = (3, 2 * video.tokens.grid[0], 2 * video.tokens.grid[1])
    # Two of five frames in five seconds: 2 s a grid step.
    where = config.positions(prompt_pieces(ids, PAD, config.blocks(grid, 2.0)))
    reduced = reduce(reducer, video.tokens, ratio)
    index = np.sort(np.asarray(reduced.index)[np.asarray(reduced.valid)])
    keep = np.sort(np.concatenate([np.flatnonzero(~visual), np.flatnonzero(visual)[index]]))
    rows = np.where(visual, np.cumsum(visual) - 1, -1)
    embeds = jnp.where(
        visual[:, None], video.tokens.features.reshape(-1, 64)[np.maximum(rows, 0)], model.embed_text(jnp.asarray(ids))
    )
    options = {"next_position": np.array([where.next], np.int32)}
    if llm.loaded.family == "qwen3_vl":
        levels = video.tokens.evidence["features_deepstack"].reshape(-1, 2, 64)
        options["deepstack"] = spread_levels(levels, jnp.asarray(rows[None]))[:, :, keep]
    valid = np.ones((1, len(keep)), bool)
    expected = generate(
        model, embeds[None, keep], where.ids[:, None, keep], valid, max_new_tokens=4, eos_ids=llm.eos_ids, **options
    )
    found = [int(i) for i in np.asarray(expected)[0] if i >= 0 and i not in llm.eos_ids]
    assert list(answer.token_ids) == found
    assert (answer.kept, answer.visual, answer.prompt) == (len(index), int(visual.sum()), len(keep))

    slots, text = llm.lay_out([llm.reduce(video, reducer=reducer, ratio=ratio)], "What?", 4)
    np.testing.assert_array_equal(slots.positions[:, : slots.length], where.ids[:, keep])
    np.testing.assert_array_equal(text, ids[~visual])


def test_levels_of_merged_tokens_are_those_of_the_kept_ids(llm, video):
    reducer, ratio = reducers.get("flashvid", method="attn_div", min_segments=1), 0.3
    one = llm.reduce(video, reducer=reducer, ratio=ratio)
    reduced = one.reduced
    slots, text = llm.lay_out([one], "What?", 4)
    gathered = kept_levels([one], slots, len(text))
    if llm.loaded.family == "qwen2_5_vl":
        assert gathered is None
        return
    rows = slots.source[: slots.length] - len(text) - 1
    flat = np.asarray(video.tokens.evidence["features_deepstack"]).reshape(-1, 2, 64)
    index = np.asarray(reduced.index)
    assert (np.asarray(reduced.mass) > 1).any()
    for slot, row in enumerate(rows):
        if row < 0:
            assert not gathered[:, 0, slot].any()
            continue
        np.testing.assert_array_equal(gathered[:, 0, slot], flat[index[row]])


def test_frames_with_a_rate_stand_at_its_times(llm, clip):
    video = llm.encode(clip.frames, fps=2.0)
    one = llm.reduce(video, reducer=reducers.get("attention_topk"), ratio=0.2)
    slots, text = llm.lay_out([one], "?", 4)
    if llm.loaded.family == "qwen3_vl":
        assert "<0.2 seconds>" in llm.tokenizer.decode(text)
        return
    times = np.unique(slots.positions[0, slots.visual[0] : slots.visual[1]])
    assert np.diff(times).tolist() == [2, 2]


def test_jit_sees_one_shape_for_many_ratios(llm, video):
    reducer = reducers.get("attention_topk")
    sizes = set()
    for ratio in (0.1, 0.11, 0.12):
        slots, _ = llm.lay_out([llm.reduce(video, reducer=reducer, ratio=ratio)], "What?", 4)
        sizes.add(len(slots.source))
    assert len(sizes) == 1
    assert jax.tree.leaves(slots.rotary)[0].shape == (3, 1, len(slots.source))
