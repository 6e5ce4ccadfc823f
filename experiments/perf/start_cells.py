"""Start-up: what a user waits for before anything happens, in fresh processes."""

import statistics
import subprocess
import sys
import time
from typing import Any

COMMANDS = {
    "import jax": ("-c", "import jax"),
    "import jvidprune": ("-c", "import jvidprune"),
    "import jax, jvidprune.reduce": ("-c", "import jax, jvidprune; jvidprune.reduce"),
    "jvidprune --help": ("-m", "jvidprune.cli", "--help"),
    "jvidprune sweep --help": ("-m", "jvidprune.cli", "sweep", "--help"),
}


def run_cell(name: str, repeats: int) -> dict[str, Any]:
    """One row: wall time of whole processes, behind a first one that fills the disk cache; the floor is bare Python."""

    def once(arguments: tuple[str, ...]) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return 1e3 * (time.perf_counter() - began)

    once(COMMANDS[name])
    times = [once(COMMANDS[name]) for _ in range(repeats)]
    bare = min(once(("-c", "pass")) for _ in range(repeats))
    row: dict[str, Any] = dict.fromkeys(("temporaries", "outputs", "peak"))
    row |= {"compile_s": 0.0, "compiles": 0, "median_ms": statistics.median(times), "best_ms": min(times)}
    return row | {"cpu_ms": min(times), "floor_ms": bare}
