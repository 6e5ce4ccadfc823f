"""LLaVA-OneVision: SigLIP tower, projector, spatial pooling, newline, Qwen2 decoder."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.models.base import FrameModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.evidence import evidence_blocks
from jvidprune.models.layers import Mlp
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig
from jvidprune.models.siglip import Siglip
from jvidprune.ops.pool import pool_tokens


class LlavaOnevision(FrameModel):
    """LLaVA-OneVision (arXiv 2408.03326); every method is pure and may be jitted with the module as an argument."""

    def __init__(self, config: LlavaOnevisionConfig, *, dtype: Any, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        width = config.text.width
        self.config = config
        self.vision = Siglip(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Mlp(config.vision.width, width, width, config.projector_activation, dtype=dtype, rngs=rngs)
        self.image_newline = nnx.Param(jnp.zeros(width, dtype))
        self.lm = Decoder(config.text, dtype=dtype, rngs=rngs)

    @property
    def newline(self) -> Float[Array, "D"]:
        """The embedding that ends a video."""
        return self.image_newline[...]

    def encode_frames(self, pixels: Float[Array, "F 3 S S"], needs: frozenset[str]) -> dict[str, Array]:
        """See `FrameModel.encode_frames`.

        Frames go through tower, projector and pooling in chunks, and of an attention map only its column means leave a
        block. Attention is float32 and not renormalised after pooling: `attention_last` is the mean over heads and
        queries of the last block, pooled like the features (FlashVID, HoliTom, VisionZip); `attention_shallow` and
        `attention_deep` are means over heads and SUMS over queries on the unpooled grid (AOT), of the blocks
        `vision.shallow_block` and `vision.deep_block`; `keys` are the last block's, unscaled, mean over heads, pooled
        (VisionZip); `attention_pooling_head` and `frame_embedding` come from SigLIP's own head (FastVID), and so does
        `joint_image`, what the head makes of each token alone (CDPruner; no reference exists for SigLIP).
        """
        blocks = evidence_blocks(self.config.vision)
        taps = tuple(sorted({block for name, block in blocks.items() if name in needs}))
        hidden, tapped = self.vision(pixels, taps)
        projected = self.projector(hidden)
        out = {"features": self.pool(projected)}
        for name in needs & {"attention_last", "attention_shallow", "attention_deep"}:
            received = tapped[blocks[name]].received.mean(axis=1)
            out[name] = self.pool(received) if name == "attention_last" else received * received.shape[-1]
        if "keys" in needs:
            out["keys"] = self.pool(tapped[blocks["keys"]].keys)
        if "features_unpooled" in needs:
            out["features_unpooled"] = projected
        if self.vision.head is not None and needs & {"frame_embedding", "attention_pooling_head"}:
            pooled, attention = self.vision.head(hidden)
            found = {"frame_embedding": pooled, "attention_pooling_head": self.pool(attention)}
            out |= {name: value for name, value in found.items() if name in needs}
        if self.vision.head is not None and "joint_image" in needs:
            out["joint_image"] = self.pool(self.vision.head.tokens(hidden))
        return out

    def pool(self, x: Float[Array, "T M ..."]) -> Float[Array, "T N ..."]:
        """The family's spatial pooling of features, or of one number a token."""
        return pool_tokens(x, self.config.unpooled_grid, self.config.pool)
