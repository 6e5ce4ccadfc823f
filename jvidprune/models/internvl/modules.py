"""InternVL: InternViT tower, 2 x 2 patches shuffled into one token, projector, Qwen2 or Qwen3 decoder."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.models.base import FrameModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.evidence import evidence_blocks
from jvidprune.models.internvl.config import InternVLConfig
from jvidprune.models.internvl.tower import InternVit
from jvidprune.models.layers import Mlp, layer_norm

_NORM_EPS = 1e-5
"""Of the projector's norm, which no config names."""


class Projector(nnx.Module):
    """fc2(activation(fc1(norm(x)))) of joined patches."""

    def __init__(self, config: InternVLConfig, *, dtype: Any, rngs: nnx.Rngs):
        joined, width = config.vision.unit * config.vision.width, config.text.width
        self.norm = layer_norm(joined, _NORM_EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(joined, width, width, config.projector_activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... V"]) -> Float[Array, "... D"]:
        """Acts on the last axis."""
        return self.mlp(self.norm(x))


class InternVL(FrameModel):
    """InternVL3 (arXiv 2504.10479) and InternVL3.5 (arXiv 2508.18265); every method is pure."""

    def __init__(self, config: InternVLConfig, *, dtype: Any, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        self.vision = InternVit(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Projector(config, dtype=dtype, rngs=rngs)
        self.lm = Decoder(config.text, dtype=dtype, rngs=rngs)

    def encode_frames(self, pixels: Float[Array, "F 3 S S"], needs: frozenset[str]) -> dict[str, Array]:
        """See `FrameModel.encode_frames`.

        No reference exists for evidence of this model, which follows what the other towers give, over patches alone:
        what falls on the class token is left out and nothing renormalised. `attention_last` is the attention received
        in the last block, mean over heads and all queries, then over the patches of a token; `keys` are that block's,
        unscaled, mean over heads and the patches of a token; `attention_shallow` and `attention_deep` are SUMS over
        queries, means over heads and the patches of a token, of the blocks `vision.shallow_block` and
        `vision.deep_block` (AOT with pooling="none"). The class token stands where SigLIP has its pooling head:
        `attention_pooling_head` is what it pays in the last block, mean over heads and the patches of a token, and
        `frame_embedding` what the last block makes of it (FastVID).
        """
        vision = self.config.vision
        blocks = evidence_blocks(vision) | {"attention_pooling_head": vision.layers - 1}
        asked = needs & blocks.keys()
        hidden, found = self.vision(pixels, tuple(sorted({blocks[name] for name in asked})))
        hidden = self.vision.leave(hidden)
        out = {"features": self.connect(hidden[:, 1:])}
        for name in asked:
            block = found[blocks[name]]
            if name == "keys":
                out[name] = self.pool(block.keys[:, 1:])
            elif name == "attention_pooling_head":
                out[name] = self.pool(block.paid[:, 1:])
            else:
                received = block.received.mean(axis=1)
                out[name] = self.pool(received[:, 1:]) * (1 if name == "attention_last" else received.shape[-1])
        if "frame_embedding" in needs:
            out["frame_embedding"] = hidden[:, 0].astype(jnp.float32)
        return out

    def connect(self, patches: Float[Array, "T M Dv"]) -> Float[Array, "T N D"]:
        """Tokens from what the tower makes of patches: those of a block of 2 x 2, row by row, stand side by side."""
        blocks = self._blocks(patches)
        return self.projector(blocks.reshape(*blocks.shape[:2], -1))

    def pool(self, x: Float[Array, "T M ..."]) -> Float[Array, "T N ..."]:
        """Means over the patches of each token."""
        return self._blocks(x).mean(axis=2)

    def _blocks(self, x: Float[Array, "T M ..."]) -> Float[Array, "T N U ..."]:
        """Patches in raster order by the token that they belong to."""
        rows, merge = self.config.grid[0], self.config.vision.merge
        cut = x.reshape(len(x), rows, merge, rows, merge, *x.shape[2:])
        return jnp.swapaxes(cut, 2, 3).reshape(len(x), rows * rows, merge * merge, *x.shape[2:])
