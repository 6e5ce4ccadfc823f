"""The scorer: attention pooling of every window, then an MLP over the window before and now."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.models.layers import linear
from jvidprune.stts.windows import Windows

RELEASED_PREFIX = "model.vision_backbone.image_vit.transformer.temporal_token_scorer."
"""Before the names of the scorer's tensors in the released Molmo2 checkpoints."""


@dataclasses.dataclass(frozen=True)
class ScorerSizes:
    """Sizes of a scorer.

    Attributes:
      width: D, that of the tower.
      heads: attention heads of the pooler, those of the tower.
      hidden: F, width of the MLP.
    """

    width: int
    heads: int
    hidden: int


class Pooler(nnx.Module):
    """One attention query a window, the mean of its patches; keys and values are the patches."""

    def __init__(self, sizes: ScorerSizes, *, dtype: Any, rngs: nnx.Rngs):
        self.heads = sizes.heads
        self.q = linear(sizes.width, sizes.width, dtype=dtype, rngs=rngs)
        self.k = linear(sizes.width, sizes.width, dtype=dtype, rngs=rngs)
        self.v = linear(sizes.width, sizes.width, dtype=dtype, rngs=rngs)
        self.o = linear(sizes.width, sizes.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "F N D"], windows: Windows) -> Float[Array, "F P D"]:
        """The pooled vector of each window; logits in float32, no mask, no residual, no norm."""
        frames, patches, width = x.shape
        count = windows.count
        dim = width // self.heads
        # Keys and values are projected before they are gathered: windows may share patches.
        k, v = (
            windows.gather(part(x).reshape(frames, patches, self.heads, dim))  # pyright: ignore
            for part in (self.k, self.v)
        )
        mean = windows.gather(x).astype(jnp.float32).mean(axis=2).astype(x.dtype)
        q = self.q(mean).reshape(frames, count, self.heads, dim)
        logits = jnp.einsum("fphd,fpghd->fphg", q, k, preferred_element_type=jnp.float32) * dim**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return self.o(jnp.einsum("fphg,fpghd->fphd", weights, v).reshape(frames, count, width))


class ScorerMlp(nnx.Module):
    """w3 silu(w2 silu(w1 x)), all with bias."""

    def __init__(self, sizes: ScorerSizes, *, dtype: Any, rngs: nnx.Rngs):
        self.w1 = linear(2 * sizes.width, sizes.hidden, dtype=dtype, rngs=rngs)
        self.w2 = linear(sizes.hidden, sizes.hidden, dtype=dtype, rngs=rngs)
        self.w3 = linear(sizes.hidden, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "..."]:
        """One number a row."""
        return self.w3(jax.nn.silu(self.w2(jax.nn.silu(self.w1(x)))))[..., 0]


class Scorer(nnx.Module):
    """Scores of windows in (0, 1) from their patches now and one frame before (STTS, arXiv 2603.18004, section 3).

    New scorers begin as in the released code: the pooler normal with deviation 0.02, the MLP normal with variance
    1 / fan-in cut at +-2, biases 0.
    """

    def __init__(self, sizes: ScorerSizes, *, dtype: Any = jnp.float32, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.sizes = sizes
        self.pooler = Pooler(sizes, dtype=dtype, rngs=rngs)
        self.mlp = ScorerMlp(sizes, dtype=dtype, rngs=rngs)
        for name in ("q", "k", "v", "o"):
            kernel = getattr(self.pooler, name).kernel
            kernel[...] = (0.02 * jax.random.normal(rngs.params(), kernel.shape)).astype(dtype)
        for name in ("w1", "w2", "w3"):
            kernel = getattr(self.mlp, name).kernel
            std = kernel.shape[0] ** -0.5
            drawn = std * jax.random.truncated_normal(rngs.params(), -2 / std, 2 / std, kernel.shape)
            kernel[...] = drawn.astype(dtype)

    def logits(self, x: Float[Array, "F N D"], windows: Windows) -> Float[Array, "F P"]:
        """float32 values before the sigmoid.

        The frame before is the one before on the flat axis, also across videos; before the first there are zeros.
        """
        pooled = self.pooler(x, windows)
        before = jnp.concatenate([jnp.zeros_like(pooled[:1]), pooled[:-1]])
        return self.mlp(jnp.concatenate([before, pooled], axis=-1)).astype(jnp.float32)

    def __call__(self, x: Float[Array, "F N D"], windows: Windows) -> Float[Array, "F P"]:
        """Scores in (0, 1), float32; low ones are pruned.

        Args:
          x: (F, N, D) what the blocks up to `prune_at` made of all frames, of one video or of several in a row.
          windows: of a frame.
        """
        return jax.nn.sigmoid(self.logits(x, windows))


_NAMES = {
    "patch_token_pooler.wq": ("pooler", "q"),
    "patch_token_pooler.wk": ("pooler", "k"),
    "patch_token_pooler.wv": ("pooler", "v"),
    "patch_token_pooler.wo": ("pooler", "o"),
    "mlp.w1": ("mlp", "w1"),
    "mlp.w2": ("mlp", "w2"),
    "mlp.w3": ("mlp", "w3"),
}
"""Released module name -> part and layer of `Scorer`."""


def scorer_tensors(scorer: Any, prefix: str = RELEASED_PREFIX) -> dict[str, np.ndarray]:
    """The tensors of a scorer, or of the gradient of one, under their released names, weights as (out, in)."""
    found = {}
    for name, (part, layer) in _NAMES.items():
        held = getattr(getattr(scorer, part), layer)
        found[f"{prefix}{name}.weight"] = np.asarray(held.kernel[...]).T
        found[f"{prefix}{name}.bias"] = np.asarray(held.bias[...])
    return found


def scorer_from_tensors(
    tensors: Mapping[str, Any], heads: int, *, prefix: str = RELEASED_PREFIX, dtype: Any = jnp.float32
) -> Scorer:
    """A scorer from tensors under their released names; sizes are read from the shapes.

    Args:
      tensors: weights (out, in) and biases by name; others are passed over.
      heads: of the pooler.
      prefix: before the names.
      dtype: of the parameters.

    Raises:
      JvidpruneError: missing tensors, or shapes that do not fit each other.
    """
    names = [f"{prefix}{name}.{kind}" for name in _NAMES for kind in ("weight", "bias")]
    if missing := [name for name in names if name not in tensors]:
        raise JvidpruneError(f"{len(missing)} tensors of the scorer are missing: {', '.join(missing)}.")
    hidden, double = tensors[f"{prefix}mlp.w1.weight"].shape
    if double % 2 or (double // 2) % heads:
        raise JvidpruneError(f"a scorer with {double} inputs cannot have {heads} heads.")
    sizes = ScorerSizes(double // 2, heads, hidden)
    scorer = nnx.eval_shape(lambda: Scorer(sizes, dtype=dtype))
    for name, (part, layer) in _NAMES.items():
        held = getattr(getattr(scorer, part), layer)
        for kind, target in (("weight", "kernel"), ("bias", "bias")):
            value, wanted = np.asarray(tensors[f"{prefix}{name}.{kind}"]), getattr(held, target).shape
            if value.shape != wanted[::-1]:
                raise JvidpruneError(f"{prefix}{name}.{kind} has shape {value.shape} instead of {wanted[::-1]}.")
            setattr(held, target, nnx.Param(jnp.asarray(value.T, dtype)))
    return scorer
