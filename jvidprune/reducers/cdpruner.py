"""CDPruner: the most diverse tokens given the question, by a determinantal point process (arXiv 2506.10967).

v = x / |x|; rho is how much a token has to do with the question.

1. r = (rho - min + 1e-6) / (max - min), in (0, 1].
2. Kernel L_ij = r_i cos(x_i, x_j) r_j of each frame: relevance on its diagonal, likeness beside it.
3. Greedy MAP: take j = argmax d, d = diag L less what the picks explain (an incremental Cholesky factor), k times.
4. The k picks of every frame stay, unchanged, in order of position.

The order of the picks does not depend on k: one scan serves every ratio. Two implementations are reproduced: the
authors' (`Theia-4869/CDPruner`, commit 9541616), whose rho needs a text tower that shares its space with the vision
tower, and the one in OpenVINO GenAI (commit da1db86), whose rho compares tokens with the question's own embeddings.

>>> import jvidprune
>>> from jvidprune.synthetic import synthetic_tokens
>>> jvidprune.reduce(jvidprune.reducers.get("cdpruner"), synthetic_tokens(grid=(6, 6)), 0.25).count.item()
72
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.fields import Share
from jvidprune.ops import compact
from jvidprune.ops.select import first_argmax
from jvidprune.ops.similarity import frame_gram, normalise, over_frames, squared_norms
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.counts import CountedReducer, half_up
from jvidprune.reducers.protocol import MethodInfo
from jvidprune.tokens import Layout, Plan, VideoTokens

EPS = 1e-6
TINY = 1e-10
"""Gain below which a token adds nothing but rounding: such tokens are taken by index and explain nothing."""


class CDPrunerBudget(NamedTuple):
    """int32 scalar: tokens kept of each frame, or of the video."""

    keep: Any


class CDPrunerShared(NamedTuple):
    """Ratio-independent work on F lists of M tokens (the frames, or the video), each in H parts (2 where it is split).

    Attributes:
      order: (F, H, k) int32 picks of each part in order, places in the list.
      gain: (F, H, k) float32 what each pick adds, the factor of the determinant.
      part: (F, H, M) bool the real tokens of each part.
      relevance: (F, M) float32 r.
    """

    order: Int[Array, "F H k"]
    gain: Float[Array, "F H k"]
    part: Bool[Array, "F H M"]
    relevance: Float[Array, "F M"]


@dataclasses.dataclass(frozen=True)
class CDPruner(CountedReducer):
    """Greedy MAP of a kernel that joins relevance to the question and diversity.

    k = floor(ratio * N + 1/2), at least 1.
    Where the released code fails the port goes on: tokens that add nothing are taken by index (it repeats picks and
    keeps fewer), equal relevances all count 1 (it keeps two tokens), a zero token is like nothing.

    Attributes:
      variant: whose arithmetic. `llm_embedding` is OpenVINO GenAI's: kernel (1 - w) S + w r S r, minimum and maximum of
        rho inside each part, norms and ranges with 1e-6 added. `official` is the authors': kernel r S r, one minimum
        and maximum over all frames.
      relevance: where rho comes from. `text`: cosine with the mean of the question's embeddings (evidence "text";
        OpenVINO GenAI averages the prompt's template too). `joint`: minus the mean cosine with `joint_text` of
        `joint_image`, as CLIP's patches have it. `given`: the evidence "relevance" as it is.
      sign: of the cosine of `joint`: `minus` as released for CLIP's patches, which point away from their text; `plus`
        for tokens on the text's own side. No code says which holds for SigLIP.
      weight: w of `llm_embedding`, in [0, 1].
      kernel: `mixed` as above, or OpenVINO GenAI's fall-back path `exponential`: r becomes exp(w r / (2 (1 - w))), then
        r S r: another function. Only for `llm_embedding`.
      split: cut the list into two halves with a kernel each, k // 2 picks from the first. Only for `llm_embedding`.
      scope: every `frame` by itself, or all frames of the `video` as one list.
      range: minimum and maximum over `all` frames or of `each`. Only for `official`.
    """

    variant: Literal["llm_embedding", "official"] = "llm_embedding"
    relevance: Literal["text", "joint", "given"] = "text"
    sign: Literal["minus", "plus"] = dataclasses.field(default="minus", kw_only=True)
    weight: Share = 0.5
    kernel: Literal["mixed", "exponential"] = "mixed"
    split: bool = True
    scope: Literal["frame", "video"] = "frame"
    range: Literal["all", "each"] = "all"

    rounding = staticmethod(half_up)

    reads_text_mask = True

    @property
    def needs(self) -> frozenset[str]:
        """What the relevance is made from."""
        given = {"text": ("text",), "joint": ("joint_image", "joint_text"), "given": ("relevance",)}
        return frozenset(given[self.relevance])

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> CDPrunerShared:
        """Relevance and the order of the picks, as many as the capacity has room for; a sink rule has no place here."""
        frames, n, dim = video.features.shape
        lists, size = (frames, n) if self.scope == "frame" else (1, frames * n)
        real = jnp.broadcast_to(video.frame_mask[:, None], (frames, n)).reshape(lists, size)
        half = jnp.sum(real, axis=1, keepdims=True) // 2
        first = jnp.arange(size) < half
        part = real[:, None] if self.parts == 1 else jnp.stack([real & first, real & ~first], axis=1)

        rho = self._rho(video).reshape(lists, size)
        relevance = self._scaled(rho, part)
        gram = frame_gram(video.features.reshape(lists, size, dim))
        square = jnp.diagonal(gram, axis1=1, axis2=2)
        norm = jnp.sqrt(square + EPS) if self.variant == "llm_embedding" else jnp.sqrt(square)
        scale = jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 0.0)
        own = capacity // lists
        steps = min(size, -(-own // 2) if self.parts == 2 else own)
        strength, weight, added = relevance, 1.0, 0.0
        if self.variant == "llm_embedding":
            weight, added = self.weight, EPS
            if self.kernel == "exponential" and self.weight < 1.0:
                strength, weight = jnp.exp(self.weight / (2.0 * (1.0 - self.weight)) * relevance), 1.0
        order, gain = greedy_map(gram, scale, strength, part, steps=steps, weight=weight, added=added)
        return CDPrunerShared(order, gain, part, relevance)

    def decide(self, shared: CDPrunerShared, budget: CDPrunerBudget, *, capacity: int) -> Plan:
        """The first picks of every part, ascending by id."""
        lists, parts, steps = shared.order.shape
        keep = jnp.asarray(budget.keep, jnp.int32)
        share = jnp.stack([keep // 2, keep - keep // 2]) if parts == 2 else keep[None]
        taken = jnp.arange(steps) < share[:, None]
        at = jnp.arange(lists)[:, None, None], jnp.arange(parts)[None, :, None], shared.order
        kept = jnp.zeros(shared.part.shape, bool).at[at].max(jnp.broadcast_to(taken, shared.order.shape))
        kept = jnp.any(kept & shared.part, axis=1)
        diagnostics = {"order": shared.order, "gain": shared.gain, "relevance": shared.relevance}
        plan = compact.selection_plan(kept.reshape(-1), capacity, diagnostics)
        # Too small a capacity also shortens the order: the count still tells what was asked for.
        return plan._replace(count=keep * jnp.sum(jnp.any(shared.part, axis=(1, 2)), dtype=jnp.int32))

    @property
    def parts(self) -> int:
        """2 where each list is split, else 1."""
        return 2 if self.split and self.variant == "llm_embedding" else 1

    def _rho(self, video: VideoTokens) -> Float[Array, "T N"]:
        """What a token has to do with the question, unscaled."""
        if self.relevance == "given":
            return video.evidence["relevance"].astype(jnp.float32)
        if self.relevance == "joint":
            image, text = video.evidence["joint_image"], video.evidence["joint_text"]
            each = normalise(text, TINY)
            unit = normalise(image, TINY)
            cosine = jnp.mean(jnp.einsum("tnc,mc->tnm", unit, each, precision=lax.Precision.HIGHEST), axis=-1)
            return cosine if self.sign == "plus" else -cosine
        text = _mean_row(video.evidence["text"].astype(jnp.float32), video.evidence.get("text_mask"))
        text = text / jnp.sqrt(squared_norms(text) + EPS)

        def frame(tokens: Array) -> Array:
            tokens = tokens.astype(jnp.float32)
            return jnp.sum(tokens * text, axis=-1) / jnp.sqrt(squared_norms(tokens) + EPS)

        return over_frames(frame, video.features)

    def _scaled(self, rho: Float[Array, "F M"], part: Bool[Array, "F H M"]) -> Float[Array, "F M"]:
        """r: rho between its minimum and maximum over what the variant looks at."""
        axes = (0, 1, 2) if self.variant == "official" and self.range == "all" else (2,)
        low = jnp.min(jnp.where(part, rho[:, None], jnp.inf), axis=axes, keepdims=True)
        high = jnp.max(jnp.where(part, rho[:, None], -jnp.inf), axis=axes, keepdims=True)
        above, span = rho[:, None] - low, high - low
        if self.variant == "official":
            scaled = jnp.where(span > 0, (above + EPS) / jnp.where(span > 0, span, 1.0), 1.0)
        else:
            scaled = above / (span + EPS)
        return jnp.sum(jnp.where(part, scaled, 0.0), axis=1)

    def budget(self, layout: Layout, ratio: float) -> CDPrunerBudget:
        """k of each frame, or of the video."""
        return CDPrunerBudget(np.int32(self.keep_for(layout, ratio)))

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """Similarities of all pairs, the greedy recursion, and the relevance where it is worked out here."""
        lists = layout.frames if self.scope == "frame" else 1
        size = layout.total // lists
        picks = int(self.budget(layout, ratio).keep)
        # Each part of a list takes its share of the picks, and both look at all of the list.
        steps = lists * (picks / self.parts) ** 2 * size * self.parts
        terms = {"similarities": 2.0 * lists * size**2 * width, "selection steps": steps}
        return terms | ({"relevance": 4.0 * layout.total * width} if self.relevance == "text" else {})

    # The authors publish LLaVA-1.5 and 1.6 for images, OpenVINO GenAI its defaults for Qwen.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"qwen2_5_vl": {}, "qwen3_vl": {}}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="cdpruner",
        title="CDPruner",
        paper="2506.10967",
        summary="Keeps tokens of each frame that are relevant to the question and unlike each other.",
        nested=True,
        merges=False,
        exact=True,
        quirks=(
            "without a text tower the relevance and the kernel are OpenVINO GenAI's, from the question's embeddings "
            "(variant='official', relevance='joint' for the authors')",
            "each half of a frame is pruned separately (split=False)",
            "the authors' relevance is minus the cosine, scaled over all frames together (range='each')",
        ),
    )


def _mean_row(text: Float[Array, "L D"], mask: Bool[Array, "L"] | None) -> Float[Array, "D"]:
    """The mean of the rows that are no padding."""
    if mask is None:
        return jnp.mean(text, axis=0)
    return jnp.sum(jnp.where(mask[:, None], text, 0.0), axis=0) / jnp.sum(mask)


def greedy_map(
    gram: Float[Array, "F M M"],
    scale: Float[Array, "F M"],
    strength: Float[Array, "F M"],
    part: Bool[Array, "F H M"],
    *,
    steps: int,
    weight: float = 1.0,
    added: float = 0.0,
) -> tuple[Int[Array, "F H k"], Float[Array, "F H k"]]:
    """Greedy maximum of det L over subsets of each part, L = ((1 - w) + w s_i s_j) * cos(x_i, x_j).

    A step reads one row of the Gram matrix and the rows of the factor that are there.

    Args:
      gram: inner products of the tokens of each list.
      scale: one over their norms.
      strength: s of each token.
      part: tokens that each part may take.
      steps: static number k of picks.
      weight: w.
      added: under the root of a pick's gain, and the size below which a coefficient of its row is passed over.

    Returns:
      order (F, H, k) int32 and gain (F, H, k) float32.
    """
    lists, parts, size = part.shape
    places, which = jnp.arange(size, dtype=jnp.int32), jnp.arange(lists)[:, None]

    def joined(left: Array, right: Array) -> Array:
        return (1.0 - weight) + weight * left * right

    def step(state: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        left, factor = state
        # What is left below rounding ties, and the lowest index wins; taken tokens are at -inf.
        score = jnp.where(left == -jnp.inf, left, jnp.maximum(left, TINY))
        pick = first_argmax(score)
        gain = jnp.take_along_axis(left, pick[..., None], axis=-1)[..., 0]
        own, mine = (jnp.take_along_axis(values, pick, axis=1)[..., None] for values in (scale, strength))
        row = gram[which, pick] * own * scale[:, None] * joined(mine, strength[:, None])
        known = jnp.take_along_axis(factor, pick[..., None, None], axis=-1)[..., 0]
        if added:
            known = jnp.where(jnp.abs(known) < added, 0.0, known)
        row = row - jnp.einsum("fhk,fhkm->fhm", known, factor, precision=lax.Precision.HIGHEST)
        useful = gain > TINY
        new = jnp.where(useful[..., None], row / jnp.sqrt(jnp.where(useful, gain + added, 1.0))[..., None], 0.0)
        factor = lax.dynamic_update_index_in_dim(factor, new, t, axis=2)
        left = jnp.where(places == pick[..., None], -jnp.inf, left - new * new)
        return (left, factor), (pick, gain)

    diagonal = jnp.diagonal(gram, axis1=1, axis2=2) * scale * scale * joined(strength, strength)
    start = jnp.where(part, diagonal[:, None], -jnp.inf), jnp.zeros((lists, parts, steps, size), jnp.float32)
    _, (order, gain) = lax.scan(step, start, jnp.arange(steps))
    return jnp.moveaxis(order, 0, -1), jnp.moveaxis(gain, 0, -1)
