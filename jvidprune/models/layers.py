"""Small parts that every model shares: norms, MLPs, and scans over stacked layers."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.parallel import pieces

Module = TypeVar("Module", bound=nnx.Module)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
"""Activations by their name in config.json; "gelu" is the exact (erf) form."""

LONGEST_RUN = 4096
"""Tokens of a prompt that `map_tokens` takes at once."""

_TILE = 128
"""Runs of tokens are multiples of it."""


def check_activation(name: str) -> str:
    """The name itself if it is one of `ACTIVATIONS`, a JvidpruneError otherwise."""
    if name not in ACTIVATIONS:
        raise JvidpruneError(f"activation {name!r} is not supported; known: {', '.join(ACTIVATIONS)}.")
    return name


def linear(n_in: int, n_out: int, *, bias: bool = True, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose parameters have the given dtype; the output has the dtype of input and kernel."""
    return nnx.Linear(n_in, n_out, use_bias=bias, param_dtype=dtype, rngs=rngs)


def layer_norm(width: int, eps: float, *, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with scale and bias; the variance is that of the centred values, as the references compute it."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, param_dtype=dtype, rngs=rngs)


class RMSNorm(nnx.Module):
    """x * rsqrt(mean(x^2) + eps) in float32, cast to the input dtype, then multiplied by the weight."""

    def __init__(self, width: int, eps: float, *, dtype: Any):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width, dtype))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        # The weight comes after the cast: in bf16 the order is visible in the last bit.
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class CentredRMSNorm(nnx.Module):
    """x * rsqrt(mean(x^2) + eps) * (1 + weight), all in float32, cast to the input dtype (Qwen3.5)."""

    def __init__(self, width: int, eps: float, *, dtype: Any):
        self.eps = eps
        self.scale = nnx.Param(jnp.zeros(width, dtype))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * (1.0 + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class Mlp(nnx.Module):
    """fc2(activation(fc1(x))) with biases."""

    def __init__(self, width: int, hidden: int, out: int, activation: str, *, dtype: Any, rngs: nnx.Rngs):
        self.activation = activation
        self.fc1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """Acts on the last axis."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class GatedMlp(nnx.Module):
    """down(activation(gate(x)) * up(x)), of the input's width unless `out` says another."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        *,
        out: int | None = None,
        bias: bool = False,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.gate = linear(width, hidden, bias=bias, dtype=dtype, rngs=rngs)
        self.up = linear(width, hidden, bias=bias, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width if out is None else out, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """Acts on the last axis."""
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


def map_tokens(
    act: Callable[[Float[Array, "B S D"]], Float[Array, "B S E"]], x: Float[Array, "B S D"]
) -> Float[Array, "B S E"]:
    """What acts on each token alone, over runs of at most `LONGEST_RUN` tokens, one after the other.

    So that of a long prompt the hidden layer of an MLP, several times as wide, never exists at once.
    """
    batch, tokens, _ = x.shape
    if tokens <= LONGEST_RUN:
        return act(x)
    # Prompts are multiples of a tile: of runs that divide them, none is filled up and nothing copied.
    whole = [size for size in range(LONGEST_RUN, LONGEST_RUN // 4, -_TILE) if tokens % size == 0]
    size = whole[0] if whole else LONGEST_RUN
    count = -(-tokens // size)
    x = jnp.pad(x, ((0, 0), (0, count * size - tokens), (0, 0))).reshape(batch, count, size, -1)
    out = jnp.moveaxis(lax.map(act, jnp.moveaxis(x, 1, 0)), 0, 1)
    return out.reshape(batch, count * size, -1)[:, :tokens]


def stack(build: Callable[[nnx.Rngs], Module], layers: int, rngs: nnx.Rngs) -> Module:
    """`layers` copies of a module, each with its own initial values, as one module with a leading layer axis."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(keys: nnx.Rngs) -> Module:
        return build(keys)

    return make(rngs)


def scan_layers(
    stacked: nnx.Module,
    start: int,
    stop: int,
    layers: int,
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: bool = False,
) -> tuple[Any, Any]:
    """Runs layers [start, stop) of a stacked module as one `lax.scan`.

    Args:
      stacked: module made by `stack`.
      start: first layer, static.
      stop: one past the last layer, static.
      layers: number of stacked layers.
      body: (layer module, carry, x) -> (carry, output).
      carry: initial carry.
      xs: what each layer of the segment gets besides, leading axis stop - start.
      remat: the backward pass computes each layer again from its input, so that only inputs are kept.

    Returns:
      The final carry and the outputs stacked over the segment.
    """
    graph, state = nnx.split(stacked)

    def whole(c: Any, x: tuple[Any, Any]) -> tuple[Any, Any]:
        return body(nnx.merge(graph, x[0]), c, x[1])

    # Layers are picked by index inside the loop: slicing the stack first would copy the segment's weights.
    def part(c: Any, x: tuple[Array, Any]) -> tuple[Any, Any]:
        index, extra = x
        params = jax.tree.map(lambda p: lax.dynamic_index_in_dim(p, index, keepdims=False), state)
        return body(nnx.merge(graph, params), c, extra)

    step: Any
    step, inputs = (whole, state) if (start, stop) == (0, layers) else (part, jnp.arange(start, stop))
    return lax.scan(jax.checkpoint(step, prevent_cse=False) if remat else step, carry, (inputs, xs))


def chunk_frames(count: int, chunk: int) -> int:
    """Frames of each chunk when `count` frames go through in chunks of at most `chunk`, as even as can be."""
    return -(-count // -(-count // chunk))


def map_chunks(encode: Any, frames: Any, chunk: int) -> Any:
    """`encode` over chunks of frames, one after the other; the last chunk is filled up with zero frames.

    Chunks are evened out (33 frames in chunks of at most 8 run as 5 times 7), so that little of the filling is wasted.
    On a mesh `chunk` is what one device takes at once, and all get equally many.

    Args:
      encode: from arrays with a leading axis of frames to arrays with one.
      frames: an array or a pytree of them.
      chunk: most frames at once, static.
    """
    count, devices = jax.tree.leaves(frames)[0].shape[0], pieces("frames")
    size = chunk_frames(count, chunk * devices)
    size += -size % devices
    chunks = -(-count // size)
    if size == count:
        return encode(frames)

    def filled(x: Array) -> Array:
        return jnp.pad(x, ((0, chunks * size - count), *((0, 0),) * (x.ndim - 1)))

    if chunks == 1:
        return jax.tree.map(lambda x: x[:count], encode(jax.tree.map(filled, frames)))
    cut = jax.tree.map(lambda x: filled(x).reshape(chunks, size, *x.shape[1:]), frames)
    out = lax.map(encode, cut)
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], out)
