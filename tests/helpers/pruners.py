"""Small pruning modules with random parameters, in memory and in files."""

import functools
import tempfile
from pathlib import Path

from flax import nnx

from jvidprune.covipal import PPM, module_weights


def module(dim, seed=0, **options):
    """Two heads, one block."""
    return PPM(dim, **{"width": 12, "hidden": 16, "heads": 2, "blocks": 1, **options}, rngs=nnx.Rngs(seed))


def weights(dim, seed=0, place=0, **options):
    """The same as the value of a setting."""
    return module_weights(module(dim, seed, **options), place)


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="pruners")


@functools.cache
def file(dim, seed=0, place=0, **options):
    """Path of a file with one, which lives as long as the process."""
    path = Path(_folder().name) / f"{dim}-{seed}-{place}-{len(options)}.safetensors"
    return weights(dim, seed, place, **options).write(path).path
