"""VisionZip: the most attended tokens of a frame, plus evenly spaced seeds that absorb the rest (arXiv 2412.04467).

a is the attention that a token receives in the last block of the tower, k its key; S of the N tokens of a frame stay.

1. Dominant: the d = int(S * 54 / 64) tokens of largest a stay unchanged.
2. Contextual: of the other N - d tokens, in order of position, those numbered 0, step, 2 step, ... are the c = S - d
   seeds, with step = max(1, (N - d) // c).
3. Every other token joins the seed of most similar key (cosine).
4. A contextual token is its seed plus the mean of its members: a sum, as in the reference, not an average.

The default is the per-frame video version in `cokeshao/HoliTom`, which HoliTom, AOT and SToP compare with;
`cls_token=True` gives the original for images (`dvlab-research/VisionZip`, CLIP with a CLS token).

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("visionzip"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Share
from jvidprune.ops import compact
from jvidprune.ops.select import first_argmax, order_descending, rank_of_order
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms, keys_of, sums
from jvidprune.reducers.prompt_rules import PromptRules
from jvidprune.reducers.protocol import MethodInfo, PositionedReducer, check_ratio
from jvidprune.tokens import Layout, Plan, VideoTokens

Tower = Literal["siglip", "clip", "none"]

_TOWERS: dict[str, tuple[tuple[int, ...], int, dict[float, int]]] = {
    "siglip": ((196, 169), 196, {0.10: 20, 0.15: 30, 0.20: 40, 0.25: 50}),
    "clip": ((144,), 144, {0.10: 14, 0.15: 22, 0.20: 29, 0.25: 36}),
    "none": ((), 0, {}),
}
"""Tower -> (pooled frame sizes it makes, tokens a ratio refers to, published tokens per frame at a ratio)."""


SEEDS = 8
"""Seeds that a token is compared with at once."""


class VisionZipBudget(NamedTuple):
    """int32 scalars per frame: kept tokens, dominant ones, contextual ones, distance of the seeds."""

    spatial: Any
    dominant: Any
    contextual: Any
    step: Any


class VisionZipShared(NamedTuple):
    """Ratio-independent work.

    Attributes:
      order: (T, N) int32 tokens by falling attention.
      rank: (T, N) int32 its inverse.
      unit: (T, N, Dk) float32 unit keys.
      free: (T, N) bool leftover numbers that a seed may take.
      frame_mask: (T,) bool.
    """

    order: Int[Array, "T N"]
    rank: Int[Array, "T N"]
    unit: Float[Array, "T N Dk"]
    free: Bool[Array, "T N"]
    frame_mask: Bool[Array, "T"]


@dataclasses.dataclass(frozen=True)
class VisionZip(PositionedReducer):
    """Keeps `dominant` tokens per frame unchanged and adds to each of `contextual` seeds the mean of its members.

    Reads `attention_last` (T, N) and `keys` (T, N, Dk). Every frame stands alone and keeps S tokens: d = int(S * share)
    of largest attention, by position, and c = S - d seeds at the leftover numbers 0, step, 2 step, ... with
    step = max(1, (N - d) // c). A leftover token joins the seed whose key is most similar; a contextual token is the
    SUM of its seed and the mean of its members, as in the reference, not an average.

    A `SinkRule` replaces the attention and moves seeds off `blocked` numbers (SToP, arXiv 2604.20937): blocked grid
    positions are compared with leftover numbers, two numberings that the reference mixes; two seeds can then fall on
    one token, which is output twice and whose first copy gets the members.

    Attributes:
      layout: order of the output. `one_token`, `frame` and `no_token`: per frame the dominant tokens, then the
        contextual ones. `grid`: per frame by position. They are the reference's names for its newline layouts.
      dominant_share: share of S that is dominant, in [0, 1].
      tower: which published table turns a ratio into S. `siglip`: {10: 20, 15: 30, 20: 40, 25: 50} tokens per cent,
        else int(196 * ratio), for frames of 196 and of 169 tokens alike, as SToP does; `clip` the same for frames of
        144. Frames of any other size, and `none`: int(N * ratio).
      cls_token: token 0 of each frame is a CLS token: always dominant, counted in d (the original for images).
      official_permutation: in `grid`, file the dominant tokens under each other's places as the reference does: it
        sorts places in attention order together with tokens in position order, so that most are read in a wrong row;
        `diagnostics["place"]` holds the places. False orders every token by its own position.
    """

    layout: Literal["one_token", "frame", "grid", "no_token"] = "one_token"
    dominant_share: Share = 54 / 64
    tower: Tower = "siglip"
    cls_token: bool = False
    official_permutation: bool = True

    needs = frozenset({"attention_last", "keys"})
    wide_decisions = True

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> VisionZipShared:
        """Ranks by attention, unit keys and the seeds' permitted numbers."""
        attention = video.evidence["attention_last"].astype(jnp.float32)
        free = jnp.ones(attention.shape, bool)
        if sink is not None:
            groups = jnp.zeros(attention.shape[0], jnp.int32)
            adjusted = sink.adjust(attention, groups, video.frame_mask)
            attention, free = adjusted.attention, ~adjusted.blocked
        if self.cls_token:
            attention = attention.at[:, 0].set(jnp.inf)
        order = order_descending(attention)
        keys = video.evidence["keys"].astype(jnp.float32)
        # The reference divides by the bare norm; a zero key, NaN there, is similar to nothing here.
        norm = jnp.sqrt(jnp.sum(keys * keys, axis=-1, keepdims=True))
        unit = keys / jnp.where(norm > 0, norm, 1.0)
        return VisionZipShared(order, rank_of_order(order), unit, free, video.frame_mask)

    def decide(self, shared: VisionZipShared, budget: VisionZipBudget, *, capacity: int) -> Plan:
        """Dominant tokens, seeds, members and the order of the rows."""
        frames, n = shared.rank.shape
        limit = self._most_seeds(n, capacity)
        seeds, used = _seed_numbers(shared.free, budget, limit)

        dominant = shared.rank < budget.dominant
        number = jnp.cumsum(~dominant, axis=1, dtype=jnp.int32) - ~dominant
        place = jnp.arange(n, dtype=jnp.int32)
        row = jnp.arange(frames)[:, None]
        # Token of every leftover number, and the first seed that stands on it.
        token_of = jnp.full((frames, n), n, jnp.int32).at[row, jnp.where(dominant, n, number)].set(place, mode="drop")
        centre = jnp.where(used, jnp.take_along_axis(token_of, seeds, axis=1), n)
        seed_of = jnp.full((frames, n), limit, jnp.int32)
        seed_of = seed_of.at[row, jnp.where(used, seeds, n)].min(jnp.arange(limit, dtype=jnp.int32), mode="drop")
        own = jnp.where(dominant, limit, jnp.take_along_axis(seed_of, jnp.minimum(number, n - 1), axis=1))

        nearest = _nearest_seed(shared.unit, jnp.minimum(centre, n - 1), budget.contextual)
        member = ~dominant & (own == limit) & (budget.contextual > 0)
        joined = jnp.where(member, nearest, own)
        members = jnp.zeros((frames, limit), jnp.int32).at[row, jnp.where(member, nearest, limit)].add(1, mode="drop")
        share = 1.0 / jnp.maximum(jnp.take_along_axis(members, nearest, axis=1), 1)
        weight = jnp.where(member, share, 1.0)

        # Candidate slots of a frame: its N tokens as dominant ones, then the seeds.
        real = shared.frame_mask[:, None]
        offset = jnp.arange(frames, dtype=jnp.int32)[:, None] * (n + limit)
        target = jnp.where(real & (joined < limit), offset + n + joined, frames * (n + limit))
        # A seed that repeats another one's token has no members and is a plain copy of it.
        copies = jnp.arange(limit) != _take(own, centre, limit)
        present = jnp.concatenate([dominant, used], axis=1) & real
        pick = jnp.concatenate([dominant, copies], axis=1)
        start = jnp.arange(frames, dtype=jnp.int32)[:, None] * n
        token = jnp.concatenate([jnp.broadcast_to(start + place, (frames, n)), start + centre], axis=1)
        diagnostics = {
            "attention_order": shared.order,
            "seed_number": jnp.where(used, seeds, n),
            "seed_place": jnp.where(used, centre, n),
            "joined": jnp.where(member, nearest, -1),
            "members": members,
        }
        slots = (token.reshape(-1), present.reshape(-1), pick.reshape(-1), target.reshape(1, -1), weight.reshape(1, -1))
        if self.layout != "grid":
            return compact.slotted_plan(*slots, capacity, diagnostics)
        key = token
        if self.official_permutation:
            rank = _take(shared.order, jnp.cumsum(dominant, axis=1) - dominant, n)
            key = jnp.concatenate([start + rank, start + centre], axis=1)
            places = jnp.sort(jnp.where(present, key, frames * n), axis=None)
            places = jnp.concatenate([places, jnp.full(max(capacity - places.size, 0), frames * n, jnp.int32)])
            diagnostics["place"] = places[:capacity]
        return compact.slotted_plan(*slots, capacity, diagnostics, key=key.reshape(-1))

    def spatial_tokens(self, tokens: int, ratio: float) -> int:
        """S, the tokens kept of a frame of `tokens` tokens; 0 where the ratio leaves none."""
        sizes, reference, table = _TOWERS[self.tower]
        if tokens not in sizes:
            return int((tokens - self.cls_token) * ratio)
        for published, kept in table.items():
            if abs(ratio - published) < 1e-6:
                return kept
        return min(int(reference * ratio), tokens)

    def split(self, tokens: int, spatial: int, dominant: int | None = None) -> VisionZipBudget:
        """The budget of `spatial` kept tokens of a frame of `tokens` tokens.

        Args:
          tokens: N.
          spatial: S.
          dominant: d, by default int(S * dominant_share).

        Raises:
          JvidpruneError: S outside 1..N, d outside int(S * dominant_share)..S, or d = 0 with a CLS token.
        """
        if not 1 <= spatial <= tokens:
            raise JvidpruneError(f"VisionZip must keep 1 to {tokens} tokens of a frame, got {spatial}.")
        # The share bounds the number of seeds that `decide` has room for.
        least = max(int(spatial * self.dominant_share), int(self.cls_token))
        dominant = least if dominant is None else dominant
        if not least <= dominant <= spatial:
            raise JvidpruneError(f"of {spatial} tokens {least} to {spatial} must be dominant, got {dominant}.")
        contextual = spatial - dominant
        step = max(1, (tokens - dominant) // contextual) if contextual else 1
        return VisionZipBudget(*(np.int32(v) for v in (spatial, dominant, contextual, step)))

    def budget(self, layout: Layout, ratio: float) -> VisionZipBudget:
        """Counts per frame for a ratio; see `spatial_tokens` and `split`."""
        return self.split(layout.tokens, self._spatial(layout, ratio))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly T * S rows."""
        return layout.frames * self._spatial(layout, ratio)

    @property
    def tokens_per_frame(self) -> Callable[[Layout, float], int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """S, the same in every frame; see `spatial_tokens`."""
        return self._spatial

    def _spatial(self, layout: Layout, ratio: float) -> int:
        spatial = self.spatial_tokens(layout.tokens, check_ratio(ratio))
        if spatial < 1:
            raise JvidpruneError(f"VisionZip keeps no token of a frame of {layout.tokens} at ratio {ratio:g}.")
        return spatial

    def _most_seeds(self, tokens: int, capacity: int) -> int:
        # c = S - int(S * share) <= S * (1 - share) + 1, and S fits both the frame and the capacity.
        spatial = min(tokens, capacity)
        return min(spatial, int(spatial * (1.0 - self.dominant_share)) + 2)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Newlines of the layout; on a grid the released code files rows under the places that `diagnostics` tells."""
        official = self.official_permutation and self.layout == "grid"
        return super().prompt._replace(newline=self.layout, newline_rows="all", official_places=official)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities of the leftover tokens to the seeds, and the weighted sums."""
        spatial = self._spatial(layout, ratio)
        seeds = spatial - max(int(spatial * self.dominant_share), int(self.cls_token))
        return {
            "seed similarities": 2.0 * layout.total * seeds * keys_of(width),
            "weighted sums": sums(layout, width),
        }

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llava_onevision": {"layout": "one_token", "tower": "siglip"},
        "llava_video": {"layout": "grid", "tower": "siglip"},
        # No reference exists on the other families: SToP's "VisionZip" for Qwen2.5-VL is a different algorithm.
        "qwen2_5_vl": {"layout": "grid", "tower": "none", "official_permutation": False},
        "qwen3_vl": {"layout": "grid", "tower": "none", "official_permutation": False},
        "molmo2": {"layout": "grid", "tower": "none", "official_permutation": False},
        "video_llama_3": {"layout": "grid", "tower": "none", "official_permutation": False},
        "internvl": {"layout": "grid", "tower": "none", "official_permutation": False},
    }

    info: ClassVar[MethodInfo] = MethodInfo(
        name="visionzip",
        title="VisionZip",
        paper="2412.04467",
        summary="Keeps each frame's most attended tokens and lets evenly spaced seeds absorb the others.",
        nested=False,
        merges=True,
        exact=True,
        quirks=(
            "a contextual token is seed + mean of members, about twice the norm of an ordinary token (no option)",
            "the published ratio table gives 20 of 169 tokens for 10 % (tower='none' for int(N * ratio))",
            "dominant tokens get wrong positions in the grid layout (official_permutation=False sorts by position)",
        ),
    )


def _seed_numbers(
    free: Bool[Array, "T N"], budget: VisionZipBudget, limit: int
) -> tuple[Int[Array, "T S"], Bool[Array, "T S"]]:
    """Leftover numbers of the seeds of each frame, and which of the `limit` entries are in use.

    A seed walks up to the first free number; the reference fails where the walk leaves the frame, here it stops at the
    last leftover.
    """
    frames, n = free.shape
    index = jnp.arange(limit, dtype=jnp.int32)
    starts = jnp.minimum(index * budget.step, n - 1)
    next_free = lax.cummin(jnp.where(free, jnp.arange(n, dtype=jnp.int32), n), axis=1, reverse=True)
    numbers = jnp.minimum(next_free[:, starts], n - budget.dominant - 1)
    return numbers, jnp.broadcast_to(index < budget.contextual, (frames, limit))


def _nearest_seed(unit: Float[Array, "T N Dk"], centre: Int[Array, "T S"], count: Int[Array, ""]) -> Int[Array, "T N"]:
    """The first of `count` seeds whose key is most similar to a token's; as many blocks of seeds as a budget fills."""
    (frames, n, _), limit = unit.shape, centre.shape[1]
    centre = jnp.pad(centre, ((0, 0), (0, -limit % SEEDS)))

    def block(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        value, seed = best
        place = lax.dynamic_slice_in_dim(centre, i * SEEDS, SEEDS, axis=1)
        keys = jnp.take_along_axis(unit, place[:, :, None], axis=1)
        similarity = jnp.einsum("tnd,tsd->tns", unit, keys, precision=lax.Precision.HIGHEST)
        similarity = jnp.where(i * SEEDS + jnp.arange(SEEDS) < count, similarity, -jnp.inf)
        top = jnp.max(similarity, axis=-1)
        better = top > value
        return jnp.where(better, top, value), jnp.where(better, i * SEEDS + first_argmax(similarity), seed)

    start = jnp.full((frames, n), -jnp.inf), jnp.zeros((frames, n), jnp.int32)
    return lax.fori_loop(0, -(-count // SEEDS), block, start)[1]


def _take(values: Int[Array, "T N"], index: Int[Array, "T S"], fill: int) -> Int[Array, "T S"]:
    n = values.shape[1]
    taken = jnp.take_along_axis(values, jnp.clip(index, 0, n - 1), axis=1)
    return jnp.where(index < n, taken, fill)
