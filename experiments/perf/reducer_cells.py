"""Reducers: every method over frames, tokens, widths, ratios and batches."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jvidprune import VideoTokens, reducers
from jvidprune.errors import JvidpruneError
from jvidprune.ops.branch import on_cpu
from jvidprune.reducers.counting import TokenWidth
from jvidprune.reducers.programs import run_budgets
from jvidprune.reducers.protocol import with_defaults
from jvidprune.reducers.run import reduce, sweep
from jvidprune.tokens import stack_budgets

from .decisions import possible, run_plans
from .inputs import scenes_of, video_tokens
from .measure import Rates, measure, median_call

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
ONE = (0.2,)
UNPOOLED = {14: 27, 13: 27, 27: 54, 4: 8}
"""Side of the grid before pooling for each side after it; 27 x 27 tokens a frame are what towers give unpooled, which
AOT, the one method that reads it, then takes from a grid of twice the side."""


@dataclasses.dataclass(frozen=True)
class ReducerCell:
    """One entry of the table.

    Attributes:
      method: registry name.
      frames, grid, dim: T, side of the N = grid^2 tokens, D.
      ratios: 1 or 8 of `RATIOS`.
      batch: videos in one call.
      output: "tokens", or "plans" for the decisions alone.
    """

    method: str
    frames: int = 32
    grid: int = 14
    dim: int = 3584
    ratios: int = 1
    batch: int = 1
    output: str = "tokens"

    @property
    def key(self) -> str:
        """Name of the row."""
        return (
            f"{self.method} T={self.frames} N={self.grid**2} D={self.dim} ratios={self.ratios} batch={self.batch} "
            f"{self.output}"
        )

    @property
    def input_bytes(self) -> int:
        """float32 bytes of the features."""
        return 4 * self.batch * self.frames * self.grid**2 * self.dim


def cells(which: str, methods: tuple[str, ...], most_bytes: float) -> list[ReducerCell]:
    """The cells of a preset.

    Args:
      which: "base" (T=32, N=196, D=3584), "scaling" (base, and one size at a time from T=32, N=196, D=896), "full" (all
        products), or "quick" (small, to see that everything runs).
      methods: registry names.
      most_bytes: cells with larger inputs are left out.
    """
    found: list[ReducerCell] = []
    for method in methods:
        make = partial(ReducerCell, method)
        if which == "quick":
            found += [make(frames=8, grid=4, dim=64, ratios=r) for r in (1, 8)]
            continue
        if which == "full":
            found += [
                make(frames=t, grid=g, dim=d, ratios=r, batch=b)
                for t in (8, 32, 64, 128)
                for g in (13, 14, 27)
                for d in (896, 3584)
                for r in (1, 8)
                for b in (1, 8)
            ]
            continue
        found += [make(ratios=r, output=o) for r in (1, 8) for o in ("plans", "tokens")]
        if which == "scaling":
            found += [make(frames=t, dim=896) for t in (8, 32, 64, 128)]
            found += [make(grid=g, dim=896) for g in (13, 27)]
            found += [make(frames=8, dim=896, batch=8), make(dim=896, ratios=8)]
    return [cell for cell in dict.fromkeys(found) if cell.input_bytes <= most_bytes]


@partial(jax.jit, static_argnames=("reducer", "capacity", "output"))
def _run(reducer: Any, videos: VideoTokens, budgets: Any, *, capacity: int, output: str) -> Any:
    run = partial(run_budgets if output == "tokens" else run_plans, reducer, budgets=budgets, capacity=capacity)
    if videos.features.ndim == 3:
        return run(videos)
    return lax.map(run, videos) if on_cpu() else jax.vmap(run)(videos)


def run_cell(cell: ReducerCell, rates: Rates, dtype: Any, *, repeats: int, seconds: float) -> dict[str, Any]:
    """One row: times of the program and of the public call, memory, and the floor; or why the method cannot do it."""
    reducer = reducers.get(cell.method)
    sizes: dict[str, Any] = {"scenes": scenes_of(cell.frames), "grid": cell.grid, "dim": cell.dim}
    made = [
        video_tokens(reducer.needs, **sizes, unpooled_grid=UNPOOLED[cell.grid], seed=number)
        for number in range(cell.batch)
    ]
    videos = made[0] if cell.batch == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *made)
    videos = jax.tree.map(lambda leaf: cast(leaf, dtype), videos)
    layout = made[0].layout()
    wanted = RATIOS if cell.ratios > 1 else ONE
    try:
        ratios = possible(reducer, layout, wanted)
        if not ratios:
            reducer.budget(layout, wanted[-1])
        capacity = max(reducer.capacity(layout, ratio) for ratio in ratios)
        # A second set of budgets: another ratio must not compile.
        other = ratios[::-1] if len(ratios) > 1 else possible(reducer, layout, (ratios[0] / 2, ratios[0]))[:1]
        inputs = [
            (videos, stack_budgets([reducer.budget(layout, ratio) for ratio in some])) for some in (ratios, other)
        ]
        static = {"capacity": capacity, "output": cell.output}
        timing = measure(_Bound(_run, reducer), inputs, static, repeats=repeats, seconds=seconds)
    except JvidpruneError as error:
        return {"refused": str(error)}
    terms = with_defaults(reducer).flops(layout, TokenWidth(cell.dim, keys=72), ratios[-1])
    flops = cell.batch * sum(terms.values())
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(videos))
    moved = read + (timing.outputs or 0)
    row = dataclasses.asdict(timing)
    if cell.batch == 1 and cell.output == "tokens":
        # What users call: the same program and all that stands around it.
        call = (
            partial(reduce, reducer, videos, ratios[0]) if len(ratios) == 1 else partial(sweep, reducer, videos, ratios)
        )
        row["call_ms"] = median_call(call, repeats=repeats, seconds=seconds)
    return row | {"ratios": len(ratios), "flops": flops, "moved": moved, "floor_ms": rates.floor(flops, moved)}


class _Bound:
    """A jitted program whose first argument, the reducer, is static and given."""

    def __init__(self, program: Any, reducer: Any):
        self.program, self.reducer = program, reducer

    def lower(self, *args: Any, **static: Any) -> Any:
        """As of `jax.jit`."""
        return self.program.lower(self.reducer, *args, **static)


def cast(leaf: Any, dtype: Any) -> jax.Array:
    """An array of a video in the type that is measured: tokens and keys take it, attention stays float32."""
    array = jnp.asarray(leaf)
    return array.astype(dtype) if array.dtype == jnp.float32 and array.ndim > 2 and dtype != jnp.float32 else array
