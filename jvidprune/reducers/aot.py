"""AOT: local and global anchors, optimal transport of pruned tokens inside frames and along clips (arXiv 2603.01400).

The reference is `llava_arch.py` of the authors' repository; `aot_intra`, `aot_inter` and `aot_ratio` hold its three
parts.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, NotNegative, Ratio, Share
from jvidprune.ops import compact
from jvidprune.ops.newline import NewlineKind
from jvidprune.ops.pool import PoolKind, find_pooling, pool_tokens, pooled_side
from jvidprune.ops.quarters import filled_quarter
from jvidprune.ops.segment import mask_cuts, smallest_cuts
from jvidprune.ops.similarity import dot_f32, normalise
from jvidprune.ops.sink import SinkRule
from jvidprune.ops.transport import (
    ClipCost,
    CostPart,
    MarginalsPart,
    Projection,
    Sinkhorn,
    SolverPart,
    TokenCost,
    Uniform,
    numeric_leaves,
    underflow_sentence,
)
from jvidprune.reducers import aot_inter, aot_intra, aot_ratio
from jvidprune.reducers.aot_order import arrange
from jvidprune.reducers.aot_types import AOTBudget, AOTPlan, AOTShared
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, Reduced, VideoTokens

_COST, _CLIP_COST, _MARGINALS, _SOLVER = TokenCost(), ClipCost(), Uniform(), Sinkhorn()


@dataclasses.dataclass(frozen=True)
class AOT(PositionedReducer):
    """Anchors before pooling, transport of the rest onto them, pooling, transport along clips.

    Defaults are the reference with its OneVision settings; what a clean variant would change is an option.

    Attributes:
      visual_tokens: V, anchors asked for in each frame before pooling; None derives it from the retention ratio.
      global_ratio: share of V taken from the deep map over the whole frame instead of window by window.
      keep_ratio: q, share of a later frame's tokens that stay distinct.
      inter: run the stage along clips.
      clips: "fixed" (T / 8 frames; the reference has only T = 32 and 64), "dyseg" (cuts at the 7 smallest similarities
        of neighbouring frames and below 0.8; needs the evidence frame_embedding), a length, or a tuple of lengths.
      key_frame: the frame whose tokens are a clip's anchors: its "first" with tokens, or its "medoid", the frame whose
        mean token is most similar (cosine) to those of the others; the others then follow in their order.
      window: side of the local windows.
      nearest: share of the nearest-anchor mean in merged anchors, the rest is transport.
      intra_scale, inter_scale: weights of the received mass. The reference overwrites the first by 1 (Q4).
      pooling: None finds it from the grids. "none" works on `features` themselves, for models without pooling.
      anchors_only: pool anchors alone; the reference dilutes them by pruned neighbours (Q9).
      drop_original: leave out the unmerged key-frame tokens, which the reference emits besides the merged ones (Q5).
      row_newlines: newline slots behind each row take part as tokens, as the reference does for LLaVA-Video when its
        clip stage is on (Q13); needs the evidence newline. False leaves newlines to the model.
      newline: layout of LLaVA's newline embeddings, None for the family's (where newlines take part as tokens, no
        others). The published test never appends the closing newline of LLaVA-OneVision: "no_token" (Q2).
      cost, marginals, solver, projection: parts of the transport inside frames, see `ops.transport`. Their float fields
        travel in the budget and can be vmapped over. The reference's solver stops all frames together (Q3;
        `stop="each"` does not) and its plan keeps mass 1/A an anchor (Q14; "row" and "column" normalise).
      inter_cost, inter_marginals, inter_solver, inter_projection: the same along clips; marginals and solver default to
        those inside frames.
      distinct: what decides which tokens stay distinct, the lowest ones: "pmax", "entropy", "cost" or "unmatched".
      published: (ratio, V) pairs of the authors' scripts, taken before the measured table on their 27x27 grid.
    """

    visual_tokens: Count | None = None
    global_ratio: Share = 0.5
    keep_ratio: Share = 0.3
    inter: bool = True
    clips: aot_ratio.Clips = "fixed"
    key_frame: Literal["first", "medoid"] = "first"
    window: Count = 9
    nearest: Share = 0.1
    intra_scale: NotNegative = 1.0
    inter_scale: NotNegative = 1.0
    pooling: PoolKind | None = None
    anchors_only: bool = False
    drop_original: bool = False
    row_newlines: bool = False
    newline: NewlineKind | None = None
    cost: CostPart = _COST
    marginals: MarginalsPart = _MARGINALS
    solver: SolverPart = _SOLVER
    projection: Projection = "mass"
    inter_cost: CostPart = _CLIP_COST
    inter_marginals: MarginalsPart | None = None
    inter_solver: SolverPart | None = None
    inter_projection: Projection = "row"
    distinct: aot_inter.Distinct = "pmax"
    published: tuple[tuple[Ratio, Count], ...] = ()

    info: ClassVar[MethodInfo] = MethodInfo(
        "aot",
        "AOT",
        "2603.01400",
        "Transports pruned tokens onto local and global anchors inside frames, then along clips.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            "key-frame tokens are output twice, unmerged and merged (drop_original=True)",
            "the Sinkhorn stop couples all frames (solver=Sinkhorn(stop='each'))",
            "pooled anchors are diluted by pruned neighbours (anchors_only=True)",
            "anchors keep weight A / (A + 1) in the transport (projection='row' or 'column')",
        ),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"keep_ratio": 0.1, "published": ((0.10, 108),)},
        "llava_video": {"keep_ratio": 0.4, "inter": False, "published": ((0.25, 180),)},
        "qwen2_5_vl": {"pooling": "none"},
        "qwen3_vl": {"pooling": "none"},
        "molmo2": {"pooling": "none"},
    }

    def __post_init__(self) -> None:
        if self.row_newlines and self.newline is None:
            object.__setattr__(self, "newline", "no_token")
        aot_ratio.clip_lengths(self.clips, sum(self.clips) if isinstance(self.clips, tuple) else 1)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Evidence of the model this configuration reads."""
        names = {"attention_shallow", "attention_deep"}
        if self.pooling != "none":
            names.add("features_unpooled")
        if self.inter and self.clips == "dyseg":
            names.add("frame_embedding")
        if self.row_newlines:
            names.add("newline")
        return frozenset(names)

    def geometry(self, grid: tuple[int, int], unpooled: tuple[int, int] | None) -> aot_ratio.Geometry:
        """Static sizes for a pooled grid and the grid before it.

        Raises:
          JvidpruneError: no grid before pooling, or one that the pooling does not map to the other.
        """
        if self.pooling == "none":
            unpooled = grid
        if unpooled is None:
            raise JvidpruneError("AOT works before pooling: the video needs its unpooled_grid, or AOT pooling='none'.")
        kind = self.pooling or find_pooling(unpooled, grid)
        if (pooled_side(unpooled[0], kind), pooled_side(unpooled[1], kind)) != tuple(grid):
            raise JvidpruneError(
                f"AOT's {kind} pooling turns a {unpooled[0]}x{unpooled[1]} grid into {pooled_side(unpooled[0], kind)}x"
                f"{pooled_side(unpooled[1], kind)}, but the video has {grid[0]}x{grid[1]}."
            )
        windows = unpooled[0] // self.window, unpooled[1] // self.window
        return aot_ratio.Geometry(unpooled, grid, kind, windows, grid[0] if self.row_newlines else 0)

    def visual_tokens_for(self, layout: Layout, ratio: float) -> int:
        """V for a retention ratio: the field `visual_tokens`, a published row, or the V that is nearest on average.

        The authors document two rows only, so the rule inverts a table measured with their code on synthetic
        attention. The ratio that a video really reaches depends on its content and may exceed 1 (key frames count
        twice) or stay below what is asked for (V = N is the end); `Reduced.count` tells, `calibrate` finds V for given
        videos.

        Raises:
          JvidpruneError: a ratio outside (0, 1], or a V beyond the grid.
        """
        ratio = check_ratio(ratio)
        geometry = self.geometry(layout.grid, layout.unpooled_grid)
        if self.visual_tokens is not None:
            if not 1 <= self.visual_tokens <= geometry.tokens:
                raise JvidpruneError(
                    f"AOT's visual_tokens must lie between 1 and the {geometry.tokens} tokens of a frame before "
                    f"pooling, got {self.visual_tokens}."
                )
            return self.visual_tokens
        if geometry.grid == (27, 27):
            for row, tokens in self.published:
                if abs(row - ratio) < 1e-9:
                    return tokens
        lengths = aot_ratio.clip_lengths(self.clips, layout.frames)
        return aot_ratio.visual_tokens_for(
            ratio, geometry, self.global_ratio, self.keep_ratio, lengths, self.inter, self.drop_original
        )

    def budget(self, layout: Layout, ratio: float) -> AOTBudget:
        """Integers for the V of a ratio; see `visual_tokens_for`.

        Raises:
          JvidpruneError: as there, or clip lengths that do not fit the frames.
        """
        return self.budget_of(layout, self.visual_tokens_for(layout, ratio))

    def budget_of(self, layout: Layout, visual_tokens: int) -> AOTBudget:
        """Integers for one V.

        Raises:
          JvidpruneError: no anchor at all.
        """
        geometry = self.geometry(layout.grid, layout.unpooled_grid)
        counts = aot_ratio.anchor_counts(visual_tokens, geometry, self.global_ratio)
        if counts.total < 1:
            raise JvidpruneError(
                f"AOT has no anchor with {visual_tokens} visual tokens and global_ratio {self.global_ratio:g} on "
                f"{geometry.windows[0] * geometry.windows[1]} windows a frame; at least one of the two must be larger."
            )
        most = geometry.cells + geometry.newlines
        keep = np.array([aot_ratio.kept_tokens(self.keep_ratio, r) for r in range(most + 1)], np.int32)
        lengths = aot_ratio.clip_lengths(self.clips, layout.frames)
        starts = np.zeros(layout.slots, np.int32)
        starts[np.cumsum((0, *lengths[:-1]))] = 1
        return AOTBudget(
            np.int32(visual_tokens),
            np.int32(counts.local),
            np.int32(counts.spread),
            keep,
            starts,
            tuple(numeric_leaves(part) for part in self._parts()),
            np.array([self.nearest, self.intra_scale, self.inter_scale], np.float32),
        )

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Rows that no video of up to `layout.slots` frames exceeds at this V.

        Padding counts like frames: the bound of fewer frames can be larger under the fixed clip rule.
        """
        return self.capacity_of(layout, self.visual_tokens_for(layout, ratio))

    def capacity_of(self, layout: Layout, visual_tokens: int) -> int:
        """The bound of `capacity` for one V."""
        geometry = self.geometry(layout.grid, layout.unpooled_grid)
        counts = aot_ratio.anchor_counts(visual_tokens, geometry, self.global_ratio)
        tokens = aot_ratio.pooled_bound(counts.total, geometry) + geometry.newlines
        bound = aot_ratio.row_bound(tokens, self.keep_ratio, self.clips, layout.slots, self.inter, self.drop_original)
        return max(bound, 1)

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> AOTShared:
        """Orders, candidate anchors, their cosines and the dynamic cuts."""
        geometry, limit = self._static(video, capacity)
        x = self._input(video)
        if x.shape[1] != geometry.tokens:
            raise JvidpruneError(
                f"AOT expects {geometry.tokens} tokens a frame on its {geometry.grid[0]}x{geometry.grid[1]} grid "
                f"before pooling, got {x.shape[1]}."
            )
        shallow = video.evidence["attention_shallow"].astype(jnp.float32)
        deep = video.evidence["attention_deep"].astype(jnp.float32)
        if sink is not None:
            # The maps sum to N a frame, the rule's strength is in units of maps that sum to 1.
            group = jnp.zeros(x.shape[0], jnp.int32)
            shallow = sink.adjust(shallow / geometry.tokens, group, video.frame_mask).attention
            deep = sink.adjust(deep / geometry.tokens, group, video.frame_mask).attention
        selection = aot_intra.select(x, shallow, deep, geometry, self.window, limit)
        newline = video.evidence["newline"].astype(jnp.float32) if self.row_newlines else None
        likeness = None
        if self.inter and self.key_frame == "medoid":
            means = normalise(jnp.mean(x, axis=1, dtype=jnp.float32), 1e-12)
            likeness = dot_f32(means, means)
        starts = self._dynamic_starts(video)
        return AOTShared(x, selection, deep, video.frame_mask, starts, likeness, newline, geometry, limit)

    def intra(self, shared: AOTShared, budget: AOTBudget) -> aot_intra.Intra:
        """The stage inside frames for one budget."""
        cost, marginals, solver, *_ = self._resolve(budget)
        return aot_intra.transport(
            shared.selection,
            shared.x,
            shared.saliency,
            aot_intra.anchor_mask(shared.selection, budget.local, budget.spread, shared.frame_mask),
            shared.frame_mask,
            shared.geometry.grid,
            cost=cost,
            marginals=marginals,
            solver=solver,
        )

    def merge(self, budget: AOTBudget) -> aot_intra.Merge:
        """How the stage inside frames turns its plans into weights."""
        return aot_intra.Merge(self.projection, budget.scales[0], budget.scales[1])

    def decide(self, shared: AOTShared, budget: AOTBudget, *, capacity: int) -> AOTPlan:
        """Anchors, both transports and the output order for one budget."""
        geometry, t = shared.geometry, shared.x.shape[0]
        intra = self.intra(shared, budget)
        slot_mask, chosen = aot_intra.kept_slots(intra.anchors, shared.frame_mask, geometry, shared.limit.slots)
        cells, newlines = (jnp.asarray(table) for table in aot_intra.slot_cells(geometry))
        merge = self.merge(budget)
        pooled = aot_intra.pooled_weights(intra, shared.selection, merge, chosen, geometry, self.anchors_only)
        newline, used = newlines[chosen], chosen < slot_mask.shape[1]
        diagnostics = {
            "anchors": intra.anchors,
            "slot_mask": slot_mask,
            "slots": chosen,
            "intra_iterations": intra.result.iterations,
            "intra_row_error": intra.result.row_error,
            "intra_column_error": intra.result.column_error,
            "intra_converged": intra.result.converged,
            "intra_underflow": jnp.broadcast_to(jnp.float32(intra.result.underflow), intra.result.converged.shape),
        }
        starts = budget.clip_start.astype(bool) if shared.starts is None else shared.starts
        clips = aot_inter.clip_roles(starts, used.any(1), shared.likeness)
        if self.inter:
            inter = self._inter(shared, budget, pooled, newline, used, cells[chosen], clips)
            diagnostics |= {f"inter_{name}": value for name, value in inter._asdict().items() if name != "mix"}
            diagnostics["segments"] = clips.ids
            own = jnp.where(clips.key[:, None], used & ~(self.drop_original & clips.merges[:, None]), inter.keep)
            merged = (clips.last & clips.merges)[:, None] & used[clips.lead]
            mix = inter.mix
        else:
            own, merged = used, jnp.zeros_like(used)
            mix = jnp.zeros((t, *used.shape[1:], used.shape[1]))
            inter = None
        table = jnp.asarray(aot_intra.cell_pooling(geometry))
        inside = aot_intra.shares(pooled, table, used & ~newline)
        diagnostics["flow"], diagnostics["flow_share"] = aot_inter.flows(
            inter, inside, used & ~newline, cells[chosen], clips
        )
        most = used.sum(1).max().astype(jnp.int32)
        order = arrange(own, merged, used, mix, clips, cells[chosen], newline, inside, capacity, self.inter)
        # Anchors beyond what the capacity allows for are cut silently; the count then says that it was too small.
        short = budget.visual_tokens > shared.limit.visual_tokens
        order["count"] = jnp.where(short, jnp.maximum(order["count"], capacity + 1), order["count"])
        roles = {"key": clips.key, "start": jnp.append(True, clips.last[:-1])}
        return AOTPlan(diagnostics=diagnostics, pooled=pooled, newline=newline, mix=mix, slots=most, **roles, **order)

    def warning(self, diagnostics: dict[str, Array]) -> str | None:
        """What to do about kernels that underflowed so far that marginals do not hold; None if none did.

        Args:
          diagnostics: of plans of this method, on the host.
        """
        for stage, solver in (("inside frames", "solver"), ("along clips", "inter_solver")):
            name = "intra" if solver == "solver" else "inter"
            if f"{name}_underflow" not in diagnostics:
                continue
            under, met = (np.asarray(diagnostics[f"{name}_{key}"]) for key in ("underflow", "converged"))
            hurt = (under > 0) & ~met
            if hurt.any():
                part = self.solver if solver == "solver" or self.inter_solver is None else self.inter_solver
                who = f"AOT's {solver} {stage}"
                return underflow_sentence(
                    who, float(under[hurt].max()), int(hurt.sum()), hurt.size, getattr(part, "epsilon", None)
                )
        return None

    def apply(self, plan: AOTPlan, video: VideoTokens) -> Reduced:
        """Tokens of a plan: pools every frame and mixes every clip under the plan's weights; linear in the features."""
        vector = video.evidence["newline"].astype(jnp.float32) if self.row_newlines else None
        x, slots = self._input(video), plan.pooled.shape[1]

        def run(size: int) -> Array:
            frame = aot_intra.frame_tokens(plan.pooled[:, :size], x, plan.newline[:, :size], vector)
            mix = plan.mix[:, :size, :size] if self.inter else None
            half, slot = jnp.divmod(plan.source, slots)
            return aot_inter.output_rows(frame, mix, plan.start, half * size + slot, size, x.dtype)

        tokens = filled_quarter(plan.slots, slots, run)
        _, rows = compact.source_slots(Plan(*plan[:7]))
        mass = compact.member_counts(rows, plan.ids, plan.valid)
        return Reduced(tokens, plan.ids, plan.valid, mass, rows, plan.diagnostics)

    def _inter(
        self,
        shared: AOTShared,
        budget: AOTBudget,
        pooled: Array,
        newline: Array,
        used: Array,
        cell: Array,
        clips: aot_inter.Clips,
    ) -> aot_inter.Inter:
        """The stage along clips, on as many slots a frame as are in use, to a quarter: it costs up to their square."""
        _, _, _, cost, marginals, solver = self._resolve(budget)
        parts = aot_inter.ClipParts(
            cost, marginals, solver, self.inter_projection, self.distinct, budget.scales[2], budget.keep
        )
        inside = jnp.minimum(cell, shared.geometry.cells - 1)
        place = jnp.asarray(aot_intra.positions(shared.geometry.pooled))[inside]
        saliency = pool_tokens(shared.saliency, shared.geometry.grid, shared.geometry.kind)
        saliency = jnp.take_along_axis(saliency, inside, axis=1)

        def run(size: int) -> aot_inter.Inter:
            pooled_, newline_, used_, place_, saliency_ = (
                array[:, :size] for array in (pooled, newline, used, place, saliency)
            )
            tokens = aot_intra.frame_tokens(pooled_, shared.x, newline_, shared.newline)
            done = aot_inter.merge_clips(tokens, used_, place_, saliency_, clips, parts)
            return aot_inter.widen_slots(done, used.shape[1])

        # Slots are packed: those in use come first.
        return filled_quarter(used.sum(1).max(), used.shape[1], run)

    def _parts(self) -> tuple:
        marginals = self.marginals if self.inter_marginals is None else self.inter_marginals
        solver = self.solver if self.inter_solver is None else self.inter_solver
        return self.cost, self.marginals, self.solver, self.inter_cost, marginals, solver

    def _resolve(self, budget: AOTBudget) -> tuple:
        """The parts with the budget's traced numbers in place of the configured ones."""
        return tuple(
            part if traced is None else traced for part, traced in zip(self._parts(), budget.parts, strict=True)
        )

    def _input(self, video: VideoTokens) -> Array:
        return video.features if self.pooling == "none" else video.evidence["features_unpooled"]

    def _static(self, video: VideoTokens, capacity: int) -> tuple[aot_ratio.Geometry, aot_ratio.Limits]:
        geometry = self.geometry(video.grid, video.unpooled_grid)
        limit = aot_ratio.limits(
            capacity,
            geometry,
            self.global_ratio,
            self.keep_ratio,
            self.clips,
            video.features.shape[0],
            self.inter,
            self.drop_original,
        )
        return geometry, limit

    def _dynamic_starts(self, video: VideoTokens) -> Bool[Array, "T"] | None:
        """Clip starts of the paper's dynamic variant, from the disabled lines of the reference: c = 8, tau = 0.8."""
        if not self.inter or self.clips != "dyseg":
            return None
        frames = normalise(video.evidence["frame_embedding"], 1e-12)
        similarity = jnp.sum(frames[1:] * frames[:-1], axis=-1)
        similarity = jnp.where(video.frame_mask[1:], similarity, jnp.inf)
        cuts = mask_cuts(smallest_cuts(similarity, 7) | (similarity < 0.8), video.frame_mask)
        return jnp.append(True, cuts)
