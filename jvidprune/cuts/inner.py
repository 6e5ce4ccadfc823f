"""All stages inside the language model for one batch of prompts.

A reducer carries `InnerStage`s; `Inner.create` turns them, on the host, into integers and static lengths for one
batch of prompts; `models.prefill.read_prompt` runs the layers between the cuts as scans. Every stretch of layers has a
KV cache of its own length. Any number of cuts may stand in one model, and routed layers beside them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jvidprune.cuts.cut import Cut
from jvidprune.cuts.decoding import DecodePolicy
from jvidprune.cuts.protocol import AHEAD, CutRule, DecodeRule, TokenState
from jvidprune.cuts.reselection import Reselection
from jvidprune.cuts.routing import Route, RouteRule, check_route
from jvidprune.errors import JvidpruneError
from jvidprune.ops.compact import compact as pack
from jvidprune.tokens import InnerStage

_STATIC: dict[str, Any] = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inner:
    """All stages inside the language model for one batch of prompts, ready to be passed to `prefill`.

    Attributes:
      cuts: in the order of their layers.
      visual: (B, S) prompt slots that compete.
      text_queries: (B, S) text slots whose attention ranks visual tokens.
      block: (B, S) int32 group of each visual slot, or its place in its frame.
      policy: decoding stage, or None.
      query_rows: most text queries of a prompt; static.
      routes: routed layers, in their order.
      layers: of the decoder; static.
    """

    cuts: tuple[Cut, ...]
    visual: Bool[Array | np.ndarray, "B S"]
    text_queries: Bool[Array | np.ndarray, "B S"]
    block: Int[Array | np.ndarray, "B S"]
    policy: DecodePolicy | Reselection | None = None
    query_rows: int = dataclasses.field(default=0, metadata=_STATIC)
    routes: tuple[Route, ...] = ()
    layers: int = dataclasses.field(default=0, metadata=_STATIC)

    @classmethod
    def create(
        cls,
        stages: Sequence[InnerStage],
        visual: Bool[np.ndarray, "B S"],
        valid: Bool[np.ndarray, "B S"],
        *,
        layers: int,
        compact: bool = True,
        text_queries: Bool[np.ndarray, "B S"] | None = None,
        block: Int[np.ndarray, "B S"] | None = None,
        bucket: Callable[[int], int] | None = None,
    ) -> "Inner":
        """Counts and static lengths of the stages a reducer carries, on the host.

        Args:
          stages: in any order; those at or behind `layers` do nothing, as in the references.
          visual: (B, S) prompt slots that compete.
          valid: (B, S) prompt slots in use.
          layers: decoder layers.
          compact: gather the kept tokens at every cut and routed layer; False only masks the others, to the same
            numbers.
          text_queries: (B, S) text that ranks, by default all text behind the last visual slot.
          block: (B, S) group of each visual slot in 0..S-1, for rules that count in blocks; its frame or its place in
            it, for rules that go by these.
          bucket: rounds lengths up, so that prompts of different lengths share a compilation.

        Raises:
          JvidpruneError: a rule that neither cuts, routes nor decodes, two cuts at one layer, or stages that cannot
            stand together.
        """
        visual, valid = np.asarray(visual, bool), np.asarray(valid, bool)
        visual, slots = visual & valid, visual.shape[1]
        last = np.where(visual, np.arange(slots), -1).max(axis=1, keepdims=True)
        behind = valid & ~visual & (np.arange(slots) > last)
        text_queries = behind if text_queries is None else np.asarray(text_queries, bool) & valid
        block = np.zeros(visual.shape, np.int32) if block is None else np.asarray(block, np.int32)
        acting = sorted(
            (stage for stage in stages if stage.boundary < layers),
            key=lambda stage: (stage.boundary, isinstance(stage.rule, RouteRule)),
        )
        _check(acting)
        count, length = visual.sum(axis=1), valid.sum(axis=1)
        cuts: list[Cut] = []
        routes: list[Route] = []
        policy: DecodePolicy | Reselection | None = None
        prompt, width = count, slots
        aside: tuple[Any, Any, int] | None = None
        for stage in acting:
            rule = stage.rule
            if isinstance(rule, DecodeRule):
                policy = rule.policy(stage, visual)
                continue
            if isinstance(rule, CutRule) and rule.brings_back and aside is not None:
                (count, length, width), aside = aside, None
            if isinstance(rule, CutRule) and rule.keeps_roles and aside is None:
                aside = count, length, width
            table = stage.kept.table(slots)
            if stage.kept.of == "prompt":
                table = np.stack([stage.kept.table(slots, int(n)) for n in prompt])
            # floor is superadditive: whatever the blocks, they keep no more than one block of all tokens would.
            sizes = zip(count.tolist(), prompt.tolist(), text_queries.sum(axis=1).tolist(), strict=True)
            left = np.asarray([stage.kept.left(*size) for size in sizes])
            seed = np.asarray(stage.seed, np.int32)
            weights = {} if stage.weights is None else dict(stage.weights.arrays)
            if isinstance(rule, RouteRule):
                if rule.by_frame:
                    # Where a cut stands before, frames have no more than these.
                    left = np.minimum(count, _in_frames(table, block, visual))
                most = int((length - count + left).max())
                slots_there = min(width, most if bucket is None else bucket(most))
                capacity = slots_there if compact and stage.kept.bounded else None
                routes.append(Route(table, seed, weights, stage.layer, rule, capacity, stage.positions))
                continue
            assert isinstance(rule, CutRule)
            length, count = length - count + left, left
            if compact:
                most = int(length.max())
                width = min(width, most if bucket is None else bucket(most))
            if rule.renewal is not None:
                policy = Reselection(visual, count, layer=stage.layer, renewal=rule.renewal)
            # Where dropped tokens are hidden and not gone, nothing moves.
            gathers = rule.renewal is None or rule.renewal.mode == "fill"
            capacity = width if compact and gathers and stage.kept.bounded else None
            cuts.append(Cut(table, seed, stage.layer, rule, capacity, stage.positions, stage.where, weights))
        most_rows = int(text_queries.sum(axis=1).max())
        most_rows = most_rows if bucket is None else bucket(most_rows)
        return cls(tuple(cuts), visual, text_queries, block, policy, most_rows, tuple(routes), layers)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Layers at which a new segment of the cache starts."""
        found = {cut.boundary for cut in self.cuts}
        found |= {edge for route in self.routes for edge in (route.layer, route.layer + 1)}
        return tuple(sorted(found - {0, self.layers}))

    def capacities(self, length: int, room: int) -> tuple[int, ...]:
        """Slots of each cache segment for prompts of `length` slots and `room` decoding steps."""
        cuts, sizes, whole = {cut.boundary: cut for cut in self.cuts}, list[int](), length
        routed = {route.layer: route.capacity for route in self.routes}
        for start in (0, *self.boundaries):
            if (cut := cuts.get(start)) is not None:
                there = whole if cut.rule.brings_back else length
                length = there if cut.capacity is None else cut.capacity
                if cut.rule.trims:
                    sizes = [length] * len(sizes)
            inside = routed.get(start)
            sizes.append(length if inside is None else inside)
        return tuple(size + room for size in sizes)

    def start(self, hidden: Array, positions: Array, valid: Array) -> TokenState:
        """The state of a prompt before its first layer."""
        if hidden.shape[:2] != self.visual.shape:
            raise JvidpruneError(
                f"stages inside the language model were made for prompts {self.visual.shape}, got {hidden.shape[:2]}."
            )
        source = jnp.broadcast_to(jnp.arange(hidden.shape[1], dtype=jnp.int32), hidden.shape[:2])
        roles = (jnp.asarray(self.visual), source, jnp.asarray(self.text_queries), jnp.asarray(self.block))
        return TokenState(hidden, positions, valid, *roles)

    def rows(self, cut: Cut, state: TokenState) -> Int[Array, "B R"] | None:
        """Slots whose attention a cut reads: the last valid ones, the text queries (the last repeated), or None."""
        if cut.rule.probe in ("last", "ahead"):
            last = last_valid(state.valid)[:, None]
            if cut.rule.last_rows == 1:
                return last
            found = lax.top_k(jnp.where(state.valid, jnp.arange(state.valid.shape[1]), -1), cut.rule.last_rows)[0]
            return jnp.where(found < 0, last, found)
        if cut.rule.probe not in ("text", "ahead_text"):
            return None
        most = max(self.query_rows, 1)
        index, there, _ = jax.vmap(lambda mask: pack(mask, most))(state.text_queries & state.valid)
        return jnp.where(there, index, last_valid(state.valid)[:, None])


def _in_frames(table: Int[np.ndarray, "... Q"], block: Int[np.ndarray, "B S"], visual: Bool[np.ndarray, "B S"]) -> Any:
    """(B,) sum over the frames of each prompt of how many of their tokens a table keeps."""
    sizes = [np.bincount(block[row][visual[row]]) for row in range(len(visual))]
    return np.asarray([int(table[frames].sum()) for frames in sizes])


def last_valid(valid: Bool[Array, "B S"]) -> Int[Array, "B"]:
    """The last valid slot of each row."""
    return jnp.where(valid, jnp.arange(valid.shape[1]), 0).max(axis=1)


def _cuts_of(stages: Sequence[InnerStage]) -> list[tuple[InnerStage, CutRule]]:
    return [(stage, stage.rule) for stage in stages if isinstance(stage.rule, CutRule)]


def _check(stages: Sequence[InnerStage]) -> None:
    cuts = _cuts_of(stages)
    for stage in stages:
        rule, name = stage.rule, type(stage.rule).__name__
        if isinstance(rule, RouteRule):
            check_route(stage)
            continue
        if not isinstance(rule, CutRule | DecodeRule):
            raise JvidpruneError(
                f"{name} is neither a cuts.protocol.CutRule, a DecodeRule nor a cuts.routing.RouteRule."
            )
        ahead = isinstance(rule, CutRule) and rule.probe in ("none", *AHEAD)
        if isinstance(rule, CutRule) and rule.probe in AHEAD and stage.where == "middle":
            raise JvidpruneError(f"{name} reads the layer behind its cut, so the cut cannot stand inside a layer.")
        if stage.boundary == 0 and not ahead:
            raise JvidpruneError(f"{name} reads the layer before it, so its layer is at least 1, not 0.")
        if rule.in_blocks and stage.kept.of == "prompt":
            raise JvidpruneError(f"{name} keeps a share of every block, which cannot be counted from the whole prompt.")
    kinds = ("in_blocks", "by_place", "by_frame")
    if sum(any(getattr(stage.rule, kind) for stage in stages) for kind in kinds) > 1:
        raise JvidpruneError(
            "rules that count in blocks, rules that go by places in a frame and rules that count in frames cannot "
            "stand together."
        )
    places = [stage.boundary for stage, _ in cuts]
    if len(set(places)) < len(places):
        raise JvidpruneError(f"two cuts stand before one layer: {places}.")
    _check_routes(stages)
    decoding = [stage for stage in stages if isinstance(stage.rule, DecodeRule)]
    if decoding and len(stages) > 1:
        raise JvidpruneError("a decoding stage stands alone: its slots are those of an uncut prompt.")
    for stage, rule in cuts:
        if rule.renewal is None:
            continue
        if len(cuts) > 1 or not rule.renewable:
            raise JvidpruneError(
                "a cut that is renewed while decoding stands alone and goes by the last query's attention."
            )
        if stage.where == "middle":
            raise JvidpruneError("a cut that is renewed while decoding stands before a layer, not inside one.")
        if stage.positions != "keep":
            raise JvidpruneError("a cut that is renewed while decoding keeps positions: its tokens come and go.")
    _check_returns(cuts)
    if any(rule.trims for _, rule in cuts[1:]):
        raise JvidpruneError("only the first cut can also cut the caches of the layers before it.")


def _check_returns(cuts: Sequence[tuple[InnerStage, CutRule]]) -> None:
    """Cuts between one that puts tokens aside and the last one that brings some back."""
    back = [number for number, (_, rule) in enumerate(cuts) if rule.brings_back]
    aside = [number for number, (_, rule) in enumerate(cuts) if rule.keeps_roles]
    for number, (stage, rule) in enumerate(cuts):
        name = type(rule).__name__
        if rule.brings_back and rule.probe not in ("none", *AHEAD):
            raise JvidpruneError(
                f"{name} brings tokens back that the layer before it has not seen, so it cannot read that layer."
            )
        if not back or not aside or not aside[0] <= number < back[-1]:
            continue
        if stage.positions != "keep":
            raise JvidpruneError(f"{name} stands before a cut that brings tokens back, so all of them keep positions.")
        if not (rule.keeps_roles or rule.brings_back):
            raise JvidpruneError(
                f"{name} stands between cuts that put tokens aside and bring them back, so it has to keep their roles."
            )


def _check_routes(stages: Sequence[InnerStage]) -> None:
    """Refuses routed layers that the stages beside them do not allow."""
    routed = [stage.layer for stage in stages if isinstance(stage.rule, RouteRule)]
    if len(set(routed)) < len(routed):
        raise JvidpruneError(f"a layer is routed by one stage, but layers {routed} are named.")
    if not routed:
        return
    for stage, rule in _cuts_of(stages):
        name = type(rule).__name__
        if rule.trims or rule.renewal is not None:
            raise JvidpruneError(f"{name} needs caches of equal slots in all layers, which routed layers do not have.")
        read = stage.layer if stage.where == "middle" else stage.layer - 1
        inside = stage.where == "middle" and read in routed
        if inside or (read in routed and rule.probe not in ("none", *AHEAD)):
            raise JvidpruneError(f"{name} stands at or reads layer {read}, which is routed: not all tokens are in it.")
