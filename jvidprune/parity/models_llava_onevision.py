"""Stages of LLaVA-OneVision."""

import functools

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel
from jvidprune.parity.core import Golden
from jvidprune.parity.model_stages import (
    ATTENTION,
    VISION,
    ModelStage,
    Stages,
    decoder_stages,
    embed_text,
    encoded,
    tower_stages,
)


def llava_onevision_stages(loaded: LoadedModel, golden: Golden) -> tuple[Stages, frozenset[str]]:
    inputs = frozenset({"pixel_values_videos", "input_ids", "pruned_keep"})
    if not golden.has("pixel_values_videos", "input_ids"):
        raise JvidpruneError("an io file of llava_onevision needs pixel_values_videos and input_ids.")
    model, config = loaded.model, loaded.config
    pixels, ids = golden["pixel_values_videos"], golden["input_ids"]
    batch, frames = pixels.shape[:2]
    flat = pixels.reshape(batch * frames, *pixels.shape[2:])
    needs = frozenset({"attention_last", "features_unpooled"})
    video = functools.cache(lambda: jax.device_get(encoded(model, flat, needs)))

    def tokens() -> np.ndarray:
        rows = video().features.reshape(batch, -1, config.text.width)
        newline = np.broadcast_to(model.newline, (batch, 1, config.text.width))
        return np.concatenate([rows, newline], axis=1)

    @functools.cache
    def embeds() -> np.ndarray:
        at = ids == config.video_token
        if (at.sum(axis=1) != tokens().shape[1]).any():
            raise JvidpruneError(f"input_ids hold {at.sum(axis=1)} placeholders for {tokens().shape[1]} video tokens.")
        slot = np.where(at, at.cumsum(axis=1) - 1, 0)
        visual = np.take_along_axis(tokens(), slot[..., None], axis=1)
        return np.where(at[..., None], visual, embed_text(model, ids))

    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    stages = tower_stages(model, flat) | decoder_stages(model, embeds, positions, golden)
    stages |= {
        "saliency_pooled": ModelStage(lambda: video().evidence["attention_last"], ATTENTION),
        "projector": ModelStage(lambda: video().evidence["features_unpooled"], VISION),
        "pooled": ModelStage(lambda: video().features, VISION),
        "video_tokens": ModelStage(tokens, VISION),
        "position_ids": ModelStage(lambda: positions),
    }
    return stages, inputs
