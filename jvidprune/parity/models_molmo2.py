"""Stage comparisons of Molmo2: pixels, tower, connector, and a decoder in whose prompt visual tokens see each other."""

import functools
from typing import Any

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel
from jvidprune.models.molmo2.windows import window_patches
from jvidprune.parity.core import Golden
from jvidprune.parity.model_stages import (
    LOGITS,
    VISION,
    ModelStage,
    Stages,
    cached_logits,
    decoder_stages,
    prompt_embeds,
    tower_stages,
)
from jvidprune.video.preprocess import llava_pixels
from jvidprune.video.resize import resize_frames

_INPUTS = frozenset({"frames_uint8", "input_ids"})


@jax.jit
def _encode(model: Any, pixels: Any) -> tuple[Any, Any]:
    video = model.encode(pixels)
    return video.features, model.embed_visual(video.features)


def molmo2_stages(loaded: LoadedModel, golden: Golden) -> tuple[Stages, frozenset[str]]:
    """Comparisons of one io file of molmo2, and the keys that are inputs.

    Raises:
      JvidpruneError: missing inputs, or more than one prompt.
    """
    if not golden.has("frames_uint8", "input_ids") or len(golden["input_ids"]) != 1:
        raise JvidpruneError("an io file of molmo2 needs frames_uint8 and one prompt as input_ids.")
    model, config, ids = loaded.model, loaded.config, golden["input_ids"]
    frames, size = golden["frames_uint8"], config.vision.image_size
    pixels = llava_pixels(frames, size=size, filter="bilinear")
    encoded = functools.cache(lambda: jax.device_get(_encode(model, pixels)))
    placeholder, visual = ids == config.tokens.image_patch, np.isin(ids, config.tokens.ids)
    embeds = functools.cache(lambda: prompt_embeds(model, ids, placeholder, encoded()[1]))

    def windows() -> np.ndarray:
        one = window_patches(config.vision.side, config.connector.pool)
        return np.concatenate([np.where(one >= 0, one + t * config.vision.tokens, -1) for t in range(len(frames))])

    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)

    def cached() -> np.ndarray:
        return cached_logits(model, embeds(), positions, golden, bidirectional=visual)

    def wide() -> np.ndarray:
        """The corner of the first frame, enlarged to a size at which the reference computes with other code."""
        side = golden["resized_wide"].shape[1:3]
        return resize_frames(frames[:1, :12, :10], side, filter="bilinear").transpose(0, 2, 3, 1)

    squares = resize_frames(frames, (size, size), filter="bilinear").transpose(0, 2, 3, 1)
    stages = tower_stages(model, pixels)
    stages |= decoder_stages(model, embeds, positions, golden, bidirectional=visual)
    stages |= {
        "resized_uint8": ModelStage(lambda: squares),
        "resized_wide": ModelStage(wide),
        "video_token_pooling": ModelStage(windows),
        "visual": ModelStage(lambda: visual),
        "features": ModelStage(lambda: encoded()[0], VISION),
        "position_ids": ModelStage(lambda: positions),
        "greedy_logits": ModelStage(cached, LOGITS),
    }
    return stages, _INPUTS
