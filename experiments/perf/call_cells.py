"""What users call at one and at eight ratios, in turn, so that other work on the machine meets all of them alike."""

import dataclasses
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jvidprune import VideoTokens
from jvidprune.reducers.registry import from_text
from jvidprune.reducers.run import reduce, sweep
from jvidprune.tokens import stack_budgets

from .decisions import run_plans
from .inputs import scenes_of, video_tokens
from .reducer_cells import RATIOS

METHODS = (
    *("divprune", "divprune(scope='frame')", "cdpruner", "vcast", "tome", "qwen_norm", "vidcom2", "visionzip"),
    *("fastvid", "zspaprune", "scissor"),
)
"""Newer methods in front of the language model as they are typed, and three of the video canon beside them; those whose
ratios share least come last."""

ORIGINALS = {
    "divprune": 21.0,
    "divprune(scope='frame')": 0.46,
    "vcast": 0.38,
    "cdpruner": 0.6,
    "scissor": 2.1,
    "tome": 1.8,
}
"""CPU seconds of the reference implementations in PyTorch on two threads at the same sizes, measured beside other work
when their golden files were made."""

WRITES = "uniform"
"""A method that decides next to nothing: its calls take what it takes to write the tokens."""

plans = jax.jit(run_plans, static_argnames=("reducer", "capacity"))


@dataclasses.dataclass(frozen=True)
class CallCell:
    """A method, and the sizes of one video in float32."""

    method: str
    frames: int = 32
    grid: int = 14
    dim: int = 3584

    @property
    def key(self) -> str:
        """Name of the row."""
        return f"{self.method} T={self.frames} N={self.grid**2} D={self.dim}"


def cells(which: str, methods: Collection[str]) -> list[CallCell]:
    """Those of `METHODS` that belong to some registry names; "quick" takes small videos."""
    small: dict[str, int] = {"frames": 8, "grid": 4, "dim": 64} if which == "quick" else {}
    return [CallCell(method, **small) for method in METHODS if method.partition("(")[0] in methods]


def run_cell(cell: CallCell, *, rounds: int, seconds: float) -> dict[str, Any]:
    """One row: the fastest of some interleaved rounds of every call, by CPU time of the process and by the wall clock.

    Args:
      cell: what to call.
      rounds: at most, behind one that compiles and is not counted.
      seconds: CPU time of a row after which no further round begins, but for the first.
    """
    reducer = from_text(cell.method)
    sizes: dict[str, Any] = {"scenes": scenes_of(cell.frames), "grid": cell.grid, "dim": cell.dim}
    video = jax.tree.map(jnp.asarray, video_tokens(reducer.needs, unpooled_grid=27, **sizes))
    calls = {
        f"{name}{kind}": call
        for name, method in (("", reducer), ("written ", from_text(WRITES)))
        for kind, call in _calls(method, video).items()
    }
    best = {name: [float("inf"), float("inf")] for name in calls}
    began = time.process_time()
    for number in range(rounds + 1):
        if number > 1 and time.process_time() - began > seconds:
            break
        for name, call in calls.items():
            clocks = time.process_time(), time.perf_counter()
            out = jax.block_until_ready(call())
            spent = 1e3 * (time.process_time() - clocks[0]), 1e3 * (time.perf_counter() - clocks[1])
            del out
            if number:
                best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
    return {name: {"cpu_ms": cpu, "wall_ms": wall} for name, (cpu, wall) in best.items()} | {
        "original_s": ORIGINALS.get(cell.method) if cell == CallCell(cell.method) else None,
    }


def _calls(reducer: Any, video: VideoTokens) -> dict[str, Callable[[], Any]]:
    """Decisions and public calls of the largest ratio, and of all of them with that one among them."""
    layout = video.layout()
    capacity = max(reducer.capacity(layout, ratio) for ratio in RATIOS)
    one, every = (stack_budgets([reducer.budget(layout, ratio) for ratio in some]) for some in (RATIOS[-1:], RATIOS))
    return {
        "plan": lambda: plans(reducer, video, one, capacity=capacity),
        "plans": lambda: plans(reducer, video, every, capacity=capacity),
        "reduce": partial(reduce, reducer, video, RATIOS[-1]),
        "sweep": partial(sweep, reducer, video, RATIOS),
    }
