"""How much mass each token sends or receives; zeros mark padding."""

import dataclasses
from typing import Annotated, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.fields import Range, Temperature, check_fields, pytree
from jvidprune.ops.similarity import widened
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
        kind = widened(x.features.dtype)
        return _share(x.mask.astype(kind)), _share(y.mask.astype(kind))


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


@pytree
@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """OTT-Vid's masses: softmax(-s / temperature) with s = coverage / (its maximum + 1e-8) (arXiv 2605.11803).

    What the frame would miss most has the smallest mass, so that transport takes it last. Where the method measures no
    `Rows.coverage` the saliency stands in.

    Attributes:
      temperature: tau_m, traced.
    """

    temperature: Temperature = 0.3

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Rows, y: Rows) -> tuple[Float[Array, "R"], Float[Array, "A"]]:
        """(R,) and (A,) masses."""

        def side(rows: Rows) -> Array:
            needed = jnp.where(rows.mask, rows.saliency if rows.coverage is None else rows.coverage, 0.0)
            needed = needed / (jnp.max(needed) + 1e-8)
            # Minus infinity would leave a side without any token NaN, and so the derivatives of all others.
            share = jax.nn.softmax(jnp.where(rows.mask, -needed / self.temperature, -1e30))
            return jnp.where(rows.mask, share, 0.0)

        return side(x), side(y)
