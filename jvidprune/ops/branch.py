"""Which of two equal formulations a program takes: that for CPUs, or that for accelerators.

XLA for CPU is fast at loops over two-dimensional products, slow at sorts, batched scatters and wide temporaries; TPUs
and GPUs want large products and few steps. Where the two need other programs, the code asks `on_cpu()` while it is
traced. The answer is a setting and part of the key of every jit cache, so that a test on a CPU machine can run what a
TPU runs:

>>> from jvidprune.ops.branch import on_cpu, using
>>> with using("accelerator"):
...     on_cpu()
False
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import jax

Branch = Literal["cpu", "accelerator", "tpu"]
"""The formulation for CPUs, that for accelerators, or that for accelerators with kernels that TPUs alone have, as a
program needs that is compiled for a TPU elsewhere."""

_asked = jax.make_user_context(None)


@contextlib.contextmanager
def using(branch: Branch | None) -> Iterator[None]:
    """Programs traced inside take this branch; None leaves it to JAX's default backend."""
    with _asked(branch):
        yield


def branch() -> Branch:
    """The branch of programs that are traced now."""
    return _asked.value or ("cpu" if jax.default_backend() == "cpu" else "accelerator")


def platform() -> str:
    """What programs that are traced now will run on: "cpu", "gpu" or "tpu"."""
    return "tpu" if _asked.value == "tpu" else jax.default_backend()


def on_cpu() -> bool:
    """Whether programs that are traced now take the formulation for CPUs."""
    return branch() == "cpu"


@contextlib.contextmanager
def mean_rounds(rounds: float) -> Iterator[None]:
    """Says of loops traced inside, whose rounds the data decide, how many to count where bytes are counted.

    The number becomes the name of a scope, which stays with the compiled loop (`costs.hlo`).
    """
    with jax.named_scope(f"mean_rounds_{rounds:.2f}"):
        yield
