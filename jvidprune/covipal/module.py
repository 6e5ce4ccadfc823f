"""The plug-in pruning module: two small transformer blocks over visual tokens and text, one score a visual token."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.models.attention import attend_all
from jvidprune.models.layers import Mlp, layer_norm, linear
from jvidprune.weights import Weights

_EPS = 1e-6
_LONGEST_WAVE = 10_000.0
_MADE = ("made.heads", "made.grid", "made.place")
"""What of a module its parameters do not tell, among the arrays of its file."""


class PPMBlock(nnx.Module):
    """x += o(attention(norm1(x))); x += mlp(norm2(x)); every token sees all others."""

    def __init__(self, width: int, hidden: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1, self.norm2 = (layer_norm(width, _EPS, dtype=jnp.float32, rngs=rngs) for _ in range(2))
        self.q, self.k, self.v, self.o = (linear(width, width, dtype=jnp.float32, rngs=rngs) for _ in range(4))
        self.mlp = Mlp(width, hidden, width, "gelu", dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "G M W"], valid: Bool[Array, "G M"]) -> Float[Array, "G M W"]:
        """Rows that are not valid hold garbage and are not seen."""
        normed = self.norm1(x)
        q, k, v = (part(normed).reshape(*x.shape[:2], self.heads, -1) for part in (self.q, self.k, self.v))
        x = x + self.o(attend_all(q, k, v, valid=valid)[0].reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class PPM(nnx.Module):
    """Scores of visual tokens from these and the text beside them (CoViPAL, arXiv 2508.17243); sizes are ours.

    One projection for both kinds of token with a learned vector each, pre-norm blocks of full attention, a last norm
    and one number a token, in float32. The text is a bag of tokens: only visual tokens have a position.

    Args:
      dim: D, width of the tokens.
      width: W, of the module.
      blocks: how many.
      hidden: of the MLPs.
      heads: of the attention; divides the width.
      grid: sines of frame, row and column are added to visual tokens; without them a permutation of these permutes the
        scores.
      rngs: of new parameters.

    Raises:
      JvidpruneError: heads that do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 256,
        blocks: int = 2,
        hidden: int = 1024,
        heads: int = 4,
        grid: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        if width % heads:
            raise JvidpruneError(f"{heads} heads do not divide the width {width} of a pruning module.")
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.heads, self.grid = heads, grid
        self.enter = linear(dim, width, dtype=jnp.float32, rngs=rngs)
        self.kind = nnx.Param(0.02 * jax.random.normal(rngs.params(), (2, width)))
        self.blocks = nnx.List([PPMBlock(width, hidden, heads, rngs) for _ in range(blocks)])
        self.norm = layer_norm(width, _EPS, dtype=jnp.float32, rngs=rngs)
        self.score = linear(width, 1, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "G M D"],
        visual: Bool[Array, "G M"],
        text: Bool[Array, "G M"],
        places: Int[Array, "G M 3"],
    ) -> Float[Array, "G M"]:
        """float32 scores; those of tokens that are not visual mean nothing.

        Args:
          x: lists of tokens, each of which sees its own list alone.
          visual: which are scored.
          text: which stand beside them; what is neither is padding.
          places: frame, row and column of visual tokens.

        Raises:
          JvidpruneError: tokens of another width than the module's.
        """
        dim = self.enter.kernel.shape[0]
        if x.shape[-1] != dim:
            raise JvidpruneError(
                f"the pruning module is for tokens of width {dim}, but these have {x.shape[-1]}: take one that was "
                "trained for this model."
            )
        # Choices are made by these numbers, so that no product is rounded to bfloat16 on the way.
        with jax.default_matmul_precision("highest"):
            kind = self.kind[...]
            y = self.enter(x.astype(jnp.float32)) + jnp.where(visual[..., None], kind[0], kind[1])
            if self.grid:
                y = y + jnp.where(visual[..., None], _waves(places, y.shape[-1]), 0.0)
            valid = visual | text
            for block in self.blocks:
                y = block(y, valid)
            return self.score(self.norm(y))[..., 0]


def _waves(places: Int[Array, "... 3"], width: int) -> Float[Array, "... W"]:
    """Sines and cosines of the three numbers, W // 6 waves each; what is left of the width is 0."""
    waves = max(width // 6, 1)
    slow = _LONGEST_WAVE ** (-jnp.arange(waves) / waves)
    angle = (places.astype(jnp.float32)[..., None] * slow).reshape(*places.shape[:-1], 3 * waves)
    found = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :width]
    return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, width - found.shape[-1])])


def module_weights(module: PPM, place: int = 0) -> Weights:
    """A module as the value of a setting, or for a file.

    Args:
      module: trained.
      place: layer of the language model in front of which it was trained, 0 for its input.
    """
    found = {".".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(module))}
    made = zip(_MADE, (module.heads, int(module.grid), place), strict=True)
    return Weights.of(found | {name: np.asarray(value, np.int32) for name, value in made})


@functools.lru_cache(16)
def made_of(weights: Weights) -> tuple[int, bool, int]:
    """Heads, whether it knows places, and the layer of a module that was read.

    Raises:
      JvidpruneError: arrays that are no such module.
    """
    where = "the pruning module" if weights.path is None else weights.path
    missing = [name for name in (*_MADE, "enter.kernel", "kind", "score.kernel") if name not in weights.arrays]
    if missing:
        raise JvidpruneError(f"{where} is no pruning module: {missing[0]} is missing.")
    heads, grid, place = (int(weights.arrays[name]) for name in _MADE)
    try:
        module_of(parameters_of(weights), heads, bool(grid))
    except (KeyError, ValueError, ZeroDivisionError, IndexError) as error:
        raise JvidpruneError(f"{where} is no pruning module: its arrays do not fit each other ({error}).") from error
    return heads, bool(grid), place


def parameters_of(weights: Weights) -> dict[str, Any]:
    """The parameters alone."""
    return {name: x for name, x in weights.arrays.items() if name not in _MADE}


def module_of(parameters: Mapping[str, Any], heads: int, grid: bool) -> PPM:
    """The module with given parameters, which may be traced.

    Args:
      parameters: by dotted path.
      heads, grid: as for `PPM`; static.

    Raises:
      KeyError: a parameter is missing.
      ValueError: one has another shape than the others ask for.
    """
    dim, width = parameters["enter.kernel"].shape
    hidden = parameters["blocks.0.mlp.fc1.kernel"].shape[1]
    blocks = len({name.split(".")[1] for name in parameters if name.startswith("blocks.")})

    def new() -> PPM:
        return PPM(dim, width=width, blocks=blocks, hidden=hidden, heads=heads, grid=grid)

    graph, state = nnx.split(nnx.eval_shape(new))
    leaves = []
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        value = parameters[name]
        if value.shape != (wanted := variable.get_value().shape):
            raise ValueError(f"{name} is {value.shape} and not {wanted}")
        leaves.append((path, variable.replace(jnp.asarray(value))))
    return nnx.merge(graph, nnx.from_flat_state(leaves))
