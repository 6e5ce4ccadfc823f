"""How long the stages of an answer take on a named chip: FLOPs, bytes and what goes over links, whichever is slowest.

A stage takes the longer of its arithmetic and its traffic with HBM, and what devices tell each other on top. Peak
numbers are lowered by what good programs reach. Decoding a file, preprocessing and compilation are left out, and the
many small steps of a reducer take longer than their arithmetic.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jvidprune.costs.chips import Chip
from jvidprune.costs.flops import FlopReport
from jvidprune.costs.flops_model import Segment, recurrence
from jvidprune.costs.footprint import Sizes, divided, mutual, on_chip, pieces, weights
from jvidprune.costs.memory import TowerShape
from jvidprune.errors import JvidpruneError

REACHED_FLOPS = 0.5
"""Share of peak FLOP/s that large matrix products of a model reach."""

REACHED_BANDWIDTH = 0.75
"""Share of the published bandwidth, of HBM and of links."""

_SCORE_PASSES = 3
"""Times that plain attention moves a float32 score: written, read by the softmax, read as a weight."""

_FEATURE_PASSES = 4
"""Times that a reducer reads the float32 features of a video."""


@dataclasses.dataclass(frozen=True)
class StageTime:
    """One stage on one device.

    Attributes:
      name: encode, reduce, prefill, or token (one decoding step).
      flops: of this device.
      bytes: that it moves from and to HBM.
      sent: bytes that it sends to other devices.
      compute, memory, link: seconds of each alone.
    """

    name: str
    flops: float
    bytes: float
    sent: float
    compute: float
    memory: float
    link: float

    @property
    def seconds(self) -> float:
        """Expected: arithmetic and traffic overlap, messages do not."""
        return max(self.compute, self.memory) + self.link

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {"FLOPs": self.compute, "HBM": self.memory, "links": self.link}
        return max(parts, key=lambda name: parts[name])


def stage_times(
    config: Any,
    chip: Chip,
    sizes: Sizes,
    report: FlopReport,
    parts: Sequence[Segment],
    *,
    shape: TowerShape,
    batch: int = 1,
    dtype: Any = jnp.bfloat16,
) -> tuple[StageTime, ...]:
    """Encode, reduce, prefill and one decoding step of the slowest device.

    Args:
      config: of a family.
      chip: of the table.
      sizes: of the mesh.
      report: FLOPs of one answer, from `costs.flops`.
      parts: tokens between cuts inside the model, from `flops_model.segments`.
      shape: of a video in the tower.
      batch: prompts read together, each with a video of its own.
      dtype: of parameters and activations.

    Raises:
      JvidpruneError: more chips in "tensor" and "fsdp" than their links join, or a mesh that cuts heads.
    """
    tensor, fsdp = sizes.get("tensor", 1), sizes.get("fsdp", 1)
    if tensor * fsdp > chip.domain:
        raise JvidpruneError(
            f"tensor={tensor} x fsdp={fsdp} are more chips than the {chip.domain} that the links of a "
            f"{chip.name} join; copies of the model (data) may be anywhere."
        )
    work = _Work(chip, jnp.dtype(dtype).itemsize)
    whole, part = on_chip(config, chip, dtype), divided(on_chip(config, chip, dtype), sizes)
    held = weights(config, {name: size for name, size in sizes.items() if name != "fsdp"})
    rows = -(-batch // pieces(batch, sizes))
    return (
        _encode(work, whole, part, report, shape, held.tower, sizes, batch),
        _reduce(work, report, shape, config.text.width, batch),
        _prefill(work, whole, part, report, parts, held, sizes, rows),
        _token(work, whole, part, parts, held, sizes, rows),
    )


@dataclasses.dataclass(frozen=True)
class _Work:
    """A chip and the bytes of a number: turns amounts into seconds."""

    chip: Chip
    size: int

    def stage(self, name: str, flops: float, moved: float, sent: float = 0.0, *, exact: bool = False) -> StageTime:
        peak = self.chip.flops_f32 if exact or self.size > 2 else self.chip.flops
        compute = flops / (peak * REACHED_FLOPS)
        memory = moved / (self.chip.bandwidth * REACHED_BANDWIDTH)
        return StageTime(name, flops, moved, sent, compute, memory, sent / (self.chip.link * REACHED_BANDWIDTH))

    def reduced(self, numbers: float, tensor: int) -> float:
        """Bytes that a device sends when partial sums of so many numbers are added up over "tensor" in a ring."""
        return 2 * (tensor - 1) / tensor * numbers * self.size

    def gathered(self, numbers: float, fsdp: int) -> float:
        """Bytes that a device sends when weights are put together from their slices in a ring."""
        return self.sliced(numbers * self.size, fsdp)

    def sliced(self, size: float, fsdp: int) -> float:
        """The same of weights with so many bytes."""
        return (fsdp - 1) / fsdp * size


def _block(tokens: float, width: float, inner: float, mlp: float) -> float:
    """Numbers that a layer's matrices read and write: residual, queries to outputs, hidden widths."""
    return tokens * (6 * width + 4 * inner + 4 * mlp)


def _scores(part: Any, queries: float, keys: float) -> float:
    """Bytes of attention scores, where the code holds them."""
    return 4.0 * _SCORE_PASSES * part.heads * queries * keys if part.attention == "plain" else 0.0


def _encode(
    work: _Work, whole: Any, part: Any, report: FlopReport, shape: TowerShape, tower: int, sizes: Sizes, batch: int
) -> StageTime:
    vision, tensor, fsdp = part.vision, sizes.get("tensor", 1), sizes.get("fsdp", 1)
    frames = batch * -(-shape.frames // pieces(shape.frames, sizes))
    passes = math.ceil(frames / shape.chunk)
    cut = tensor if whole.vision.heads % tensor == 0 else 1
    flops = report.of("tower", "projector") * frames / shape.frames / cut
    tokens = frames * shape.patches
    if hasattr(vision, "pair"):
        # Qwen's queries, keys and values are one matrix, which every device multiplies whole (see `parallel`).
        flops += (1 - 1 / cut) * 2.0 * vision.layers * 3 * vision.width**2 * tokens
    layer = work.size * _block(tokens, vision.width, vision.width / cut, vision.mlp)
    sent = 2 * vision.layers * work.reduced(tokens * vision.width, tensor) if cut > 1 else 0.0
    sent += passes * work.gathered(tower, fsdp)
    # Every device gets the tokens of all frames.
    outputs = batch * shape.frames * shape.tokens * (1 + shape.levels) * whole.text.width
    sent += work.gathered(outputs, pieces(shape.frames, sizes))
    moved = passes * tower * work.size + vision.layers * layer
    seeing = sum(getattr(vision, "sees_frames", (True,) * vision.layers))
    moved += seeing * _scores(vision, tokens, shape.patches)
    if seeing < vision.layers:
        moved += (vision.layers - seeing) * _scores(vision, tokens, min(shape.patches, vision.window**2 * vision.unit))
    return work.stage("encode", flops, moved, sent)


def _reduce(work: _Work, report: FlopReport, shape: TowerShape, width: int, batch: int) -> StageTime:
    moved = 4.0 * _FEATURE_PASSES * batch * shape.frames * shape.tokens * width
    return work.stage("reduce", batch * report.of("reducer"), moved, exact=True)


def _prefill(
    work: _Work, whole: Any, part: Any, report: FlopReport, parts: Sequence[Segment], held: Any, sizes: Sizes, rows: int
) -> StageTime:
    text, tensor, fsdp = part.text, sizes.get("tensor", 1), sizes.get("fsdp", 1)
    shares = {
        "matrices": text.layer_weights / whole.text.layer_weights,
        "attention": text.heads / whole.text.heads,
        "head": text.vocab / whole.text.vocab,
    }
    if text.delta is not None:
        shares["recurrence"] = text.delta.value_heads / whole.text.delta.value_heads
    terms = [stage.terms for stage in report.stages if stage.name == "prefill"]
    flops = rows * sum(found.get(name, 0.0) * share for found in terms for name, share in shares.items())
    layers = held.layer_bytes(work.size)
    moved, sent = float(layers + _head(whole, held) * work.size), work.sliced(layers, fsdp)
    for stretch in parts:
        depth, tokens = stretch.stop - stretch.start, rows * stretch.tokens
        if text.attention == "plain" and not mutual(whole):
            # A mask hides the upper half; it is computed.
            attending = text.attending_in(stretch.start, stretch.stop)
            flops += attending * 2.0 * tokens * stretch.tokens * text.heads * text.head_dim
        inner = (text.heads + text.kv_heads) / 2 * text.head_dim
        moved += depth * work.size * _block(tokens, text.width, inner, text.mlp)
        moved += text.attending_in(stretch.start, stretch.stop) * _scores(text, tokens, stretch.tokens)
        sent += 2 * depth * work.reduced(tokens * text.width, tensor)
    return work.stage("prefill", flops, moved, sent)


def _token(
    work: _Work, whole: Any, part: Any, parts: Sequence[Segment], held: Any, sizes: Sizes, rows: int
) -> StageTime:
    text, tensor, fsdp = part.text, sizes.get("tensor", 1), sizes.get("fsdp", 1)
    # Of the experts a step reads those that its rows pass.
    dense = whole.text.layer_weights / whole.text.layer_size
    read = min(1.0, rows * dense) if whole.text.experts else 1.0
    numbers = held.layers * read + _head(whole, held)
    weights = held.layer_bytes(work.size) * read + _head(whole, held) * work.size
    cached = sum(text.attending_in(p.start, p.stop) * p.cached for p in parts) * rows
    flops = 2.0 * rows * numbers + 4.0 * cached * text.heads * text.head_dim
    moved = weights + work.size * 2.0 * cached * text.kv_heads * text.head_dim
    if (delta := text.delta) is not None:
        states = rows * (text.layers - len(text.attending))
        flops += states * recurrence(delta, 1, 1)
        # Read and written.
        moved += 2 * 4.0 * states * delta.state_size
    sent = 2 * text.layers * work.reduced(rows * text.width, tensor) + work.sliced(weights, fsdp)
    return work.stage("token", flops, moved, sent)


def _head(whole: Any, held: Any) -> int:
    """Numbers of the head; an embedding of its own is read by rows."""
    return held.words if whole.text.tied else held.words // 2
