"""What a decoding step lets the deep layers read: a changing part of the video (DyCoke); when a cut is renewed."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, checked
from jvidprune.ops.select import rank_ascending
from jvidprune.tokens import Kept

DecodeMode = Literal["official", "paper"]
"""What DyCoke reads while attention does not move: everything, or the last set."""

RenewalMode = Literal["recompute", "bank", "fill"]
"""How tokens that come back are served, see `reselection.Reselection`."""

CHUNK = 16
"""Tokens that "fill" can bring back in one step where nothing else is said."""

_STATIC: dict[str, Any] = {"static": True}


@dataclasses.dataclass(frozen=True)
class Renewal:
    """When a cut's choice is renewed at decoding steps, and how: see `reselection.Reselection`.

    Attributes:
      mode: "recompute", "bank" or "fill".
      shift: renew above this value of 1 - cosine of the attention to that of the last choice; None at every step.
      every: steps from one test to the next.
      swaps: most tokens that change places in a step, those of the largest gain first and the others in the next one;
        None for any number, or 16 with "fill", which runs a chunk of that length.

    Raises:
      JvidpruneError: an unknown mode, a shift that is no number, or steps or swaps below 1.
    """

    mode: RenewalMode
    shift: float | None = None
    every: int = 1
    swaps: int | None = None

    def __post_init__(self) -> None:
        checked(self.mode, RenewalMode, "mode", "Renewal")
        if self.shift is not None and (not isinstance(self.shift, int | float) or math.isnan(self.shift)):
            raise JvidpruneError(f"Renewal's shift must be a number, got {self.shift!r}.")
        checked(self.every, Count, "every", "Renewal")
        checked(self.swaps, Count | None, "swaps", "Renewal")


class Reading(NamedTuple):
    """What one decoding step decides.

    Attributes:
      attention: (S,) float32 mean attention of the new token over the video tokens, 0 elsewhere.
      kept: (S,) bool video tokens that deep layers read; False on all other places.
      read: (S,) bool all places but the video tokens that are left out; the caller masks those not written yet.
      similarity: () cosine to the previous step's attention.
    """

    attention: Float[Array, "S"]
    kept: Bool[Array, "S"]
    read: Bool[Array, "S"]
    similarity: Float[Array, ""]


def choose_reading(
    attention: Float[Array, "H S"],
    video: Bool[Array, "S"],
    previous: Float[Array, "S"],
    kept: Bool[Array, "S"],
    started: Bool[Array, ""],
    keep: int | Int[Array, ""],
    *,
    threshold: float,
    mode: DecodeMode = "official",
) -> Reading:
    """Renews the set when the attention has moved.

    Args:
      attention: (H, S) post-softmax attention of the new token in the layer before the first deep one.
      video: (S,) places that may be left out.
      previous: (S,) `attention` of the last step.
      kept: (S,) `kept` of the last step.
      started: () False in the first step, whose similarity is 0.
      keep: video tokens to read, int(V * (1 - P)) from the host; traced or not.
      threshold: cosine below which the set is renewed.
      mode: `official`: an attention that has not moved reads everything, as the released code does; `paper`: it
        keeps the set of the last step.
    """
    now = jnp.where(video, jnp.mean(attention.astype(jnp.float32), axis=0), 0.0)
    norms = jnp.maximum(jnp.linalg.norm(now), 1e-8) * jnp.maximum(jnp.linalg.norm(previous), 1e-8)
    similarity = jnp.where(started, jnp.sum(now * previous) / norms, 0.0)
    chosen = rank_ascending(jnp.where(video, -now, jnp.inf)) < keep
    kept = jnp.where(similarity < threshold, chosen, kept if mode == "paper" else video) & video
    return Reading(now, kept, ~video | kept, similarity)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodePolicy:
    """DyCoke's decoding stage with its state: layers from `layer` on read a changing part of the cached video.

    Nothing leaves the cache. State is reset for every prompt (the released code carries it to the next video).

    Attributes:
      video: (B, M) slots that may be left out: the visual tokens but the last, which counts as text.
      keep: (B,) int32 how many are read when the set is renewed.
      previous, kept: (B, M) attention and set of the last step.
      started: () False before the first step.
      layer: first layer that reads the set; static.
      threshold: cosine of successive attentions below which the set is renewed; static.
      mode: see `choose_reading`; static.
    """

    video: Bool[Array | np.ndarray, "B M"]
    keep: Int[Array | np.ndarray, "B"]
    previous: Float[Array | np.ndarray, "B M"]
    kept: Bool[Array | np.ndarray, "B M"]
    started: Bool[Array | np.ndarray, ""]
    layer: int = dataclasses.field(metadata=_STATIC)
    threshold: float = dataclasses.field(default=0.9, metadata=_STATIC)
    mode: DecodeMode = dataclasses.field(default="official", metadata=_STATIC)

    @classmethod
    def create(
        cls,
        layer: int,
        kept: Kept,
        visual: Bool[np.ndarray, "B M"],
        *,
        threshold: float = 0.9,
        mode: DecodeMode = "official",
    ) -> "DecodePolicy":
        """The state before the first decoding step.

        Args:
          layer: first layer that reads the set.
          kept: how many of the visual tokens are read when the set is renewed.
          visual: (B, M) slots with a visual token.
          threshold, mode: as above.
        """
        last = np.where(visual, np.arange(visual.shape[1]), -1).max(axis=1, keepdims=True)
        video = visual & (np.arange(visual.shape[1]) != last)
        table = kept.table(visual.shape[1])
        nothing, unstarted = np.zeros(visual.shape, np.float32), np.zeros((), bool)
        return cls(video, table[video.sum(axis=1)], nothing, video, unstarted, layer, threshold, mode)

    def sized(self, slots: int) -> "DecodePolicy":
        """The policy of a cache with this many slots a row."""
        pad = ((0, 0), (0, slots - self.video.shape[1]))
        arrays = {name: jnp.pad(jnp.asarray(getattr(self, name)), pad) for name in ("video", "previous", "kept")}
        return dataclasses.replace(self, **arrays)

    def choose(self, attention: Float[Array, "B H M"]) -> Reading:
        """What a step with this attention of the new token, in layer `layer` - 1, decides; all fields (B, ...)."""

        def one(weights: Array, video: Array, previous: Array, kept: Array, keep: Array) -> Any:
            return choose_reading(
                weights,
                video,
                previous,
                kept,
                jnp.asarray(self.started),
                keep,
                threshold=self.threshold,
                mode=self.mode,
            )

        state = (jnp.asarray(part) for part in (self.video, self.previous, self.kept, self.keep))
        return jax.vmap(one)(attention, *state)

    def step(self, attention: Float[Array, "B H M"]) -> tuple["DecodePolicy", Bool[Array, "B M"]]:
        """The next state, and the slots that the deep layers may read (those not written yet included)."""
        chosen = self.choose(attention)
        changed = {"previous": chosen.attention, "kept": chosen.kept, "started": jnp.ones((), bool)}
        return dataclasses.replace(self, **changed), chosen.read
