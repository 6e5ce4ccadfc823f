"""Costs and masses with parameters, as Flax modules: any of them is a part of a transport as it is.

They begin as what AOT has inside frames: its cost, or close to it, and equal masses.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.ops.similarity import normalise
from jvidprune.ops.transport.cost import Rows, cosine, distance, lag


def _log_saliency(rows: Rows) -> Float[Array, "n"]:
    """Logarithm of the saliency in units of its mean over the rows that are no padding."""
    there = rows.mask.astype(rows.saliency.dtype)
    mean = (rows.saliency * there).sum() / jnp.maximum(there.sum(), 1.0)
    return jnp.log(jnp.maximum(rows.saliency, 0.0) / jnp.maximum(mean, 1e-12) + 1e-3)


class MahalanobisCost(nnx.Module):
    """|L (x - y)|^2 / 2 + w |p - q| for unit features x, y: a Mahalanobis distance of low rank.

    With the random L that it begins with this is 1 - cos on average.

    Args:
      width: D of the features.
      rank: rows of L.
      rngs: of the first L.
    """

    def __init__(self, width: int, rank: int = 32, *, rngs: nnx.Rngs):
        self.matrix = nnx.Param(jax.random.normal(rngs.params(), (width, rank)) / jnp.sqrt(rank))
        self.position = nnx.Param(jnp.float32(0.5))

    def __call__(self, x: Rows, y: Rows) -> Float[Array, "R A"]:
        """(R, A) costs."""
        matrix = self.matrix[...]
        left, right = (normalise(side.features, 1e-8) @ matrix for side in (x, y))
        # Expanded, so that no (R, A, rank) array exists.
        squared = (left**2).sum(-1)[:, None] + (right**2).sum(-1)[None] - 2 * left @ right.T
        return 0.5 * jnp.maximum(squared, 0.0) + self.position[...] * distance(x, y)


class NetworkCost(nnx.Module):
    """1 - cos + 0.5 |p - q| + a network of (cos, |p - q|, frames between, both saliencies), which begins at 0.

    Args:
      hidden: width of its one hidden layer.
      rngs: of its first weights.
    """

    def __init__(self, hidden: int = 16, *, rngs: nnx.Rngs):
        self.into = nnx.Param(jax.random.normal(rngs.params(), (5, hidden)) / jnp.sqrt(5.0))
        self.bias = nnx.Param(jnp.zeros(hidden))
        self.out = nnx.Param(jnp.zeros(hidden))

    def __call__(self, x: Rows, y: Rows) -> Float[Array, "R A"]:
        """(R, A) costs."""

        # The hidden layer of all pairs is made again in the backward pass.
        @jax.checkpoint
        def network(pairs: tuple, left: Array, right: Array, into: Array, bias: Array, out: Array) -> Array:
            hidden = (left[:, None] * into[3])[:, None] + (right[:, None] * into[4])[None] + bias
            for number, pair in enumerate(pairs):
                hidden = hidden + pair[..., None] * into[number]
            return jax.nn.gelu(hidden) @ out

        pairs = cosine(x, y), distance(x, y), jnp.log1p(lag(x, y))
        weights = self.into[...], self.bias[...], self.out[...]
        return 1.0 - pairs[0] + 0.5 * pairs[1] + network(pairs, _log_saliency(x), _log_saliency(y), *weights)


class NetworkMasses(nnx.Module):
    """softmax of a network of a token's saliency and of its distance from the frame's middle, one for each side.

    It begins with equal masses.

    Args:
      hidden: width of its one hidden layer.
      rngs: of its first weights.
    """

    def __init__(self, hidden: int = 8, *, rngs: nnx.Rngs):
        self.into = nnx.Param(jax.random.normal(rngs.params(), (2, 2, hidden)))
        self.bias = nnx.Param(jnp.zeros((2, hidden)))
        self.out = nnx.Param(jnp.zeros((2, hidden)))

    def __call__(self, x: Rows, y: Rows) -> tuple[Float[Array, "R"], Float[Array, "A"]]:
        """(R,) and (A,) masses."""

        def side(rows: Rows, number: int) -> Array:
            off = jnp.abs(rows.position - 0.5).max(-1)
            known = jnp.stack([_log_saliency(rows), off], axis=-1)
            score = jax.nn.gelu(known @ self.into[...][number] + self.bias[...][number]) @ self.out[...][number]
            share = jax.nn.softmax(jnp.where(rows.mask, score, -1e30))
            return jnp.where(rows.mask, share, 0.0)

        return side(x, 0), side(y, 1)


KINDS: dict[str, Any] = {cls.__name__: cls for cls in (MahalanobisCost, NetworkCost, NetworkMasses)}


def arrays_of(module: nnx.Module) -> dict[str, Array]:
    """The parameters by name, "MahalanobisCost.matrix"."""
    state = nnx.to_flat_state(nnx.state(module))
    return {".".join((type(module).__name__, *map(str, path))): variable[...] for path, variable in state}


def module_of(arrays: dict[str, Any]) -> nnx.Module:
    """The module with these parameters, the inverse of `arrays_of`."""
    kind = next(iter(arrays)).partition(".")[0]
    sizes = {
        "MahalanobisCost": lambda: arrays["MahalanobisCost.matrix"].shape,
        "NetworkCost": lambda: arrays["NetworkCost.bias"].shape,
        "NetworkMasses": lambda: arrays["NetworkMasses.bias"].shape[1:],
    }[kind]()
    graph, state = nnx.split(nnx.eval_shape(lambda: KINDS[kind](*sizes, rngs=nnx.Rngs(0))))
    leaves = [
        (path, leaf.replace(arrays[f"{kind}.{'.'.join(map(str, path))}"])) for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))
