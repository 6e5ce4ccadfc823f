"""What all families have in common behind the tower: a decoder that reads text and visual tokens."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from jvidprune.models.cache import Cache
from jvidprune.models.decoder import Decoder


class Reader(nnx.Module):
    """Base of the families' models; a subclass sets `config` and `lm`, and adds `encode`. Every method is pure."""

    config: Any
    lm: Decoder

    @property
    def provides(self) -> frozenset[str]:
        """Names of `tokens.EVIDENCE` that `encode` can attach (besides "text", which needs the caller's array)."""
        return self.config.provides

    def embed_text(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Embeddings of token ids, see `Decoder.embed_text`."""
        return self.lm.embed_text(ids)

    def prefill(
        self, embeds: Array, positions: Array, valid: Array, cache: Cache, **options: Any
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Logits at each row's last valid slot and the filled cache, see `Decoder.prefill`.

        A pruned prompt with original positions passes `next_position`; Qwen3-VL passes its DeepStack levels as `added`
        (`qwen_vl.spread_levels`); Molmo2 marks as `together` the slots of visual tokens and of the ids
        `config.tokens.ids`, of all frames and images.
        """
        return self.lm.prefill(embeds, positions, valid, cache, **options)

    def decode(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """One decoding step, see `Decoder.decode`."""
        return self.lm.decode(tokens, cache)

    def empty_cache(self, batch: int, capacity: int | tuple[int, ...], **options: Any) -> Cache:
        """A cache for `batch` prompts of at most `capacity` tokens (of each segment), answers included."""
        return self.lm.empty_cache(batch, capacity, **options)
