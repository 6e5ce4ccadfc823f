"""DeepStack levels of the kept tokens of a prompt, for language models that read them (Qwen3-VL)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.models.qwen.model import spread_levels


def kept_levels(videos: Sequence[ReducedVideo], slots: SlotMap, text: int) -> jax.Array | None:
    """(S, 1, L, D) what a prefill adds behind its first S layers, or None for a model without DeepStack and for
    text alone.

    The levels are those of the kept ids, also where tokens are merged, as FlashVID's code has it. A method that
    runs the tower itself (STTS) gives levels of its own.

    Args:
      videos: with the evidence "features_deepstack", or without.
      slots: of the prompt.
      text: its text tokens.
    """
    if not videos or "features_deepstack" not in videos[0].video.tokens.evidence:
        return None
    kept = []
    for one in videos:
        own = one.reduced.diagnostics.get("features_deepstack")
        levels = one.video.tokens.evidence["features_deepstack"]
        flat = levels.reshape(-1, *levels.shape[2:])
        kept.append(flat[jnp.minimum(one.reduced.index, len(flat) - 1)] if own is None else own)
    return _spread(jnp.concatenate(kept), slots, text)


def _spread(kept: jax.Array, slots: SlotMap, text: int) -> jax.Array:
    rows = np.where(slots.valid, slots.source - text - 1, -1)
    return spread_levels(kept, jnp.asarray(rows[None]))
