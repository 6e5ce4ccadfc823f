"""Parameters in groups that learn at rates of their own, or not at all."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvidprune.errors import JvidpruneError

Params = dict[str, jax.Array]
"""Parameters by dotted path."""

GROUPS: tuple[tuple[str, str], ...] = (
    ("scorer", r"(.*\.)?scorer\..*"),
    ("tower", r"(.*\.)?vision\..*"),
    ("connector", r"(projector|image_newline|pooling|connector)(\..*)?"),
    ("llm", r"lm\..*"),
)
"""Group and pattern of a parameter's whole path; the first that matches decides."""

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


def read_rates(rates: Mapping[str, float]) -> dict[str, float]:
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


def split(params: Params, rates: Mapping[str, float]) -> tuple[Params, Params]:
    """Parameters that learn and those that stay."""
    learned = {path: x for path, x in params.items() if rates.get(group_of(path), 0.0) > 0}
    return learned, {path: x for path, x in params.items() if path not in learned}


class GroupState(NamedTuple):
    """Steps that were made."""

    count: jax.Array


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

    def init(params: Params) -> GroupState:
        return GroupState(jnp.zeros((), jnp.int32))

    def update(updates: Params, state: GroupState, params: Params | None = None) -> tuple[Params, GroupState]:
        share = shape(state.count)
        scaled = {path: -rates[group_of(path)] * jnp.asarray(share) * x for path, x in updates.items()}
        return scaled, GroupState(state.count + 1)

    def matrices(params: Params) -> dict[str, bool]:
        return {path: x.ndim > 1 for path, x in params.items()}

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(*betas, eps),
        optax.add_decayed_weights(decay, matrices) if decay else optax.identity(),
        optax.GradientTransformation(init, update),  # pyright: ignore[reportArgumentType]
    )
