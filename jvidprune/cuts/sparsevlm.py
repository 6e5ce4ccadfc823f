"""SparseVLM's rules: text that rates, visual tokens by their ratings, dropped ones recycled (arXiv 2410.04417)."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.protocol import Chosen, CutInputs, CutRule, Probe, TokenState
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, NotNegative, Positive
from jvidprune.ops.cluster import assign_to_centres, centre_mask, separation
from jvidprune.ops.compact import compact as pack
from jvidprune.ops.select import order_descending, rank_descending
from jvidprune.ops.similarity import dot_f32, squared_norms
from jvidprune.tokens import Kept

Flavor = Literal["rank", "lists", "plus", "video"]
"""What was released: counts from the rank of the ratings, from fixed lists, SparseVLM+, and the branch for videos."""

_EPS32 = 1.1920928955078125e-07


def clusters(dropped: int) -> int:
    """Merged tokens of so many dropped ones: a tenth of the three tenths that are recycled, each plus one."""
    return (3 * dropped // 10 + 1) // 10 + 1 if dropped > 0 else 0


@dataclasses.dataclass(frozen=True)
class ListCount(Kept):
    """round(share * n) of the prompt's own n, and never all that are left.

    Attributes:
      recycled: whether merged tokens come on top.
    """

    recycled: bool = True

    def count(self, n: int, prompt: int | None = None) -> int:
        """Tokens kept as they are."""
        whole = n if prompt is None else prompt
        asked = round(whole * self.share) if self.number is None else self.number
        return max(min(asked, n - 1), 0)

    def left(self, n: int, prompt: int | None = None, text: int = 0) -> int:
        """Those and the merged ones."""
        kept = self.count(n, prompt)
        return kept + clusters(n - kept) * self.recycled


@dataclasses.dataclass(frozen=True)
class RankCount(Kept):
    """Counts that follow from the rank of the ratings, which is at most the number of text tokens.

    Attributes:
      scale, bias: int(rank * scale + bias) tokens stay.
    """

    scale: Positive = 13.5
    bias: NotNegative = 0.0

    def count(self, n: int, prompt: int | None = None) -> int:
        """All: the rule counts on the way."""
        return n

    def left(self, n: int, prompt: int | None = None, text: int = 0) -> int:
        """A bound, merged tokens included."""
        if text >= n:
            return n
        return min(max(min(int(text * self.scale + self.bias), n - 1), 0) + clusters(n), n)


@dataclasses.dataclass(frozen=True)
class Raters(CutRule):
    """Drops nothing: marks the text tokens that later cuts go by, from the embeddings that enter the model.

    Every visual token divides itself among the text behind it by a softmax over inner products; a text token rates if
    its mean share is above the mean of the shares. Where none is, all text rates (the released code yields NaN).
    """

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """The raters go into `side` by their slots of the prompt."""
        text, visual = state.text_queries, state.visual
        size = visual.shape[0]
        block = min(size, 256)

        def add(total: Array, start: Array) -> tuple[Array, None]:
            # The last block begins early, so that it has all its rows; those of the one before it count once.
            at = jnp.minimum(start, size - block) + jnp.arange(block)
            products = jnp.where(text, dot_f32(state.hidden[at], state.hidden), -jnp.inf)
            counted = visual[at] & (at >= start) & text.any()
            return total + jnp.where(counted[:, None], jax.nn.softmax(products, axis=-1), 0.0).sum(axis=0), None

        shares, _ = lax.scan(add, jnp.zeros(size, jnp.float32), jnp.arange(0, size, block))
        mean = shares / jnp.maximum(visual.sum(), 1)
        raters = text & (mean > mean.sum() / jnp.maximum(text.sum(), 1))
        raters = jnp.where(raters.any(), raters, text)
        return Chosen(state.hidden, state.valid, mean, {"raters": raters}, diagnostics={"raters": raters})


class Recycled(NamedTuple):
    """Dropped tokens as a few merged ones; M rows in falling order of relevance.

    Attributes:
      rows: (M,) int32 slots of the clustered tokens.
      there: (M,) bool.
      density, distance: (M,) float32; exp(-mean of the C smallest squared distances), and to the next denser row.
      centres: (M,) int32 rows of the centres by falling density * distance; the first C count.
      cluster: (M,) int32 number of each row's centre.
      merged: (M, D) float32, the first C count.
      count: () int32 C.
    """

    rows: Int[Array, "M"]
    there: Bool[Array, "M"]
    density: Float[Array, "M"]
    distance: Float[Array, "M"]
    centres: Int[Array, "M"]
    cluster: Int[Array, "M"]
    merged: Float[Array, "M D"]
    count: Int[Array, ""]


def recycle(x: Float[Array, "M D"], there: Bool[Array, "M"], count: Int[Array, ""], rows: Int[Array, "M"]) -> Recycled:
    """Clusters rows by density peaks and averages each cluster.

    Args:
      x: states in falling order of relevance.
      there: rows that take part.
      count: C, at most as many.
      rows: their slots.

    Of equally dense rows the earlier one counts as denser, where the released code draws noise.
    """
    x = x.astype(jnp.float32)
    size, dim = x.shape
    norms = squared_norms(x)
    squared = jnp.maximum(norms[:, None] + norms - 2 * dot_f32(x, x), 0.0) / dim
    squared = jnp.where(jnp.eye(size, dtype=bool), 0.0, squared)
    near = jnp.sort(jnp.where(there, squared, jnp.inf), axis=-1)
    used = jnp.arange(size) < count
    density = jnp.exp(-jnp.sum(jnp.where(used, near, 0.0), axis=-1) / jnp.maximum(count, 1))
    density = jnp.where(there, density, 0.0)
    root = jnp.sqrt(squared)
    distance = separation(root, there, density, break_ties=True)
    centre, rank = centre_mask(jnp.where(there, density * distance, -jnp.inf), count)
    nearest = assign_to_centres(root, centre, rank=rank)
    cluster = jnp.where(there & (count > 0), rank[jnp.minimum(nearest, size - 1)], size)
    sums = jnp.zeros((size + 1, dim), jnp.float32).at[cluster].add(x)[:size]
    members = jnp.zeros(size + 1, jnp.float32).at[cluster].add(1.0)[:size]
    merged = sums / (members[:, None] + 1e-6)
    centres = jnp.zeros(size, jnp.int32).at[rank].set(jnp.arange(size, dtype=jnp.int32))
    return Recycled(rows, there, density, distance, centres, cluster, merged, count)


@dataclasses.dataclass(frozen=True)
class TextRated(CutRule):
    """The visual tokens that the raters attend to most; the best of the others are merged into a few new ones.

    Merged tokens stand behind the kept ones, in front of the text behind the video. A `Raters` stage comes before the
    first of these cuts.

    Attributes:
      flavor: see `Flavor`.
      scale, bias: of `rank`.
      heads: of `plus`, which counts only the heads with the largest ratings, after dividing attention by what the
        rotary embedding alone would give.

    Raises:
      JvidpruneError: a value that its annotation does not allow.
    """

    flavor: Flavor = "lists"
    scale: Positive = 13.5
    bias: NotNegative = 0.0
    heads: Count = 14

    probe: ClassVar[Probe] = "text"

    @property
    def reads_rotary(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With `plus`."""
        return self.flavor == "plus"

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """See the class."""
        if not isinstance(state.side, dict) or "raters" not in state.side:
            raise JvidpruneError("TextRated goes by the raters that a stage with the rule Raters marks before it.")
        visual, size, total = state.visual, state.visual.shape[0], jnp.sum(state.visual)
        ratings = self.ratings(inputs, state)
        raters = jnp.sum(state.text_queries & state.side["raters"][state.source])
        score = ratings.sum(axis=0) / jnp.maximum(raters, 1)
        kept, nothing = inputs.kept, jnp.zeros((), bool)
        if self.flavor in ("rank", "video"):
            values = jnp.linalg.svd(ratings, compute_uv=False)
            rank = jnp.sum(values > values[0] * jnp.maximum(raters, total) * _EPS32)
            wanted = jnp.floor(rank * self.scale + self.bias).astype(jnp.int32) if self.flavor == "rank" else rank
            nothing = rank >= total
            kept = jnp.where(nothing, total, jnp.minimum(wanted, total - 1))
        place = rank_descending(jnp.where(visual, score, -jnp.inf))
        keep = visual & (place < kept)
        record = {"relation": score, "keep": keep}
        if self.flavor == "plus":
            return Chosen(state.hidden, ~visual | keep, score, diagnostics=record)
        dropped = jnp.where(nothing, 0, total - kept)
        most = max((3 * size) // 10 + 1, 1)
        rows = order_descending(jnp.where(visual & ~keep, score, -jnp.inf))[:most]
        there = jnp.arange(most) < jnp.where(dropped > 0, 3 * dropped // 10 + 1, 0)
        count = jnp.where(dropped > 0, (3 * dropped // 10 + 1) // 10 + 1, 0)
        found = recycle(state.hidden[rows], there, count, rows)
        return self._moved(state, keep, score, found, record)

    def ratings(self, inputs: CutInputs, state: TokenState) -> Float[Array, "R S"]:
        """Attention of the raters to the visual tokens, mean over heads; 0 elsewhere."""
        most = inputs.attention.shape[1]
        index, there, _ = pack(state.text_queries, most)
        slots = jnp.minimum(index, state.visual.shape[0] - 1)
        mask = (there & state.side["raters"][state.source[slots]])[:, None] & state.visual
        weights = inputs.attention
        if self.flavor == "plus":
            cos, sin = (part.astype(jnp.float32) for part in inputs.rotary)
            turned = (dot_f32(cos[slots], cos) + dot_f32(sin[slots], sin)) / cos.shape[-1] ** 0.5
            weights = weights / jnp.where(mask, turned, 1.0)
            place = rank_descending(jnp.where(mask, weights, 0.0).sum(axis=(1, 2)))
            chosen = place < min(self.heads, weights.shape[0])
            mean = jnp.where(chosen[:, None, None], weights, 0.0).sum(axis=0) / chosen.sum()
        else:
            mean = weights.mean(axis=0)
        return jnp.where(mask, mean, 0.0)

    @staticmethod
    def _moved(state: TokenState, keep: Array, score: Array, found: Recycled, record: dict[str, Array]) -> Chosen:
        """In front of the video, kept by position, merged by centre, dropped, behind the video."""
        visual, size = state.visual, state.visual.shape[0]
        slots, most = jnp.arange(size), found.rows.shape[0]
        first, last = jnp.argmax(visual), size - 1 - jnp.argmax(visual[::-1])
        # Row of `merged` that a slot becomes, by its cluster's centre.
        number = jnp.where(jnp.arange(most) < found.count, jnp.arange(most), most)
        at = jnp.where(number < most, found.rows[found.centres], size)
        number = jnp.full(size + 1, most, jnp.int32).at[at].set(number.astype(jnp.int32))[:size]
        centre = number < most
        inside = (slots >= first) & (slots <= last) & visual.any()
        stays = jnp.where(visual, keep, state.valid)
        kind = jnp.where(~inside, jnp.where(slots < first, 0, 4), jnp.where(centre, 2, jnp.where(stays, 1, 3)))
        order = jnp.argsort(kind * size + jnp.where(centre, number, slots), stable=True).astype(jnp.int32)
        merged = found.merged[jnp.minimum(number, most - 1)].astype(state.hidden.dtype)
        hidden = jnp.where(centre[:, None], merged, state.hidden)[order]
        survivors = (state.valid & (kind != 3))[order]
        record = record | {name: value for name, value in found._asdict().items() if name != "rows"}
        return Chosen(hidden, survivors, score[order], order=order, diagnostics=record)
