"""Stage comparisons of InternVL."""

import functools

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel
from jvidprune.parity.core import Golden
from jvidprune.parity.model_stages import (
    ATTENTION,
    LOGITS,
    VISION,
    ModelStage,
    Stages,
    cached_logits,
    decoder_stages,
    encoded,
    prompt_embeds,
)
from jvidprune.video.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise

_INPUTS = frozenset({"pixels_uint8", "input_ids"})


def internvl_stages(loaded: LoadedModel, golden: Golden) -> tuple[Stages, frozenset[str]]:
    """Comparisons of one io file of internvl, and the keys that are inputs.

    Raises:
      JvidpruneError: missing inputs, or more than one prompt.
    """
    if not golden.has(*_INPUTS):
        raise JvidpruneError(f"an io file of internvl needs {', '.join(sorted(_INPUTS))}.")
    levels, ids = golden["pixels_uint8"], golden["input_ids"]
    if len(ids) != 1:
        raise JvidpruneError("an io file of internvl holds one prompt.")
    model, config = loaded.model, loaded.config
    pixels = normalise(levels, IMAGENET_MEAN, IMAGENET_STD)
    needs = frozenset({"attention_last", "attention_pooling_head", "frame_embedding"})
    video = functools.cache(lambda: jax.device_get(encoded(model, pixels, needs)))
    visual = ids == config.video_token
    embeds = functools.cache(lambda: prompt_embeds(model, ids, visual, video().features))

    positions = np.arange(ids.shape[1])[None]
    stages = decoder_stages(model, embeds, positions, golden) | {
        "saliency": ModelStage(lambda: video().evidence["attention_last"], ATTENTION),
        "class_attention": ModelStage(lambda: video().evidence["attention_pooling_head"], ATTENTION),
        "class_token": ModelStage(lambda: video().evidence["frame_embedding"], VISION),
        "projector": ModelStage(lambda: video().features, VISION),
        "greedy_logits": ModelStage(lambda: cached_logits(model, embeds(), positions, golden), LOGITS),
    }
    return stages, _INPUTS
