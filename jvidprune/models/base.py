"""What all families have in common behind the tower: a decoder that reads text and visual tokens."""

import dataclasses
from collections.abc import Collection
from typing import Any, Self

from flax import nnx
from jaxtyping import Array, Float, Int

from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig


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
