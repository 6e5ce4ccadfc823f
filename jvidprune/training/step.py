"""One training step: gradients of what learns, accumulated over parts of a batch, in the precision of choice."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jvidprune.errors import JvidpruneError
from jvidprune.training.groups import Params
from jvidprune.training.placing import Placing

Precision = Literal["float32", "bfloat16", "pure_bfloat16"]
"""float32 throughout; bfloat16 computation with float32 parameters; bfloat16 parameters and computation. Gradients are
summed and moments kept in float32 whichever it is."""

Loss = Callable[[Params, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters, part of a batch, random key) -> (that part's share of the step's loss, metrics that are summed)."""


class State(NamedTuple):
    """Everything a step changes.

    Attributes:
      params: what learns, by dotted path.
      moments: of the optimiser.
      key: (2,) uint32 of the run; a step's own is folded from it.
      count: int32 steps made.
    """

    params: Params
    moments: Any
    key: jax.Array
    count: jax.Array


def stored(params: Params, precision: Precision) -> Params:
    """Parameters in the type that a run keeps them in.

    Raises:
      JvidpruneError: unknown precision.
    """
    if precision not in get_args(Precision):
        raise JvidpruneError(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}.")
    return _cast(params, jnp.bfloat16 if precision == "pure_bfloat16" else jnp.float32)


def computed(params: Params, precision: Precision) -> Params:
    """Parameters in the type that a run computes in."""
    return _cast(params, jnp.float32 if precision == "float32" else jnp.bfloat16)


def _cast(params: Params, dtype: Any) -> Params:
    return {path: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for path, x in params.items()}


def begin(params: Params, tx: Any, seed: int) -> State:
    """The state before the first step."""
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return State(params, tx.init(_cast(params, jnp.float32)), key, jnp.zeros((), jnp.int32))


def split_batch(batch: Any, parts: int) -> Any:
    """A batch whose rows are divided into equal parts along a new leading axis.

    Raises:
      JvidpruneError: rows that do not divide.
    """

    def one(x: Any) -> Any:
        if len(x) % parts:
            raise JvidpruneError(f"{len(x)} rows cannot be divided into {parts} parts.")
        return x.reshape(parts, len(x) // parts, *x.shape[1:])

    return jax.tree.map(one, batch)


def training_step(
    loss: Loss,
    tx: Any,
    *,
    precision: Precision = "float32",
    placing: Placing | None = None,
    donate: bool | None = None,
) -> Callable[[State, Params, Any], tuple[State, dict[str, jax.Array]]]:
    """The jitted step (state, frozen parameters, batch) -> (state, metrics).

    Gradients exist of what learns alone. Losses and metrics of the parts are summed, so that a step over several parts
    is that over all rows at once, up to the order of sums.

    Args:
      loss: of a part, see `Loss`; it gets all parameters.
      tx: from `groups.optimiser`.
      precision: of the computation.
      placing: where the new state lies, as the old one does; None for one device.
      donate: whether the old state's memory is used again; by default on accelerators, where saving copies first.

    Returns:
      A function of batches with a leading axis of parts, from `split_batch`; metrics have `loss` and `gradient`, the
      global norm before clipping.
    """
    placing = Placing() if placing is None else placing

    def gradients(params: Params, frozen: Params, part: Any, key: jax.Array) -> tuple[dict[str, jax.Array], Params]:
        def share(learned: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss(computed({**frozen, **learned}, precision), part, key)

        (total, metrics), found = jax.value_and_grad(share, has_aux=True)(params)
        found = placing.keep(jax.tree.map(lambda x: x.astype(jnp.float32), found))
        return {"loss": total, **metrics}, found

    def step(state: State, frozen: Params, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl="threefry2x32"), state.count)
        parts = jax.tree.leaves(batch)[0].shape[0]
        keys = jax.random.split(key, parts)
        if parts == 1:
            metrics, gradient = gradients(state.params, frozen, jax.tree.map(lambda x: x[0], batch), keys[0])
        else:
            # A part is computed after the other: memory holds the activations of one.
            def add(sums: Any, part: tuple[Any, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, sums, gradients(state.params, frozen, *part)), None

            first = jax.tree.map(lambda x: x[0], (batch, keys))
            like = jax.eval_shape(lambda p, f, x: gradients(p, f, *x), state.params, frozen, first)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
            (metrics, gradient), _ = jax.lax.scan(add, zeros, (batch, keys))
        updates, moments = tx.update(gradient, state.moments, state.params)
        params = {path: (x + updates[path]).astype(x.dtype) for path, x in state.params.items()}
        metrics["gradient"] = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(gradient)))
        return placing.keep(State(params, moments, state.key, state.count + 1)), metrics

    donate = jax.default_backend() != "cpu" if donate is None else donate
    return jax.jit(step, donate_argnums=0 if donate else ())
