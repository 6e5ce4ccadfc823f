"""VideoLLaMA3: SigLIP blocks with rotary on two axes, means over 2 x 2 patches, projector, Qwen2 decoder."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.models.decoder import Decoder
from jvidprune.models.layers import Mlp, layer_norm
from jvidprune.models.qwen.model import PatchModel
from jvidprune.models.qwen.tower import GridVit, QwenVisionConfig
from jvidprune.models.video_llama_3.config import VideoLlama3Config


class VideoLlama3Vit(GridVit):
    """The tower for frames of any size, and what makes tokens of its patches."""

    def __init__(self, config: QwenVisionConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.post_norm = layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)
        self.projector = Mlp(config.width, config.out, config.out, "gelu", dtype=dtype, rngs=rngs)

    def merge(self, hidden: Float[Array, "T M Dv"]) -> Float[Array, "T N D"]:
        """Tokens of the language model, one for `unit` consecutive patches.

        The reference resizes the frame bilinearly to half its sides, which is the mean over each block of 2 x 2.
        """
        x = self.post_norm(hidden)
        blocks = x.reshape(x.shape[0], -1, self.config.unit, x.shape[-1])
        return self.projector(blocks.mean(axis=2, dtype=jnp.float32).astype(x.dtype))


class VideoLlama3(PatchModel):
    """VideoLLaMA3 (arXiv 2501.13106); every method is pure.

    No reference exists for evidence of this tower, which follows what the Qwen-VL towers give (`PatchModel.encode`).
    """

    def __init__(self, config: VideoLlama3Config, *, dtype: Any, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        self.vision = VideoLlama3Vit(config.vision, dtype=dtype, rngs=rngs)
        self.lm = Decoder(config.text, dtype=dtype, rngs=rngs)
