"""What AOT passes between its stages: integers and weights in, shared work, decisions out."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.reducers import aot_intra, aot_ratio


class AOTBudget(NamedTuple):
    """Integers of one V, and every weight of the transport, so that a sweep can vary those too.

    Attributes:
      visual_tokens: V.
      local: anchors a window.
      spread: anchors of the whole frame.
      keep: (R + 1,) int32, by the number of a later frame's tokens: how many stay distinct.
      clip_start: (slots,) int32, 1 on the first frame of each clip (unused with dynamic clips).
      parts: float32 leaves of cost, marginals, solver and of their counterparts between frames; None where a part has
        none.
      scales: (3,) float32 nearest share, intra scale, inter scale.
    """

    visual_tokens: Any
    local: Any
    spread: Any
    keep: Any
    clip_start: Any
    parts: tuple
    scales: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AOTShared:
    """What all budgets of a video share; see `aot_intra.Selection`."""

    x: Float[Array, "T N D"]
    selection: aot_intra.Selection
    saliency: Float[Array, "T N"]
    frame_mask: Bool[Array, "T"]
    starts: Bool[Array, "T"] | None
    likeness: Float[Array, "T T"] | None
    newline: Float[Array, "D"] | None
    geometry: aot_ratio.Geometry = dataclasses.field(metadata={"static": True})
    limit: aot_ratio.Limits = dataclasses.field(metadata={"static": True})


class AOTPlan(NamedTuple):
    """A `Plan` whose tokens are mixtures: frames are pooled under `pooled`, clips mixed under `mix`.

    The first seven fields are those of `Plan`; `row` and `weight` (1, T * P) name the row that took the
    largest share of a token. n slots a frame, N tokens before and P after pooling.

    Attributes:
      source: (K,) int32 flat index into (T, 2, n): frame, whether it is a merged anchor, slot.
      pooled: (T, n, N) float32.
      newline: (T, n) bool.
      mix: (T, n, n) float32, see `aot_inter.Inter`.
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
