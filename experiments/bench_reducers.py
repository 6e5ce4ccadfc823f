"""How long every reducer takes, in units of one similarity product measured in the same run.

python experiments/bench_reducers.py [--frames 32 --grid 14 --dim 3584 --methods flashvid fastvid ... --json out.json]

Columns: compile seconds (8-ratio program), milliseconds for one ratio and for eight in one call, both divided by the
time of one float32 similarity product (all pairs of tokens inside each frame), eight divided by one, and the peak
temporary memory of the 8-ratio program beyond its outputs as XLA's memory analysis reports it.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from jvidprune import Reducer, VideoTokens, reducers
from jvidprune.ops.similarity import frame_gram
from jvidprune.reducers.base import run_budgets
from jvidprune.tokens import stack_budgets

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


@dataclass
class Config:
    """What to measure."""

    frames: int = 32
    grid: int = 14
    unpooled_grid: int = 27
    dim: int = 3584
    methods: tuple[str, ...] = ()
    """Registry names; all by default."""
    repeats: int = 3
    json: Path | None = None
    ratios: tuple[float, ...] = field(default=RATIOS)


def video_tokens(config: Config, reducer: Reducer) -> VideoTokens:
    """Correlated random features with just the evidence the reducer needs."""
    rng = np.random.default_rng(0)
    t, n, m, d = config.frames, config.grid**2, config.unpooled_grid**2, config.dim

    def tokens(count: int) -> np.ndarray:
        scene = rng.standard_normal((1, count, d), np.float32)
        noise = rng.standard_normal((t, count, d), np.float32)
        return (
            scene + 0.4 * noise + (np.arange(t) >= t // 2)[:, None, None] * rng.standard_normal((1, 1, d), np.float32)
        )

    def saliency(count: int) -> np.ndarray:
        return rng.dirichlet(np.full(count, 0.5), size=t).astype(np.float32)

    makers = {
        "attention_shallow": lambda: saliency(m) * m,
        "attention_deep": lambda: saliency(m) * m,
        "keys": lambda: rng.normal(size=(t, n, 72)).astype(np.float32),
        "features_unpooled": lambda: tokens(m),
        "frame_embedding": lambda: rng.normal(size=(t, 1152)).astype(np.float32),
    }
    evidence = {name: makers.get(name, lambda: saliency(n))() for name in reducer.needs}
    unpooled = (config.unpooled_grid, config.unpooled_grid)
    return VideoTokens.create(tokens(n), evidence, grid=(config.grid, config.grid), unpooled_grid=unpooled)


def fastest(call, repeats: int) -> float:
    """Milliseconds of the fastest of some calls, compilation done before."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def measure(name: str, config: Config) -> dict:
    """One row of the table."""
    reducer = reducers.get(name)
    video = video_tokens(config, reducer)
    layout = video.layout()
    unit_input = video.evidence.get("features_unpooled", video.features)
    capacity = max(reducer.capacity(layout, r) for r in config.ratios)
    unit = fastest(lambda: product(unit_input), config.repeats)

    def program(ratios):
        budgets = stack_budgets([reducer.budget(layout, r) for r in ratios])
        start = time.perf_counter()
        compiled = run_budgets.lower(reducer, video, budgets, capacity=capacity).compile()
        seconds = time.perf_counter() - start
        return seconds, fastest(lambda: compiled(video, budgets), config.repeats), compiled.memory_analysis()

    _, one, _ = program(config.ratios[len(config.ratios) // 2 - 1 :][:1])
    compile_seconds, many, memory = program(config.ratios)
    unit = min(unit, fastest(lambda: product(unit_input), config.repeats))
    return {
        "method": name,
        "product ms": unit,
        "compile s": compile_seconds,
        "one ms": one,
        f"{len(config.ratios)} ratios ms": many,
        "one / product": one / unit,
        "all / product": many / unit,
        "all / one": many / one,
        "temporaries MiB": memory.temp_size_in_bytes / 2**20 if memory is not None else float("nan"),
    }


product = jax.jit(frame_gram)


def main(config: Config) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    shape = f"T={config.frames} N={config.grid**2} D={config.dim} float32"
    title = f"{shape}, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    table, rows = Table(box=box.SIMPLE_HEAD, title=title), []
    for name in config.methods or reducers.names():
        row = measure(name, config)
        if not rows:
            for key in row:
                table.add_column(key, justify="left" if key == "method" else "right")
        rows.append(row)
        table.add_row(*(value if isinstance(value, str) else f"{value:.2f}" for value in row.values()))
        console.print(f"[dim]{name}: {row['one / product']:.2f} products, x{row['all / one']:.2f} for all ratios[/dim]")
    console.print(table)
    if config.json is not None:
        config.json.write_text(json.dumps({"title": title, "rows": rows}, indent=1))


if __name__ == "__main__":
    jnp.zeros(1).block_until_ready()
    main(tyro.cli(Config))
