"""Reduced rows with newlines between them, as golden files of whole prompts hold them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvidprune.ops import newline
from jvidprune.ops.newline import Arrangement, NewlineKind, NewlineRows


@dataclasses.dataclass(frozen=True)
class Lines:
    """L rows and newlines in prompt order.

    Attributes:
      laid: where each of them comes from.
    """

    laid: Arrangement

    @classmethod
    def of(
        cls,
        places: Any,
        valid: Any,
        *,
        kind: NewlineKind,
        grid: tuple[int, int],
        frames: int,
        rows: NewlineRows = "all",
    ) -> "Lines":
        """Lays out rows at these places, as `newline.arrange` does."""
        ids = jnp.asarray(places)
        return cls(newline.arrange(ids, jnp.asarray(valid), kind=kind, grid=grid, frames=frames, rows=rows))

    @property
    def count(self) -> int:
        """L, of what the arrangement has room for."""
        return min(int(self.laid.count), len(self.laid.valid))

    @property
    def is_newline(self) -> np.ndarray:
        """(L,) bool."""
        return np.asarray(self.laid.is_newline)[: self.count]

    @property
    def position(self) -> np.ndarray:
        """(L,) place in the unreduced sequence with its newlines."""
        return np.asarray(self.laid.position)[: self.count]

    def values(self, rows: Any, newline: Any) -> np.ndarray:
        """(L,) a value of each row, and of each newline."""
        return np.append(np.asarray(rows), newline)[np.asarray(self.laid.source)[: self.count]]

    def tokens(self, tokens: Any, vector: Any) -> np.ndarray:
        """(L, D) tokens of the rows with a vector for each newline."""
        return np.asarray(newline.sequence(self.laid, jnp.asarray(tokens), jnp.asarray(vector)))[: self.count]
