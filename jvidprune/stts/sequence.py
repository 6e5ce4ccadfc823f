"""Pruned visual placeholders leave the language model's sequence: one gather of static length for everything."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jvidprune.ops.compact import compact


class Shortened(NamedTuple):
    """Where the slots of a shorter sequence come from.

    Attributes:
      source: (L,) int32 slot of the full sequence, S on padding.
      valid: (L,) bool, a prefix mask.
      positions: (L,) int32 rotary positions.
      next_position: () int32, of the first generated token.
    """

    source: Int[Array, "L"]
    valid: Bool[Array, "L"]
    positions: Int[Array, "L"]
    next_position: Int[Array, ""]

    def take(self, x: Array, fill: int = 0) -> Array:
        """Anything with one row a slot (ids, embeddings, loss masks, targets) in the shorter sequence."""
        return x.at[self.source].get(mode="fill", fill_value=fill)


def shorten(
    visual: Bool[Array, "S"],
    keep: Bool[Array, "V"],
    length: int,
    *,
    real: Bool[Array, "S"] | None = None,
    keep_positions: bool = False,
) -> Shortened:
    """Drops the placeholders of pruned tokens; time stamps and frame markers stay, also of frames that are gone.

    The released language model could not be read: that positions are counted anew is this port's choice, as for all
    reducers on LLaVA; `keep_positions` leaves every token its own.

    Args:
      visual: (S,) which slots of the full sequence are placeholders of visual tokens.
      keep: (V,) which visual tokens stay, in the order of the placeholders.
      length: L, static: slots of text and of kept tokens.
      real: (S,) False on padding behind the sequence.
      keep_positions: positions of the full sequence.
    """
    number = jnp.clip(jnp.cumsum(visual, dtype=jnp.int32) - 1, 0, keep.shape[0] - 1)
    there = jnp.where(visual, keep[number], True)
    there = there if real is None else there & real
    source, valid, count = compact(there, length)
    slots = jnp.arange(length, dtype=jnp.int32)
    whole = visual.shape[0] if real is None else real.sum(dtype=jnp.int32)
    if keep_positions:
        return Shortened(source, valid, jnp.where(valid, source, 0), jnp.asarray(whole, jnp.int32))
    return Shortened(source, valid, jnp.minimum(slots, count - 1), count)
