"""What a decoding step lets the deep layers read: a changing part of the video (DyCoke), or a cut that is renewed."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import CacheSegment
from jvidprune.errors import JvidpruneError
from jvidprune.fields import checked
from jvidprune.ops.select import keep_top, rank_ascending
from jvidprune.tokens import Kept

DecodeMode = Literal["official", "paper"]
"""What DyCoke reads while attention does not move: everything, or the last set."""

RenewalMode = Literal["recompute", "bank"]
"""How tokens that come back are served, see `Reselection`."""

_STATIC: dict[str, Any] = {"static": True}


@dataclasses.dataclass(frozen=True)
class Renewal:
    """When a cut's choice is renewed at decoding steps, and how: see `Reselection`.

    Attributes:
      mode: "recompute" or "bank".
      shift: with "bank", renew above this value of 1 - cosine of the attention to that of the last choice.

    Raises:
      JvidpruneError: an unknown mode, or a shift that is no number.
    """

    mode: RenewalMode
    shift: float = 0.0

    def __post_init__(self) -> None:
        checked(self.mode, RenewalMode, "mode", "Renewal")
        if not isinstance(self.shift, int | float) or math.isnan(self.shift):
            raise JvidpruneError(f"Renewal's shift must be a number, got {self.shift!r}.")


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reselection:
    """A cut whose choice is renewed at decoding steps; dropped tokens stay in the cache and are hidden from attention.

    The new token's attention in layer `layer` - 1, mean over heads, ranks the visual tokens as the last prompt
    position did. Two ways to serve tokens that come back:

    * "recompute": the layers from `layer` on run anew over all tokens, from a bank of the hidden states that enter
      them, with the new choice hidden from every row. These are the numbers of FastV's original mask (arXiv
      2403.06764), which has no cache and chooses at every step; a step costs the deep layers of a prefill.
    * "bank": deep keys and values of all tokens are cached in the prefill, dropped ones as the prompt's choice made
      them; a step reads those of the tokens now chosen, the cost of a masked cache. The choice is renewed where 1 -
      cosine of the attention to that of the last choice exceeds `shift`; infinity keeps the prompt's choice.

    Attributes:
      visual: (B, M) slots that compete.
      keep: (B,) int32 how many of them deep layers read.
      active: (B, M) slots not hidden from deep layers, those not written yet included.
      relevance: (B, M) float32 attention at the last choice, 0 on other slots.
      read: (B, M) written and active slots, for the layers of this step.
      hidden: (B, M, D) hidden states entering `layer`, or None with "bank".
      positions: (B, M) or (3, B, M) rotary positions of the slots, or None with "bank".
      bidirectional: (B, M) slots that see each other in either direction, or None.
      layer: first layer after the cut; static.
      mode: as above; static.
      shift: as above; static.
    """

    visual: Bool[Array | np.ndarray, "B M"]
    keep: Int[Array | np.ndarray, "B"]
    active: Any = None
    relevance: Any = None
    read: Any = None
    hidden: Any = None
    positions: Any = None
    bidirectional: Any = None
    layer: int = dataclasses.field(default=1, metadata=_STATIC)
    mode: RenewalMode = dataclasses.field(default="recompute", metadata=_STATIC)
    shift: float = dataclasses.field(default=0.0, metadata=_STATIC)

    def begin(
        self,
        survivors: Bool[Array, "B S"],
        score: Float[Array, "B S"],
        hidden: Float[Array, "B S D"],
        positions: Int[Array, "... B S"],
        bidirectional: Bool[Array, "B S"] | None,
        slots: int,
    ) -> "Reselection":
        """The state behind a prefill that chose `survivors` by `score`, for a cache with this many slots a row."""
        room = slots - survivors.shape[1]
        pad = ((0, 0), (0, room))
        visual = jnp.pad(jnp.asarray(self.visual), pad)
        active = jnp.pad(survivors | ~jnp.asarray(self.visual), pad, constant_values=True)
        relevance = jnp.where(visual, jnp.pad(score.astype(jnp.float32), pad), 0.0)
        found: dict[str, Any] = {"visual": visual, "active": active, "relevance": relevance}
        if self.mode == "recompute":
            found["hidden"] = jnp.pad(hidden, (*pad, (0, 0)))
            found["positions"] = jnp.pad(positions, ((0, 0),) * (positions.ndim - 1) + pad[1:])
            found["bidirectional"] = None if bidirectional is None else jnp.pad(bidirectional, pad)
        return dataclasses.replace(self, **found, keep=jnp.asarray(self.keep), read=active)

    def step(self, attention: Float[Array, "B H M"], written: Bool[Array, "B M"]) -> "Reselection":
        """The choice of this step.

        Args:
          attention: of the new token in layer `layer` - 1 over the cached slots.
          written: slots in use in the layers before `layer`.
        """
        now = jnp.where(self.visual, attention.astype(jnp.float32).mean(axis=1), 0.0)
        chosen = jax.vmap(keep_top)(now, jnp.asarray(self.visual), jnp.asarray(self.keep))
        renew = jnp.ones(now.shape[0], bool)
        if self.mode == "bank":
            norms = jnp.linalg.norm(now, axis=1) * jnp.linalg.norm(self.relevance, axis=1)
            renew = 1 - jnp.sum(now * self.relevance, axis=1) / jnp.maximum(norms, 1e-16) > self.shift
        active = jnp.where(renew[:, None], chosen, self.active)
        relevance = jnp.where(renew[:, None], now, self.relevance)
        return dataclasses.replace(self, active=active, relevance=relevance, read=written & active)

    def run_deep(
        self, decoder: Any, x: Float[Array, "B 1 D"], step: Any, position: Int[Array, "B"], segment: CacheSegment
    ) -> tuple[Array, Array, Array, "Reselection"]:
        """The layers of `segment`, which begins at `layer`: output, keys and values of the new token, next state."""
        start, stop, at = segment.start, segment.stop, segment.length
        if self.mode == "bank":
            x, outputs = decoder.run(x, step, start, stop, past=segment, past_valid=self.read)
            return x, outputs.k, outputs.v, self
        hidden = lax.dynamic_update_slice(self.hidden, x.astype(self.hidden.dtype), (0, at, 0))
        fresh = jnp.broadcast_to(position[:, None], (*self.positions.shape[:-1], 1))
        where = (0,) * (self.positions.ndim - 1)
        positions = lax.dynamic_update_slice(self.positions, fresh.astype(self.positions.dtype), (*where, at))
        valid = lax.dynamic_update_slice(self.read, jnp.ones((x.shape[0], 1), bool), (0, at))
        whole = decoder.step(positions, valid, bidirectional=self.bidirectional)
        out, outputs = decoder.run(hidden, whole, start, stop)
        k, v = (lax.dynamic_slice_in_dim(part, at, 1, axis=2) for part in (outputs.k, outputs.v))
        state = dataclasses.replace(self, hidden=hidden, positions=positions)
        return lax.dynamic_slice_in_dim(out, at, 1, axis=1), k, v, state
