"""A reducer compiled ahead for serving: one program for every ratio up to a largest, in one file, run without tracing.

The file holds the method's settings as JSON and the program as StableHLO (`jax.export`); loading executes nothing but
that program. Budgets are made on the host from the settings, as everywhere.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.extras import need
from jvidprune.files import atomic_output
from jvidprune.reducers.programs import bucket_capacity
from jvidprune.reducers.protocol import Reducer, check_ratio, check_weighs_features, with_defaults
from jvidprune.reducers.serialise import SavedPruning, read_record
from jvidprune.tokens import Layout, Reduced, VideoTokens

MAGIC = b"jvidprune reducer 1\n"
"""How a file starts; the header, one line of JSON, follows, then the program."""

_OUTPUTS = ("tokens", "index", "valid", "mass", "slot")


@dataclasses.dataclass(frozen=True)
class ExportedReducer:
    """A loaded program.

    Attributes:
      reducer: the method, for budgets.
      ratio: the largest retention ratio that fits.
      capacity: K, rows of the output.
      layout: of the videos; frames are all real.
      shapes: shape and dtype name of "features" and of each evidence.
      program: the compiled program.
    """

    reducer: Reducer
    ratio: float
    capacity: int
    layout: Layout
    shapes: dict[str, tuple[tuple[int, ...], str]]
    program: Any

    def reduce(self, features: Float[Array, "T N D"], evidence: Mapping[str, Any], ratio: float) -> Reduced:
        """Reduces one video; `jvidprune.reduce` with the same capacity gives the same.

        Args:
          features: (T, N, D) of the exported shape and dtype.
          evidence: what the method needs, by name.
          ratio: at most the one that was exported.

        Raises:
          JvidpruneError: another shape or dtype, missing evidence, or a ratio that does not fit.
        """
        given = {"features": features, **evidence}
        for name, (shape, dtype) in self.shapes.items():
            if name not in given:
                raise JvidpruneError(f"the exported reducer needs {name}, which is not given.")
            array = given[name] = jnp.asarray(given[name])
            if array.shape != shape or array.dtype.name != dtype:
                raise JvidpruneError(
                    f"the exported reducer takes {name} of shape {shape} and dtype {dtype}, got {array.shape} and "
                    f"{array.dtype.name}."
                )
        ratio = check_ratio(ratio)
        needed = self.reducer.capacity(self.layout, ratio)
        if needed > self.capacity:
            raise JvidpruneError(
                f"ratio {ratio:g} may return {needed} tokens, the exported reducer has room for {self.capacity}: "
                f"it was made for ratios up to {self.ratio:g}."
            )
        budget = jax.tree.leaves(self.reducer.budget(self.layout, ratio))
        arrays = {name: given[name] for name in self.shapes}
        return Reduced(*self.program.call(arrays, budget), diagnostics={})

    def __call__(self, video: VideoTokens, ratio: float) -> Reduced:
        """`reduce` of a `VideoTokens` without padding frames."""
        return self.reduce(video.features, video.evidence, ratio)


def export_reducer(
    path: str | Path, reducer: Reducer, video: VideoTokens, ratio: float, *, platforms: Sequence[str] | None = None
) -> Path:
    """Writes a reducer's program for videos of one shape.

    Args:
      path: of the file.
      reducer: a method of this package, or a dataclass of the user's own.
      video: any video of the shape, dtype and evidence that will be served, without padding frames.
      ratio: the largest retention ratio that will be asked for.
      platforms: "cpu", "cuda", "rocm", "tpu"; by default the one in use. Formulations are those of the backend in use,
        so export where the program will run.

    Raises:
      JvidpruneError: a reducer that cannot be saved, or what `reduce` raises.
    """
    _serialization()
    check_weighs_features(reducer, "cannot export")
    layout = video.layout()
    capacity = bucket_capacity(reducer.capacity(layout, check_ratio(ratio)), layout.total)
    missing = sorted(reducer.needs - video.evidence.keys())
    if missing:
        raise JvidpruneError(f"the video that shows the shapes lacks the evidence {', '.join(missing)}.")
    record = SavedPruning(reducer, ratio).record()
    budget, tree = jax.tree.flatten(reducer.budget(layout, ratio))
    arrays = {"features": video.features} | {name: video.evidence[name] for name in sorted(reducer.needs)}
    grids = video.grid, video.unpooled_grid

    def program(arrays: dict[str, Array], budget: list[Array]) -> tuple[Array, ...]:
        evidence = {name: array for name, array in arrays.items() if name != "features"}
        tokens = VideoTokens(arrays["features"], evidence, jnp.ones(layout.frames, bool), *grids)
        plan = reducer.plan(tokens, jax.tree.unflatten(tree, budget), capacity=capacity)
        reduced = with_defaults(reducer).apply(plan, tokens)
        return tuple(getattr(reduced, name) for name in _OUTPUTS)

    specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype), (arrays, budget))
    exported = jax.export.export(jax.jit(program), platforms=platforms)(*specs)
    header = {
        "pruning": record,
        "capacity": capacity,
        "layout": [layout.frames, layout.grid, layout.unpooled_grid],
        "shapes": {name: [array.shape, array.dtype.name] for name, array in arrays.items()},
    }
    with atomic_output(path) as part:
        part.write_bytes(MAGIC + json.dumps(header).encode() + b"\n" + bytes(exported.serialize()))
    return Path(path)


def _serialization() -> None:
    need("a reducer as a file", "flatbuffers")


def load_reducer(path: str | Path, *, allow_code: bool = False) -> ExportedReducer:
    """Reads what `export_reducer` wrote.

    Args:
      path: of the file.
      allow_code: import the module of a reducer that is not this package's, which makes the budgets.

    Raises:
      JvidpruneError: a file that is none, code that is not allowed, or a program that this jax cannot read.
    """
    _serialization()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise JvidpruneError(f"cannot read {path}: {error.strerror}.") from error
    if not content.startswith(MAGIC):
        raise JvidpruneError(f"{path} is no exported reducer.")
    line, _, program = content[len(MAGIC) :].partition(b"\n")
    try:
        header = json.loads(line)
        pruning = read_record(header["pruning"], allow_code=allow_code)
        frames, grid, unpooled = header["layout"]
        layout = Layout(int(frames), tuple(grid), None if unpooled is None else tuple(unpooled))
        shapes = {name: (tuple(shape), dtype) for name, (shape, dtype) in header["shapes"].items()}
        capacity = int(header["capacity"])
        exported = jax.export.deserialize(bytearray(program))
    except JvidpruneError as error:
        raise JvidpruneError(f"{path}: {error}") from error
    except Exception as error:  # flatbuffers and MLIR raise what they like at broken bytes
        raise JvidpruneError(f"{path} is damaged, or was exported by a jax that this one cannot read.") from error
    backend = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if backend not in exported.platforms:
        raise JvidpruneError(f"{path} was exported for {', '.join(exported.platforms)}, this backend is {backend}.")
    return ExportedReducer(pruning.reducer, pruning.ratio, capacity, layout, shapes, exported)
