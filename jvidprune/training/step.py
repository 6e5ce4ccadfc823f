"""One training step: which parameters learn at which rate, where they lie, and how gradients are summed."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jvidprune import parallel
from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families

Params = dict[str, jax.Array]
"""Parameters by dotted path."""

GROUPS: tuple[tuple[str, str], ...] = (
    ("scorer", r"(.*\.)?(scorer|pruner|router)\..*"),
    ("tower", r"(.*\.)?vision\..*"),
    ("connector", r"(projector|image_newline|pooling|connector)(\..*)?"),
    ("llm", r"lm\..*"),
)
"""Group and pattern of a parameter's whole path; the first that matches decides; "scorer" is what learns to choose."""

RATES: Mapping[str, float] = {"scorer": 1e-4, "tower": 5e-6, "connector": 5e-6, "llm": 1e-5}
"""Peak learning rates of Molmo2's fine-tuning; that of the scorer is the sibling frame selector's (its own is not in
the released code)."""


def group_of(path: str) -> str:
    """The group of a parameter.

    Raises:
      JvidpruneError: a parameter of none.
    """
    for name, pattern in GROUPS:
        if re.fullmatch(pattern, path):
            return name
    raise JvidpruneError(f"the parameter {path} belongs to none of {', '.join(name for name, _ in GROUPS)}.")


def rates_of_groups(rates: Mapping[str, float]) -> dict[str, float]:
    """Rates of all groups, 0 for those that are not named.

    Raises:
      JvidpruneError: an unknown group, a negative rate, or nothing that learns.
    """
    names = [name for name, _ in GROUPS]
    if unknown := [name for name in rates if name not in names]:
        raise JvidpruneError(f"there is no group {unknown[0]} of parameters; there are {', '.join(names)}.")
    if wrong := [name for name, rate in rates.items() if not rate >= 0]:
        raise JvidpruneError(f"the learning rate of {wrong[0]} must not be negative, got {rates[wrong[0]]}.")
    found = {name: float(rates.get(name, 0.0)) for name in names}
    if not any(found.values()):
        raise JvidpruneError("every learning rate is 0: nothing would be trained.")
    return found


def split_groups(params: Params, rates: Mapping[str, float]) -> tuple[Params, Params]:
    """Parameters that learn and those that stay."""
    learned = {path: x for path, x in params.items() if rates.get(group_of(path), 0.0) > 0}
    return learned, {path: x for path, x in params.items() if path not in learned}


def optimiser(
    rates: Mapping[str, float],
    *,
    steps: int,
    warmup: int = 200,
    floor: float = 0.1,
    clip: float = 1.0,
    decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-6,
) -> Any:
    """AdamW whose rate depends on the group, after clipping by the norm of all gradients together.

    Args:
      rates: peak learning rate of each group.
      steps: of the run.
      warmup: steps from 0 to the peak.
      floor: share of the peak where a cosine ends.
      clip: largest global norm of the gradient.
      decay: weight decay of matrices, decoupled and multiplied by the rate.
      betas: decay rates of the moments.
      eps: added to the root of the second moment.

    Raises:
      JvidpruneError: fewer steps than the warm-up takes, or numbers out of range.
    """
    import optax

    if not 0 <= warmup < steps:
        raise JvidpruneError(f"a warm-up takes 0 or more of the {steps} steps, but not all of them: got {warmup}.")
    if not (clip > 0 and decay >= 0 and 0 <= floor <= 1 and eps > 0):
        raise JvidpruneError("clipping and eps must be positive, weight decay not negative, and the floor within 0..1.")
    shape = optax.warmup_cosine_decay_schedule(0.0 if warmup else 1.0, 1.0, warmup, steps, floor)

    def matrices(params: Params) -> dict[str, bool]:
        return {path: x.ndim > 1 for path, x in params.items()}

    def towards(peak: float) -> Callable[[Any], Any]:
        return lambda count: peak * shape(count)

    def labels(params: Params) -> dict[str, str]:
        return {path: group_of(path) for path in params}

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(*betas, eps),
        optax.add_decayed_weights(decay, matrices) if decay else optax.identity(),
        optax.partition({name: optax.scale_by_learning_rate(towards(rate)) for name, rate in rates.items()}, labels),
    )


@dataclasses.dataclass(frozen=True)
class Placing:
    """One device, or a mesh.

    Attributes:
      mesh: from `parallel.make_mesh`; None for the default device.
      family: of the model, a name of `models.family.names`.
      units: of the model's config, see `parallel.sharding_of`.
    """

    mesh: Mesh | None = None
    family: str = ""
    units: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def check(self, rows: int, parts: int) -> None:
        """Refuses rows that do not divide.

        Args:
          rows: of a step.
          parts: into which a step is divided one after the other.

        Raises:
          JvidpruneError: rows that the parts and the mesh do not divide.
        """
        pieces = 1 if self.mesh is None else parallel.rows_over(self.mesh)
        if parts < 1 or rows % (parts * pieces):
            where = f" over {pieces} devices each" if pieces > 1 else ""
            raise JvidpruneError(f"{rows} rows cannot be divided into {parts} parts{where}.")

    @property
    def _table(self) -> parallel.ShardingTable:
        return families.get(self.family).sharding

    def state(self, tree: Any) -> Any:
        """Parameters, or a state around them, in their places."""
        if self.mesh is None:
            # An array that was put somewhere and one that was not are two kinds to jit: it would compile twice.
            return jax.device_put(tree, jax.local_devices()[0])
        return parallel.shard_state(tree, self.mesh, self._table, self.units)

    def keep(self, tree: Any) -> Any:
        """The same inside a jitted function, where XLA would choose the places of results itself."""
        if self.mesh is None:
            return tree
        shardings = parallel.state_shardings(tree, self.mesh, self._table, self.units)
        return jax.lax.with_sharding_constraint(tree, shardings)

    def on_mesh(self, run: Any) -> Any:
        """A jitted function, called and traced with the mesh in use: kernels and activations are divided over it."""
        if self.mesh is None:
            return run

        return _OnMesh(run, self.mesh)

    def batch(self, batch: Any) -> Any:
        """A batch with a leading axis of parts: its rows, the second axis, over the mesh."""
        if self.mesh is None:
            return batch
        return parallel.shard_batch(batch, self.mesh, axis=1, local=jax.process_count() > 1)


class _OnMesh(NamedTuple):
    """A jitted function on a mesh."""

    run: Any
    mesh: Mesh

    def __call__(self, *given: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.run(*given)

    def lower(self, *given: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.run.lower(*given)


Precision = Literal["float32", "bfloat16", "pure_bfloat16"]
"""float32 throughout; bfloat16 computation with float32 parameters; bfloat16 parameters and computation. Gradients are
summed and moments kept in float32 whichever it is."""

Loss = Callable[[Params, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters, part of a batch, random key) -> (that part's share of the step's loss, metrics that are summed)."""


class TrainingState(NamedTuple):
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


def begin(params: Params, tx: Any, seed: int) -> TrainingState:
    """The state before the first step."""
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return TrainingState(params, tx.init(_cast(params, jnp.float32)), key, jnp.zeros((), jnp.int32))


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
) -> Callable[[TrainingState, Params, Any], tuple[TrainingState, dict[str, jax.Array]]]:
    """The jitted step (state, frozen parameters, batch) -> (state, metrics).

    Gradients exist of what learns alone. Losses and metrics of the parts are summed, so that a step over several parts
    is that over all rows at once, up to the order of sums.

    Args:
      loss: of a part, see `Loss`; it gets all parameters.
      tx: from `optimiser`.
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

    def step(state: TrainingState, frozen: Params, batch: Any) -> tuple[TrainingState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl="threefry2x32"), state.count)
        parts = jax.tree.leaves(batch)[0].shape[0]
        keys = jax.random.split(key, parts)
        if parts == 1:
            metrics, gradient = gradients(state.params, frozen, jax.tree.map(lambda x: x[0], batch), keys[0])
        else:
            # A part is computed after the other: memory holds the activations of one.
            # `optax.MultiSteps` would compute the whole optimiser behind every part, and hold its state twice for it.
            def add(sums: Any, part: tuple[Any, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, sums, gradients(state.params, frozen, *part)), None

            first = jax.tree.map(lambda x: x[0], (batch, keys))
            like = jax.eval_shape(lambda p, f, x: gradients(p, f, *x), state.params, frozen, first)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
            (metrics, gradient), _ = jax.lax.scan(add, zeros, (batch, keys))
        updates, moments = tx.update(gradient, state.moments, state.params)
        params = {path: (x + updates[path]).astype(x.dtype) for path, x in state.params.items()}
        metrics["gradient"] = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(gradient)))
        return placing.keep(TrainingState(params, moments, state.key, state.count + 1)), metrics

    donate = jax.default_backend() != "cpu" if donate is None else donate
    return placing.on_mesh(jax.jit(step, donate_argnums=0 if donate else ()))
