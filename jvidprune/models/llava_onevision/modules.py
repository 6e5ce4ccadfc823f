"""LLaVA-OneVision: SigLIP tower, projector, spatial pooling, newline, Qwen2 decoder."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jvidprune.models.base import VideoModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.evidence import check_evidence, video_tokens
from jvidprune.models.layers import Mlp, map_chunks
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig
from jvidprune.models.siglip import Siglip
from jvidprune.ops.pool import pool_tokens
from jvidprune.tokens import VideoTokens

FRAME_CHUNK = 8
"""Frames that go through the tower at once: bounds its attention weights to 8 x heads x M x M float32."""


class LlavaOnevision(VideoModel):
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

    def encode(
        self,
        pixels: Float[Array, "T 3 S S"],
        needs: frozenset[str] = frozenset(),
        *,
        frame_mask: Bool[Array, "T"] | None = None,
        text: Float[Array, "L D"] | None = None,
        chunk: int = FRAME_CHUNK,
    ) -> VideoTokens:
        """The tokens of a video and the evidence asked for.

        Frames go through tower, projector and pooling in chunks, and of an attention map only its column means leave a
        block. Attention is float32 and not renormalised after pooling: `attention_last` is the mean over heads and
        queries of the last block, pooled like the features (FlashVID, HoliTom, VisionZip); `attention_shallow` and
        `attention_deep` are means over heads and SUMS over queries on the unpooled grid (AOT), of the blocks
        `vision.shallow_block` and `vision.deep_block`; `keys` are the last block's, unscaled, mean over heads, pooled
        (VisionZip); `attention_pooling_head` and `frame_embedding` come from SigLIP's own head (FastVID), and so does
        `joint_image`, what the head makes of each token alone (CDPruner; no reference exists for SigLIP).

        Args:
          pixels: (T, 3, S, S) normalised frames.
          needs: names of evidence, static.
          frame_mask: (T,) bool, False on padding frames; by default all True.
          text: (L, D) embeddings of the question, for reducers that need "text".
          chunk: frames at once, static.

        Raises:
          JvidpruneError: evidence this checkpoint cannot give, or pixels of the wrong size.
        """
        check_evidence(self.config.family, needs, self.provides, text)
        vision = self.config.vision
        blocks = {
            "attention_last": vision.layers - 1,
            "keys": vision.layers - 1,
            "attention_shallow": vision.shallow_block,
            "attention_deep": vision.deep_block,
        }
        taps = tuple(sorted({block for name, block in blocks.items() if name in needs}))
        arrays = map_chunks(lambda part: self._encode_chunk(part, needs, taps, blocks), pixels, chunk)
        if "newline" in needs:
            arrays["newline"] = self.newline
        config, text = self.config, text if "text" in needs else None
        return video_tokens(arrays, config.grid, text=text, frame_mask=frame_mask, unpooled_grid=config.unpooled_grid)

    def _encode_chunk(
        self, pixels: Array, needs: frozenset[str], taps: tuple[int, ...], blocks: dict[str, int]
    ) -> dict[str, Array]:
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
