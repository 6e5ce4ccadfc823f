"""A cut whose choice is renewed while decoding: when it is, and how tokens that come back get keys in deep layers."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import CacheSegment
from jvidprune.cuts.cut import CutRecord, Moved
from jvidprune.cuts.decoding import CHUNK, Renewal, RenewalMode
from jvidprune.cuts.protocol import TokenState
from jvidprune.ops.compact import compact as pack
from jvidprune.ops.select import keep_top, rank_descending

_STATIC: dict[str, Any] = {"static": True}
_LATER = np.iinfo(np.int32).max
"""Stands for the slot of what comes behind the prompt."""


class Swap(NamedTuple):
    """What a step changes in deep caches that hold the chosen tokens alone.

    Attributes:
      coming: (B, s) int32 prompt slots of the tokens that come in, ascending.
      there: (B, s) bool how many of them do.
      at: (B, s) int32 the cache slot that each takes over.
    """

    coming: Int[Array, "B s"]
    there: Bool[Array, "B s"]
    at: Int[Array, "B s"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reselection:
    """A cut whose choice is renewed at decoding steps; as many tokens as the prompt chose are read at each of them.

    The new token's attention in layer `layer` - 1, mean over heads, ranks the visual tokens; `Renewal` says when. Three
    ways to serve tokens that come back:

    * "recompute": the layers from `layer` on run anew over all tokens, from a bank of the hidden states that enter
      them, with the new choice hidden from every row. These are the numbers of FastV's original mask (arXiv
      2403.06764), which has no cache and chooses at every step; a step costs the deep layers of a prefill.
    * "bank": deep keys and values of all tokens are cached in the prefill, dropped ones as the prompt's choice made
      them; a step reads those of the tokens now chosen, the cost of a masked cache.
    * "fill": deep layers cache the chosen tokens alone. Those that come in are run through these layers as a chunk,
      from the same bank, each seeing the text and the chosen tokens before it, and take over the slots of those that
      go. What was generated before keeps what it computed.

    Attributes:
      visual: (B, M) slots that compete.
      keep: (B,) int32 how many of them deep layers read: as many as the prompt chose.
      active: (B, M) slots not hidden from deep layers, those not written yet included.
      relevance: (B, M) float32 attention at the last choice, 0 on other slots.
      read: (B, M) written and active slots, for the layers of this step.
      pending: (B,) rows with tokens that are still to change places.
      steps: () int32 steps so far.
      hidden: (B, M, D) hidden states entering `layer`, or None with "bank".
      positions: (B, M) or (3, B, M) rotary positions of the slots, or None with "bank".
      bidirectional: (B, M) slots that see each other in either direction, or None.
      slot: (B, M) int32 with "fill", where in deep caches an active token is.
      source: (B, C) int32 with "fill", the prompt slot of each slot of deep caches.
      swap: of this step, with "fill".
      layer: first layer after the cut; static.
      renewal: when and how; static.
    """

    visual: Bool[Array | np.ndarray, "B M"]
    keep: Int[Array | np.ndarray, "B"]
    active: Any = None
    relevance: Any = None
    read: Any = None
    pending: Any = None
    steps: Any = None
    hidden: Any = None
    positions: Any = None
    bidirectional: Any = None
    slot: Any = None
    source: Any = None
    swap: Any = None
    layer: int = dataclasses.field(default=1, metadata=_STATIC)
    renewal: Renewal = dataclasses.field(default=Renewal("recompute"), metadata=_STATIC)

    @property
    def mode(self) -> RenewalMode:
        """How tokens that come back are served."""
        return self.renewal.mode

    @property
    def swaps(self) -> int | None:
        """Most tokens that change places in a step."""
        most = self.renewal.swaps
        return CHUNK if most is None and self.mode == "fill" else most

    def begin(
        self, record: CutRecord, entering: TokenState, moved: Moved | None, segments: tuple[CacheSegment, ...]
    ) -> "Reselection":
        """The state behind the cut of a prompt.

        Args:
          record: of the cut.
          entering: the tokens in front of it.
          moved: where it moved them.
          segments: of the cache, in front of the cut and behind it.
        """
        survivors, positions, batch = record.survivors, entering.positions, len(record.survivors)
        pad = ((0, 0), (0, segments[0].capacity - survivors.shape[1]))
        competing = jnp.asarray(self.visual)
        visual = jnp.pad(competing, pad)
        active = jnp.pad(survivors | ~competing, pad, constant_values=True)
        relevance = jnp.where(visual, jnp.pad(record.score.astype(jnp.float32), pad), 0.0)
        found: dict[str, Any] = {"visual": visual, "active": active, "relevance": relevance, "read": active}
        found["keep"] = jnp.sum(survivors & competing, axis=1, dtype=jnp.int32)
        found["pending"], found["steps"] = jnp.zeros(batch, bool), jnp.int32(0)
        if self.mode in ("recompute", "fill"):
            mutual = entering.bidirectional
            found["hidden"] = jnp.pad(entering.hidden, (*pad, (0, 0)))
            found["positions"] = jnp.pad(positions, ((0, 0),) * (positions.ndim - 1) + pad[1:])
            found["bidirectional"] = None if mutual is None else jnp.pad(mutual, pad)
        if self.mode == "fill":
            size = survivors.shape[1]
            index = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), survivors.shape)
            index, there = (index, survivors) if moved is None else moved
            now = jnp.broadcast_to(jnp.arange(index.shape[1], dtype=jnp.int32), index.shape)
            at = jnp.where(there, index, size)
            slot = jnp.zeros(survivors.shape, jnp.int32).at[jnp.arange(batch)[:, None], at].set(now, mode="drop")
            behind = ((0, 0), (0, segments[1].capacity - index.shape[1]))
            found["slot"] = jnp.pad(slot, pad)
            found["source"] = jnp.pad(jnp.where(there, index, _LATER), behind, constant_values=_LATER)
            nothing = jnp.zeros((batch, self.swaps or 1), jnp.int32)
            found["swap"] = Swap(nothing, nothing > 0, nothing)
        return dataclasses.replace(self, **found)

    def step(self, attention: Float[Array, "B H M"], written: Bool[Array, "B M"]) -> "Reselection":
        """The choice of this step.

        Args:
          attention: of the new token in layer `layer` - 1 over the cached slots.
          written: slots in use in the layers before `layer`.
        """
        renewal, most = self.renewal, self.swaps
        now = jnp.where(self.visual, attention.astype(jnp.float32).mean(axis=1), 0.0)
        wanted = jax.vmap(keep_top)(now, jnp.asarray(self.visual), jnp.asarray(self.keep))
        due = jnp.broadcast_to(self.steps % renewal.every == 0, self.pending.shape)
        if renewal.shift is not None:
            norms = jnp.linalg.norm(now, axis=1) * jnp.linalg.norm(self.relevance, axis=1)
            due &= 1 - jnp.sum(now * self.relevance, axis=1) / jnp.maximum(norms, 1e-16) > renewal.shift
        due, chosen, pending = due | self.pending, wanted, self.pending
        if most is not None:
            come = _best(now, wanted & ~self.active, most)
            chosen = self.active & ~_best(-now, self.active & ~wanted, most) | come
            pending = due & (chosen != wanted).any(axis=1)
        active = jnp.where(due[:, None], chosen, self.active)
        found: dict[str, Any] = {"active": active, "read": written & active, "pending": pending}
        found["relevance"] = jnp.where(due[:, None], now, self.relevance)
        if self.mode == "fill":
            found |= self._swapped(active)
        return dataclasses.replace(self, **found, steps=self.steps + 1)

    def _swapped(self, active: Bool[Array, "B M"]) -> dict[str, Any]:
        """Which tokens take over which slots of the deep caches."""
        most, size, rows = self.swap.there.shape[1], active.shape[1], jnp.arange(active.shape[0])[:, None]
        coming, there, _ = jax.vmap(lambda mask: pack(mask, most))(active & ~self.active)
        going, _, _ = jax.vmap(lambda mask: pack(mask, most))(self.active & ~active)
        at = jnp.take_along_axis(self.slot, jnp.minimum(going, size - 1), axis=1)
        slot = self.slot.at[rows, jnp.where(there, coming, size)].set(at, mode="drop")
        source = self.source.at[rows, jnp.where(there, at, self.source.shape[1])].set(coming, mode="drop")
        return {"slot": slot, "source": source, "swap": Swap(jnp.minimum(coming, size - 1), there, at)}

    def run_deep(
        self, decoder: Any, x: Float[Array, "B 1 D"], step: Any, position: Int[Array, "B"], segment: CacheSegment
    ) -> tuple[Array, Array, Array, "Reselection", CacheSegment]:
        """The layers of `segment`, which begins at `layer`.

        Returns:
          Output, keys and values of the new token, the next state, and the segment without the new token.
        """
        start, stop, at = segment.start, segment.stop, segment.length
        if self.mode != "recompute":
            read = self.read if self.mode == "bank" else segment.valid
            segment = segment if self.mode == "bank" else self._filled(decoder, segment)
            x, outputs = decoder.run(x, step, start, stop, past=segment, past_valid=read)
            return x, outputs.k, outputs.v, self, segment
        hidden = lax.dynamic_update_slice(self.hidden, x.astype(self.hidden.dtype), (0, at, 0))
        fresh = jnp.broadcast_to(position[:, None], (*self.positions.shape[:-1], 1))
        where = (0,) * (self.positions.ndim - 1)
        positions = lax.dynamic_update_slice(self.positions, fresh.astype(self.positions.dtype), (*where, at))
        valid = lax.dynamic_update_slice(self.read, jnp.ones((x.shape[0], 1), bool), (0, at))
        whole = decoder.step(positions, valid, bidirectional=self.bidirectional)
        out, outputs = decoder.run(hidden, whole, start, stop)
        k, v = (lax.dynamic_slice_in_dim(part, at, 1, axis=2) for part in (outputs.k, outputs.v))
        state = dataclasses.replace(self, hidden=hidden, positions=positions)
        return lax.dynamic_slice_in_dim(out, at, 1, axis=1), k, v, state, segment

    def _filled(self, decoder: Any, segment: CacheSegment) -> CacheSegment:
        """Deep caches with the keys and values of the tokens that come in; a step without any costs nothing."""
        coming, there, at = self.swap
        rows, size = jnp.arange(len(at))[:, None], segment.capacity
        at = jnp.where(there, at, size)

        def take(part: Array) -> Array:
            return jnp.take_along_axis(part, coming, axis=1)

        def fill(k: Array, v: Array) -> tuple[Array, Array]:
            hidden = jnp.take_along_axis(self.hidden, coming[..., None], axis=1)
            positions = jax.vmap(take)(self.positions) if self.positions.ndim == 3 else take(self.positions)
            seen = self.source[:, None, :] < coming[:, :, None]
            mutual = None
            if self.bidirectional is not None:
                mutual = take(self.bidirectional)
                last = self.bidirectional.shape[1] - 1
                others = jnp.take_along_axis(self.bidirectional, jnp.minimum(self.source, last), axis=1)
                seen |= mutual[:, :, None] & (others & (self.source <= last))[:, None, :]
            # The slots that are taken over still hold what goes.
            stale = jnp.zeros(segment.valid.shape, bool).at[rows, at].set(True, mode="drop")
            seen &= (segment.valid & ~stale)[:, None, :]
            step = decoder.step(positions, there, bidirectional=mutual)
            _, fresh = decoder.run(hidden, step, segment.start, segment.stop, past=segment, past_valid=seen)

            def put(old: Array, new: Array) -> Array:
                return old.at[:, rows, at].set(new.astype(old.dtype), mode="drop")

            return put(k, fresh.k), put(v, fresh.v)

        k, v = lax.cond(there.any(), fill, lambda k, v: (k, v), segment.k, segment.v)
        return dataclasses.replace(segment, k=k, v=v)


def _best(score: Float[Array, "B M"], of: Bool[Array, "B M"], most: int) -> Bool[Array, "B M"]:
    """At most so many of some slots of each row, those of the largest score."""
    return of & (rank_descending(jnp.where(of, score, -jnp.inf)) < most)
