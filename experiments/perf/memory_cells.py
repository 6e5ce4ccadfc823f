"""What programs of full size hold: XLA's own count of programs that are compiled here and run nowhere.

A 7B model with 128 frames, and every reducer at 128 frames, AOT from 27 x 27 tokens a frame at three lengths. Weights
and videos are shapes alone, so that no memory of that size is needed.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jvidprune import reducers
from jvidprune.costs import memory
from jvidprune.errors import JvidpruneError
from jvidprune.reducers.programs import run_budgets
from jvidprune.tokens import Layout, stack_budgets

from .inputs import video_tokens
from .model_cells import TEXT, abstract_model, encode, prefill
from .reducer_cells import cast

MODEL = "llava-onevision-7b"
FRAMES = (32, 128)
RATIO = 0.1


@dataclasses.dataclass(frozen=True)
class MemoryCell:
    """One entry of the table.

    Attributes:
      program: "tower", "prefill", or the registry name of a reducer.
      frames: T.
      ratio: of the reducer, or of what `prefill` reads; 1 is the whole video.
    """

    program: str
    frames: int
    ratio: float = 1.0

    @property
    def key(self) -> str:
        """Name of the row."""
        name = f"{MODEL} {self.program}" if self.program in ("tower", "prefill") else self.program
        return f"{name} T={self.frames}" + ("" if self.program == "tower" else f" ratio={self.ratio:g}")


def cells(which: str, methods: tuple[str, ...]) -> list[MemoryCell]:
    """The model unpruned and pruned, the methods at the longest video, and AOT at half and a quarter of it.

    "quick" is the tower and the first method.
    """
    if which == "quick":
        return [MemoryCell("tower", FRAMES[0]), *(MemoryCell(name, FRAMES[0], RATIO) for name in methods[:1])]
    model = [MemoryCell("tower", t) for t in FRAMES]
    model += [MemoryCell("prefill", t, ratio) for t in FRAMES for ratio in (1.0, RATIO)]
    lengths = {"aot": (32, 64, 128)}
    return model + [MemoryCell(name, t, RATIO) for name in methods for t in lengths.get(name, (128,))]


def run_cell(cell: MemoryCell, dtype: Any) -> dict[str, Any]:
    """Bytes of one program, and what `jvidprune ask` expects of it before it loads a model (None for a reducer)."""
    if cell.program == "tower":
        return _tower(cell, dtype)
    if cell.program == "prefill":
        return _prefill(cell, dtype)
    return _reducer(cell, dtype)


def _row(lower: Any, predicted: int | None) -> dict[str, Any]:
    began = time.perf_counter()
    analysis = lower().compile().memory_analysis()
    if analysis is None:
        return {"refused": "this backend gives no memory analysis"}
    return {
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "predicted": predicted,
        "compile_s": time.perf_counter() - began,
    }


def _tower(cell: MemoryCell, dtype: Any) -> dict[str, Any]:
    graph, state, config = abstract_model(MODEL, dtype)
    side = config.vision.image_size
    pixels = jax.ShapeDtypeStruct((cell.frames, 3, side, side), dtype)
    shape = memory.tower_shape(config, cell.frames)
    predicted = memory.encode_bytes(config, shape, dtype) + memory.feature_bytes(config, shape, dtype)
    return _row(lambda: encode.lower(nnx.merge(graph, state), pixels), predicted)


def _prefill(cell: MemoryCell, dtype: Any) -> dict[str, Any]:
    graph, state, config = abstract_model(MODEL, dtype)
    model = nnx.merge(graph, state)
    visual = round(cell.ratio * cell.frames * config.grid[0] * config.grid[1])
    length = visual + TEXT
    embeds = jax.ShapeDtypeStruct((1, length, config.text.width), dtype)
    positions, valid = (jax.ShapeDtypeStruct((1, length), kind) for kind in (jnp.int32, jnp.bool_))
    cache = jax.eval_shape(functools.partial(model.empty_cache, 1, length, boundaries=(), dtype=dtype))
    predicted = memory.prefill_bytes(config.text, 1, length, 0, dtype)
    return _row(lambda: prefill.lower(model, embeds, positions, valid, cache, None, packed=True), predicted)


def _reducer(cell: MemoryCell, dtype: Any) -> dict[str, Any]:
    reducer, side, before = reducers.get(cell.program), 14, 27
    frame = video_tokens(reducer.needs, scenes=(1,), grid=side, unpooled_grid=before, dim=3584)

    layout = Layout(cell.frames, (side, side), (before, before))
    try:
        budgets = stack_budgets([reducer.budget(layout, cell.ratio)])
    except JvidpruneError as error:
        return {"refused": str(error)}
    capacity = reducer.capacity(layout, cell.ratio)
    video = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((cell.frames, *leaf.shape[1:]), cast(leaf, dtype).dtype), frame
    )
    return _row(lambda: run_budgets.lower(reducer, video, budgets, capacity=capacity), None)
