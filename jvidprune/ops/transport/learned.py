"""Learned costs and masses from their file: hashed by content, with arrays that travel in budgets.

`weights_of(module).write("cost.safetensors")` saves what was fitted; then `LearnedCost("cost.safetensors")` is a cost
as any other, also as a text.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.fields import check_fields, settle
from jvidprune.ops.transport.cost import Rows
from jvidprune.weights import AnyWeights, Weights


def weights_of(module: Any) -> Weights:
    """The parameters of a module of `ops.transport.modules`, ready to be written or to be given to `LearnedCost`."""
    from jvidprune.ops.transport.modules import KINDS, arrays_of

    if type(module).__name__ not in KINDS:
        raise JvidpruneError(f"a {type(module).__name__} is none of the modules {', '.join(KINDS)}.")
    return Weights.of({name: jax.device_get(array) for name, array in arrays_of(module).items()})


def _check(made: Any, kinds: tuple[str, ...]) -> None:
    check_fields(made)
    found = {name.partition(".")[0] for name in made.weights.arrays}
    if len(found) != 1 or not found <= set(kinds):
        where = "" if made.weights.path is None else f" of {made.weights.path}"
        raise JvidpruneError(
            f"the weights{where} are no {' or '.join(kinds)}, got {', '.join(sorted(found)) or 'none'}."
        )


def _register(cls: Any) -> Any:
    """Arrays are leaves; of what a transformation rebuilds only they are read."""

    def flatten(made: Any) -> tuple[tuple, tuple]:
        arrays = made.weights.arrays if isinstance(made.weights, Weights) else made.weights
        return tuple(arrays.values()), tuple(arrays)

    def unflatten(names: tuple, leaves: Any) -> Any:
        made = object.__new__(cls)
        settle(made, weights=dict(zip(names, leaves, strict=True)))
        return made

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


def _module(made: Any) -> Any:
    from jvidprune.ops.transport.modules import module_of

    weights = made.weights
    return module_of(dict(weights.arrays) if isinstance(weights, Weights) else weights)


@_register
@dataclasses.dataclass(frozen=True)
class LearnedCost:
    """A cost of `modules` with the parameters of a file.

    Attributes:
      weights: of a `MahalanobisCost` or a `NetworkCost`, or the path of their safetensors file.

    Raises:
      JvidpruneError: a file that is not there or holds something else.
    """

    weights: AnyWeights

    def __post_init__(self) -> None:
        _check(self, ("MahalanobisCost", "NetworkCost"))

    def __call__(self, x: Rows, y: Rows) -> Float[Array, "R A"]:
        """(R, A) costs."""
        return _module(self)(x, y)


@_register
@dataclasses.dataclass(frozen=True)
class LearnedMasses:
    """Masses of `modules.NetworkMasses` with the parameters of a file.

    Attributes:
      weights: the parameters, or the path of their safetensors file.

    Raises:
      JvidpruneError: a file that is not there or holds something else.
    """

    weights: AnyWeights

    def __post_init__(self) -> None:
        _check(self, ("NetworkMasses",))

    def __call__(self, x: Rows, y: Rows) -> tuple[Float[Array, "R"], Float[Array, "A"]]:
        """(R,) and (A,) masses."""
        return _module(self)(x, y)
