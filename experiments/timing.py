"""Times of several programs that are compared: taken in turns, so that what else the machine does strikes all alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)


def in_turns(runs: Mapping[Key, Callable[[], Any]], repeat: int) -> dict[Key, float]:
    """The shortest of `repeat` runs of each in seconds; all are compiled and run once before.

    Args:
      runs: functions whose result is arrays, which are waited for.
      repeat: rounds, in each of which every function runs once.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    found: dict[Key, float] = {}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            found[name] = min(found.get(name, float("inf")), time.perf_counter() - start)
    return found
