"""AOT: local and global anchors, optimal transport onto them inside frames and along clips (arXiv 2603.01400).

The reference is `llava_arch.py` of the authors' repository. The algorithm stands in the docstring of `AOT`, its steps
in the files beside this one.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> video = synthetic_tokens(grid=(6, 6), unpooled_grid=(12, 12))
>>> jvidprune.reduce(jvidprune.reducers.AOT(window=4), video, 0.25).count.item()
79
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, NotNegative, Ratio, Share
from jvidprune.ops import compact
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.newline import NewlineKind
from jvidprune.ops.pool import PoolKind, find_pooling, pool_tokens, pooled_side
from jvidprune.ops.quarters import filled_quarter
from jvidprune.ops.similarity import dot_f32, normalise, widened
from jvidprune.ops.sink import SinkRule
from jvidprune.ops.transport import (
    ClipCost,
    CompletedBy,
    Sinkhorn,
    TokenCost,
    Transport,
    Uniform,
    check_derivatives,
    iterations_of,
    underflow_warning,
)
from jvidprune.reducers.aot import sizes
from jvidprune.reducers.aot.anchors import anchor_mask, select
from jvidprune.reducers.aot.clips import Clips, clip_roles, dynamic_starts
from jvidprune.reducers.aot.inter import ClipRules, Distinct, Inter, merge_clips, widen_slots
from jvidprune.reducers.aot.intra import Intra, Merge, positions, transport_each_frame, transport_frames
from jvidprune.reducers.aot.output import arrange, flows, output_rows
from jvidprune.reducers.aot.pooling import cell_pooling, frame_tokens, kept_slots, pooled_weights, shares, slot_cells
from jvidprune.reducers.aot.types import AOTBudget, AOTPlan, AOTShared
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PlanGradient, PositionedReducer, TokensFrom, check_ratio
from jvidprune.tokens import Layout, Plan, Reduced, VideoTokens

INTRA = Transport(TokenCost(), Uniform(), Sinkhorn(), "mass")
"""The reference's transport inside frames. Its solver stops all frames together (Q3; stop="each" does not), its plan
keeps mass 1/A an anchor (Q14; the projections "row" and "column" normalise)."""

INTER = Transport(ClipCost(), Uniform(), Sinkhorn(), "row")
"""The reference's transport along clips."""


@dataclasses.dataclass(frozen=True)
class AOT(PositionedReducer):
    """Anchors before pooling, transport of the rest onto them, pooling, transport along clips.

    A frame has N tokens x on the grid before pooling, with the attention that they receive in a shallow and in a deep
    block of the tower. The defaults are the reference with its OneVision settings.

    1. Anchors. Of V visual tokens L = int(V (1 - g)) are local: the k = L // windows most attended ones of every w x w
       window of the shallow map. The other V - L are global: the most attended ones of the deep map among the rest of
       the frame. A = windows * k + V - L.
    2. Inside frames. The other tokens r move to the anchors a at the cost C = (1 - cos) + 0.5 |p_r - p_a| with equal
       masses; Sinkhorn on exp(-C / 0.1) gives the plan P. With the weight s and the tokens near(a) whose most similar
       anchor is a,
       x_a becomes 0.9 (x_a + s sum_r P_ra x_r) / (1 + s sum_r P_ra) + 0.1 mean(x_a and near(a)).
    3. Pooling. The grid is pooled, merged anchors and untouched other tokens together. A pooled token stays if at least
       half of its weight is on anchors.
    4. Along clips. The key frame's tokens are the anchors B of a clip. For each later frame, j frames on, with R tokens
       z: C = (1 - cos, less its minimum) (1 - exp(-j^2 / (2 1.5^2))), plan P, rows p = P / sum_a P. The ceil(q (R - 1))
       tokens with the smallest max_a p stay distinct. The others move: B_a becomes
       (B_a + s sum_r p_ra z_r) / (1 + s sum_r p_ra).
    5. Output, clip by clip: the key frame's tokens as they were, the distinct tokens of later frames, the merged B.

    Attributes:
      visual_tokens: V; None derives it from the retention ratio.
      global_ratio: g.
      keep_ratio: q.
      inter: run step 4.
      clips: "fixed" (T / 8 frames; the reference has only T = 32 and 64), "dyseg" (cuts at the 7 smallest similarities
        of neighbouring frames and below 0.8; needs the evidence frame_embedding), a length, or a tuple of lengths.
      key_frame: the frame whose tokens are a clip's anchors: its "first" with tokens, or its "medoid", the frame whose
        mean token is most similar (cosine) to those of the others; the others then follow in their order.
      window: w.
      nearest: share of the nearest-anchor mean in step 2, the rest is transport.
      intra_scale, inter_scale: s of steps 2 and 4. The reference overwrites the first by 1 (Q4).
      pooling: None finds it from the grids. "none" works on `features` themselves, for models without pooling.
      anchors_only: pool anchors alone; the reference dilutes them by pruned neighbours (Q9).
      drop_original: leave out the unmerged key-frame tokens, which the reference emits besides the merged ones (Q5).
      row_newlines: newline slots behind each row take part as tokens, as the reference does for LLaVA-Video when its
        clip stage is on (Q13); needs the evidence newline. False leaves newlines to the model.
      newline: layout of LLaVA's newline embeddings, None for the family's (where newlines take part as tokens, no
        others). The published test never appends the closing newline of LLaVA-OneVision: "no_token" (Q2).
      intra_transport, inter_transport: cost, marginals, solver and projection of steps 2 and 4; parts that are None are
        those of `INTRA` and `INTER`. Their float fields travel in the budget and can be vmapped over.
      distinct: what decides which tokens stay distinct in step 4, the lowest ones: "pmax", "entropy", "cost" or
        "unmatched".
      published: (ratio, V) pairs of the authors' scripts, taken before the measured table on their 27x27 grid.
      plan_gradient: "through" makes the output differentiable in both transports: in arrays and numbers of costs and
        marginals, in epsilon, and in the features and the saliency that these read. Anchors, clips and what stays
        distinct are choices and have no derivative, nor has the iteration at which a solver stops.
    """

    visual_tokens: Count | None = None
    global_ratio: Share = 0.5
    keep_ratio: Share = 0.3
    inter: bool = True
    clips: sizes.Clips = "fixed"
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
    intra_transport: Annotated[Transport, CompletedBy(INTRA)] = INTRA
    inter_transport: Annotated[Transport, CompletedBy(INTER)] = INTER
    distinct: Distinct = "pmax"
    published: tuple[tuple[Ratio, Count], ...] = ()
    plan_gradient: PlanGradient = "stop"  # pyright: ignore[reportIncompatibleVariableOverride]

    def without_numbers(self) -> "AOT":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The numbers of both transports are in the budget."""
        parts = {name: getattr(self, name).without_numbers() for name in ("intra_transport", "inter_transport")}
        return dataclasses.replace(self, **parts)

    @property
    def wide_decisions(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Unless the solver inside frames does without all plans at once."""
        return not hasattr(self.intra_transport.solver, "on_kernels")

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

    def settled(self) -> dict[str, Any]:
        """No other newlines where they take part as tokens."""
        return {"newline": "no_token"} if self.row_newlines and self.newline is None else {}

    def __post_init__(self) -> None:
        sizes.clip_lengths(self.clips, sum(self.clips) if isinstance(self.clips, tuple) else 1)
        if self.plan_gradient == "through":
            check_derivatives("AOT", self.intra_transport, self.inter_transport)

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> AOTShared:
        """Orders, candidate anchors, their cosines and the dynamic cuts."""
        geometry = self.geometry(video.grid, video.unpooled_grid)
        limit = sizes.limits(capacity, geometry, self.rules, video.features.shape[0])
        x = self._input(video)
        if x.shape[1] != geometry.tokens:
            raise JvidpruneError(
                f"AOT expects {geometry.tokens} tokens a frame on its {geometry.grid[0]}x{geometry.grid[1]} grid "
                f"before pooling, got {x.shape[1]}."
            )
        shallow, deep = (video.evidence[name] for name in ("attention_shallow", "attention_deep"))
        shallow, deep = (map_.astype(widened(map_.dtype)) for map_ in (shallow, deep))
        if sink is not None:
            # The maps sum to N a frame, the rule's strength is in units of maps that sum to 1.
            group = jnp.zeros(x.shape[0], jnp.int32)
            shallow = sink.adjust(shallow / geometry.tokens, group, video.frame_mask).attention
            deep = sink.adjust(deep / geometry.tokens, group, video.frame_mask).attention
        selection = select(x, *lax.stop_gradient((shallow, deep)), geometry, self.window, limit)
        newline = video.evidence["newline"].astype(jnp.float32) if self.row_newlines else None
        similarity = starts = None
        if self.inter and self.key_frame == "medoid":
            means = normalise(jnp.mean(x, axis=1, dtype=jnp.float32), 1e-12)
            similarity = dot_f32(means, means)
        if self.inter and self.clips == "dyseg":
            starts = dynamic_starts(lax.stop_gradient(video.evidence["frame_embedding"]), video.frame_mask)
        return AOTShared(x, selection, deep, video.frame_mask, starts, similarity, newline, geometry, limit)

    def decide(self, shared: AOTShared, budget: AOTBudget, *, capacity: int) -> AOTPlan:
        """Anchors, both transports and the output order for one budget."""
        geometry, t = shared.geometry, shared.x.shape[0]
        if on_cpu() or self.plan_gradient == "through":
            intra, plan_of = self.intra(shared, budget), None
        else:
            intra, plan_of = transport_each_frame(shared, *self._inside(shared, budget))
        slot_mask, chosen = kept_slots(intra.anchors, shared.frame_mask, geometry, shared.limit.slots)
        cells, newlines = (jnp.asarray(table) for table in slot_cells(geometry))
        pooled = pooled_weights(
            intra, shared.selection, self.merge(budget), chosen, geometry, self.anchors_only, plan_of
        )
        newline, used = newlines[chosen], chosen < slot_mask.shape[1]
        diagnostics = {
            "anchors": intra.anchors,
            "slot_mask": slot_mask,
            "slots": chosen,
            "intra_iterations": intra.result.iterations,
            "intra_row_error": intra.result.row_error,
            "intra_column_error": intra.result.column_error,
            "intra_gap": jnp.broadcast_to(intra.result.gap, intra.result.converged.shape),
            "intra_converged": intra.result.converged,
            "intra_underflow": jnp.broadcast_to(jnp.float32(intra.result.underflow), intra.result.converged.shape),
        }
        starts = budget.clip_start.astype(bool) if shared.starts is None else shared.starts
        clips = clip_roles(starts, used.any(1), lax.stop_gradient(shared.similarity))
        if self.inter:
            inter = self._along(shared, budget, pooled, newline, used, cells[chosen], clips)
            diagnostics |= {f"inter_{name}": value for name, value in inter._asdict().items() if name != "mix"}
            diagnostics["segments"] = clips.ids
            own = jnp.where(clips.key[:, None], used & ~(self.drop_original & clips.merges[:, None]), inter.keep)
            merged = (clips.last & clips.merges)[:, None] & used[clips.lead]
            mix = inter.mix
        else:
            own, merged = used, jnp.zeros_like(used)
            mix = jnp.zeros((t, *used.shape[1:], used.shape[1]))
            inter = None
        table = jnp.asarray(cell_pooling(geometry))
        inside = shares(pooled, table, used & ~newline)
        every = lax.map(inside, jnp.arange(t, dtype=jnp.int32))
        shown = lax.stop_gradient((inter, every))
        diagnostics["flow"], diagnostics["flow_share"] = flows(*shown, used & ~newline, cells[chosen], clips)
        most = used.sum(1).max().astype(jnp.int32)
        order = arrange(
            own, merged, used, mix, clips, cells[chosen], newline, inside, geometry.cells, capacity, self.inter
        )
        # Anchors beyond what the capacity allows for are cut silently; the count then says that it was too small.
        short = budget.visual_tokens > shared.limit.visual_tokens
        order["count"] = jnp.where(short, jnp.maximum(order["count"], capacity + 1), order["count"])
        roles = {"key": clips.key, "start": jnp.append(True, clips.last[:-1])}
        return AOTPlan(diagnostics=diagnostics, pooled=pooled, newline=newline, mix=mix, slots=most, **roles, **order)

    def apply(self, plan: AOTPlan, video: VideoTokens) -> Reduced:
        """Tokens of a plan: pools every frame and mixes every clip under the plan's weights; linear in the features."""
        vector = video.evidence["newline"].astype(jnp.float32) if self.row_newlines else None
        x, slots = self._input(video), plan.pooled.shape[1]

        def run(size: int) -> Array:
            frame = frame_tokens(plan.pooled[:, :size], x, plan.newline[:, :size], vector)
            mix = plan.mix[:, :size, :size] if self.inter else None
            # Of slots that are fewer than in the plan, the place of a row is another one.
            source = plan.source - lax.div(plan.source, jnp.int32(slots)) * (slots - size)
            return output_rows(frame, mix, plan.start, source, size, x.dtype)

        tokens = filled_quarter(plan.slots, slots, run)
        _, rows = compact.source_slots(Plan(*plan[:7]))
        mass = compact.member_counts(rows, plan.ids, plan.valid)
        return Reduced(tokens, plan.ids, plan.valid, mass, rows, plan.diagnostics)

    def intra(self, shared: AOTShared, budget: AOTBudget) -> Intra:
        """The anchors of one budget and the transport onto them inside frames."""
        return transport_frames(shared, *self._inside(shared, budget))

    def _inside(self, shared: AOTShared, budget: AOTBudget) -> tuple[Array, Transport]:
        anchors = anchor_mask(shared.selection, budget.local, budget.global_anchors, shared.frame_mask)
        return anchors, self.intra_transport.with_numbers(budget.intra)

    def merge(self, budget: AOTBudget) -> Merge:
        """How the stage inside frames turns its plans into weights."""
        return Merge(self.intra_transport.projection, budget.scales[0], budget.scales[1])

    def _along(
        self,
        shared: AOTShared,
        budget: AOTBudget,
        pooled: Array,
        newline: Array,
        used: Array,
        cell: Array,
        clips: Clips,
    ) -> Inter:
        """The stage along clips, on as many slots a frame as are in use, to a quarter: it costs up to their square."""
        parts = self.inter_transport.with_numbers(budget.inter)
        rules = ClipRules(parts, self.distinct, budget.scales[2], budget.keep)
        inside = jnp.minimum(cell, shared.geometry.cells - 1)
        place = jnp.asarray(positions(shared.geometry.pooled))[inside]
        saliency = pool_tokens(shared.saliency, shared.geometry.grid, shared.geometry.kind)
        saliency = jnp.take_along_axis(saliency, inside, axis=1)

        def run(size: int) -> Inter:
            pooled_, newline_, used_, place_, saliency_ = (
                array[:, :size] for array in (pooled, newline, used, place, saliency)
            )
            tokens = frame_tokens(pooled_, shared.x, newline_, shared.newline)
            done = merge_clips(tokens, used_, place_, saliency_, clips, rules)
            return widen_slots(done, used.shape[1])

        # Slots are packed: those in use come first.
        return filled_quarter(used.sum(1).max(), used.shape[1], run)

    def _input(self, video: VideoTokens) -> Array:
        return video.features if self.pooling == "none" else video.evidence["features_unpooled"]

    @property
    def rules(self) -> sizes.CountRules:
        """The settings that decide how many tokens come out."""
        return sizes.CountRules(self.global_ratio, self.keep_ratio, self.clips, self.inter, self.drop_original)

    def geometry(self, grid: tuple[int, int], unpooled: tuple[int, int] | None) -> sizes.Geometry:
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
        return sizes.Geometry(unpooled, grid, kind, windows, grid[0] if self.row_newlines else 0)

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
        lengths = sizes.clip_lengths(self.clips, layout.frames)
        return sizes.visual_tokens_for(ratio, geometry, self.rules, lengths)

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
        counts = sizes.anchor_counts(visual_tokens, geometry, self.global_ratio)
        if counts.total < 1:
            raise JvidpruneError(
                f"AOT has no anchor with {visual_tokens} visual tokens and global_ratio {self.global_ratio:g} on "
                f"{geometry.windows[0] * geometry.windows[1]} windows a frame; at least one of the two must be larger."
            )
        most = geometry.cells + geometry.newlines
        keep = np.array([sizes.kept_tokens(self.keep_ratio, r) for r in range(most + 1)], np.int32)
        lengths = sizes.clip_lengths(self.clips, layout.frames)
        starts = np.zeros(layout.slots, np.int32)
        starts[np.cumsum((0, *lengths[:-1]))] = 1
        return AOTBudget(
            np.int32(visual_tokens),
            np.int32(counts.local),
            np.int32(counts.global_anchors),
            keep,
            starts,
            self.intra_transport.numbers(),
            self.inter_transport.numbers(),
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
        counts = sizes.anchor_counts(visual_tokens, geometry, self.global_ratio)
        tokens = sizes.pooled_bound(counts.total, geometry) + geometry.newlines
        bound = sizes.row_bound(tokens, self.rules, layout.slots)
        return max(bound, 1)

    def warning(self, diagnostics: dict[str, Array]) -> str | None:
        """What to do about kernels that underflowed so far that marginals do not hold; None if none did.

        Args:
          diagnostics: of plans of this method, on the host.
        """
        stages = ("intra", "inside frames", self.intra_transport), ("inter", "along clips", self.inter_transport)
        for name, where, parts in stages:
            if f"{name}_underflow" in diagnostics:
                under, held = diagnostics[f"{name}_underflow"], diagnostics[f"{name}_converged"]
                epsilon = getattr(parts.solver, "epsilon", None)
                said = underflow_warning(f"AOT's solver {where}", under, held, epsilon)
                if said is not None:
                    return said
        return None

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Newlines that were chosen."""
        return super().prompt._replace(newline=self.newline)

    tokens_from: ClassVar[TokensFrom] = "evidence"  # pyright: ignore[reportIncompatibleVariableOverride]

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Cosines to candidate anchors, both transports, pooling and the sums over frames and clips."""
        geometry = self.geometry(layout.grid, layout.unpooled_grid)
        frames, tokens = layout.frames, geometry.tokens
        limit = sizes.limits(self.capacity(layout, ratio), geometry, self.rules, frames)
        steps = iterations_of(self.intra_transport.solver)
        terms = {
            "anchor cosines": 2.0 * frames * tokens * limit.candidates * width,
            "transport iterations (at most)": 4.0 * frames * steps * tokens * limit.candidates,
            "pooling weights": 2.0 * frames * limit.slots * limit.candidates * tokens,
            "weighted sums": 2.0 * frames * limit.slots * tokens * width,
        }
        if self.inter:
            terms["weighted sums"] *= 2
            terms["clip similarities and sums"] = 6.0 * frames * limit.slots**2 * width
        return terms

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"keep_ratio": 0.1, "published": ((0.10, 108),)},
        "llava_video": {"keep_ratio": 0.4, "inter": False, "published": ((0.25, 180),)},
        "qwen2_5_vl": {"pooling": "none"},
        "qwen3_vl": {"pooling": "none"},
        "molmo2": {"pooling": "none"},
        "video_llama_3": {"pooling": "none"},
        "internvl": {"pooling": "none"},
    }

    in_time: ClassVar[bool] = True

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
            "the Sinkhorn stop couples all frames (intra_transport=Transport(solver=Sinkhorn(stop='each')))",
            "pooled anchors are diluted by pruned neighbours (anchors_only=True)",
            "anchors keep weight A / (A + 1) in the transport (intra_transport=Transport(projection='row'))",
        ),
    )
