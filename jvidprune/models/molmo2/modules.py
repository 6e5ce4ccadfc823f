"""Molmo2: SigLIP 2 tower, attention-pooling connector, Qwen3 or OLMo 3 decoder whose visual tokens see each other."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jvidprune.models.base import VideoModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.evidence import check_evidence, video_tokens
from jvidprune.models.layers import map_chunks
from jvidprune.models.molmo2.config import TILES, Molmo2Config
from jvidprune.models.molmo2.connector import Connector, window_means
from jvidprune.models.molmo2.windows import window_patches
from jvidprune.models.siglip import Siglip
from jvidprune.tokens import VideoTokens

FRAME_CHUNK = 8
"""Frames that go through the tower at once."""


class Molmo2(VideoModel):
    """Molmo2 (arXiv 2601.10611); every method is pure and may be jitted with the module as an argument."""

    def __init__(self, config: Molmo2Config, *, dtype: Any, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        self.vision = Siglip(config.vision, dtype=dtype, rngs=rngs)
        self.connector = Connector(config.connector, config.vision.width, config.text.width, dtype=dtype, rngs=rngs)
        self.lm = Decoder(config.text, dtype=dtype, rngs=rngs)

    def encode(
        self,
        pixels: Float[Array, "T 3 S S"],
        needs: frozenset[str] = frozenset(),
        *,
        frame_mask: Bool[Array, "T"] | None = None,
        text: Float[Array, "L D"] | None = None,
        chunk: int = FRAME_CHUNK,
    ) -> VideoTokens:
        """The tokens of a video and the evidence asked for; the placeholder's embedding is not added yet.

        No reference exists for evidence of this model, which follows what the other towers give. `attention_last` is
        the attention received in the last block that runs, mean over heads and queries, then over the patches of a
        window (HoloV, VisionZip, FlashVID, OTT-Vid, FastVID); `keys` are that block's, unscaled, mean over heads and
        the patches of a window (VisionZip); `attention_shallow` and `attention_deep` are SUMS over queries, means over
        heads and the patches of a window, of the blocks `vision.shallow_block` and `vision.deep_block` (AOT with
        pooling="none"); `frame_embedding` is the mean token (FastVID). Patches are pooled before they are projected:
        `features_unpooled` does not exist, nor does SigLIP's pooling head, whose blocks the released weights lack.

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
        arrays = map_chunks(lambda part: self._encode_chunk(part, needs), pixels, chunk)
        text = text if "text" in needs else None
        return video_tokens(arrays, self.config.grid, text=text, frame_mask=frame_mask)

    def _encode_chunk(self, pixels: Array, needs: frozenset[str]) -> dict[str, Array]:
        vision, read = self.config.vision, self.config.connector.blocks
        blocks = {
            "attention_last": vision.layers - 1,
            "keys": vision.layers - 1,
            "attention_shallow": vision.shallow_block,
            "attention_deep": vision.deep_block,
        }
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
