"""What AOT passes between its stages: integers and weights in, shared work, decisions out."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.reducers.aot.anchors import Selection
from jvidprune.reducers.aot.sizes import Geometry, Limits


class AOTBudget(NamedTuple):
    """Integers of one V, and every weight of the transport, so that a sweep can vary those too.

    Attributes:
      visual_tokens: V.
      local: anchors a window.
      global_anchors: anchors of the whole frame.
      keep: (R + 1,) int32, by the number of a later frame's tokens: how many stay distinct.
      clip_start: (slots,) int32, 1 on the first frame of each clip (unused with dynamic clips).
      intra, inter: float32 numbers of both transports, see `Transport.numbers`.
      scales: (3,) float32 nearest share, intra scale, inter scale.
    """

    visual_tokens: Any
    local: Any
    global_anchors: Any
    keep: Any
    clip_start: Any
    intra: tuple
    inter: tuple
    scales: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AOTShared:
    """What all budgets of a video share; see `Selection`."""

    x: Float[Array, "T N D"]
    selection: Selection
    saliency: Float[Array, "T N"]
    frame_mask: Bool[Array, "T"]
    starts: Bool[Array, "T"] | None
    similarity: Float[Array, "T T"] | None
    newline: Float[Array, "D"] | None
    geometry: Geometry = dataclasses.field(metadata={"static": True})
    limit: Limits = dataclasses.field(metadata={"static": True})


class AOTPlan(NamedTuple):
    """A `Plan` whose tokens are mixtures: frames are pooled under `pooled`, clips mixed under `mix`.

    The first seven fields are those of `Plan`; `row` and `weight` (1, T * P) name the row that took the
    largest share of a token. n slots a frame, N tokens before and P after pooling.

    Attributes:
      source: (K,) int32 flat index into (T, 2, n): frame, whether it is a merged anchor, slot.
      pooled: (T, n, N) float32.
      newline: (T, n) bool.
      mix: (T, n, n) float32, see `inter.Inter`.
      key: (T,) bool.
      start: (T,) bool, first frames of the clips.
      slots: () int32, slots of a frame in use, the most of all frames.
    """

    ids: Int[Array, "K"]
    valid: Bool[Array, "K"]
    count: Int[Array, ""]
    is_pick: Bool[Array, "K"]
    row: Int[Array, "1 M"]
    weight: Float[Array, "1 M"]
    diagnostics: dict[str, Array]
    source: Int[Array, "K"]
    pooled: Float[Array, "T n N"]
    newline: Bool[Array, "T n"]
    mix: Float[Array, "T n n"]
    key: Bool[Array, "T"]
    start: Bool[Array, "T"]
    slots: Int[Array, ""]
