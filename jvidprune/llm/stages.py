"""Wall-clock of the stages of a run, with compilation told apart from computation."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

_JAX_MIN_SECONDS = 1.0
"""JAX's own shortest compilation that is kept; another value is a user's."""

_compile_seconds = 0.0
_listening = False


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    global _compile_seconds
    if event.startswith("/jax/core/compile/"):
        _compile_seconds += duration_secs


def _listen() -> None:
    global _listening
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_on_duration)
        _listening = True


@dataclasses.dataclass
class Stage:
    """One finished stage.

    Attributes:
      name: decode, encode, reduce, prefill or generate.
      seconds: wall-clock without compilation.
      compile_seconds: tracing and compilation inside the stage.
      tokens: what the stage produced, in its own unit.
      unit: the unit of `tokens`.
      flops: what it computed, where that was counted (`costs.flops`).
    """

    name: str
    seconds: float
    compile_seconds: float
    tokens: int = 0
    unit: str = "tokens"
    flops: float | None = None

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class StageClock:
    """Collects stages in order: `with clock("encode", "tokens") as stage: ...; stage.tokens = n`."""

    def __init__(self, on_start: Callable[[str], None] | None = None):
        _listen()
        self.stages: list[Stage] = []
        self._on_start = on_start

    @contextlib.contextmanager
    def __call__(self, name: str, unit: str = "tokens") -> Iterator[Stage]:
        """Times the body; the caller must block on device results inside it."""
        if self._on_start is not None:
            self._on_start(name)
        stage = Stage(name, 0.0, 0.0, 0, unit)
        compiled, start = _compile_seconds, time.perf_counter()
        yield stage
        wall = time.perf_counter() - start
        # Nested jits report overlapping compile events, so the sum can exceed the wall-clock.
        stage.compile_seconds = min(_compile_seconds - compiled, wall)
        stage.seconds = wall - stage.compile_seconds
        self.stages.append(stage)


def cache_folder() -> Path:
    """Where compiled programs and the clip asked about by default are kept: $JVIDPRUNE_CACHE or ~/.cache/jvidprune."""
    import os

    root = os.environ.get("JVIDPRUNE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "jvidprune"


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk between runs, unless JAX was told where to or not to.

    Whoever set `jax_compilation_cache_dir` (or JAX_COMPILATION_CACHE_DIR) keeps it, and whoever switched
    `jax_enable_compilation_cache` off has none.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache or config.jax_compilation_cache_dir is not None:
        return
    from jax.experimental.compilation_cache import compilation_cache

    config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    if config.jax_persistent_cache_min_compile_time_secs == _JAX_MIN_SECONDS:
        config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # A program compiled before has settled that there is no cache; only a reset makes JAX look again.
    compilation_cache.reset_cache()
