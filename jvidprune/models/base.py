"""What all families have in common behind the tower: a decoder that reads text and visual tokens."""

import dataclasses
from collections.abc import Collection
from typing import Any, Self

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.evidence import check_evidence, video_tokens
from jvidprune.models.layers import map_chunks
from jvidprune.tokens import VideoTokens

FRAME_CHUNK = 8
"""Square frames that go through a tower at once: bounds its attention weights to 8 x heads x M x M float32."""


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Base of the families' configs: a subclass adds `from_hf`, `provides` and fields of its own.

    Attributes:
      vision: the tower.
      text: the language model.
    """

    vision: Any
    text: DecoderConfig

    def with_tensors(self, names: Collection[str]) -> Self:
        """The config that fits the tensors at hand: the presence of a head decides, not the flags."""
        return dataclasses.replace(self, text=dataclasses.replace(self.text, tied="lm_head.weight" not in names))

    @property
    def units(self) -> dict[str, int]:
        """Pieces of the logical axes that sharding must not cut."""
        return {"heads": self.text.heads, "kv_heads": self.text.kv_heads, "vit_heads": self.vision.heads}


class VideoModel(nnx.Module):
    """Base of the families' models: a subclass sets `config` and `lm`, and adds `encode`. Every method is pure.

    `models.prefill` and `models.generate` read prompts with the decoder `lm` and answer.
    """

    config: Any
    lm: Decoder

    @property
    def base(self) -> "VideoModel":
        """The model without what is attached to it: itself, unless it carries a scorer (`stts.attach`)."""
        return self

    @property
    def provides(self) -> frozenset[str]:
        """Names of `tokens.EVIDENCE` that `encode` can attach (besides "text", which needs the caller's array)."""
        return self.config.provides

    @property
    def newline(self) -> Float[Array, "D"] | None:
        """The embedding that breaks lines between visual tokens; None where a family has none."""
        return None

    def embed_visual(self, tokens: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """What stands in a prompt for visual tokens: they themselves, unless a family says otherwise."""
        return tokens

    def embed_text(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Embeddings of token ids, see `Decoder.embed_text`."""
        return self.lm.embed_text(ids)


class FrameModel(VideoModel):
    """A model whose tower reads square frames of one size; a subclass gives `encode_frames`."""

    def encode(
        self,
        pixels: Float[Array, "T 3 S S"],
        needs: frozenset[str] = frozenset(),
        *,
        frame_mask: Bool[Array, "T"] | None = None,
        text: Float[Array, "L D"] | None = None,
        chunk: int = FRAME_CHUNK,
    ) -> VideoTokens:
        """The tokens of a video and the evidence asked for; `encode_frames` says what each evidence is.

        Args:
          pixels: (T, 3, S, S) normalised frames.
          needs: names of evidence, static.
          frame_mask: (T,) bool, False on padding frames; by default all True.
          text: (L, D) embeddings of the question, for reducers that need "text".
          chunk: frames at once, static.

        Raises:
          JvidpruneError: evidence this checkpoint cannot give, or pixels of the wrong size.
        """
        config = self.config
        check_evidence(config.family, needs, self.provides, text)
        arrays = map_chunks(lambda part: self.encode_frames(part, needs), pixels, chunk)
        if "newline" in needs:
            arrays["newline"] = self.newline
        text = text if "text" in needs else None
        return video_tokens(arrays, config.grid, text=text, frame_mask=frame_mask, unpooled_grid=config.unpooled_grid)

    def encode_frames(self, pixels: Float[Array, "F 3 S S"], needs: frozenset[str]) -> dict[str, Array]:
        """Arrays by name: the "features" (F, N, D) of some frames, and the evidence asked for.

        Args:
          pixels: (F, 3, S, S) normalised frames, few enough to go through at once.
          needs: names of evidence, static.

        Raises:
          JvidpruneError: pixels of the wrong size.
        """
        raise NotImplementedError
