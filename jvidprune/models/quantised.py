"""Weights of the language model in one byte each, through qwix: int8 or float8_e4m3fn with scales, for small devices.

The matrices of all decoder layers (attention, recurrence, MLP, experts) are `qwix.QArray`s: values of one byte and a
scale for each output channel, the largest magnitude of the channel over that of the type, as qwix quantises weights by
default ("absmax"). Embedding, head, norms, biases, convolutions, routers, what gives a recurrence its decay and
strength, and the tower stay as they are. Activations are never quantised: a product takes a matrix back to the type of
its scales where it is read (`qwix.dot_general`), which XLA makes part of the product, so that decoding reads one byte
for each weight.

`qwix.quantize_model` is not used: it replaces the parameters of the modules that one method of a model calls, whereas
these layers are stacked, cut out of the stack inside a scan, and entered by many methods.
"""

import dataclasses
import functools
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.extras import need

Quantise = Literal["int8", "fp8"]
"""How weights are held: whole numbers, or floats of 4 bits of exponent and 3 of mantissa."""

_TYPES: dict[str, Any] = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
_KEPT = frozenset({"router", "a", "b"})
"""Linear layers that are small and decide much: of experts, and of decay and strength in a recurrence."""

Config = TypeVar("Config")


def check_quantise(kind: str | None) -> None:
    """Refuses an unknown kind, or any where qwix is missing.

    Raises:
      JvidpruneError: says what is allowed, or how qwix is installed.
    """
    if kind is None:
        return
    if kind not in _TYPES:
        raise JvidpruneError(f"weights are quantised to {' or '.join(get_args(Quantise))}, not to {quoted(kind)}.")
    need("a quantised model", "qwix")


def with_quantise(config: Config, kind: Quantise | None) -> Config:
    """A family's config whose language model holds its matrices in one byte; None keeps it.

    Raises:
      JvidpruneError: see `check_quantise`.
    """
    check_quantise(kind)
    if kind is None:
        return config
    text = dataclasses.replace(config.text, quantise=kind)  # type: ignore[attr-defined]
    return dataclasses.replace(config, text=text)  # type: ignore[type-var]


def refuse_quantised(config: Any, what: str) -> None:
    """Refuses what needs weights in a type of their own.

    Args:
      config: of a family.
      what: needs them, as the beginning of a sentence.

    Raises:
      JvidpruneError: the language model is quantised.
    """
    if config.text.quantise is not None:
        raise JvidpruneError(
            f"{what} needs the weights themselves, but this model is loaded in {config.text.quantise}: load it without "
            "quantise."
        )


def is_quantised(value: Any) -> bool:
    """Whether a parameter is a `qwix.QArray`."""
    return hasattr(value, "qvalue")


def quantise_layers(layers: nnx.Module, kind: Quantise) -> None:
    """Takes the matrices of stacked layers to one byte each, in place.

    Args:
      layers: with linear layers, and modules that name matrices of theirs in `MATRICES`; abstract ones stay abstract.
      kind: see `Quantise`.

    Raises:
      JvidpruneError: see `check_quantise`.
    """
    check_quantise(kind)
    import qwix

    for path, module in nnx.iter_modules(layers):
        if path and path[-1] in _KEPT:
            continue
        if isinstance(module, nnx.Linear):
            module.dot_general, module.promote_dtype = qwix.dot_general, _promoted
        for name in ("kernel",) if isinstance(module, nnx.Linear) else getattr(module, "MATRICES", ()):
            value = getattr(module, name)[...]
            setattr(module, name, nnx.Param(quantise_matrices(value, _TYPES[kind], value.dtype)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def quantise_matrices(matrices: Float[Array, "... n m"], qtype: Any, dtype: Any) -> Any:
    """A `qwix.QArray` of the same shape with scales (..., 1, m): the rows of a matrix share that of their column.

    Args:
      matrices: (in, out) with any leading axes; quantised in float32, whatever their type.
      qtype: of the values.
      dtype: of the scales, which is the type that products take the values back to.
    """
    import qwix

    own = [axis for axis in range(matrices.ndim) if axis != matrices.ndim - 2]
    return qwix.quantize(matrices.astype(jnp.float32), qtype, channelwise_axes=own, scale_dtype=dtype)


def matmul(x: Float[Array, "... n"], matrix: Any) -> Float[Array, "... m"]:
    """x times a matrix (n, m), which may be quantised."""
    if not is_quantised(matrix):
        return x @ matrix
    import qwix

    return qwix.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())))


def ragged_dot(rows: Float[Array, "R n"], matrices: Any, sizes: Int[Array, "E"]) -> Float[Array, "R m"]:
    """`jax.lax.ragged_dot` whose matrices (E, n, m) may be quantised."""
    if not is_quantised(matrices):
        return jax.lax.ragged_dot(rows, matrices, sizes)
    import qwix

    return qwix.ragged_dot(rows, matrices, sizes)


def _promoted(arrays: Any, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Input, quantised kernel and bias of a linear layer in one type, as flax promotes arrays."""
    inputs, kernel, bias = arrays
    given = [part.dtype for part in arrays if part is not None]
    dtype = jnp.result_type(*given) if dtype is None else dtype
    return inputs.astype(dtype), kernel.astype(dtype), None if bias is None else bias.astype(dtype)
