"""Still pictures where towers read frames of any size: their own limits, one grid frame, no time in the prompt."""

import json

import numpy as np
import pytest
from helpers import tiny_checkpoints
from PIL import Image

from jvidprune import VideoLLM
from jvidprune.llm.prompts.messages import Message, Visual
from jvidprune.models import family as families
from jvidprune.video.decode import Clip

QWEN = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")
READ = (*QWEN, "video_llama_3")
"""Families whose towers read frames of any size; the others cut pictures into tiles (`test_tiles`)."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny")
    return {family: tiny_checkpoints.write(family, made / family) for family in families.names()}


@pytest.fixture(scope="module", params=READ)
def llm(request, folders):
    return VideoLLM.load(folders[request.param])


def picture(height, width):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def test_a_picture_is_cut_into_patches_of_one_grid_frame(llm):
    """At a size that nothing resizes: each row of patches against the picture's own pixels."""
    vision = llm.picture_model.config.vision
    side, merge = vision.patch_size, vision.merge
    shown = picture(9 * side * merge, 8 * side * merge)
    made = llm.settings.picture_pixels(llm.picture_model.config, {"min_pixels": 1, "max_pixels": 10**6})(shown[None])
    assert made.grid == (1, 9 * merge, 8 * merge)
    # The picture goes as it is only if qwen-vl-utils keeps it too: at most 16,384 tokens.
    rows = made.values.reshape(9, 8, merge, merge, 3, vision.pair, side, side)
    again = rows.transpose(5, 0, 2, 6, 1, 3, 7, 4).reshape(vision.pair, *shown.shape)
    np.testing.assert_array_equal(again[0], again[-1])
    scale = again[0].std() / (shown / 255).std()
    assert np.corrcoef(again[0].ravel(), shown.ravel())[0, 1] > 0.99
    assert 1.5 < scale < 5


def test_a_pictures_prompt_tells_no_time(llm):
    clip = Clip.of_picture(picture(48, 64))
    video = llm.reduce(llm.encode(clip), reducer="none", ratio=1.0)
    assert video.video.tokens.features.shape[0] == 1
    slots, text = llm.lay_out([video], "What?", 4)
    said = llm.tokenizer.decode(text)
    assert "seconds" not in said
    assert "Time" not in said
    film = llm.reduce(llm.encode(Clip.from_frames(clip.frames, fps=2.0)), reducer="none", ratio=1.0)
    _, timed = llm.lay_out([film], "What?", 4)
    words = {"qwen2_5_vl": "What", "video_llama_3": "Time 0.0s:"}
    assert words.get(llm.loaded.family, "seconds>") in llm.tokenizer.decode(timed)
    if llm.loaded.family not in QWEN:
        assert slots.visual[1] - slots.visual[0] == video.kept
        return
    assert text.tolist().count(llm.loaded.config.vision_start) == 1
    # Rows and columns count from the picture's start, time stands still, text goes on behind the larger side.
    rows, columns = video.video.tokens.grid
    first = slots.visual[0]
    grid = slots.positions[:, first : first + rows * columns] - first
    np.testing.assert_array_equal(grid[0], 0)
    np.testing.assert_array_equal(grid[1].reshape(rows, columns)[:, 0], np.arange(rows))
    np.testing.assert_array_equal(grid[2].reshape(rows, columns)[0], np.arange(columns))
    assert slots.positions[0, first + rows * columns] == first + max(rows, columns)


def test_limits_of_pictures_are_those_of_the_image_processor(folders, tmp_path):
    """Beside a video processor with limits of its own."""
    folder = tiny_checkpoints.write("qwen3_vl", tmp_path / "m")
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64**2 * 4}}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 4096, "max_pixels": 4096}))
    llm = VideoLLM.load(folder, convention="transformers")
    clip = Clip.of_picture(picture(96, 96))
    tokens = llm.encode(clip).tokens
    factor = llm.loaded.config.vision.patch_size * llm.loaded.config.vision.merge
    assert tokens.grid == (64 // factor, 64 // factor)
    path = tmp_path / "one.png"
    Image.fromarray(picture(96, 96)).save(path)
    assert llm.encode(path).tokens.grid == tokens.grid
    # A picture and a film in one prompt, each by its own path.
    film = llm.encode(Clip.from_frames(clip.frames.repeat(4, axis=0), fps=2.0))
    videos = [llm.reduce(one, reducer="uniform", ratio=0.5) for one in (llm.encode(clip), film)]
    talk = (Message("user", (Visual.HERE, "A picture. ", Visual.HERE, "A film. Which?")),)
    _, text = llm.lay_out(videos, talk, 1)
    said = llm.tokenizer.decode(text)
    assert said.index("A picture.") < said.index("seconds") < said.index("A film.")
    assert llm.ask(videos, "Which?", max_new_tokens=2).kept == sum(one.kept for one in videos)


def test_every_patch_of_a_picture_is_a_token_of_video_llama_3(folders):
    """Against the video's way: the same states of the tower, projected without means over 2 x 2."""
    llm = VideoLLM.load(folders["video_llama_3"])
    clip = Clip.of_picture(picture(64, 64))
    found = llm.encode(clip, needs=frozenset({"attention_last"})).tokens
    assert (found.grid, found.evidence["attention_last"].shape) == ((16, 16), (1, 256))
    rows = llm.settings.picture_pixels(llm.picture_model.config, {})(clip.frames).values
    blocks = rows.reshape(8, 2, 8, 2, -1).swapaxes(1, 2).reshape(1, 256, -1)
    vision = llm.loaded.model.vision
    states = vision.post_norm(vision(blocks, (1, 16, 16)).hidden)
    tokens = np.asarray(vision.projector(states)).reshape(8, 8, 2, 2, -1).swapaxes(1, 2).reshape(1, 256, -1)
    np.testing.assert_allclose(found.features, tokens, atol=1e-5)
    assert (llm.loaded.model.config.vision.merge, llm.picture_model.config.vision.merge) == (2, 1)
    assert llm.encode(Clip.from_frames(clip.frames, fps=2.0)).tokens.grid[0] < 16
