"""The scorer of a released checkpoint, which lies among the tensors of its tower."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jvidprune.models.checkpoint.folder import Checkpoint
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.scorer import Scorer, scorer_from_tensors

_MARK = ".temporal_token_scorer."

RELEASED = STTSConfig(refill="official")
"""The settings that released weights were trained with."""


def released_scorer(folder: str | Path, heads: int, *, dtype: Any = jnp.float32) -> Scorer | None:
    """The scorer that a checkpoint holds under any prefix; None where it has none.

    Args:
      folder: of the checkpoint.
      heads: of the tower.
      dtype: of the parameters.

    Raises:
      JvidpruneError: no readable checkpoint, or tensors that are missing or do not fit each other.
    """
    found = Checkpoint(Path(folder), lambda name: name if _MARK in name else None)
    if not found.names:
        return None
    prefix = min(found.names).partition(_MARK)[0] + _MARK
    tensors = {name: found.read(name, (slice(None),) * len(found.shape(name))) for name in found.names}
    return scorer_from_tensors(tensors, heads, prefix=prefix, dtype=dtype)
