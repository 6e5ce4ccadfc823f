"""How much mass each token sends or receives; zeros mark padding."""

import dataclasses
from typing import Annotated, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.fields import Range, check_fields, pytree
from jvidprune.ops.transport.cost import Rows

Power = Annotated[float, Range(-100, 100)]


class Marginals(Protocol):
    """Anything that gives both sides their masses."""

    def __call__(self, x: Rows, y: Rows) -> tuple[Float[Array, "R"], Float[Array, "A"]]:
        """(R,) and (A,) non-negative masses, 0 on padding, each summing to 1 unless the solver is unbalanced."""
        ...


def _share(weights: Array) -> Array:
    total = weights.sum()
    return weights / jnp.where(total > 0, total, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform:
    """Equal masses, as in AOT."""

    def __call__(self, x: Rows, y: Rows) -> tuple[Float[Array, "R"], Float[Array, "A"]]:
        """1/R and 1/A over the rows that are no padding."""
        return _share(x.mask.astype(jnp.float32)), _share(y.mask.astype(jnp.float32))


@pytree
@dataclasses.dataclass(frozen=True)
class Saliency:
    """Masses in proportion to saliency ** power; power 0 is uniform, a negative one lets salient sources stay home.

    Attributes:
      sources, anchors: power of each side, traced.
      floor: smallest saliency, so that no token loses its mass altogether.
    """

    sources: Power = 1.0
    anchors: Power = 1.0
    floor: Annotated[float, Range(1e-30)] = 1e-6

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Rows, y: Rows) -> tuple[Float[Array, "R"], Float[Array, "A"]]:
        """(R,) and (A,) masses."""

        def side(rows: Rows, power: float) -> Array:
            return _share(jnp.where(rows.mask, jnp.maximum(rows.saliency, self.floor) ** power, 0.0))

        return side(x, self.sources), side(y, self.anchors)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
    """Masses that the user computed: (R,) and (A,) arrays, masked and normalised here."""

    sources: Float[Array, "R"]
    anchors: Float[Array, "A"]

    def __call__(self, x: Rows, y: Rows) -> tuple[Float[Array, "R"], Float[Array, "A"]]:
        """(R,) and (A,) masses."""
        return _share(jnp.where(x.mask, self.sources, 0.0)), _share(jnp.where(y.mask, self.anchors, 0.0))
