"""From masks to plans: static-capacity compaction, and the one `apply` that turns a plan into tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.ops.branch import mean_rounds, on_cpu
from jvidprune.ops.select import order_ascending, rank_of_order
from jvidprune.tokens import Plan, Reduced


def compact(multiplicity: Int[Array, "S"], capacity: int) -> tuple[Int[Array, "K"], Bool[Array, "K"], Int[Array, ""]]:
    """Slots in order, each repeated `multiplicity` times, packed into `capacity` rows.

    A bool mask is packed by one scatter, half the time of the search that repeated slots need.

    Returns:
      source (K,) slot index of each row (S on padding), valid (K,), count () before clipping to the capacity.
    """
    slots = multiplicity.shape[0]
    total = jnp.cumsum(multiplicity.astype(jnp.int32))
    rows = jnp.arange(capacity, dtype=jnp.int32)
    valid = rows < total[-1]
    if multiplicity.dtype == bool:
        row = jnp.where(multiplicity, total - 1, capacity)
        place = jnp.arange(slots, dtype=jnp.int32)
        return jnp.full(capacity, slots, jnp.int32).at[row].set(place, mode="drop"), valid, total[-1]
    # Steps of a binary search are a gather each; accelerators compare all pairs in one reduction.
    method = "scan_unrolled" if on_cpu() else "compare_all"
    source = jnp.searchsorted(total, rows, side="right", method=method).astype(jnp.int32)
    return jnp.where(valid, source, slots), valid, total[-1]


def selection_plan(multiplicity: Int[Array, "M"], capacity: int, diagnostics: dict[str, Array] | None = None) -> Plan:
    """Plan of a method that keeps tokens unchanged, ascending by id; `multiplicity` may be a bool mask."""
    ids, valid, count = compact(multiplicity, capacity)
    nothing = jnp.zeros((0, multiplicity.shape[0]))
    return Plan(ids, valid, count, valid, nothing.astype(jnp.int32), nothing, diagnostics or {})


def slotted_plan(
    token: Int[Array, "S"],
    present: Int[Array, "S"],
    pick: Bool[Array, "S"],
    target: Int[Array, "A M"],
    weight: Float[Array, "A M"],
    capacity: int,
    diagnostics: dict[str, Array] | None = None,
    *,
    key: Int[Array, "S"] | None = None,
) -> Plan:
    """Plan of candidate slots in output order, or in the order of a key.

    Args:
      token: global id the slot stands for.
      present: how many rows the slot becomes; a bool mask, or more than 1 where a reference repeats itself.
      pick: slots that copy their token verbatim.
      target: slot (0..S-1) that each source token contributes to; S or a slot that is not present means none.
      weight: its weight there.
      capacity: static number of rows.
      diagnostics: passed through.
      key: int32 sort key of each slot, stable and ascending; without it slots lie in output order already, and a
        cumulative sum takes the place of a sort.
    """
    s, m = token.shape[0], target.shape[-1]
    target = jnp.clip(target, 0, s)
    if key is not None:
        order = order_ascending(key)
        place = jnp.append(rank_of_order(order), s)
        token, present, pick, target = token[order], present[order], pick[order], place[target]
    source, valid, count = compact(present, capacity)
    slots = present.astype(jnp.int32)
    before = jnp.minimum(jnp.cumsum(slots) - slots, capacity)
    row_of = jnp.append(jnp.where(slots > 0, before, capacity), capacity).astype(jnp.int32)
    slot = jnp.minimum(source, s - 1)
    ids = jnp.where(valid, token[slot], m).astype(jnp.int32)
    return Plan(ids, valid, count, valid & pick[slot], row_of[target], weight.astype(jnp.float32), diagnostics or {})


def ascending_plan(
    pick: Int[Array, "M"],
    merged: Bool[Array, "M"],
    target: Int[Array, "A M"],
    weight: Float[Array, "A M"],
    capacity: int,
    diagnostics: dict[str, Array] | None = None,
) -> Plan:
    """`slotted_plan` whose rows ascend by token id, a picked row before a merged row of the same id.

    Args:
      pick: how often each token is copied verbatim.
      merged: tokens that stand for a weighted sum.
      target: token id of the merged row that a token contributes to; any id that is not `merged` (or M) means none.
      weight, capacity, diagnostics: as there.
    """
    m = pick.shape[0]
    present = jnp.stack([pick, merged.astype(pick.dtype)], axis=1).reshape(2 * m)
    slot = jnp.arange(2 * m, dtype=jnp.int32)
    return slotted_plan(slot >> 1, present, slot & 1 == 0, 2 * target + 1, weight, capacity, diagnostics)


def gather_rows(plan: Plan, x: Float[Array, "M ..."]) -> Array:
    """Rows of `x` at the plan's ids, zeros on padding: position ids, DeepStack levels and the like."""
    taken = x[jnp.minimum(plan.ids, x.shape[0] - 1)]
    return jnp.where(plan.valid.reshape(-1, *([1] * (x.ndim - 1))), taken, 0)


def combine(plan: Plan, x: Float[Array, "M D"]) -> Float[Array, "K D"]:
    """The plan's weighted sums and copies of the rows of `x`; float32 sums, output in the dtype of `x`.

    Linear in `x` and differentiable with the plan held fixed.
    """
    if plan.row.shape[0] == 0:
        # Rows that are no picks are zero, like padding.
        return jnp.where(plan.is_pick[:, None], x[jnp.minimum(plan.ids, x.shape[0] - 1)], 0)
    capacity = plan.ids.shape[0]
    summed = jnp.append(plan.valid & ~plan.is_pick, False)
    row = jnp.where(summed[jnp.minimum(plan.row, capacity)], plan.row, capacity)
    pick = jnp.where(plan.is_pick, plan.ids, x.shape[0])
    return jnp.asarray(row_sums(row, plan.weight, pick, x))  # pyright: ignore[reportArgumentType]


@jax.custom_vjp
def row_sums(
    row: Int[Array, "A M"], weight: Float[Array, "A M"], pick: Int[Array, "K"], x: Float[Array, "M D"]
) -> Float[Array, "K D"]:
    """Sum of weight * x over the tokens and slots that point to each of K rows; rows >= K swallow the rest.

    Sums are float32, the result has the dtype of `x`.

    A row whose `pick` is a token (below M) is a copy of it and must not be pointed to.

    One video's sum is a loop that reads what contributes and writes the rows, no more: on CPU token by token, several
    times faster than a gather and a scatter of all tokens; on accelerators block by block of rows, whose tokens lie
    side by side once they are sorted by row, as products with a matrix of weights. Under vmap it is a scatter.
    """
    return _cpu_sums(row, weight, pick, x) if on_cpu() else _blocked_sums(row, weight, pick, x)


def _scattered_sums(row: Array, weight: Array, pick: Array, x: Array) -> Array:
    tokens, capacity = x.shape[0], pick.shape[0]
    copies = jnp.where((pick < tokens)[:, None], x[jnp.minimum(pick, tokens - 1)].astype(jnp.float32), 0.0)
    total = jnp.concatenate([copies, jnp.zeros((1, x.shape[-1]), jnp.float32)])
    for slot_row, slot_weight in zip(row, weight, strict=True):
        total = total.at[slot_row].add(slot_weight[:, None] * x.astype(jnp.float32))
    return total[:capacity].astype(x.dtype)


_STEP = 64
"""Tokens of a block that are read at a time: half as many are read in vain, on average."""


def block_rows(capacity: int) -> int:
    """Rows of a block: the largest divisor of the capacity in reach, so that no row is copied again, or else 128."""
    fitting = [size for size in range(64, 257, 8) if capacity % size == 0]
    return max(fitting, default=min(128, capacity))


@jax.custom_batching.custom_vmap
def _blocked_sums(row: Array, weight: Array, pick: Array, x: Array) -> Array:
    return _sums_of_blocks(row, weight, pick, x, x.dtype)


def float_sums(
    row: Int[Array, "A M"], weight: Float[Array, "A M"], pick: Int[Array, "K"], x: Float[Array, "M D"]
) -> Float[Array, "K D"]:
    """`row_sums` in float32, without a float32 copy of `x` on accelerators; under no vmap and with no derivative."""
    if on_cpu():
        return jnp.asarray(row_sums(row, weight, pick, x.astype(jnp.float32)))
    return _sums_of_blocks(row, weight, pick, x, jnp.float32)


def _sums_of_blocks(row: Array, weight: Array, pick: Array, x: Array, dtype: Any) -> Array:
    (tokens, width), capacity, slots = x.shape, pick.shape[0], row.shape[0]
    size = block_rows(capacity)
    step, blocks = min(size, _STEP), -(-capacity // size)
    token = jnp.arange(tokens, dtype=jnp.int32)
    own = jnp.where(pick < tokens, jnp.arange(capacity, dtype=jnp.int32), capacity)
    rows = jnp.concatenate([jnp.minimum(row.reshape(-1), capacity), own])
    sources = jnp.concatenate([jnp.tile(token, slots), jnp.minimum(pick, tokens - 1)])
    weights = jnp.concatenate([weight.reshape(-1), jnp.ones(capacity, jnp.float32)])
    # Entries by block, in one sort of one array: sorts with payloads take TPU compilers seconds. The padding lets the
    # last block be read whole.
    entries = rows.shape[0]
    group = jnp.where(rows < capacity, lax.div(rows, jnp.int32(size)), blocks)
    bits = (entries - 1).bit_length()
    key = jnp.sort((group << bits) + jnp.arange(entries, dtype=jnp.int32), stable=False)
    edges = jnp.arange(blocks + 1, dtype=jnp.int32) << bits
    starts = jnp.sum(key < edges[:, None], axis=1, dtype=jnp.int32)
    order = key & ((1 << bits) - 1)
    rows, sources, weights = (jnp.pad(leaf[order], (0, step)) for leaf in (rows, sources, weights))
    precision = lax.Precision.HIGHEST

    def block(number: Array) -> Array:
        first, begin, end = number * size, starts[number], starts[number + 1]

        def add(i: Array, total: Array) -> Array:
            at = begin + i * step
            row, source, weight = (lax.dynamic_slice(leaf, (at,), (step,)) for leaf in (rows, sources, weights))
            weight = jnp.where(at + jnp.arange(step) < end, weight, 0.0)
            matrix = jnp.where(row - first == jnp.arange(size)[:, None], weight, 0.0)
            return total + jnp.dot(matrix, x[source].astype(jnp.float32), precision=precision)

        # As many as where every token contributes once, and half of a block's last round.
        with mean_rounds(tokens / capacity * size / step + 0.5):
            total = lax.fori_loop(
                0, lax.div(end - begin + step - 1, jnp.int32(step)), add, jnp.zeros((size, width), jnp.float32)
            )
        return total.astype(dtype)

    return lax.map(block, jnp.arange(blocks, dtype=jnp.int32)).reshape(blocks * size, width)[:capacity]


@jax.custom_batching.custom_vmap
def _cpu_sums(row: Array, weight: Array, pick: Array, x: Array) -> Array:
    (tokens, width), capacity = x.shape, pick.shape[0]
    entry, _, used = compact(row.reshape(-1) < capacity, row.size)
    copied, _, copies = compact(pick < tokens, capacity)
    rows, weights = row.reshape(-1), weight.reshape(-1)

    def token(at: Array) -> Array:
        return lax.dynamic_slice(x, (at, jnp.zeros_like(at)), (1, width)).astype(jnp.float32)

    def copy(i: Array, total: Array) -> Array:
        place = copied[i]
        return lax.dynamic_update_slice(total, token(pick[place]), (place, jnp.zeros_like(place)))

    def add(i: Array, total: Array) -> Array:
        at = entry[i]
        place = (rows[at], jnp.zeros_like(at))
        now = lax.dynamic_slice(total, place, (1, width))
        return lax.dynamic_update_slice(total, now + weights[at] * token(at % tokens), place)

    total = lax.fori_loop(0, copies, copy, jnp.zeros((capacity, width), jnp.float32))
    return lax.fori_loop(0, used, add, total).astype(x.dtype)


@_cpu_sums.def_vmap
@_blocked_sums.def_vmap
def _batched_sums(axis_size, in_batched, row, weight, pick, x):
    # A batched loop would select over the whole output at every step; a batched scatter also keeps shards apart.
    axes = tuple(0 if flag else None for flag in in_batched)
    return jax.vmap(_scattered_sums, axes)(row, weight, pick, x), True


def _row_sums_forward(row: Array, weight: Array, pick: Array, x: Array):
    return row_sums(row, weight, pick, x), (row, weight, pick, x)


def _row_sums_backward(saved, cotangent: Array):
    row, weight, pick, x = saved
    tokens, capacity = x.shape[0], pick.shape[0]
    padded = jnp.concatenate([cotangent, jnp.zeros_like(cotangent[:1])])
    spread = [padded[jnp.minimum(slot, capacity)] for slot in row]
    to_x = jnp.zeros(x.shape, jnp.float32).at[jnp.where(pick < tokens, pick, tokens)].add(cotangent, mode="drop")
    for slot_weight, slot_spread in zip(weight, spread, strict=True):
        to_x = to_x + slot_weight[:, None] * slot_spread
    to_weight = jnp.stack([jnp.sum(g * x.astype(jnp.float32), -1) for g in spread])
    nothing = (np.zeros(indices.shape, jax.dtypes.float0) for indices in (row, pick))
    to_row, to_pick = nothing
    return to_row, to_weight.astype(weight.dtype), to_pick, to_x.astype(x.dtype)


row_sums.defvjp(_row_sums_forward, _row_sums_backward)


def source_slots(plan: Plan) -> tuple[Int[Array, "K"], Int[Array, "M"]]:
    """Mass of each row and the row of each source token; see `Reduced`."""
    capacity, m = plan.ids.shape[0], plan.row.shape[-1]
    slot = jnp.full(m + 1, capacity, jnp.int32)
    mass = plan.is_pick.astype(jnp.int32)
    for row in plan.row[::-1]:
        slot = slot.at[:m].set(jnp.where(row < capacity, row, slot[:m]))
        mass = mass + jnp.zeros(capacity + 1, jnp.int32).at[row].add(1)[:capacity]
    rows = jnp.arange(capacity, dtype=jnp.int32)
    slot = slot.at[jnp.where(plan.is_pick, plan.ids, m)].set(rows)[:m]
    return jnp.where(plan.valid, mass, 0), jnp.where(slot < capacity, slot, -1)


def member_counts(slot: Int[Array, "M"], ids: Int[Array, "K"], valid: Bool[Array, "K"]) -> Int[Array, "K"]:
    """Mass of rows into which tokens are transported with weights: those that the row is the largest for, and its own.

    Args:
      slot: row of each source token, -1 where it was dropped.
      ids: token that each row stands for; it counts in every row that it stands for.
      valid: rows in use.
    """
    capacity = ids.shape[0]
    members = jnp.zeros(capacity + 1, jnp.int32).at[jnp.where(slot >= 0, slot, capacity)].add(1)[:capacity]
    elsewhere = slot[jnp.minimum(ids, slot.shape[0] - 1)] != jnp.arange(capacity, dtype=jnp.int32)
    return jnp.where(valid, members + elsewhere, 0)


def apply(plan: Plan, features: Float[Array, "T N D"]) -> Reduced:
    """Turns decisions into tokens: the D-wide arithmetic of every method whose output is a weighting of its input."""
    mass, slot = source_slots(plan)
    tokens = combine(plan, features.reshape(-1, features.shape[-1]))
    return Reduced(tokens, plan.ids, plan.valid, mass, slot, plan.diagnostics)
