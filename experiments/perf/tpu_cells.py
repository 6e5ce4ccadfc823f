"""Reducers compiled for a TPU on a CPU machine: what XLA says of the programs, without a TPU and without data."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune import VideoTokens, reducers
from jvidprune.costs import hlo
from jvidprune.costs.compiled import slice_named
from jvidprune.ops.branch import using
from jvidprune.reducers.programs import bucket_capacity, run_batch, run_budgets
from jvidprune.tokens import stack_budgets

from .decisions import possible

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
ONE = (0.3,)


@dataclasses.dataclass(frozen=True)
class TPUCell:
    """A reducer's program.

    Attributes:
      method: registry name.
      ratios: 1 or 8 of `RATIOS`.
      frames, grid, unpooled_grid, dim: T, sides of the N and M tokens of a frame, D of bfloat16 features.
      topology: TPU slice; the program runs on one of its chips.
      batch: videos; of more than one, at one ratio, the program is that of `reduce_batch`.
    """

    method: str
    ratios: int = 1
    frames: int = 32
    grid: int = 14
    unpooled_grid: int = 27
    dim: int = 3584
    topology: str = "v5e:2x2"
    batch: int = 1

    @property
    def key(self) -> str:
        """Name of the row."""
        sizes = f"T={self.frames} N={self.grid**2} D={self.dim} {self.topology}"
        sizes += f" batch={self.batch}" if self.batch > 1 else ""
        return f"{self.method} ratios={self.ratios} {sizes}"


def lowered(cell: TPUCell) -> jax.stages.Lowered:
    """The program that `jvidprune.sweep`, or of many videos `reduce_batch`, runs on an accelerator, for shapes.

    Raises:
      JvidpruneError: the method refuses all ratios.
    """
    reducer: Any = reducers.get(cell.method)
    place = jax.sharding.SingleDeviceSharding(slice_named(cell.topology).devices[0])

    def shape(sides: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(sides, dtype, sharding=place)

    t, n, m = cell.frames, cell.grid**2, cell.unpooled_grid**2
    kinds = {
        "attention_shallow": ((t, m), jnp.float32),
        "attention_deep": ((t, m), jnp.float32),
        "keys": ((t, n, 72), jnp.bfloat16),
        "features_unpooled": ((t, m, cell.dim), jnp.bfloat16),
        "frame_embedding": ((t, 1152), jnp.bfloat16),
        "text": ((32, cell.dim), jnp.bfloat16),
    }
    evidence = {need: shape(*kinds.get(need, ((t, n), jnp.float32))) for need in reducer.needs}
    features, mask = shape((t, n, cell.dim), jnp.bfloat16), shape((t,), jnp.bool_)
    sides = (cell.grid, cell.grid), (cell.unpooled_grid, cell.unpooled_grid)
    video = VideoTokens(features, evidence, mask, *sides)
    layout = video.layout()
    ratios = possible(reducer, layout, RATIOS if cell.ratios > 1 else ONE) or ONE
    if cell.batch > 1:
        ratios = ratios[:1] * cell.batch
        video = jax.tree.map(lambda leaf: shape((cell.batch, *leaf.shape), leaf.dtype), video)
    stacked = stack_budgets([reducer.budget(layout, ratio) for ratio in ratios])
    budgets = jax.tree.map(lambda leaf: shape(np.shape(leaf), np.asarray(leaf).dtype), stacked)
    capacity = bucket_capacity(max(reducer.capacity(layout, ratio) for ratio in ratios), t * n)
    with using("tpu"):
        if cell.batch > 1:
            options: dict[str, Any] = {"capacity": capacity, "diagnostics": False, "checked": False}
            return run_batch.lower(reducer, video, budgets, **options)
        return run_budgets.lower(reducer, video, budgets, capacity=capacity)


def run_cell(cell: TPUCell) -> dict[str, Any]:
    """One row, in seconds and bytes; CPU seconds are those of all threads, which other work disturbs little.

    `main` and `near` are bytes moved with loops counted right (`costs.hlo`), of HBM and of VMEM; `xla` is XLA's own
    number of both, which counts loop bodies once; `uncounted` loops have rounds that nothing tells.
    """
    program = lowered(cell)
    began, worked = time.perf_counter(), time.process_time()
    compiled = program.compile()
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    moved = hlo.traffic(compiled.as_text() or "")
    return {
        "compile_s": seconds,
        "compile_cpu_s": work,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "main": moved.main,
        "near": moved.near,
        "uncounted": moved.guessed,
        "xla": cost["bytes accessed"],
    }
