"""The MLP of a decoder layer with experts: a router picks some for each token, whose rows are multiplied in groups.

Rows are sorted by their expert, so that each expert's stand together. Two equal formulations multiply them: on TPUs
`jax.lax.ragged_dot`, which is one kernel there; elsewhere, where XLA would write it out over all experts, and for fewer
rows than experts, a loop over tiles of rows, each of which reads the matrices of the one expert that it belongs to.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jvidprune.models.layers import linear
from jvidprune.models.quantised import matmul, ragged_dot
from jvidprune.ops.branch import platform
from jvidprune.parallel import summed_pieces

_TILE = 128
"""Rows of a tile at most."""


def route(logits: Float[Array, "N E"], active: int) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """Weights and numbers of the `active` experts of each token; ties go to the lower number.

    Probabilities are over all experts, in float32, and the weights of those taken are normalised to 1, in the type of
    the logits.
    """
    weights, chosen = lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), active)
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(logits.dtype), chosen


def grouped_dot(
    rows: Float[Array, "R n"], matrices: Any, sizes: Int[Array, "E"], *, ragged: bool
) -> Float[Array, "R m"]:
    """Each group of rows times its matrix; what rows behind the last group get means nothing.

    Args:
      rows: sorted by group.
      matrices: (E, n, m), one a group; they may be quantised.
      sizes: rows of each group; their sum is R at most.
      ragged: take `jax.lax.ragged_dot`; False loops over tiles.
    """
    if ragged:
        return ragged_dot(rows, matrices, sizes.astype(jnp.int32))
    return _tiled(rows, matrices, sizes)


def _tiled(rows: Array, matrices: Any, sizes: Array) -> Array:
    """Tiles of rows, none of which spans two groups: as many as there can be, of which empty ones are skipped."""
    count, groups = rows.shape[0], sizes.shape[0]
    tile = min(_TILE, max(8, count // groups))
    tiles = count // tile + min(groups, count)
    ends, behind = jnp.cumsum(sizes), jnp.cumsum(-(-sizes // tile))
    starts, first = ends - sizes, behind - -(-sizes // tile)
    number = jnp.arange(tiles)
    group = jnp.minimum(jnp.searchsorted(behind, number, side="right"), groups - 1)
    place = (starts[group] + (number - first[group]) * tile)[:, None] + jnp.arange(tile)
    filled = number < behind[-1]
    place = jnp.where((place < ends[group][:, None]) & filled[:, None], place, count)

    def one(x: tuple[Array, Array, Array]) -> Array:
        def product(place: Array, group: Array) -> Array:
            matrix = jax.tree.map(lambda part: part[group], matrices)
            return matmul(rows.at[place].get(mode="fill", fill_value=0), matrix)

        def nothing(place: Array, group: Array) -> Array:
            return jnp.zeros((tile, matrices.shape[-1]), rows.dtype)

        return lax.cond(x[2], product, nothing, *x[:2])

    out = lax.map(one, (place, group, filled)).reshape(tiles * tile, -1)
    row = jnp.arange(count)
    of_row = jnp.minimum(jnp.searchsorted(ends, row, side="right"), groups - 1)
    return out[first[of_row] * tile + row - starts[of_row]]


class Experts(nnx.Module):
    """Gated MLPs of which every token passes a few; their matrices stand in one array each."""

    MATRICES = ("gate_up", "down")

    def __init__(self, width: int, hidden: int, experts: int, active: int, *, dtype: Any, rngs: nnx.Rngs):
        self.active = active
        self.router = linear(width, experts, bias=False, dtype=dtype, rngs=rngs)
        init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        self.gate_up = nnx.Param(init(rngs.params(), (experts, width, 2 * hidden), dtype))
        self.down = nnx.Param(init(rngs.params(), (experts, hidden, width), dtype))

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Acts on each token alone; with a mesh every device multiplies by the experts that it holds."""
        rows, held = ("batch", None, None), ("experts", None, None)
        # Of quantised matrices the scales are arrays of their own.
        matrices, held_as = jax.tree.flatten((self.gate_up[...], self.down[...]))
        through = functools.partial(_through, active=self.active, held_as=held_as)
        # Each device routes its own rows: XLA would put them together to sort them.
        run = summed_pieces(through, (rows, rows, ("experts",), *[held] * len(matrices)), "experts")
        numbers = jnp.arange(self.router.out_features, dtype=jnp.int32)
        return run(x, self.router(x), numbers, *matrices)


def _through(
    x: Float[Array, "B S D"],
    logits: Float[Array, "B S A"],
    numbers: Int[Array, "E"],
    *matrices: Array,
    active: int,
    held_as: Any,
) -> Float[Array, "B S D"]:
    """What the experts `numbers` of all A, which follow each other, add to each token.

    `matrices` are the arrays (E, D, 2I) and (E, I, D) that gate, up and down are held as, `held_as` their structure.
    """
    gate_up, down = jax.tree.unflatten(held_as, matrices)
    flat = x.reshape(-1, x.shape[-1])
    # Where rows are fewer than experts, as in a decoding step, tiles read the matrices of few experts alone.
    ragged = platform() == "tpu" and len(flat) * active >= len(numbers)
    weights, chosen = route(logits.reshape(-1, logits.shape[-1]), active)
    own = chosen.reshape(-1) - numbers[0]
    here = (own >= 0) & (own < len(numbers))
    group = jnp.where(here, own, len(numbers))
    order = jnp.argsort(group, stable=True)
    sizes = jnp.zeros(len(numbers) + 1, jnp.int32).at[group].add(1)[:-1]
    entering = flat[order // active]
    gate, up = jnp.split(grouped_dot(entering, gate_up, sizes, ragged=ragged), 2, axis=-1)
    out = grouped_dot(jax.nn.silu(gate) * up, down, sizes, ragged=ragged)
    weight = jnp.where(here, weights.reshape(-1), 0)
    # Rows of other devices' experts hold anything.
    back = jnp.where(here[:, None], out[jnp.argsort(order)], 0) * weight[:, None]
    return back.reshape(-1, active, x.shape[-1]).sum(axis=1, dtype=jnp.float32).reshape(x.shape).astype(x.dtype)
