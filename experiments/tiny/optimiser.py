"""AdamW with warm-up and cosine decay over a part of the parameters, and the jitted training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

Loss = Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


class OptimiserState(NamedTuple):
    """What a step reads and writes: parameters and the optimiser's moments."""

    params: Any
    moments: Any


def adamw(params: Any, trained: tuple[str, ...], *, rate: float, warmup: int, steps: int, anneal: bool = True) -> Any:
    """AdamW on the parameters whose dotted path begins with one of `trained`; the others stay.

    Args:
      params: parameters.
      trained: prefixes of dotted paths, e.g. "0.lm".
      rate: peak learning rate.
      warmup: steps of linear warm-up.
      steps: at which a cosine ends at 2 % of the peak.
      anneal: False keeps the peak after the warm-up.
    """
    schedule: Any = optax.linear_schedule(0.0, rate, warmup)
    if anneal:
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), 0.02 * rate)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "train" if _dotted(path).startswith(trained) else "keep", params
    )
    matrices = jax.tree.map(lambda x: x.ndim > 1, params)
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b1=0.9, b2=0.97, weight_decay=0.02, mask=matrices)
    )
    return optax.partition({"train": chain, "keep": optax.set_to_zero()}, labels)


def _dotted(path: tuple[Any, ...]) -> str:
    parts = [getattr(part, "key", getattr(part, "idx", getattr(part, "name", part))) for part in path]
    return ".".join(str(part) for part in parts)


def training_step(
    loss: Loss, tx: Any
) -> Callable[[OptimiserState, Any, Any], tuple[OptimiserState, dict[str, jax.Array]]]:
    """The jitted step of a loss (params, batch) -> (loss, metrics)."""

    @jax.jit
    def step(state: OptimiserState, batch: Any, _: Any) -> tuple[OptimiserState, dict[str, jax.Array]]:
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        updates, moments = tx.update(gradient, state.moments, state.params)
        return OptimiserState(optax.apply_updates(state.params, updates), moments), metrics

    return step
