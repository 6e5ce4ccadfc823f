"""LLaVA-Video: golden layouts on the true 27 x 27 grid, config variants, pooling by maximum, the time instruction."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import GOLDEN

from jvidprune import JvidpruneError
from jvidprune.llm.prompts.llava import time_instruction, with_times
from jvidprune.models import family as families
from jvidprune.models.checkpoint.load import family_of
from jvidprune.models.llava_video import Config
from jvidprune.ops.newline import full_length
from jvidprune.ops.pool import pool_tokens, pooled_side
from jvidprune.parity.models import compare_model_folder
from jvidprune.video.decode import Clip

GOLDEN = GOLDEN / "models" / "llava_video"


@pytest.fixture(scope="module")
def raw():
    return json.loads((GOLDEN / "config.json").read_text())


def test_every_layout_agrees_with_the_reference():
    (report,) = compare_model_folder(GOLDEN)
    keys = set(np.load(GOLDEN / "io.npz").files) - {"config", "frames_uint8", "input_ids"}
    assert (report.method, {row.what for row in report.rows}) == ("llava_video", keys)
    assert [row for row in report.rows if row.verdict != "ok"] == []


def test_the_evaluations_pooling_wins_over_the_stored_one(raw):
    config = Config.from_hf(raw | {"mm_spatial_pool_mode": "bilinear"})
    assert (config.pool, config.stored_pool, config.newline, config.grid) == ("average", "bilinear", "grid", (13, 13))
    assert (config.unpooled_grid, config.text.max_positions, config.time_instruction) == ((27, 27), 32768, True)
    assert full_length("grid", config.grid, families.get("llava_video").settings["released"].frames) == 11648


def test_a_published_config_names_its_tower_only(raw):
    plain = {key: value for key, value in raw.items() if key != "vision_config_override"}
    vision = Config.from_hf(plain).vision
    assert (vision.width, vision.layers, vision.heads, vision.side) == (1152, 26, 16, 27)


@pytest.mark.parametrize(
    ("changes", "newline"),
    [
        ({"mm_newline_position": "frame"}, "frame"),
        ({"mm_newline_position": "one_token"}, "one_token"),
        ({"mm_newline_position": "one_token", "mm_patch_merge_type": "flat"}, "no_token"),
    ],
)
def test_newline_layouts_are_read(raw, changes, newline):
    assert Config.from_hf(raw | changes).newline == newline


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"add_faster_video": True}, "coarser stream is not supported"),
        ({"mm_spatial_pool_mode": "median"}, "mm_spatial_pool_mode 'median'"),
        ({"mm_newline_position": "both"}, "mm_newline_position 'both'"),
        ({"mm_vision_tower": "openai/clip", "vision_config_override": None}, "vision tower 'openai/clip'"),
    ],
)
def test_unknown_options_are_refused(raw, changes, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        Config.from_hf(raw | changes)


def test_the_two_llava_families_are_told_apart(raw):
    assert family_of(raw) == "llava_video"
    quiet = {"add_time_instruction": False, "mm_newline_position": "one_token"}
    assert family_of(raw | quiet) == "llava_onevision"
    assert family_of(raw | quiet | {"add_time_instruction": True}) == "llava_video"
    for name in ("llava_onevision", "llava_video"):
        assert families.get(name).describes(raw if name == "llava_video" else raw | quiet)


@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
def test_maximum_over_cells_drops_an_odd_last_row(grid):
    x = np.random.default_rng(0).normal(size=(2, grid[0] * grid[1], 3)).astype(np.float32)
    image = x.reshape(2, *grid, 3)
    h, w = (pooled_side(side, "max") for side in grid)
    expected = [[image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in range(w)] for i in range(h)]
    pooled = pool_tokens(jnp.asarray(x), grid, "max")
    np.testing.assert_array_equal(pooled, np.moveaxis(np.asarray(expected), 2, 0).reshape(2, h * w, 3))
    assert pool_tokens(jnp.asarray(x[..., 0]), grid, "max").shape == (2, h * w)


def test_the_time_instruction_lists_every_frame():
    indices = np.array([0, 49, 99])
    clip = Clip(np.zeros((3, 2, 2, 3), np.uint8), indices, indices / 25.0, 25.0, 100)
    text = (
        "The video lasts for 4.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
        "0.00s,1.96s,3.96s.Please answer the following questions related to this video."
    )
    assert time_instruction(clip) == text
    assert with_times("Who?", clip) == text + "\nWho?"
