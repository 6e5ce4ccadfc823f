"""How much memory a question takes, from configs alone, so that what cannot fit is refused before anything is loaded.

A small model of what XLA keeps at once: parameters; the arrays of one chunk of frames in the tower, or of one layer and
one chunk of queries in the language model; features; keys and values. Constants are counts of live arrays.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvidprune import parallel
from jvidprune.cuts.protocol import CutRule
from jvidprune.errors import JvidpruneError
from jvidprune.llm.prompts.slots import bucket_length
from jvidprune.models import family as families
from jvidprune.models.attention import FRAME_QUERIES, QUERY_CHUNK
from jvidprune.models.base import FRAME_CHUNK
from jvidprune.models.decoder_config import DecoderConfig, DeltaConfig
from jvidprune.models.delta import CHUNK, TOGETHER
from jvidprune.models.fused import implementation
from jvidprune.models.layers import LONGEST_RUN, chunk_frames
from jvidprune.tokens import InnerStage, Layout

_GIB = 2**30


class TowerShape(NamedTuple):
    """What a tower reads and leaves.

    Attributes:
      frames: T, grid frames.
      patches: of a frame, M.
      tokens: of a frame, N.
      values: numbers of a frame that go in.
      chunk: frames at once.
      levels: DeepStack levels that go with every token.
    """

    frames: int
    patches: int
    tokens: int
    values: int
    chunk: int
    levels: int = 0


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes.

    Attributes:
      parameters: of the model.
      features: of the encoded video, DeepStack levels included.
      encode: what the tower takes besides, pixels included.
      prompt: what reading the prompt takes besides: its embeddings, keys and values, one layer, logits.
    """

    parameters: int
    features: int
    encode: int
    prompt: int

    @property
    def peak(self) -> int:
        """The largest amount at once: encoding and reading follow each other, the features stay."""
        return self.parameters + self.features + max(self.encode, self.prompt)


class Held(NamedTuple):
    """An array that parameters are held in.

    Attributes:
      path: of the parameter, dotted; values and scales of a quantised one go by the same.
      shape: of the array.
      byte: whether a number takes one byte, whatever the model's type.
    """

    path: str
    shape: tuple[int, ...]
    byte: bool

    def numbers(self, config: Any, mesh: Mapping[str, int]) -> int:
        """Numbers of it that one device holds, by the family's sharding table and the sizes of a mesh's axes."""
        table = families.get(config.family).sharding
        return math.prod(self.shape) // parallel.share(self.path, self.shape, mesh, table, config.units)


@functools.cache
def parameter_arrays(config: Any) -> tuple[Held, ...]:
    """The arrays that hold a model's parameters, from its abstract module."""
    from flax import nnx

    family = families.get(config.family)
    state = nnx.state(nnx.eval_shape(lambda: family.model(config, dtype=jnp.bfloat16)))
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return tuple(Held(parallel.dotted(path), tuple(leaf.shape), leaf.dtype.itemsize == 1) for path, leaf in leaves)


def parameter_count(config: Any, mesh: Mapping[str, int] | None = None) -> int:
    """Numbers that a model of this config holds; with the sizes of a mesh's axes, what one of its devices does."""
    return sum(held.numbers(config, mesh or {}) for held in parameter_arrays(config))


def parameter_bytes(config: Any, dtype: Any, mesh: Mapping[str, int] | None = None) -> int:
    """Bytes of the same: one for each number of a quantised matrix, those of the type for all else."""
    size = jnp.dtype(dtype).itemsize
    return sum(held.numbers(config, mesh or {}) * (1 if held.byte else size) for held in parameter_arrays(config))


def tower_shape(config: Any, frames: int, grid: tuple[int, int, int] | None = None) -> TowerShape:
    """The shape of a video.

    Args:
      config: of the model.
      frames: sampled from the file.
      grid: (T, rows, columns) in patches, for the Qwen-VL families, whose frames have no fixed size.
    """
    vision = config.vision
    if grid is None:
        tokens, values = config.grid[0] * config.grid[1], vision.channels * vision.image_size**2
        # A class token goes through the blocks beside the patches.
        patches = vision.tokens + (families.get(config.family).connection == "shuffled")
        return TowerShape(frames, patches, tokens, values, chunk_frames(frames, FRAME_CHUNK))
    steps, patches = grid[0], grid[1] * grid[2]
    values, chunk = patches * vision.patch_values, chunk_frames(steps, vision.chunk(grid))
    return TowerShape(steps, patches, patches // vision.unit, values, chunk, len(vision.taps))


def video_shape(config: Any, frames: int, layout: Layout) -> TowerShape:
    """`tower_shape` of a video of any family, from the tokens that the tower makes of it.

    Args:
      config: of the model.
      frames: sampled from the file.
      layout: from `FamilySettings.layout`.
    """
    if families.get(config.family).settings["released"].grid is None:
        return tower_shape(config, frames)
    rows, columns = (side * config.vision.merge for side in layout.grid)
    return tower_shape(config, frames, (layout.frames, rows, columns))


def encode_bytes(config: Any, shape: TowerShape, dtype: Any) -> int:
    """What encoding takes besides parameters and features: pixels, one block of one chunk, the chunks' results."""
    vision, size, rows = config.vision, jnp.dtype(dtype).itemsize, shape.chunk * shape.patches
    attention = 4 * rows * vision.width * size
    if _plain(vision, vision.width // vision.heads, dtype):
        queries = shape.patches if shape.patches <= FRAME_QUERIES else QUERY_CHUNK
        # Scores and weights share an array unless their types differ.
        attention += shape.chunk * vision.heads * shape.patches * queries * (4 if size == 4 else 4 + size)
    block = rows * vision.width * size + max(attention, rows * (vision.width + 2 * vision.mlp) * size)
    if families.get(config.family).connection == "connector":
        pooling = config.connector
        # Molmo2's windows: the joined blocks, their patches gathered, keys and values of these; XLA lays them beside
        # the block's arrays.
        wide, places = vision.width * len(pooling.blocks), shape.chunk * shape.tokens * pooling.pool**2
        block += (rows * wide + places * (wide + 2 * pooling.width)) * size
    # Taps wait for their mergers.
    block += rows * shape.levels * vision.width * size
    pixels = shape.frames * shape.values * 4
    if shape.frames <= shape.chunk:
        return block + pixels
    filled = shape.frames % shape.chunk > 0
    return block + pixels * (2 if filled else 1) + feature_bytes(config, shape, dtype)


def feature_bytes(config: Any, shape: TowerShape, dtype: Any) -> int:
    """The encoded video."""
    return shape.frames * shape.tokens * (1 + shape.levels) * config.text.width * jnp.dtype(dtype).itemsize


def cache_bytes(text: DecoderConfig, batch: int, slots: int, dtype: Any) -> int:
    """Keys and values of all layers that have them, and the states of the others."""
    size, keys = jnp.dtype(dtype).itemsize, len(text.attending)
    states = 0
    if (delta := text.delta) is not None:
        inputs = (delta.taps - 1) * sum(delta.channels) * size
        states = (text.layers - keys) * batch * (4 * delta.state_size + inputs)
    return 2 * keys * batch * slots * text.kv_heads * text.head_dim * size + states


def _recurrence_bytes(delta: DeltaConfig, batch: int, length: int, size: int) -> int:
    """What a layer with a recurrent state holds beside its residual while it reads a prompt."""
    heads, wide = delta.value_heads, 2 * delta.key_dim + delta.value_dim
    # Projections and what convolutions make of them; queries, keys and values by head, and outputs, in float32.
    row = 2 * size * (sum(delta.channels) + delta.channels[2]) + 4 * heads * (wide + delta.value_dim)
    # Chunks whose systems are solved at once: their parts, right sides and solutions, decays and scores.
    together = (
        min(length, CHUNK * TOGETHER) * heads * 4 * (2 * wide + 2 * (delta.key_dim + delta.value_dim) + 3 * CHUNK)
    )
    return batch * (length * row + together)


def prefill_bytes(
    text: DecoderConfig, batch: int, length: int, room: int, dtype: Any, *, levels: int = 0, mutual: bool = False
) -> int:
    """What reading a batch of prompts takes besides the parameters.

    Args:
      text: the language model.
      batch: rows.
      length: slots of a row, padding included.
      room: slots of the cache for the answer.
      dtype: of activations.
      levels: DeepStack levels that are added to the prompt.
      mutual: visual tokens see each other, which the plain attention alone computes (Molmo2).
    """
    size, rows = jnp.dtype(dtype).itemsize, batch * length
    attention = rows * (2 * text.width + 2 * text.heads * text.head_dim) * size
    if mutual or _plain(text, text.head_dim, dtype):
        # Scores, masked scores and weights of a chunk of queries.
        attention += batch * text.heads * min(length, QUERY_CHUNK) * length * 12
    # XLA copies a layer's matrices out of the stack of all layers, and needs one of the two wide arrays less then.
    # With experts a token enters several, and what each makes of it waits to be added up.
    wide = batch * min(length, LONGEST_RUN) * (text.mlp + text.active * text.width)
    mlp = (rows * text.width + 2 * wide) * size
    copied = (rows * text.width + wide) * size + text.layer_size * size
    mixed = attention
    if text.delta is not None:
        mixed = max(attention, _recurrence_bytes(text.delta, batch, length, size))
    layer = rows * (2 + levels) * text.width * size + max(mixed, mlp, copied)
    # Keys and values are written where the cache keeps them; those of runs around a cut or a DeepStack level first
    # lie beside it.
    kept = cache_bytes(text, batch, length + room, dtype) + (cache_bytes(text, batch, length, dtype) if levels else 0)
    return layer + kept + 2 * batch * text.vocab * 4


def inside_bytes(
    text: DecoderConfig, stages: Sequence[InnerStage], batch: int, length: int, room: int, dtype: Any
) -> int:
    """What stages inside the language model hold beside the prompt and its keys and values.

    That is the states that a cut puts aside for a later one, which take each other's place (SwiftVLM); where these
    come back to; the bank of hidden states from which a choice is renewed while decoding, and its masks (DSTP, FastV);
    and arrays of a stage's own, such as those of routers.

    Args:
      text: the language model.
      stages: of the reducer; those at or behind the last layer hold nothing.
      batch: rows.
      length: slots of a row, padding included.
      room: slots of the cache for the answer.
      dtype: of activations.
    """
    size = jnp.dtype(dtype).itemsize
    acting = [stage for stage in stages if stage.boundary < text.layers]
    aside = max((stage.rule.held(length, text.width, size) for stage in acting), default=0)
    total = batch * aside
    if any(isinstance(stage.rule, CutRule) and stage.rule.keeps_roles for stage in acting):
        # Positions on up to three axes, source, block and slot of each token, and three marks.
        total += batch * length * (6 * 4 + 3)
    for stage in acting:
        renewal = stage.rule.renewal if isinstance(stage.rule, CutRule) else None
        if renewal is not None:
            slots = batch * (length + room)
            # What competes, what is read and what was found, positions; with "fill" where in deep caches tokens are.
            total += slots * (3 + 4) + (slots * 3 * 4 if renewal.mode != "bank" else 0)
            total += slots * text.width * size if renewal.mode != "bank" else 0
            total += 2 * slots * 4 if renewal.mode == "fill" else 0
        if stage.weights is not None:
            total += sum(array.nbytes for array in stage.weights.arrays.values())
    return total


def ask_need(
    config: Any,
    shape: TowerShape,
    *,
    kept: int,
    text: int,
    max_new_tokens: int,
    dtype: Any,
    batch: int = 1,
    mesh: Mapping[str, int] | None = None,
    stages: Sequence[InnerStage] = (),
) -> Need:
    """What questions about one video take.

    Args:
      config: of the model.
      shape: of the video.
      kept: visual slots of a prompt, newline embeddings included.
      text: text tokens of a prompt.
      max_new_tokens: longest answer.
      dtype: of parameters and activations.
      batch: prompts read together.
      mesh: sizes of the axes of a mesh that parameters are divided over; all else counts as if one device held it.
      stages: inside the language model; what they hold is counted, what their cuts save is not.
    """
    length = bucket_length(kept + text)
    held = inside_bytes(config.text, stages, batch, length, max_new_tokens - 1, dtype)
    features = feature_bytes(config, shape, dtype)
    prompt = prefill_bytes(
        config.text,
        batch,
        length,
        max_new_tokens - 1,
        dtype,
        levels=shape.levels,
        mutual=families.get(config.family).bidirectional,
    )
    reduced = batch * kept * (1 + shape.levels) * config.text.width * jnp.dtype(dtype).itemsize
    parameters = parameter_bytes(config, dtype, mesh)
    return Need(parameters, features, encode_bytes(config, shape, dtype), prompt + reduced + held)


def device_bytes(device: Any = None) -> int:
    """What a device has: its own limit, or the memory of the host (of its control group) on CPU."""
    device = jax.local_devices()[0] if device is None else device
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [host]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def check_fits(need: Need, *, what: str, dtype: Any, available: int | None = None) -> None:
    """Refuses what cannot fit.

    Args:
      need: from `ask_need`.
      what: names the model and the video in the sentence.
      dtype: that was asked for.
      available: bytes; by default those of the default device.

    Raises:
      JvidpruneError: the peak is larger than the device's memory; the sentence says by which part and what to lower.
    """
    available = device_bytes() if available is None else available
    if need.peak <= available:
        return
    parts = {"parameters": need.parameters, "encoding": need.features + need.encode, "prompt": need.prompt}
    advice = []
    if jnp.dtype(dtype).itemsize > 2:
        advice.append("use bfloat16")
    if need.parameters < available:
        advice.append("lower the number of frames")
        advice += ["lower the ratio"] if need.prompt >= need.encode else []
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    device = jax.local_devices()[0]
    raise JvidpruneError(
        f"{what} in {jnp.dtype(dtype).name} needs about {_gib(need.peak)} GiB ({listed}), but {device.platform}:"
        f"{device.id} has {_gib(available)} GiB: {' or '.join(advice) or 'take a smaller model or a larger device'}."
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f}"


def _plain(part: Any, head_dim: int, dtype: Any) -> bool:
    """Whether attention scores are held."""
    query = jax.ShapeDtypeStruct((1, 1, 1, head_dim), dtype)
    return implementation(part.attention, query, simple=True) == "plain"
