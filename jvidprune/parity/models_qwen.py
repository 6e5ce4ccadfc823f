"""Stage comparisons of the Qwen-VL families; vision arrays are in the processor's patch order."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel
from jvidprune.models.positions import MropeRule, PromptPositions, prompt_pieces
from jvidprune.models.qwen.model import spread_levels
from jvidprune.models.qwen.tower import AttentionWindows, Grid, patch_coordinates
from jvidprune.parity.core import Golden
from jvidprune.parity.model_stages import ATTENTION, VISION, ModelStage, Stages, decoder_stages, embed_text
from jvidprune.video.preprocess import Patches

_INPUTS = frozenset({"pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "input_ids", "pruned_keep"})


@functools.partial(jax.jit, static_argnames=("grid", "needs"))
def encoded(model: Any, patches: Any, grid: Grid, needs: frozenset[str]) -> Any:
    return model.encode(Patches(patches, grid), needs)


@functools.partial(jax.jit, static_argnames="grid")
def _tower(model: Any, patches: Any, grid: Grid) -> Any:
    vision = model.vision
    rows = vision.embed(patches.reshape(grid[0], -1, patches.shape[-1]))
    positions = vision.positions(grid)
    x = rows + positions.astype(rows.dtype)
    _, outputs = vision.run(x, vision.tables(grid), 0, vision.config.layers, tap=True, hidden=True)
    return rows, positions, outputs


def _window_order(grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens in window order, and the cumulative sizes of the windows in tokens."""
    windows = AttentionWindows(grid[1], grid[2], side, 1)
    tokens = windows.split(jnp.arange(np.prod(grid)).reshape(grid[0], -1))
    valid = windows.valid(grid[0])
    mask = np.ones(tokens.shape, bool) if valid is None else np.asarray(valid)
    return np.asarray(tokens)[mask], np.concatenate([[0], np.cumsum(mask.sum(axis=1))])


def vision_stages(loaded: LoadedModel, patches: np.ndarray, grid: Grid, video: Any) -> Stages:
    model, vision = loaded.model, loaded.config.vision
    run = functools.cache(lambda: jax.device_get(_tower(model, patches, grid)))
    order = functools.cache(lambda: _window_order(loaded.config.token_grid(grid), vision.window))

    def flat(x: Any, lead: int = 0) -> np.ndarray:
        """Frames and patches as one axis behind `lead` others."""
        return np.asarray(x).reshape(*x.shape[:lead], -1, *x.shape[lead + 2 :])

    def frames(x: np.ndarray) -> np.ndarray:
        return np.tile(x, (grid[0], *(1,) * (x.ndim - 1)))

    coordinates = frames(patch_coordinates(grid[1], grid[2], vision.merge))
    stages = {
        "patch_embed": ModelStage(lambda: flat(run()[0]), VISION),
        "pos_embed_interpolated": ModelStage(lambda: frames(run()[1]), VISION),
        "vit_hidden": ModelStage(lambda: flat(run()[2].hidden, 1), VISION),
        "vision_attention_received": ModelStage(lambda: flat(run()[2].received.mean(axis=2), 1), ATTENTION),
        "saliency": ModelStage(lambda: video().evidence["attention_last"], ATTENTION),
        "projector": ModelStage(lambda: flat(video().features), VISION),
        "vision_rope_hw": ModelStage(lambda: coordinates),
    }
    if vision.taps:
        levels = ModelStage(lambda: np.moveaxis(flat(video().evidence["features_deepstack"]), 1, 0), VISION)
        stages["deepstack_features"] = levels
    if vision.window:
        stages["window_index"] = ModelStage(lambda: order()[0])
        stages["cu_window_seqlens"] = ModelStage(lambda: order()[1] * vision.unit)
    return stages


def _position_stages(found: PromptPositions) -> Stages:
    return {
        "position_ids": ModelStage(lambda: found.ids[:, None]),
        "rope_delta": ModelStage(lambda: [found.rope_delta]),
    }


def qwen_vl_stages(loaded: LoadedModel, golden: Golden) -> tuple[Stages, frozenset[str]]:
    """Comparisons of one io file of qwen2_5_vl or qwen3_vl, and the keys that are inputs.

    Raises:
      JvidpruneError: missing inputs, or more than one video.
    """
    if not golden.has("pixel_values_videos", "video_grid_thw", "input_ids"):
        raise JvidpruneError(f"an io file of {loaded.family} needs pixel_values_videos, video_grid_thw and input_ids.")
    patches, ids = golden["pixel_values_videos"], golden["input_ids"]
    if golden["video_grid_thw"].shape != (1, 3) or len(ids) != 1:
        raise JvidpruneError(f"an io file of {loaded.family} holds one video and one prompt.")
    model, config = loaded.model, loaded.config
    t, h, w = (int(x) for x in golden["video_grid_thw"][0])
    grid, needs = (t, h, w), frozenset({"attention_last"})
    video = functools.cache(lambda: jax.device_get(encoded(model, patches, grid, needs)))
    visual = ids == config.video_token
    rows = np.where(visual, visual.cumsum(axis=1) - 1, -1)
    seconds = float(golden["second_per_grid_ts"][0]) if golden.has("second_per_grid_ts") else 0.0
    pieces = prompt_pieces(ids[0], config.video_token, config.blocks(grid, seconds))

    @functools.cache
    def embeds() -> np.ndarray:
        tokens = video().features.reshape(-1, config.text.width)
        return np.where(visual[..., None], tokens[np.maximum(rows, 0)], embed_text(model, ids))

    @functools.cache
    def levels() -> np.ndarray:
        found = video().evidence["features_deepstack"]
        return np.asarray(spread_levels(found.reshape(-1, *found.shape[2:]), jnp.asarray(rows)))

    added = levels if config.vision.taps else None
    stages = vision_stages(loaded, patches, grid, video)

    def read(rule: MropeRule, golden: Golden) -> Stages:
        found = config.positions(pieces, rule)
        reads = decoder_stages(model, embeds, found.ids[:, None], golden, added)
        return _position_stages(found) | reads

    stages |= read("released", golden)
    ends = {key: key.replace("_tf5", "") for key in golden.arrays if "_tf5" in key}
    if ends:
        arrays = {"input_ids": ids} | {name: golden[key] for key, name in ends.items()}
        other = read("transformers-5", Golden(arrays, golden.config))
        stages |= {key: other[name] for key, name in ends.items() if name in other}
    return stages, _INPUTS
