"""LLaVA's path of still pictures ("anyres"): the whole as one tile, and a map of the tiles that it is cut into."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.processor import BICUBIC, channels, resizes, square
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig
from jvidprune.models.settings import PictureMap, PictureShape
from jvidprune.ops.pool import resize_tokens
from jvidprune.tokens import Layout, VideoTokens
from jvidprune.video.resize import Filter
from jvidprune.video.tiles import Anyres, Tiles, anyres, anyres_tiles

_WHOLE = frozenset({"newline", "frame_embedding"})
"""Evidence of the whole picture, which both maps carry; all other has a row a token."""


def pixels(
    config: LlavaOnevisionConfig, given: Mapping[str, Any], *, filter: Filter = "torchvision"
) -> Callable[[np.ndarray], Tiles]:
    """A still picture, (1, H, W, 3), to tiles.

    Args:
      config: of the model.
      given: the settings of the folder's image processor; the published ones where they say nothing.
      filter: that pictures are resized with.

    Raises:
      JvidpruneError: settings that make no sense, or a checkpoint that reads pictures in another way.
    """
    mean, std = channels(given)
    side = square(given, config.vision.image_size)
    if not resizes(given, BICUBIC):
        raise JvidpruneError("the folder's image processor has do_resize false, but tiles of one size are read.")
    _sizes(config, given)

    def made(frames: np.ndarray) -> Tiles:
        height, width = frames[0].shape[:2]
        plan = _plan(config, height, width, given)
        return anyres_tiles(frames[0], plan, side=side, mean=mean, std=std, filter=filter)

    return made


def shape(config: LlavaOnevisionConfig, height: int, width: int, given: Mapping[str, Any]) -> PictureShape:
    """What `pixels` and `maps` make of a picture of this size in pixels: the whole, then the map of its tiles."""
    plan = _plan(config, height, width, given)
    grids = config.unpooled_grid, plan.grid
    return PictureShape(tuple(Layout(1, grid, grid) for grid in grids), plan.count)


def maps(model: Any, tokens: VideoTokens, tiles: Tiles) -> tuple[PictureMap, ...]:
    """The whole picture without newlines, and the map of its tiles with one behind every row.

    What shows no picture is cut off, and a map beyond the tokens of 9 tiles (of the config) is resized bilinearly; so
    is evidence, which stays what it was of the tiles.

    Args:
      model: unused.
      tokens: of the tiles, with evidence.
      tiles: from `pixels`.
    """
    del model
    # The map does not depend on the pixels that are resized to, which nearly every picture has others of.
    base, map = _maps(tokens, tiles.plan._replace(resized=(0, 0)))
    return PictureMap(base, "no_token"), PictureMap(map, "grid")


@functools.partial(jax.jit, static_argnames="plan")
def _maps(tokens: VideoTokens, plan: Anyres) -> tuple[VideoTokens, VideoTokens]:
    arrays = {"features": tokens.features} | {k: v for k, v in tokens.evidence.items() if k not in _WHOLE}
    shared = {name: tokens.evidence[name] for name in tokens.evidence.keys() & _WHOLE}
    if "frame_embedding" in shared:
        shared["frame_embedding"] = shared["frame_embedding"][:1]
    found = []
    for grid, made in ((tokens.grid, lambda x: x[:1]), (plan.grid, lambda x: _map(x, plan, tokens.grid))):
        own = {name: made(value) for name, value in arrays.items()}
        found.append(VideoTokens(own.pop("features"), own | shared, jnp.ones(1, bool), grid, grid))
    return found[0], found[1]


def _map(x: Float[Array, "T N ..."], plan: Anyres, side: tuple[int, int]) -> Float[Array, "1 n ..."]:
    """Tokens of tiles, behind that of the whole, side by side, cut and resized."""
    (rows, columns), (down, across) = plan.tiles, side
    cells = x[1 : plan.count].reshape(rows, columns, down, across, *x.shape[2:])
    whole = jnp.swapaxes(cells, 1, 2).reshape(rows * down, columns * across, *x.shape[2:])
    shown = whole[slice(*plan.rows), slice(*plan.columns)]
    return resize_tokens(shown, plan.grid).reshape(1, -1, *x.shape[2:])


def _plan(config: LlavaOnevisionConfig, height: int, width: int, given: Mapping[str, Any]) -> Anyres:
    sizes, largest = _sizes(config, given), _largest(config)
    side = config.vision.image_size
    return anyres(height, width, side=side, tokens=config.vision.side, sizes=sizes, largest=largest)


def _largest(config: LlavaOnevisionConfig) -> int:
    """Tiles whose tokens a map has at most.

    Raises:
      JvidpruneError: a checkpoint that reads pictures in another way.
    """
    start, _, number = config.aspect.rpartition("_")
    if start != "anyres_max" or not number.isdecimal() or int(number) < 1:
        raise JvidpruneError(f"pictures are read with anyres_max_9 or another number, the config has {config.aspect}.")
    if config.newline == "no_token":
        raise JvidpruneError("pictures need the newline embedding of mm_patch_merge_type spatial_unpad.")
    return int(number)


def _sizes(config: LlavaOnevisionConfig, given: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Heights and widths that pictures are resized into.

    Raises:
      JvidpruneError: none, or some that are not cut into whole tiles.
    """
    side = config.vision.image_size
    found = given.get("image_grid_pinpoints") or config.pinpoints
    if not found:
        return tuple((side * rows, side * columns) for rows in range(1, 7) for columns in range(1, 7))
    if isinstance(found, str):
        found = _written(found, side)
    pairs = isinstance(found, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 2 for one in found)
    if not pairs or any(not isinstance(one, int) or one < side or one % side for pair in found for one in pair):
        raise JvidpruneError(
            f"image_grid_pinpoints {quoted(found)} are no heights and widths in tiles of {side} pixels."
        )
    return tuple((tall, wide) for tall, wide in found)


def _written(text: str, side: int) -> list[tuple[int, int]]:
    """What a list as text, or "(1x1),...,(6x6)" of LLaVA-NeXT, stands for; other texts stand for nothing."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return [(0, 0)]
    ends = [part.strip("() ").split("x") for part in text.split(",...,")]
    if len(ends) != 2 or any(len(end) != 2 or not all(part.isdecimal() for part in end) for end in ends):
        return [(0, 0)]
    (top, left), (bottom, right) = ([int(part) for part in end] for end in ends)
    return [(side * row, side * column) for row in range(top, bottom + 1) for column in range(left, right + 1)]
