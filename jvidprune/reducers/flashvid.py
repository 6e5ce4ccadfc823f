"""FlashVID: attention- and diversity-based selection, then tree-shaped spatiotemporal merging (arXiv 2602.08024).

A frame gets B = ceil(N * ratio * expansion) tokens: A = ceil(alpha * B) selected ones and C = B - A merged ones.

1. DySeg: the video is cut where the cosine of neighbouring mean tokens is below a threshold, and on at the smallest
   ones until there are enough segments.
2. ADTS: of every frame A tokens are taken one by one, each the farthest from those taken before, by 1 - cosine weighted
   by attention and event relevance. They stay unchanged.
3. TSTM: inside a segment each other token is linked to its most similar token of the frame before, if their cosine
   exceeds T_tau. Links form trees; a tree becomes one token at its root, its sum over 1 + the root's children.
4. DPC-kNN: the roots of a frame are clustered by density peaks down to the segment's share of C; a cluster becomes its
   mean.
5. Inside the language model one cut keeps the most attended of these tokens, so that the mean over layers is the ratio.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("flashvid"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
96
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.rules import LastQueryTopK
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, NotNegative, Positive, Range, Ratio, Seed, Share
from jvidprune.ops import cluster, maxmin, segment, similarity, tree
from jvidprune.ops.branch import on_cpu
from jvidprune.ops.compact import ascending_plan
from jvidprune.ops.exact import ceil_scaled
from jvidprune.ops.layout import row_major
from jvidprune.ops.newline import NewlineKind
from jvidprune.ops.select import occurrences, order_descending
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, gram, sums
from jvidprune.reducers.prompt_rules import MarkerRule, PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import InnerStage, Kept, Layout, Plan, VideoTokens

Method = Literal["attn", "div", "attn_div", "attn_div_v2"]

_NEIGHBOURS = 7
_ATTENTION_SCALE = 1e6


class FlashVIDBudget(NamedTuple):
    """Tokens per frame: A selected unchanged and C merged ones; B = A + C."""

    n_select: np.int32
    n_merge: np.int32


class FlashVIDShared(NamedTuple):
    """Ratio-independent work; k is the largest number of selected tokens that the capacity allows.

    Attributes:
      features: (T, N, D) the tokens.
      gram: (T, N, N) inner products inside each frame.
      cosine: (T-1, N, N) cosine of token n of frame t + 1 with token m of frame t.
      order: (T, k) tokens of each frame in the order of selection; a ratio keeps a prefix.
      transition: (T-1,) cosine of neighbouring mean tokens.
      segments: (T,) segment of each frame; padding frames have one of their own.
      frame_mask: (T,) real frames.
    """

    features: Float[Array, "T N D"]
    gram: Float[Array, "T N N"]
    cosine: Float[Array, "T-1 N N"]
    order: Int[Array, "T k"]
    transition: Float[Array, "T-1"]
    segments: Int[Array, "T"]
    frame_mask: Bool[Array, "T"]


class _Trees(NamedTuple):
    """Links and trees for one budget; see `FlashVID._trees`."""

    similarity: Float[Array, "T N"]
    parent: Int[Array, "T N"]
    linked: Bool[Array, "T N"]
    raised: Float[Array, "T"]
    root: Int[Array, "M"]
    divisor: Int[Array, "T N"]
    candidate: Bool[Array, "T N"]


@dataclasses.dataclass(frozen=True)
class FlashVID(PositionedReducer):
    """Selects A tokens a frame, links the others into trees over time and clusters the trees' tokens per frame.

    Frames are cut into segments (DySeg). In every frame A = ceil(B * alpha) of the B = ceil(N * ratio * expansion)
    tokens are taken by max-min diversity weighted by attention (ADTS) and kept unchanged. Inside a segment the other
    tokens are linked to their most similar token one frame earlier; each tree becomes one token at its root (TSTM).
    DPC-kNN clusters the roots of a frame down to the segment's share of C = B - A. Rows ascend by token id, a selected
    token before a merged one. The count M depends on the data: T * B <= M <= T * (B + 1).

    Defaults follow the official code (commit 1d37422 of Fanziyang-v/FlashVID), where it differs from the paper:

    * a tree's value is its sum divided by 1 + the number of *direct* children of the root, so chains are inflated
      (`tree_value="mean"` divides by the tree's size, as the paper writes);
    * `attn_div_v2` takes tokens again once all tokens of positive event relevance are taken (`distinct=True` does not);
    * in a segment of one frame the selected tokens also enter the clusters (`exclude_selected_single=True`: they
      do not, the paper's rule);
    * clusters are averaged without regard to the size of the trees;
    * links need a cosine above the threshold (paper: at least), relevance averages over the segment's frames (paper:
      all frames), a lower bound keeps at least B roots a frame (not in the paper's algorithm);
    * a zero token has NaN similarities, which win every selection step (`eps` floors the norms).

    The cut's settings are published for decoders of 28 layers (20, 0.3) and of 36 (28, 0.1). On a model of another
    depth they would miss the ratio as the mean over layers; `at_depth`, by which `registry.get` builds the method for a
    known depth, sets them so that the mean is the ratio.

    Departures: the official clustering adds unseeded noise to break ties of density, here ties go to the lower index
    unless `noise_seed` is given; B and A are clamped to N, and a budget that covers the frame merges nothing (the
    official code fails); `temporal_threshold >= 1` means no temporal merging (the official code divides by zero);
    everything is decided in float32 whatever the dtype of the features.

    Attributes:
      expansion: more tokens before the cut inside the language model; the ratio is the mean over its layers.
      alpha: share of B that is selected, in [0, 1].
      method: "attn" takes the most attended tokens, "div" is max-min diversity, "attn_div" weighs it by attention,
        "attn_div_v2" also by event relevance. "div" needs no attention.
      temporal_threshold: cosine above which a token joins one of the frame before, at least -1.
      do_segment: cut the video; otherwise it is one segment.
      complementary: cut at the least similar transitions until there are `min_segments`.
      segment_threshold: cut where neighbouring mean tokens have a cosine below it.
      min_segments: least number of segments, limited by the number of frames.
      tree_value: "official" or "mean", as above.
      distinct: never select a token twice.
      exclude_selected_single: as above.
      eps: floor of every norm; 0 has none.
      noise_seed: seed of the official density noise, uniform in [0, 1e-6); None has none.
      pruning_layer: first decoder layer after the cut inside the language model; None means no cut.
      llm_retention_ratio: share of the visual positions that the cut keeps; see `inner_retention`.
      protect_newlines: the cut always keeps the frame newlines of LLaVA-Video (the official code lets them compete).
      newline: layout of LLaVA's newline embeddings, None for the family's; "frame" on LLaVA-Video.
      vision_markers: "drop" leaves out the vision start and end tokens of Qwen3-VL, as the official code does.
    """

    expansion: Positive = 1.25
    alpha: Share = 0.7
    method: Method = "attn_div_v2"
    temporal_threshold: Annotated[float, Range(-1)] = 0.8
    do_segment: bool = True
    complementary: bool = True
    segment_threshold: float = 0.9
    min_segments: Count = 8
    tree_value: Literal["official", "mean"] = "official"
    distinct: bool = False
    exclude_selected_single: bool = False
    eps: NotNegative = 0.0
    noise_seed: Seed | None = None
    pruning_layer: Count | None = 20
    llm_retention_ratio: Ratio = 0.3
    protect_newlines: bool = False
    newline: NewlineKind | None = None
    vision_markers: MarkerRule = "keep"

    @property
    def needs(self) -> frozenset[str]:
        """The attention of the last block, unless the selection is by diversity alone."""
        return frozenset() if self.method == "div" else frozenset({"attention_last"})

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> FlashVIDShared:
        """Segments, inner products inside and between frames, and the order of selection.

        A sink rule replaces the attention in the selection; its scores are averaged over each segment. Adjusted
        attention may be negative.
        """
        x, real = row_major(video.features), video.frame_mask
        frames, n, _ = x.shape
        means = jnp.mean(x, axis=1, dtype=jnp.float32)
        transition = similarity.neighbour_cosine(means, self.eps)
        segments = self._segment(transition, real)
        gram = similarity.frame_gram(x)
        attention = video.evidence["attention_last"].astype(jnp.float32) if self.needs else None
        if attention is not None and sink is not None:
            attention = sink.adjust(attention, segments, real).attention
        steps = min(n, math.ceil(min(n, capacity // frames) * self.alpha))
        order = self._order(x, gram, attention, means, segments, steps)
        cosine = jnp.zeros((frames - 1, n, n), jnp.float32)
        if self._links_tokens:
            norms = similarity.gram_norms(gram)
            cosine = similarity.cosine_from_gram(similarity.neighbour_gram(x), norms[1:], norms[:-1], self.eps)
        return FlashVIDShared(x, gram, cosine, order, transition, segments, real)

    def decide(self, shared: FlashVIDShared, budget: FlashVIDBudget, *, capacity: int) -> Plan:
        """Selection, trees and clusters for one budget."""
        real = shared.frame_mask
        frames, n = real.shape[0], shared.gram.shape[-1]
        used = (jnp.arange(shared.order.shape[1]) < budget.n_select) & real[:, None]
        rows = jnp.arange(frames)[:, None]
        picks = occurrences(shared.order, used, n)
        trees = self._trees(shared, picks > 0, budget)
        lengths = segment.segment_lengths(shared.segments)
        n_candidates = trees.candidate.sum(-1, dtype=jnp.int32)
        in_segment = segment.segment_total(n_candidates, shared.segments)
        n_clusters = ceil_scaled(n_candidates, budget.n_merge * lengths, jnp.maximum(in_segment, 1))
        assign, rank = self._cluster(shared, trees, n_candidates, n_clusters)
        first = rows * n
        centre_of = jnp.append(jnp.where(assign >= 0, first + assign, frames * n).reshape(-1), frames * n)
        target = centre_of[trees.root]
        size = jnp.append(occurrences(assign, assign >= 0, n).reshape(-1), 1)
        weight = 1.0 / (size[target] * trees.divisor.reshape(-1)[trees.root])
        merged = (assign == jnp.arange(n)).reshape(-1)
        linked = jnp.where(trees.linked, first - n + trees.parent, -1)
        diagnostics = {
            "segments": shared.segments,
            "transition": shared.transition,
            "selected": picks,
            "similarity": trees.similarity,
            "parent": linked,
            "link": linked,
            "raised_threshold": trees.raised,
            "candidate": trees.candidate,
            "divisor": trees.divisor,
            "clusters": n_clusters,
            "cluster_centre": assign,
            "cluster_rank": rank,
        }
        plan = ascending_plan(picks.reshape(-1), merged, target[None], weight[None], capacity, diagnostics)
        # Too small a capacity also shortens the order of selection: the count still tells what was asked for.
        asked = budget.n_select * real.sum(dtype=jnp.int32) + n_clusters.sum(dtype=jnp.int32)
        return plan._replace(count=jnp.maximum(plan.count, asked))

    @property
    def _links_tokens(self) -> bool:
        return self.alpha < 1.0 and self.temporal_threshold < 1.0

    def _segment(self, transition: Array, real: Array) -> Int[Array, "T"]:
        """DySeg: segment of each frame (spec section 4).

        The reference can choose a transition twice, which gives it a segment of no frames; the union of cuts has none.
        """
        if not self.do_segment:
            return segment.segment_ids(segment.mask_cuts(jnp.zeros(transition.shape, bool), real))
        # Transitions into padding and undefined ones come last in the order of complementary cuts.
        known = jnp.where(real[1:] & ~jnp.isnan(transition), transition, jnp.inf)
        cuts = segment.threshold_cuts(known, self.segment_threshold)
        if self.complementary:
            cuts = segment.complementary_cuts(known, cuts, self.min_segments)
        return segment.segment_ids(segment.mask_cuts(cuts, real))

    def _order(
        self, x: Array, gram: Array, attention: Array | None, means: Array, segments: Array, steps: int
    ) -> Int[Array, "T k"]:
        """ADTS: tokens of each frame in the order of selection (spec section 5)."""
        if self.method == "attn":
            assert attention is not None
            return order_descending(attention)[:, :steps]
        weight = None if attention is None else _ATTENTION_SCALE * attention
        relevance = self.method == "attn_div_v2"
        if weight is not None and relevance:
            weight = weight * event_relevance(x, means, segments)
        repeat: maxmin.Repeat = "never" if self.distinct else "free" if relevance else "guard"
        return maxmin.maxmin_order(gram, weight, steps=steps, weight_inside=relevance, repeat=repeat, eps=self.eps)

    def _trees(self, shared: FlashVIDShared, selected: Array, budget: FlashVIDBudget) -> _Trees:
        """TSTM: links to the frame before, roots, and the tokens that go on to clustering (spec section 6)."""
        real = shared.frame_mask
        frames, n = selected.shape
        lengths = segment.segment_lengths(shared.segments)
        starts = segment.segment_starts(shared.segments)
        merges = budget.n_merge > 0
        if self._links_tokens:
            best, parent = tree.best_previous(shared.cosine, selected, starts)
            per_frame = jnp.asarray(budget.n_select + budget.n_merge)
            linked, raised = tree.bounded_links(best, self.temporal_threshold, shared.segments, lengths, per_frame)
            linked = linked & merges & (real & (lengths > 1))[:, None]
            raised = jnp.where(merges & real & (lengths > 1), raised, jnp.nan)
        else:
            best, parent = jnp.full((frames, n), tree.NO_LINK), jnp.zeros((frames, n), jnp.int32)
            linked, raised = jnp.zeros((frames, n), bool), jnp.full(frames, jnp.nan)
        root = tree.tree_roots(linked, parent)
        if self.tree_value == "official":
            divisor = 1 + tree.child_counts(linked, parent)
        else:
            divisor = jnp.maximum(tree.tree_sizes(root), 1).reshape(frames, n)
        taken = selected if self.exclude_selected_single else selected & (lengths > 1)[:, None]
        candidate = ~linked & ~taken & real[:, None] & merges
        return _Trees(best, parent, linked, raised, root, divisor, candidate)

    def _cluster(
        self, shared: FlashVIDShared, trees: _Trees, n_candidates: Array, n_clusters: Array
    ) -> tuple[Int[Array, "T N"], Int[Array, "T N"]]:
        """DPC-kNN over the trees' tokens of each frame (spec section 7).

        Returns:
          (T, N) place of each candidate's cluster centre in its frame, -1 for other tokens, and (T, N) rank of each
          token by falling score.
        """
        frames, n = trees.candidate.shape
        if self.alpha == 1.0:
            return jnp.full((frames, n), -1, jnp.int32), jnp.zeros((frames, n), jnp.int32)
        width = shared.features.shape[-1]
        divisor = trees.divisor.astype(jnp.float32)

        def distances(gram: Array, divisor: Array) -> Array:
            return similarity.distance_from_gram(gram / (divisor[..., :, None] * divisor[..., None, :]), width)

        def frame(t: Array, distance: Array, candidate: Array, count: Array) -> tuple[Array, Array]:
            key = None
            if self.noise_seed is not None:
                key = jax.random.fold_in(jax.random.key(self.noise_seed), t)
            # k counts the token itself: one cluster means equal densities, and the lowest index is the centre.
            scores = cluster.peak_scores(
                distance,
                candidate,
                jnp.minimum(count, _NEIGHBOURS),
                max_neighbours=_NEIGHBOURS,
                break_ties=True,
                key=key,
            )
            centre, rank = cluster.centre_mask(scores, count)
            assign = cluster.assign_to_centres(distance, centre, rank=rank)
            return jnp.where(candidate & centre.any(), assign, -1), rank

        numbers, links = jnp.arange(frames), (trees.linked, trees.parent)
        if not on_cpu():
            return tree.over_merged(
                lambda gram, divisor, t, *rest: frame(t, distances(gram, divisor), *rest),
                *(shared.features, shared.gram, *links),
                *(divisor, numbers, trees.candidate, n_clusters),
            )
        # Where every candidate is a centre, distances decide nothing and their product is spared.
        wanted = trees.candidate & (n_candidates > n_clusters)[:, None]
        grams = tree.merged_grams(shared.features, shared.gram, *links, wanted)
        return jax.vmap(frame)(numbers, distances(grams, divisor), trees.candidate, n_clusters)

    def budget(self, layout: Layout, ratio: float) -> FlashVIDBudget:
        """A and C per frame; the expressions are those of the reference in float64, left to right.

        Raises:
          JvidpruneError: a ratio outside (0, 1].
        """
        per_frame = self._per_frame(layout, ratio)
        selected = min(math.ceil(per_frame * self.alpha), layout.tokens)
        return FlashVIDBudget(np.int32(selected), np.int32(per_frame - selected))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """T * (B + 1): every frame's share of clusters is rounded up by less than one token, or by one exactly."""
        return layout.slots * (self._per_frame(layout, ratio) + 1)

    def expected(self, layout: Layout, ratio: float) -> int:
        """T * B: what frames have more and less is near nothing."""
        return layout.frames * self._per_frame(layout, ratio)

    def _per_frame(self, layout: Layout, ratio: float) -> int:
        return min(math.ceil(layout.tokens * check_ratio(ratio) * self.expansion), layout.tokens)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Newlines and vision markers that were chosen, or that the preset has."""
        return super().prompt._replace(newline=self.newline, vision_markers=self.vision_markers)

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The one cut inside the language model: attention of the last query position in the layer before it."""
        if self.pruning_layer is None:
            return ()
        rule = LastQueryTopK(newlines="never" if self.protect_newlines else "layout")
        return (InnerStage(self.pruning_layer, rule, Kept(self.llm_retention_ratio)),)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities in frames and of neighbours, the selection, and what merging costs where it is on."""
        frames, pairs = layout.frames, gram(layout, width)
        terms = {"similarities in frames": frames * pairs}
        if self.method == "attn_div_v2":
            terms["event relevance"] = 2.0 * layout.total * width
        if self.alpha < 1.0:
            if self.temporal_threshold < 1.0:
                terms["neighbour frames"] = (frames - 1) * pairs
                terms["distances of merged tokens (at most)"] = (frames - 1) * pairs
            terms["weighted sums"] = sums(layout, width)
        selected = int(self.budget(layout, ratio).n_select)
        terms["selection steps"] = 2.0 * frames * selected * layout.tokens
        return terms

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"method": "attn_div_v2", "min_segments": 8},
        "llava_video": {"method": "attn_div_v2", "min_segments": 8, "newline": "frame"},
        "qwen2_5_vl": {"method": "attn_div", "min_segments": 4},
        "qwen3_vl": {
            "method": "attn_div",
            "min_segments": 4,
            "pruning_layer": 28,
            "llm_retention_ratio": 0.1,
            "vision_markers": "drop",
        },
    }

    @classmethod
    def at_depth(cls, layers: int, settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Settings of the cut with which the mean over the decoder's layers is the ratio; see `registry.get`.

        The layer of the cut is the preset's and the share kept there follows from it (`inner_retention`). A cut too
        near the end to make up for the expansion keeps its share and the expansion shrinks instead; a decoder that ends
        before the cut has neither cut nor expansion. At the published depths these are the published settings.

        Args:
          layers: decoder layers.
          settings: of the backbone's preset.
          given: settings of the user's own. A cut of his own is left alone, an expansion of his own stays.
        """
        if {"pruning_layer", "llm_retention_ratio"} & given.keys():
            return {}
        layer: int = settings.get("pruning_layer", cls.pruning_layer)
        own = "expansion" in given
        if layer >= layers:
            return {"pruning_layer": None} if own else {"pruning_layer": None, "expansion": 1.0}
        expansion = given.get("expansion", settings.get("expansion", cls.expansion))
        if not expansion > 0.0:
            return {}
        if 0.0 < (share := _inner_share(layers, layer, expansion)) <= 1.0:
            return {"llm_retention_ratio": share}
        keep = settings.get("llm_retention_ratio", cls.llm_retention_ratio)
        return {} if own else {"expansion": layers / (layer + keep * (layers - layer))}

    in_time: ClassVar[bool] = True

    info: ClassVar[MethodInfo] = MethodInfo(
        name="flashvid",
        title="FlashVID",
        paper="2602.08024",
        summary="Diverse, attended tokens stay; the rest merge along trees over time, then in clusters per frame.",
        nested=False,
        merges=True,
        exact=False,
        quirks=(
            'tree sums are divided by 1 + direct children (tree_value="mean" averages)',
            "attn_div_v2 can select a token twice (distinct=True)",
            "one-frame segments cluster selected tokens too (exclude_selected_single=True)",
            "zero tokens have NaN similarities (eps > 0)",
            "frame newlines compete at the cut inside the model (protect_newlines=True)",
            'on Qwen3-VL all vision start and end tokens are left out (vision_markers="keep")',
        ),
    )


def event_relevance(
    x: Float[Array, "T N D"], means: Float[Array, "T D"], segments: Int[Array, "T"]
) -> Float[Array, "T N"]:
    """Mean inner product of each token with the mean tokens of the frames of its segment; nothing is normalised."""
    frames = segment.segment_lengths(segments).astype(jnp.float32)
    centre = segment.segment_total(means, segments) / frames[:, None]

    def frame(tokens: Array, direction: Array) -> Array:
        return similarity.dot_f32(tokens.astype(jnp.float32), direction[None])[:, 0]

    return similarity.over_frames(frame, x, centre)


def inner_retention(layers: int, pruning_layer: int, expansion: float = 1.25) -> float:
    """Share r of the visual tokens to keep at the cut so that the mean over all decoder layers is the ratio.

    r = (L - fe * K) / (fe * (L - K)): 0.3 for 28 layers cut before layer 20, 0.1 for 36 and 28, 0.4 for 36 and 24.

    Args:
      layers: L, decoder layers.
      pruning_layer: K, 0-based index of the first layer after the cut.
      expansion: fe, how many times the ratio is kept before the cut.

    Raises:
      JvidpruneError: no share in (0, 1] gives the mean.
    """
    if not 0 < pruning_layer < layers:
        raise JvidpruneError(f"the cut must lie between layer 1 and layer {layers - 1}, got {pruning_layer}.")
    share = _inner_share(layers, pruning_layer, expansion)
    if not 0.0 < share <= 1.0:
        raise JvidpruneError(
            f"an expansion of {expansion:g} cannot be made up for by a cut before layer {pruning_layer} of {layers}."
        )
    return share


def _inner_share(layers: int, pruning_layer: int, expansion: float) -> float:
    return (layers - expansion * pruning_layer) / (expansion * (layers - pruning_layer))
