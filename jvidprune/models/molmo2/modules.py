"""Molmo2: SigLIP 2 tower, attention-pooling connector, Qwen3 or OLMo 3 decoder whose visual tokens see each other."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.models.base import FrameModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.evidence import evidence_blocks
from jvidprune.models.molmo2.config import TILES, Molmo2Config
from jvidprune.models.molmo2.connector import Connector, window_means
from jvidprune.models.molmo2.windows import window_patches
from jvidprune.models.siglip import Siglip


class Molmo2(FrameModel):
    """Molmo2 (arXiv 2601.10611); every method is pure and may be jitted with the module as an argument."""

    def __init__(self, config: Molmo2Config, *, dtype: Any, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        self.vision = Siglip(config.vision, dtype=dtype, rngs=rngs)
        self.connector = Connector(config.connector, config.vision.width, config.text.width, dtype=dtype, rngs=rngs)
        self.lm = Decoder(config.text, dtype=dtype, rngs=rngs)

    def encode_frames(self, pixels: Float[Array, "F 3 S S"], needs: frozenset[str]) -> dict[str, Array]:
        """See `FrameModel.encode_frames`; the placeholder's embedding is not added to tokens yet.

        No reference exists for evidence of this model, which follows what the other towers give. `attention_last` is
        the attention received in the last block that runs, mean over heads and queries, then over the patches of a
        window (HoloV, VisionZip, FlashVID, OTT-Vid, FastVID); `keys` are that block's, unscaled, mean over heads and
        the patches of a window (VisionZip); `attention_shallow` and `attention_deep` are SUMS over queries, means over
        heads and the patches of a window, of the blocks `vision.shallow_block` and `vision.deep_block` (AOT with
        pooling="none"); `frame_embedding` is the mean token (FastVID). Patches are pooled before they are projected:
        `features_unpooled` does not exist, nor does SigLIP's pooling head, whose blocks the released weights lack.
        """
        vision, read = self.config.vision, self.config.connector.blocks
        blocks = evidence_blocks(vision)
        asked = needs & blocks.keys()
        taps = tuple(sorted({blocks[name] for name in asked}))
        _, found = self.vision(pixels, taps, hidden=tuple(sorted(set(read))))
        features = self.connect(jnp.concatenate([found[block].hidden for block in read], axis=-1))
        out = {"features": features}
        for name in asked:
            block = found[blocks[name]]
            if name == "keys":
                out[name] = self.pool(block.keys)
                continue
            received = block.received.mean(axis=1)
            out[name] = self.pool(received) * (1 if name == "attention_last" else received.shape[-1])
        if "frame_embedding" in needs:
            out["frame_embedding"] = features.mean(axis=1, dtype=jnp.float32)
        return out

    def connect(self, joined: Float[Array, "T M W"]) -> Float[Array, "T N D"]:
        """Tokens from the joined outputs of the blocks `config.connector.blocks`; these themselves of tiles."""
        if self.config.connector.pool == TILES:
            return joined
        return self.connector(joined, window_patches(self.config.vision.side, self.config.connector.pool))

    def pool(self, x: Float[Array, "T M ..."]) -> Float[Array, "T N ..."]:
        """Means over the patches of each window."""
        return window_means(x, window_patches(self.config.vision.side, self.config.connector.pool))

    def embed_visual(self, tokens: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """What stands in the prompt for visual tokens: each added to the embedding of its placeholder."""
        return self.embed_text(jnp.asarray(self.config.placeholder)) + tokens.astype(self.lm.dtype)
