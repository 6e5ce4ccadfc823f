"""HoloV: a quota for every band of a frame, then its most attended tokens (arXiv 2510.02912).

a is the attention of the tower's last block; k = int(N * ratio) tokens of a frame stay.

1. Crops: a frame is cut into C = max(1, int((1024 / 576 * N) / k)) bands of consecutive tokens.
2. Token score: 1000 a plus alpha times the variance of the token's cosines with its band, scaled to the band's mean of
   1000 a. The score of a band is the mean over its tokens.
3. Quotas: k is shared among the bands in proportion to their scores.
4. Every band keeps as many of its most attended tokens as its quota says, unchanged, in order of position.

Follows the released code (`obananas/HoloV`, commit 1d2e65e), an image method, applied to each frame. The code differs
from the paper; the options `alpha`, `rank_by` and `redistribute` give the paper's text.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("holov"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count
from jvidprune.ops import compact
from jvidprune.ops.loops import bounded_while
from jvidprune.ops.select import order_ascending, rank_ascending, rank_descending
from jvidprune.ops.similarity import frame_gram
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, gram
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

EPS = 1e-6
ATTENTION_SCALE = 1000.0
_LONGEST = 46_340  # band * L + rank has to fit int32


class HoloVBudget(NamedTuple):
    """int32 scalars: tokens kept of a sequence, its crops C' = min(C, L), and its length L."""

    keep: Any
    crops: Any
    length: Any


class HoloVShared(NamedTuple):
    """Ratio-independent work on S sequences of L tokens.

    Attributes:
      attention: (S, L) float32, what tokens are ranked and crops are weighted by.
      rank: (S, L) int32 rank by attention.
      sums, squares: (J = L, S, L) running sums over j of the zero-diagonal cosines of token i with tokens 0..j, and of
        their squares, indexed [j, s, i]; J = 0 where the similarity term is off.
      present: (S, L) bool, False on padding.
    """

    attention: Float[Array, "S L"]
    rank: Int[Array, "S L"]
    sums: Float[Array, "J S L"]
    squares: Float[Array, "J S L"]
    present: Bool[Array, "S L"]


@dataclasses.dataclass(frozen=True)
class HoloV(PositionedReducer):
    """Splits a frame into C bands of consecutive tokens, gives each a share of k by its score, keeps the top attended.

    k = int(N * ratio) and C = max(1, int((1024 / 576 * N) / k)) bands, the first N mod C of them one token longer.
    Reads `attention_last` (T, N). The score of a band is the mean of 1000 * attention plus a diversity term that the
    normalisation makes proportional to the same mean: it cancels out of the quotas (diversity=False skips it, and with
    it the one product of all features). A `SinkRule` replaces the attention.

    Attributes:
      alpha: weight of the diversity; 0.09 in the code, 1 in the paper.
      rank_by: choose inside a band by `attention` (the code) or by the `holistic` score (the paper).
      redistribute: hand quota that a band cannot hold to the others, so that exactly k tokens stay (the paper); the
        code keeps fewer.
      order: `ascending` ids, or the code's `official` order: band by band, falling attention inside, but raster order
        in bands that are kept whole.
      pad_zeros: append zero rows, with id T * N, up to k tokens a frame, as the code feeds them to the model.
      per_frame: False treats all frames as one sequence (L = T * N; the similarity term then needs L * L numbers).
      crops: fixed number of bands (the code's constant on LLaVA is 16 for 64 of 576 tokens), or None for the rule.
      diversity: compute the similarity term.
    """

    alpha: float = 0.09
    rank_by: Literal["attention", "holistic"] = "attention"
    redistribute: bool = False
    order: Literal["ascending", "official"] = "ascending"
    pad_zeros: bool = False
    per_frame: bool = True
    crops: Count | None = None
    diversity: bool = True

    needs = frozenset({"attention_last"})

    def __post_init__(self) -> None:
        if self.pad_zeros and self.order != "official":
            raise JvidpruneError("zero rows (pad_zeros=True) belong to the official order; set order='official'.")
        if not self.diversity and self.rank_by == "holistic":
            raise JvidpruneError("the holistic score needs the similarity term; set diversity=True.")

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> HoloVShared:
        """Ranks and running sums of similarities."""
        attention = video.evidence["attention_last"].astype(jnp.float32)
        frames, n = attention.shape
        if sink is not None:
            attention = sink.adjust(attention, jnp.zeros(frames, jnp.int32), video.frame_mask).attention
        shape = (frames, n) if self.per_frame else (1, frames * n)
        present = jnp.broadcast_to(video.frame_mask[:, None], (frames, n)).reshape(shape)
        attention = attention.reshape(shape)
        rank = rank_descending(jnp.where(present, attention, -jnp.inf))
        if not self.diversity:
            nothing = jnp.zeros((0, *shape))
            return HoloVShared(attention, rank, nothing, nothing, present)
        gram = frame_gram(video.features.reshape(*shape, -1))
        norm = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2)) + EPS
        cosine = gram / (norm[:, :, None] * norm[:, None, :])
        cosine = jnp.where(jnp.eye(shape[1], dtype=bool), 0.0, cosine)
        return HoloVShared(attention, rank, *_running(cosine), present)

    def decide(self, shared: HoloVShared, budget: HoloVBudget, *, capacity: int) -> Plan:
        """Bands, quotas and the selection."""
        length = shared.rank.shape[1]
        crop, start, size = _bands(length, budget)
        own_size = size[crop]
        holistic = self._holistic(shared, budget, crop, start, own_size)
        score = _band_sums(jnp.where(shared.present, holistic, 0.0), crop) / jnp.maximum(size, 1)
        # Quotas of negative scores, which only a sink rule can make, would take tokens from other bands.
        score = jnp.maximum(score, 0.0)
        share = score / (jnp.sum(score, axis=1, keepdims=True) + EPS)
        quota = _quotas(share, budget)
        granted = _redistribute(share, quota, size, budget) if self.redistribute else quota

        rank = rank_descending(holistic) if self.rank_by == "holistic" else shared.rank
        sort_key = crop * length + rank
        inside = rank_ascending(sort_key) - start[crop]
        granted_here = granted[:, crop]
        keep = (inside < granted_here) & shared.present
        diagnostics = {"crop": crop, "crop_scores": score, "crop_weights": share, "quota": quota}
        if self.order == "ascending":
            return compact.selection_plan(keep.reshape(-1), capacity, diagnostics)
        raster = jnp.arange(length, dtype=jnp.int32) - start[crop]
        key = crop * length + jnp.where(granted_here >= own_size, raster, inside)
        return self._official(key, keep, shared.present, budget, capacity, diagnostics)

    def _holistic(self, shared: HoloVShared, budget: HoloVBudget, crop: Array, start: Array, size: Array) -> Array:
        """(S, L) token scores whose mean is the score of a band."""
        scaled = ATTENTION_SCALE * shared.attention
        if self.diversity:
            low, high = start[crop], jnp.minimum(start[crop] + size, budget.length)
            total = _between(shared.sums, low, high)
            squares = _between(shared.squares, low, high)
            others = jnp.maximum(size - 1, 1).astype(jnp.float32)
            mean = total / others
            # sum_j (S_ij - mu)^2 over the whole band, zero diagonal included as in the code.
            variance = jnp.maximum(squares - (size - 2) * mean * mean, 0.0) / others
            count = jnp.maximum(size, 1)
            attention = _band_sums(jnp.abs(scaled), crop)[:, crop] / count
            spread = _band_sums(variance, crop)[:, crop] / count
            scaled = scaled + self.alpha * variance * attention / (spread + EPS)
        return jnp.where(size == 1, shared.attention, scaled)

    def _official(
        self, key: Array, keep: Array, present: Array, budget: HoloVBudget, capacity: int, diagnostics: dict
    ) -> Plan:
        """Rows in the code's order, zero rows behind those of their sequence if asked for."""
        sequences, length = key.shape
        offset = jnp.arange(sequences, dtype=jnp.int32)[:, None] * length
        token = offset + jnp.arange(length, dtype=jnp.int32)
        order = order_ascending(key)
        token, keep = (jnp.take_along_axis(v, order, axis=1) for v in (token, keep))
        pick = keep
        if self.pad_zeros:
            # A sequence has at most k zero rows; a slot that is no pick and gets no contribution stays zero.
            missing = budget.keep - jnp.sum(keep, axis=1, keepdims=True)
            zero = (jnp.arange(length) < missing) & present[:, :1]
            token = jnp.concatenate([token, jnp.full_like(token, sequences * length)], axis=1)
            keep, pick = jnp.concatenate([keep, zero], axis=1), jnp.concatenate([keep, jnp.zeros_like(zero)], axis=1)
        nothing = jnp.zeros((0, sequences * length))
        return compact.slotted_plan(
            token.reshape(-1),
            keep.reshape(-1),
            pick.reshape(-1),
            nothing.astype(jnp.int32),
            nothing,
            capacity,
            diagnostics,
        )

    def budget(self, layout: Layout, ratio: float) -> HoloVBudget:
        """Counts for a ratio, in float64 as the code rounds.

        Raises:
          JvidpruneError: a ratio that keeps no token of a sequence, or a sequence beyond 46,340 tokens.
        """
        length = layout.tokens if self.per_frame else layout.total
        if length > _LONGEST:
            raise JvidpruneError(f"HoloV sorts sequences of up to {_LONGEST} tokens, got {length}; set per_frame=True.")
        keep = int(length * check_ratio(ratio))
        if keep < 1:
            raise JvidpruneError(f"HoloV keeps no token of a sequence of {length} at ratio {ratio:g}.")
        return self.budget_of(length, keep, self.crops or max(1, int((1024 / 576 * length) / keep)))

    def budget_of(self, length: int, keep: int, crops: int) -> HoloVBudget:
        """The budget of explicit counts; more crops than tokens do not exist."""
        return HoloVBudget(np.int32(keep), np.int32(min(crops, length)), np.int32(length))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """k rows a sequence: quotas add up to k, or to at most C' <= k ones where every score is 0."""
        return int(self.budget(layout, ratio).keep) * (layout.frames if self.per_frame else 1)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities of all pairs of a sequence; nothing without the diversity term."""
        if not self.diversity:
            return {}
        if self.per_frame:
            return {"similarities": layout.frames * gram(layout, width)}
        return {"similarities": 2.0 * layout.total**2 * width}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"llava_onevision": {}, "llava_video": {}, "qwen2_5_vl": {}}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="holov",
        title="HoloV",
        paper="2510.02912",
        summary="Shares the budget among bands of each frame by attention and keeps each band's most attended tokens.",
        nested=False,
        merges=False,
        exact=False,
        quirks=(
            "quota above the size of a band is lost (redistribute=True gives it to other bands)",
            "a band of one token is scored 1000 times lower than larger ones (no option)",
            "selection by attention with weight 0.09 (rank_by='holistic', alpha=1.0 as the paper says)",
        ),
    )


def _bands(length: int, budget: HoloVBudget) -> tuple[Int[Array, "L"], Int[Array, "L"], Int[Array, "L"]]:
    """Band of every token, and start and size of every band (size 0 beyond the last, L slots)."""
    base, longer = budget.length // budget.crops, budget.length % budget.crops
    index = jnp.arange(length, dtype=jnp.int32)
    edge = longer * (base + 1)
    crop = jnp.where(index < edge, index // (base + 1), longer + (index - edge) // base)
    start = jnp.where(index < longer, index * (base + 1), edge + (index - longer) * base)
    size = jnp.where(index < budget.crops, base + (index < longer), 0)
    return jnp.minimum(crop, length - 1), jnp.minimum(start, budget.length), size


def _running(cosine: Float[Array, "S L L"]) -> tuple[Float[Array, "L S L"], Float[Array, "L S L"]]:
    """Running sums of a symmetric matrix and of its squares over its rows; a scan, since cumsum is slow on XLA:CPU."""

    def step(carry: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        carry = (carry[0] + row, carry[1] + row * row)
        return carry, carry

    zeros = jnp.zeros_like(cosine[:, 0])
    return lax.scan(step, (zeros, zeros), jnp.swapaxes(cosine, 0, 1))[1]


def _between(running: Float[Array, "L S L"], low: Int[Array, "L"], high: Int[Array, "L"]) -> Float[Array, "S L"]:
    """Sum over low[i] <= j < high[i] of entry i."""
    token = jnp.arange(running.shape[2])
    before = jnp.where((low > 0)[:, None], running[low - 1, :, token], 0.0)
    return (running[high - 1, :, token] - before).T


def _band_sums(values: Float[Array, "S L"], crop: Int[Array, "L"]) -> Float[Array, "S L"]:
    return jnp.zeros_like(values).at[:, crop].add(values)


def _quotas(share: Float[Array, "S L"], budget: HoloVBudget) -> Int[Array, "S L"]:
    """floor(share * k) in float32, and one more for the bands of largest share while tokens remain."""
    exists = jnp.arange(share.shape[1]) < budget.crops
    quota = jnp.floor(share * jnp.asarray(budget.keep, jnp.float32)).astype(jnp.int32)
    rest = budget.keep - jnp.sum(quota, axis=1, keepdims=True)
    rank = rank_descending(jnp.where(exists, share, -1.0))
    return quota + (exists & (rank < rest))


def _redistribute(
    share: Float[Array, "S L"], quota: Int[Array, "S L"], size: Int[Array, "L"], budget: HoloVBudget
) -> Int[Array, "S L"]:
    """Quotas within the sizes of the bands that add up to k.

    What is left over goes to the others in proportion to share * free places, rounded down, and what rounding leaves
    to the band of largest share with free places; every round fills that band or ends.
    """

    def left(granted: Array) -> Array:
        return budget.keep - jnp.sum(granted, axis=1, keepdims=True)

    def hand_on(granted: Array) -> Array:
        room, rest = size - granted, jnp.maximum(left(granted), 0)
        pull = (share + EPS) * room
        more = jnp.floor(rest * pull / jnp.maximum(jnp.sum(pull, axis=1, keepdims=True), EPS * EPS))
        granted = granted + jnp.minimum(more.astype(jnp.int32), room)
        room, rest = size - granted, jnp.maximum(left(granted), 0)
        best = rank_descending(jnp.where(room > 0, share, -1.0)) == 0
        return granted + jnp.where(best, jnp.minimum(room, rest), 0)

    def unfinished(granted: Array) -> Array:
        return jnp.any((left(granted) > 0) & (jnp.sum(granted, axis=1, keepdims=True) < budget.length))

    return bounded_while(unfinished, hand_on, jnp.minimum(quota, size), rounds=quota.shape[1])
