"""Programs compiled for a named slice of TPUs, on any machine: what XLA itself says of memory, traffic and messages.

The package libtpu (extra `tpu`) holds the whole compiler, which needs no TPU: it compiles the library's own programs
for an abstract slice. Weights and videos are shapes alone. What comes out is one chip's share.
"""

import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvidprune import parallel
from jvidprune.costs import hlo
from jvidprune.costs.chips import CHIPS, Chip
from jvidprune.costs.footprint import USABLE, Sizes
from jvidprune.costs.memory import TowerShape
from jvidprune.cuts.cache import KEY_AXES, VALID_AXES, Cache, CacheSegment, state_axes
from jvidprune.cuts.inner import Inner
from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.extras import need
from jvidprune.llm.opening import encode_tokens
from jvidprune.llm.prompts.slots import bucket_length
from jvidprune.models import family as families
from jvidprune.models.prefill import run_prefill
from jvidprune.ops.branch import using
from jvidprune.reducers.programs import run_budgets
from jvidprune.reducers.protocol import Reducer, check_weighs_features, inner_stages, with_defaults
from jvidprune.tokens import InnerStage, Layout, VideoTokens, stack_budgets
from jvidprune.video.preprocess import Patches

STAGES = ("encode", "reduce", "prefill", "token")
"""Programs of an answer."""

_GIB = 2**30
_OVER = re.compile(r"Used ([0-9.]+)([KMGT]?) of ([0-9.]+)([KMGT]?) hbm")
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""What a machine with TPUs tells libtpu; without it the network is asked for it, and the lack of an answer logged."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Slice:
    """An abstract slice of TPUs.

    Attributes:
      name: as in "v5e:2x4".
      chip: of the table.
      devices: its chips, as many as the sides multiply to; nothing runs on them.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class CompiledStage:
    """One program as XLA compiled it, for one chip.

    Attributes:
      name: of `STAGES` (a token is one decoding step), or step.
      weights: bytes of the parameters that it reads.
      inputs: bytes of its other arguments.
      temporaries: bytes that it needs on the way.
      outputs: bytes that it returns, without those that lie where an argument lay.
      moved: bytes that it reads and writes, loops counted as often as they run.
      messages: collectives by kind and origin, loops counted.
      took: seconds to compile.
      over: bytes by which it exceeds the chip, so that there is no program; 0 where there is.
    """

    name: str
    weights: int
    inputs: int
    temporaries: int
    outputs: int
    moved: float
    messages: tuple[hlo.Message, ...]
    took: float
    over: int = 0

    @property
    def collectives(self) -> dict[str, tuple[float, float]]:
        """Kind -> (how many, bytes that one chip puts into them)."""
        return hlo.by_kind(self.messages)

    @property
    def sent(self) -> float:
        """Bytes that one chip puts into all collectives."""
        return sum(size for _, size in self.collectives.values())

    @property
    def working(self) -> int:
        """Bytes beside the parameters."""
        return self.inputs + self.temporaries + self.outputs


@dataclasses.dataclass(frozen=True)
class CompiledPlan:
    """All programs of an answer.

    Attributes:
      slice: name of the slice.
      mesh: sizes of its axes.
      weights: bytes of all parameters on one chip.
      stages: encode, reduce, prefill, token.
      available: bytes of a chip that arrays can have.
    """

    slice: str
    mesh: dict[str, int]
    weights: int
    stages: tuple[CompiledStage, ...]
    available: int

    @property
    def peak(self) -> int:
        """The most that is held at once: all parameters, and what the largest program holds beside them."""
        return self.weights + max(stage.working + stage.over for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every program has room."""
        return self.peak <= self.available and not any(stage.over for stage in self.stages)


def slice_named(name: str) -> Slice:
    """A slice from its name.

    Args:
      name: a chip and the sides of the slice, as in "v5e:2x4", "v4:2x2x1" or "v6e:16x16".

    Raises:
      JvidpruneError: another form, a chip that is no TPU, sides that libtpu does not know, or libtpu is missing.
    """
    chip, _, sides = name.strip().partition(":")
    tpus = [known for known, found in CHIPS.items() if found.kind == "tpu"]
    if chip not in tpus or not re.fullmatch(r"\d+(x\d+){1,2}", sides):
        raise JvidpruneError(
            f"a slice is written as in v5e:2x4, a chip of {', '.join(tpus)} and its sides, got {quoted(repr(name))}."
        )
    need("compiling for a TPU slice", "libtpu")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if not any(Path("/dev").glob("accel*")) and not any(Path("/dev").glob("vfio/*")):
        for variable, value in _WITHOUT_TPU.items():
            os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name.strip()).devices
    except Exception as error:
        raise JvidpruneError(f"libtpu knows no slice {name.strip()}: {reason(error)}.") from error
    return Slice(name.strip(), CHIPS[chip], tuple(found))


def compile_answer(
    config: Any,
    where: Slice,
    sizes: Sizes,
    *,
    shape: TowerShape,
    layout: Layout,
    reducer: Reducer,
    ratio: float,
    visual: int,
    prompt: int,
    new_tokens: int,
    batch: int = 1,
    dtype: Any = jnp.bfloat16,
    only: Collection[str] = STAGES,
) -> CompiledPlan:
    """Compiles tower, reducer, prefill and decoding step for one chip of a slice.

    Args:
      config: of a family.
      where: from `slice_named`.
      sizes: of the mesh; their product is the number of chips.
      shape: of the video in the tower.
      layout: of its tokens.
      reducer: bound to no model.
      ratio: retention ratio.
      visual: visual tokens of the prompt, newline embeddings included.
      prompt: all of its tokens.
      new_tokens: longest answer.
      batch: prompts read together.
      dtype: of parameters and activations.
      only: the stages to compile, of `STAGES`.

    Raises:
      JvidpruneError: a mesh that is not the slice or cuts heads, or a method that runs the tower itself (STTS).
    """
    check_weighs_features(reducer, "the compiled plan cannot show")
    mesh = parallel.make_mesh(**sizes, devices=where.devices)
    parallel.check_mesh(config.family, config.units, mesh)
    model = _abstract_model(config, mesh, dtype)
    tower, words = _held(model, lambda path: not path.startswith("lm.")), _held(model, lambda p: p.startswith("lm."))

    def whole(sides: Sequence[int], kind: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        place = parallel.sharding_of(axes, sides, mesh) if axes else NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(tuple(sides), kind, sharding=place)

    pixels = _pixels(config, shape, layout, whole)
    needs = frozenset(reducer.needs - {"text"})
    with jax.set_mesh(mesh), using("tpu"):
        video: VideoTokens = jax.tree.map(
            lambda leaf: whole(leaf.shape, leaf.dtype), jax.eval_shape(encode_tokens, model, pixels, needs)
        )
        if "text" in reducer.needs:
            question = {"text": whole((prompt - visual, config.text.width), dtype)}
            video = dataclasses.replace(video, evidence=video.evidence | question)
        budgets, program = stack_budgets([reducer.budget(layout, ratio)]), with_defaults(reducer).without_numbers()
        capacity = reducer.capacity(layout, ratio)
        programs: dict[str, tuple[Callable[[], Any], int]] = {
            "encode": (lambda: encode_tokens.lower(model, pixels, needs), tower),
            "reduce": (lambda: run_budgets.lower(program, video, budgets, capacity=capacity), 0),
        }
        lengths = {"visual": visual, "prompt": prompt, "new_tokens": new_tokens, "batch": batch}
        acting = [stage for stage in inner_stages(reducer, ratio) if stage.layer < config.text.layers]
        prefill, token = _reading(model, config, shape.levels, acting, dtype, whole, **lengths)
        programs |= {"prefill": (prefill, words), "token": (token, words)}
        stages = [compile_program(name, *programs[name]) for name in STAGES if name in only]
    available = int(USABLE * where.chip.memory)
    return CompiledPlan(where.name, dict(mesh.shape), tower + words, tuple(stages), available)


def _reading(
    model: Any,
    config: Any,
    levels: int,
    acting: Sequence[InnerStage],
    dtype: Any,
    whole: Callable[..., Any],
    *,
    visual: int,
    prompt: int,
    new_tokens: int,
    batch: int,
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The prefill of prompts of so many tokens, and one token more, each as what makes its lowered program.

    Args:
      model: from `_abstract_model`.
      config: of the model.
      levels: DeepStack levels.
      acting: cuts inside the language model.
      dtype: of activations.
      whole: makes shapes with their places.
      visual, prompt, new_tokens, batch: see `compile_answer`.
    """
    length, width = bucket_length(prompt), config.text.width
    room: int | tuple[int, ...] = length + new_tokens - 1
    boundaries: tuple[int, ...] = ()
    parts: dict[str, Any] = {"inner": None}
    if acting:
        slots = np.arange(length)[None].repeat(batch, 0)
        inner = Inner.create(acting, slots < visual, slots < prompt, layers=config.text.layers)
        room, boundaries = inner.capacities(length, new_tokens - 1), inner.boundaries
        parts["inner"] = inner
    if levels:
        parts["deepstack"] = whole((levels, batch, length, width), dtype)
    if families.get(config.family).bidirectional:
        parts["bidirectional"] = whole((batch, length), jnp.bool_)
    axes = (3,) if config.text.rope.sections else ()
    positions, there = whole((*axes, batch, length), jnp.int32), whole((batch, length), jnp.bool_)
    embeds = whole((batch, length, width), dtype, "batch", None, None)
    cache = _abstract_cache(model, batch, room, boundaries, dtype, whole)
    token = whole((batch,), jnp.int32)
    return (
        lambda: run_prefill.lower(model, embeds, positions, there, cache, parts, packed=True),
        lambda: _step.lower(model, token, cache),
    )


@functools.partial(jax.jit, donate_argnames="cache")
def _step(model: Any, token: jax.Array, cache: Any) -> Any:
    """One decoding step, as the loop of `models.generate` takes it."""
    return model.lm.decode(token, cache)


def compile_program(name: str, lower: Callable[[], Any], weights: int) -> CompiledStage:
    """What XLA says of one program, or by how much it exceeds a chip.

    Args:
      name: of the stage.
      lower: makes the lowered program.
      weights: bytes of its arguments that are parameters, or what training keeps for them.
    """
    began = time.perf_counter()
    try:
        program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        found = _OVER.search(str(error))
        if found is None:
            raise
        used, limit = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
        took = time.perf_counter() - began
        return CompiledStage(name, weights, 0, max(0, int(limit) - weights), 0, 0.0, (), took, int(used - limit))
    took, memory, text = time.perf_counter() - began, program.memory_analysis(), program.as_text()
    return CompiledStage(
        name,
        weights,
        max(0, memory.argument_size_in_bytes - weights),
        memory.temp_size_in_bytes,
        max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        hlo.traffic(text).main,
        tuple(hlo.messages(text)),
        took,
    )


def _abstract_model(config: Any, mesh: Mesh, dtype: Any) -> Any:
    """The model of a config with shapes for weights, each with its place on the mesh."""
    from flax import nnx

    family = families.get(config.family)
    graph, state = nnx.split(nnx.eval_shape(lambda: family.model(config, dtype=dtype, rngs=nnx.Rngs(0))))
    places = parallel.state_shardings(state, mesh, family.sharding, config.units)
    placed = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)
    return nnx.merge(graph, placed)


def _held(model: Any, chosen: Callable[[str], bool]) -> int:
    """Bytes that one chip holds of some parameters, by their dotted paths."""
    from flax import nnx

    leaves = jax.tree_util.tree_flatten_with_path(nnx.state(model))[0]
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for path, leaf in leaves
        if chosen(parallel.dotted(path))
    )


def _pixels(config: Any, shape: TowerShape, layout: Layout, whole: Callable[..., Any]) -> Any:
    """What a family's tower reads, as shapes."""
    if families.get(config.family).settings["released"].grid is None:
        side = config.vision.image_size
        return whole((shape.frames, config.vision.channels, side, side), jnp.float32)
    rows, values = shape.frames * shape.patches, config.vision.patch_values
    sides = (side * config.vision.merge for side in layout.grid)
    return Patches(whole((rows, values), jnp.float32), (shape.frames, *sides))  # type: ignore[arg-type]


def _abstract_cache(
    model: Any,
    batch: int,
    room: int | tuple[int, ...],
    boundaries: tuple[int, ...],
    dtype: Any,
    whole: Callable[..., Any],
) -> Any:
    """An empty cache as shapes with their places."""
    shapes = jax.eval_shape(functools.partial(model.lm.empty_cache, batch, room, boundaries, dtype=dtype))
    axes = {5: KEY_AXES, 2: VALID_AXES}

    def placed(segment: CacheSegment) -> CacheSegment:
        keys = dataclasses.replace(segment, state=None)
        keys = jax.tree.map(lambda leaf: whole(leaf.shape, leaf.dtype, *axes.get(leaf.ndim, ())), keys)
        carried = jax.tree.map(lambda leaf: whole(leaf.shape, leaf.dtype, *state_axes(leaf.ndim)), segment.state)
        return dataclasses.replace(keys, state=carried)

    position = whole(shapes.position.shape, shapes.position.dtype)
    return Cache(tuple(placed(segment) for segment in shapes.segments), position, shapes.policy)
