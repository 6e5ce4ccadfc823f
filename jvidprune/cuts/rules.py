"""The rules by which published methods choose tokens inside the language model, one small dataclass a rule.

Each says what it probes (`probe`), how it chooses (`choose`) and, with the `Kept` of its `InnerStage`, what it counts.
Reducers name these rules and know no model; a rule of one's own has the same shape, see `cuts.protocol.CutRule`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.decoding import DecodeMode, DecodePolicy
from jvidprune.cuts.protocol import Chosen, CutInputs, CutRule, DecodeRule, Probe, TokenState
from jvidprune.ops.select import keep_top, order_descending, rank_in_group, rank_of_order
from jvidprune.ops.similarity import dot_f32, squared_norms
from jvidprune.tokens import InnerStage, Kept, NewlineRole


@dataclasses.dataclass(frozen=True)
class LastQueryTopK(CutRule):
    """The visual tokens that the last position attends to most, mean over heads (FastV, arXiv 2403.06764; FlashVID)."""

    probe: ClassVar[Probe] = "last"
    renewable: ClassVar[bool] = True

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """The `kept` largest, equal ones by position."""
        score = inputs.attention[:, 0].mean(axis=0)
        return Chosen(state.hidden, keep_top(score, state.visual, inputs.kept), score)


@dataclasses.dataclass(frozen=True)
class LookAhead(CutRule):
    """The visual tokens that the last position would attend to most in the layer behind the cut, mean over heads.

    PyramidDrop (arXiv 2410.17247): nothing of that layer is cached before the cut.
    """

    probe: ClassVar[Probe] = "ahead"

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """The `kept` largest, equal ones by position."""
        score = inputs.attention[:, 0].mean(axis=0)
        return Chosen(state.hidden, keep_top(score, state.visual, inputs.kept), score)


@dataclasses.dataclass(frozen=True)
class TextAhead(CutRule):
    """The same by the mean over all text queries, which is how PyramidDrop ranks in training."""

    probe: ClassVar[Probe] = "ahead_text"

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """The `kept` largest, equal ones by position; a prompt without text queries is left alone."""
        asked = jnp.sum(state.text_queries)
        rows = jnp.arange(inputs.attention.shape[1]) < asked
        score = jnp.where(rows[:, None], inputs.attention.mean(axis=0), 0.0).sum(axis=0) / jnp.maximum(asked, 1)
        return Chosen(state.hidden, keep_top(score, state.visual, inputs.kept) | (asked == 0), score)


@dataclasses.dataclass(frozen=True)
class BlockOnly(CutRule):
    """The visual tokens of one block alone, whose number is the stage's seed: the probe of arXiv 2512.07580.

    Which block a token is in stands in `Inner.block`; the stage counts the largest block.
    """

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """Seeds are data: windows of one size share a compilation, and a vmap over seeds tries them all."""
        chosen = state.block == inputs.seed
        return Chosen(state.hidden, ~state.visual | chosen, chosen.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class RandomDraw(CutRule):
    """Visual tokens by a draw from the stage's seed: the control of the other rules (arXiv 2512.07580)."""

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """The same seed keeps the tokens of a smaller count in every larger one."""
        score = random_scores(inputs.seed, state.source)
        return Chosen(state.hidden, keep_top(score, state.visual, inputs.kept), score)


@dataclasses.dataclass(frozen=True)
class HalvingMerge(CutRule):
    """The same tokens as `LastQueryTopK`; every dropped one is halved into its most similar kept one (HoliTom)."""

    probe: ClassVar[Probe] = "last"

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """See `halving_merge`."""
        score = inputs.attention[:, 0].mean(axis=0)
        merged, survivors = halving_merge(state.hidden, score, state.visual, inputs.kept)
        return Chosen(merged, survivors, score)


@dataclasses.dataclass(frozen=True)
class TextInBlocks(CutRule):
    """A share of every block, by the largest attention of any text token in any head (PruneVid, arXiv 2412.16117)."""

    newlines: NewlineRole = dataclasses.field(default="never", kw_only=True)

    probe: ClassVar[Probe] = "text"
    in_blocks: ClassVar[bool] = True

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """See `top_in_blocks`; rows behind the last text query do not count."""
        rows, visual = jnp.arange(inputs.attention.shape[1]) < jnp.sum(state.text_queries), state.visual
        score = text_relevance(jnp.where(rows[:, None], inputs.attention, 0.0))
        return Chosen(state.hidden, ~visual | top_in_blocks(score, state.block, visual, inputs.table), score)


@dataclasses.dataclass(frozen=True)
class Told(Kept):
    """A number that a rule is told, and no token leaves: for rules that give keys a bias."""

    def left(self, n: int, prompt: int | None = None, text: int = 0) -> int:
        """All of them."""
        return n


@dataclasses.dataclass(frozen=True)
class MarkedCount(Kept):
    """As many as are marked: not known before, so that nothing is moved."""

    @property
    def bounded(self) -> bool:
        """No."""
        return False

    def left(self, n: int, prompt: int | None = None, text: int = 0) -> int:
        """A bound."""
        return n


@dataclasses.dataclass(frozen=True)
class Marked(CutRule):
    """The visual tokens that a method chose before the language model; their blocks have odd numbers (DSTP-like).

    What renews the choice is the attention of the last position, which is the score.
    """

    newlines: NewlineRole = dataclasses.field(default="never", kw_only=True)

    probe: ClassVar[Probe] = "last"
    in_blocks: ClassVar[bool] = True
    renewable: ClassVar[bool] = True

    def choose(self, inputs: CutInputs, state: TokenState) -> Chosen:
        """Those and the text."""
        score = inputs.attention[:, 0].mean(axis=0)
        return Chosen(state.hidden, ~state.visual | (state.block % 2 == 1), score)


@dataclasses.dataclass(frozen=True)
class DynamicDecode(DecodeRule):
    """Deep layers read, at every decoding step, the cached video tokens attended to most (DyCoke, arXiv 2411.15024).

    The attention is that of the new token in the layer before the stage's.

    Attributes:
      threshold: cosine of successive attentions below which the set is renewed.
      mode: see `decode_policy.choose_reading`.
    """

    threshold: float = 0.9
    mode: DecodeMode = "official"

    def policy(self, stage: InnerStage, visual: Bool[np.ndarray, "B S"]) -> DecodePolicy:
        """See `DecodePolicy.create`."""
        return DecodePolicy.create(stage.layer, stage.kept, visual, threshold=self.threshold, mode=self.mode)


def random_scores(seed: int | Int[Array, ""], source: Int[Array, "S"]) -> Float[Array, "S"]:
    """A uniform draw for each token, by its place in the prompt: padding and earlier cuts change nothing."""
    key = jax.random.key(seed)
    return jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(source)


def halving_merge(
    hidden: Float[Array, "L D"],
    attention: Float[Array, "L"],
    visual: Bool[Array, "L"],
    keep: int | Int[Array, ""],
) -> tuple[Float[Array, "L D"], Bool[Array, "L"]]:
    """Keeps the most attended visual tokens and halves every other one into its most similar kept token.

    HoliTom's merging inside the language model (arXiv 2505.21334) as released: the dropped tokens are taken in
    ascending order and each replaces its centre h_c by (h_c + h_o) / 2, so the last of M members weighs 1/2 and the
    centre 2^-M, where the paper describes a plain similarity merge. Similarities are taken before any merging; of
    equally similar centres the one with more attention wins.

    Args:
      hidden: (L, D) hidden states after the probed layer.
      attention: (L,) attention of the last query row, mean over heads.
      visual: (L,) the visual tokens, newline vectors included.
      keep: visual tokens to keep, round(n * (1 - R)) with ties to even; traced or not. With 0 all are dropped.

    Returns:
      merged: (L, D) in the dtype of `hidden`, unchanged but for the centres; survivors: (L,) bool.
    """
    length = hidden.shape[0]
    index = jnp.arange(length, dtype=jnp.int32)
    order = order_descending(jnp.where(visual, attention.astype(jnp.float32), -jnp.inf))
    centre = visual & (rank_of_order(order) < keep)
    other = visual & ~centre
    norm = jnp.sqrt(squared_norms(hidden))
    # The norm of the row cannot change which centre is nearest; leaving it out gives all-zero tokens a defined one.
    cosine = dot_f32(hidden, hidden) / jnp.where(norm > 0, norm, 1.0)[None, :]
    by_rank = jnp.where(centre[order][None, :], cosine[:, order], -jnp.inf)
    first = jnp.min(jnp.where(by_rank == by_rank.max(axis=-1, keepdims=True), index, length), axis=-1)
    target = jnp.where(other & centre.any(), order[jnp.minimum(first, length - 1)], length)
    members = jnp.zeros(length + 1, jnp.int32).at[target].add(1)[:length]
    from_end = rank_in_group(index, target).astype(jnp.float32)
    states = hidden.astype(jnp.float32)
    shares = jnp.exp2(-(from_end + 1.0))[:, None] * states
    total = jnp.zeros((length + 1, hidden.shape[1]), jnp.float32).at[target].add(shares)[:length]
    merged = jnp.where(centre[:, None], states * jnp.exp2(-members.astype(jnp.float32))[:, None] + total, states)
    return merged.astype(hidden.dtype), ~other


def text_relevance(attention: Float[Array, "heads queries K"]) -> Float[Array, "K"]:
    """Largest attention that any text token pays to each visual token in any head (PruneVid, arXiv 2412.16117)."""
    return attention.astype(jnp.float32).max(axis=(0, 1))


def top_in_blocks(
    relevance: Float[Array, "K"], block: Int[Array, "K"], valid: Bool[Array, "K"], quota: Int[Array, "Q"]
) -> Bool[Array, "K"]:
    """The most relevant tokens of every block, as PruneVid's second stage keeps them.

    The paper keeps one global share of all tokens; the released code keeps a share of every block, a block being the
    static tokens of a segment or the dynamic tokens of one frame.

    Args:
      relevance: (K,) score of each visual token.
      block: (K,) block id of each token, in 0..K-1.
      valid: (K,) tokens that exist.
      quota: quota[n] tokens are kept of a block of n, int(n * share) from the host; Q > K.
    """
    size = relevance.shape[0]
    group = jnp.where(valid, block, size)
    count = jnp.zeros(size + 1, jnp.int32).at[group].add(1)
    return valid & (rank_in_group(relevance, group) < quota[count[group]])
