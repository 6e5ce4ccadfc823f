"""One measured program: compile time and count, run time by both clocks, memory, and the machine's own rates."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the machine reaches in this run.

    Attributes:
      flops: of a square matrix product in the dtype that is measured, per second.
      bytes: read and written by a copy, per second.
    """

    flops: float
    bytes: float

    def floor(self, flops: float, moved: float) -> float:
        """Milliseconds below which no program with that work can run."""
        return 1e3 * max(flops / self.flops, moved / self.bytes)


@dataclasses.dataclass(frozen=True)
class Timing:
    """One program.

    Attributes:
      compile_s: wall time of tracing and compiling.
      compiles: programs that XLA compiled while the runs went through all inputs; 0 after the ahead-of-time one.
      median_ms, best_ms: wall time, device synchronised.
      cpu_ms: CPU time of the process of the best run, which other work on the machine disturbs less.
      temporaries, outputs: bytes, from XLA's memory analysis; None where the backend gives none.
      peak: bytes in use at most, where the device counts them.
    """

    compile_s: float
    compiles: int
    median_ms: float
    best_ms: float
    cpu_ms: float
    temporaries: int | None
    outputs: int | None
    peak: int | None


@contextlib.contextmanager
def count_compiles() -> Iterator[Callable[[], int]]:
    """Counts XLA compilations inside the block."""
    found: list[float] = []
    live = [True]

    def listener(event: str, duration: float, **_: Any) -> None:
        if live[0] and event == _COMPILED:
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield lambda: len(found)
    finally:
        live[0] = False


def measure(program: Any, inputs: list[tuple], static: dict[str, Any], *, repeats: int, seconds: float) -> Timing:
    """Compiles a jitted program ahead of time and runs it.

    Args:
      program: a `jax.jit` function.
      inputs: positional arguments of the runs, of the same shapes, used in turn: different budgets must not compile.
      static: its static keyword arguments.
      repeats: runs at most, behind one that is not counted.
      seconds: after so many no further run begins, from the second on.
    """
    began = time.perf_counter()
    compiled = program.lower(*inputs[0], **static).compile()
    compile_s = time.perf_counter() - began
    memory = compiled.memory_analysis()
    wall, cpu = [], []
    with count_compiles() as compiles:
        jax.block_until_ready(compiled(*inputs[0]))
        began = time.perf_counter()
        for number in range(repeats):
            if number > 1 and time.perf_counter() - began > seconds:
                break
            args = inputs[number % len(inputs)]
            clocks = time.perf_counter(), time.process_time()
            out = jax.block_until_ready(compiled(*args))
            wall.append(1e3 * (time.perf_counter() - clocks[0]))
            cpu.append(1e3 * (time.process_time() - clocks[1]))
            del out
        count = compiles()
    held = jax.devices()[0].memory_stats() or {}
    return Timing(
        compile_s,
        count,
        statistics.median(wall),
        min(wall),
        min(cpu),
        None if memory is None else memory.temp_size_in_bytes,
        None if memory is None else memory.output_size_in_bytes,
        held.get("peak_bytes_in_use"),
    )


def median_call(call: Callable[[], Any], *, repeats: int, seconds: float) -> float:
    """Milliseconds of a public call, which compiles in its first run and is not counted then; see `measure`."""
    jax.block_until_ready(call())
    wall, began = [], time.perf_counter()
    for number in range(repeats):
        if number > 1 and time.perf_counter() - began > seconds:
            break
        start = time.perf_counter()
        jax.block_until_ready(call())
        wall.append(1e3 * (time.perf_counter() - start))
    return statistics.median(wall)


def measure_rates(dtype: Any, *, side: int = 0, repeats: int = 5) -> Rates:
    """The matmul and the copy rate of this machine, best of some runs.

    Args:
      dtype: of the matrices.
      side: of the square matrices, by default 2048 on CPU and 8192 elsewhere.
      repeats: runs.
    """
    cpu = jax.default_backend() == "cpu"
    side = side or (2048 if cpu else 8192)
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    length = (1 << 26) if cpu else (1 << 29)
    x = jnp.ones(length // 4, jnp.float32)

    def best(call: Callable[[], Any]) -> float:
        jax.block_until_ready(call())
        found = []
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(call())
            found.append(time.perf_counter() - began)
        return min(found)

    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest" if dtype == jnp.float32 else None))
    copy = jax.jit(lambda x: x + 1.0)
    return Rates(2.0 * side**3 / best(lambda: product(a, a)), 2.0 * length / best(lambda: copy(x)))
