"""Stage comparisons of VideoLLaMA3; vision arrays are in the processor's patch order."""

import functools

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.load import LoadedModel
from jvidprune.parity.core import Golden
from jvidprune.parity.model_stages import LOGITS, ModelStage, Stages, cached_logits, decoder_stages, prompt_embeds
from jvidprune.parity.models_qwen import encoded, vision_stages
from jvidprune.video.preprocess import normalise

_INPUTS = frozenset({"pixels_uint8", "video_grid_thw", "input_ids"})


def video_llama_3_stages(loaded: LoadedModel, golden: Golden) -> tuple[Stages, frozenset[str]]:
    """Comparisons of one io file of video_llama_3, and the keys that are inputs.

    Raises:
      JvidpruneError: missing inputs, or more than one video.
    """
    if not golden.has(*_INPUTS):
        raise JvidpruneError(f"an io file of video_llama_3 needs {', '.join(sorted(_INPUTS))}.")
    levels, ids = golden["pixels_uint8"], golden["input_ids"]
    if golden["video_grid_thw"].shape != (1, 3) or len(ids) != 1:
        raise JvidpruneError("an io file of video_llama_3 holds one video and one prompt.")
    model, config = loaded.model, loaded.config
    patches = normalise(levels.reshape(len(levels), config.vision.channels, -1), axis=-2).reshape(levels.shape)
    t, h, w = (int(x) for x in golden["video_grid_thw"][0])
    grid, needs = (t, h, w), frozenset({"attention_last"})
    video = functools.cache(lambda: jax.device_get(encoded(model, patches, grid, needs)))
    visual = ids == config.video_token
    embeds = functools.cache(lambda: prompt_embeds(model, ids, visual, video().features))

    positions = np.arange(ids.shape[1])[None]
    stages = vision_stages(loaded, patches, grid, video) | decoder_stages(model, embeds, positions, golden)
    stages["greedy_logits"] = ModelStage(lambda: cached_logits(model, embeds(), positions, golden), LOGITS)
    return stages, _INPUTS
