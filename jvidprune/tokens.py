"""The nouns of jvidprune: a video becomes tokens with evidence, a plan decides, reduced tokens come out."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Index, Share, check_fields, checked
from jvidprune.weights import Weights

EVIDENCE: dict[str, str] = {
    "attention_last": "(T, N) attention received by each token in the last block of the tower that runs: softmax in "
    "float32, mean over heads, mean over queries, pooled like the features, not renormalised",
    "attention_pooling_head": "(T, N) attention of the tower's pooling-head probe over the tokens, mean over heads, "
    "pooled like the features (SigLIP's own head; FastVID on LLaVA); that of the class token where a tower has one "
    "(InternVL)",
    "attention_mean_query": "(T, N) softmax of the frame's mean query against the mean key of each merge unit in the "
    "last block, mean over heads (FastVID on Qwen2.5-VL)",
    "attention_shallow": "(T, M) attention received in a shallow block on the grid before pooling, summed over "
    "queries, mean over heads (AOT: 0-based block 5 of SigLIP)",
    "attention_deep": "(T, M) the same for a deep block (AOT: the last block but one)",
    "keys": "(T, N, Dk) unscaled keys of the last block, mean over heads, pooled like the features (VisionZip)",
    "features_unpooled": "(T, M, D) projected features before spatial pooling (AOT)",
    "frame_embedding": "(T, Df) one vector a frame: output of the tower's pooling head or class token, or the "
    "mean token",
    "tower_state": "(T, Mv, Dv) output of the tower's block whose windows are scored (STTS)",
    "tower_scores": "(T, P) float32 the scorer's scores of the windows (STTS)",
    "tower_input": "(T, Mv, Dv) patches with positions, what enters the tower's blocks (STTS's heuristics)",
    "features_deepstack": "(T, N, S, D) the DeepStack levels that Qwen3-VL adds after its first S decoder layers",
    "text": "(L, D) embeddings of the question's tokens",
    "text_mask": "(L,) bool the rows of text that are no padding; where it is missing, none are",
    "joint_image": "(T, N, C) tokens in a space that the vision tower shares with a text tower (CDPruner)",
    "joint_text": "(S, C) the question's segments in the same space (CDPruner)",
    "attention_columns": "(T, P) attention received by every patch in the last block, mean over heads, summed over "
    "queries, in the tower's own order: the four patches of a token are neighbours (qwen_norm's first version)",
    "relevance": "(T, N) what each token has to do with the question, in any unit, larger for more (CDPruner)",
    "newline": "(D,) the model's newline vector, for a reducer in which row newlines take part as tokens (AOT)",
}
"""Every kind of evidence a model can attach to its tokens; the list is closed, reducers ask by these names."""

QUESTION = frozenset({"text", "text_mask", "joint_text"})
"""Evidence that comes with a question and not from the video, see `VideoTokens.with_text`."""

AttentionName = Literal[
    "attention_last", "attention_pooling_head", "attention_mean_query", "attention_shallow", "attention_deep"
]
"""The maps of `EVIDENCE` that tokens can be ranked by."""


class Layout(NamedTuple):
    """The static shape facts that budgets are made from.

    Attributes:
      frames: number of real frames (temporal patches for the Qwen families), padding excluded.
      grid: (h, w) tokens of a frame after spatial pooling or merging.
      unpooled_grid: (h, w) before pooling, or None where the model has no such grid.
      padded_frames: T of the arrays where padding frames follow the real ones; None without padding. Budgets that
        hold tables indexed by a number of frames size them by `slots`, so that the budgets of a batch stack.
    """

    frames: int
    grid: tuple[int, int]
    unpooled_grid: tuple[int, int] | None = None
    padded_frames: int | None = None

    @property
    def slots(self) -> int:
        """Frames of the arrays, padding included."""
        return self.frames if self.padded_frames is None else self.padded_frames

    @property
    def tokens(self) -> int:
        """Tokens of one frame."""
        return self.grid[0] * self.grid[1]

    @property
    def total(self) -> int:
        """Tokens of the whole video."""
        return self.frames * self.tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VideoTokens:
    """The visual tokens of one video (or, with a leading axis on every array, of a batch).

    Attributes:
      features: (T, N, D) tokens in the width of the language model, raster order inside a frame; bf16 or float32.
      evidence: what a reducer may rank by, keyed by the names of `EVIDENCE`.
      frame_mask: (T,) bool, False on padding frames; real frames come first.
      grid: (h, w) with h * w = N; static.
      unpooled_grid: (h, w) of `features_unpooled`, or None; static.
    """

    features: Float[Array, "T N D"]
    evidence: dict[str, Array]
    frame_mask: Bool[Array, "T"]
    grid: tuple[int, int] = dataclasses.field(metadata={"static": True})
    unpooled_grid: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def create(
        cls,
        features: Any,
        evidence: Mapping[str, Any] | None = None,
        *,
        grid: tuple[int, int] | None = None,
        frame_mask: Any | None = None,
        unpooled_grid: tuple[int, int] | None = None,
    ) -> "VideoTokens":
        """Builds checked tokens from arrays.

        Args:
          features: (T, N, D).
          evidence: arrays by name, of the shapes of `EVIDENCE`.
          grid: (h, w); by default the square root of N.
          frame_mask: (T,) bool, by default all True.
          unpooled_grid: (h, w) of the tokens before pooling.

        Raises:
          JvidpruneError: wrong rank, a grid that does not multiply to N, an unknown evidence name, or evidence or a
            frame mask of another shape.
        """
        features = jnp.asarray(features)
        if features.ndim != 3:
            raise JvidpruneError(f"features must have shape (frames, tokens, dim), got {features.shape}.")
        frames, tokens, dim = features.shape
        if grid is None:
            side = round(tokens**0.5)
            grid = (side, side)
        if grid[0] * grid[1] != tokens:
            raise JvidpruneError(
                f"grid {grid[0]}x{grid[1]} has {grid[0] * grid[1]} cells, but a frame has {tokens} tokens."
            )
        sizes = {"T": frames, "N": tokens, "D": dim}
        if unpooled_grid is not None:
            sizes["M"] = unpooled_grid[0] * unpooled_grid[1]
        arrays = {name: jnp.asarray(value) for name, value in (evidence or {}).items()}
        for name, value in arrays.items():
            _check_evidence(name, value.shape, sizes)
        mask = jnp.ones(frames, bool) if frame_mask is None else jnp.asarray(frame_mask, bool)
        if mask.shape != (frames,):
            raise JvidpruneError(f"the frame mask must have shape ({frames},), got {mask.shape}.")
        # Grids are static jit data: lists would not hash.
        wide = None if unpooled_grid is None else (unpooled_grid[0], unpooled_grid[1])
        return cls(features, arrays, mask, (grid[0], grid[1]), wide)

    def with_text(self, text: Any, text_mask: Any | None = None) -> "VideoTokens":
        """The same tokens with the embeddings of a question, for methods that read "text".

        Args:
          text: (L, D) in the width of the tokens; of a batch (B, L, D), one question a video.
          text_mask: (L,) or (B, L) bool, False on padding rows; by default all rows are the question's.

        Raises:
          JvidpruneError: another shape, or a question without any row.
        """
        lead, dim = self.features.shape[:-3], self.features.shape[-1]
        text = jnp.asarray(text)
        if text.shape[:-2] != lead or text.ndim != len(lead) + 2 or text.shape[-1] != dim or text.shape[-2] == 0:
            axes = ", ".join([*map(str, lead), "L", str(dim)])
            raise JvidpruneError(f"the embeddings of a question must have shape ({axes}), got {text.shape}.")
        evidence = {name: value for name, value in self.evidence.items() if name not in QUESTION} | {"text": text}
        if text_mask is not None:
            mask = jnp.asarray(text_mask, bool)
            if mask.shape != text.shape[:-1]:
                raise JvidpruneError(f"text_mask must have shape {text.shape[:-1]} as text has rows, got {mask.shape}.")
            asked = jnp.all(jnp.any(mask, axis=-1))
            if not isinstance(asked, Tracer) and not asked:
                raise JvidpruneError("text_mask must leave every question at least one row, got one without any.")
            evidence |= {"text": jnp.where(mask[..., None], text, 0), "text_mask": mask}
        return dataclasses.replace(self, evidence=evidence)

    def layout(self, frames: int | None = None) -> Layout:
        """The static facts a budget is made from; `frames` is the number of real frames where padding follows them."""
        padded = self.features.shape[-3]
        if frames is None:
            return Layout(padded, self.grid, self.unpooled_grid)
        return Layout(frames, self.grid, self.unpooled_grid, padded)


def _check_evidence(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> None:
    """Refuses evidence whose shape is not what the first words of its entry in `EVIDENCE` say."""
    if name not in EVIDENCE:
        raise JvidpruneError(f"unknown evidence {name!r}; known: {', '.join(EVIDENCE)}.")
    axes = EVIDENCE[name].partition(")")[0].strip("(,").split(", ")
    wanted = [sizes.get(axis) for axis in axes]
    fits = len(shape) == len(wanted) and all(want in (None, side) for want, side in zip(wanted, shape, strict=True))
    if not fits:
        text = ", ".join(axis if want is None else str(want) for axis, want in zip(axes, wanted, strict=True))
        raise JvidpruneError(f"evidence {name!r} must have shape ({text}), got {shape}.")


class Plan(NamedTuple):
    """What a reducer decided, independent of D: one plan reduces features, position ids and DeepStack levels alike.

    Shapes: K static capacity, A static slots (targets a token may contribute to; 0 for methods that only select).

    Attributes:
      ids: (K,) int32 global id frame * N + token of each output row, T * N on padding.
      valid: (K,) bool, a prefix mask.
      count: () int32, rows the method asked for. It is not clipped to K, so count > K tells of too small a capacity.
      is_pick: (K,) bool, the row copies token `ids[row]` verbatim instead of summing contributions.
      row: (A, T * N) int32 output row that a token contributes to, K for none.
      weight: (A, T * N) float32 weight of the token in that row.
      diagnostics: what the method can show (segments, scores, transport plans); small arrays by name.
    """

    ids: Int[Array, "K"]
    valid: Bool[Array, "K"]
    count: Int[Array, ""]
    is_pick: Bool[Array, "K"]
    row: Int[Array, "A M"]
    weight: Float[Array, "A M"]
    diagnostics: dict[str, Array]


class Reduced(NamedTuple):
    """Fewer tokens, padded to a static capacity K; valid rows come first, in the method's own output order.

    Attributes:
      tokens: (K, D) in the input dtype, zeros on padding.
      index: (K,) int32 frame * N + token of each row, T * N on padding.
      valid: (K,) bool.
      mass: (K,) int32 number of source tokens that went into the row, 0 on padding.
      slot: (T * N,) int32 row each source token went to, -1 where it was dropped; a token that contributes to several
        rows is listed with its own row if it was kept, else with the one that takes most of it (of a transport), or the
        first. A token with a row that is not its own is called merged. Where tokens are transported with weights `mass`
        counts them in the rows that they are listed with.
      diagnostics: empty unless asked for.
    """

    tokens: Float[Array, "K D"]
    index: Int[Array, "K"]
    valid: Bool[Array, "K"]
    mass: Int[Array, "K"]
    slot: Int[Array, "M"]
    diagnostics: dict[str, Array]

    @property
    def count(self) -> Int[Array, ""]:
        """Number of valid rows."""
        return self.valid.sum(-1)


def place_fates(index: np.ndarray, slot: np.ndarray) -> tuple[int, int, int]:
    """How many places of a video are kept, merged into a kept one, and dropped; together all of them.

    Args:
      index: (R,) place of each valid output row, as `Reduced.index`; a place with several rows counts once.
      slot: (T * N,) as `Reduced.slot`.
    """
    kept = np.zeros(len(slot), bool)
    kept[index] = True
    gone = slot < 0
    return int(kept.sum()), int((~gone & ~kept).sum()), int((gone & ~kept).sum())


Budget = Any
"""A NamedTuple of int32 scalars, one type a method, made on the host and traced from there on."""


def stack_budgets(budgets: list[Budget]) -> Budget:
    """Stacks budgets on a new leading axis, ready to be vmapped over; on the host unless they hold arrays of jax."""

    def stack(*leaves: Any) -> Any:
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return jnp.stack([jnp.asarray(leaf) for leaf in leaves])
        return np.stack([np.asarray(leaf) for leaf in leaves])

    return jax.tree.map(stack, *budgets)


Rounding = Literal["ceil", "round", "floor"]
"""Of a share of n tokens: up, to the nearest with halves to the even number as Python has it, or down."""

NewlineRole = Literal["layout", "never", "always"]
"""Whether newline embeddings are cut like video tokens: as their layout has it, never, or always."""

CutPositions = Literal["keep", "renumber", "renumber_prompt"]
"""Rotary positions behind a cut: every token keeps its own, or the tokens that stay count from 0 again.

Generated tokens go on from there without a gap with "renumber", and from the end of the uncut prompt with
"renumber_prompt".
"""

CutWhere = Literal["before", "middle"]
"""Whether a cut stands before its layer, or inside it between the attention branch and the MLP."""

_ROUNDINGS = {"ceil": math.ceil, "round": round, "floor": int}


@dataclasses.dataclass(frozen=True)
class Kept:
    """How many visual tokens stay at a cut; counted on the host in Python's float64, never from a traced ratio.

    Attributes:
      share: of n tokens, in [0, 1].
      rounding: of n * share.
      number: a fixed number that stays instead, where there are as many.
      of: what n counts: "now" the visual tokens in front of this cut, "prompt" those of the prompt before any cut (of
        which no more stay than there are; PyramidDrop, arXiv 2410.17247).

    Raises:
      JvidpruneError: a value out of range.
    """

    share: Share = 1.0
    rounding: Rounding = "ceil"
    number: Index | None = None
    of: Literal["now", "prompt"] = "now"

    def __post_init__(self) -> None:
        check_fields(self)

    def count(self, n: int, prompt: int | None = None) -> int:
        """How many of n tokens in front of a cut stay.

        Args:
          n: the tokens.
          prompt: visual tokens of the prompt, for counts of these; by default n.
        """
        if self.number is not None:
            return min(self.number, n)
        whole = prompt if self.of == "prompt" and prompt is not None else n
        return min(_ROUNDINGS[self.rounding](whole * self.share), n)

    def left(self, n: int, prompt: int | None = None, text: int = 0) -> int:
        """Visual tokens behind a cut, merged ones that a rule adds included; a bound where the rule counts on the way.

        Args:
          n, prompt: as for `count`.
          text: text tokens of the prompt that can rank visual ones.
        """
        return self.count(n, prompt)

    @property
    def layer_share(self) -> float | None:
        """Share of all tokens times layers that a method spends, where its cuts go by such a budget; else None."""
        return None

    @property
    def bounded(self) -> bool:
        """Whether `left` may be less than all: if not, the cut only marks what it drops, and a later one gathers."""
        return True

    def table(self, most: int, prompt: int | None = None) -> Int[np.ndarray, "Q"]:
        """(most + 1,) int32, what a rule is told of every number of tokens from 0 to `most`: `count` of it."""
        return np.asarray([self.count(n, prompt) for n in range(most + 1)], np.int32)


@dataclasses.dataclass(frozen=True)
class StageRule:
    """What a stage inside the language model does: a small frozen dataclass, hashable and static under jit.

    This base says what is asked of it outside the models. In `cuts.protocol`, `CutRule` chooses tokens of the prompt at
    a cut and `DecodeRule` acts at every decoding step; `cuts.rules` holds those of the published methods.

    Attributes:
      newlines: whether newline embeddings count as visual tokens.
      trims: whether the KV caches of the layers in front of the cut lose the dropped tokens too (PruneVid).
      by_frame: whether the block of a token is its frame, and counts are those of frames (VideoLLM-MoD).
    """

    newlines: NewlineRole = dataclasses.field(default="layout", kw_only=True)
    trims: bool = dataclasses.field(default=False, kw_only=True)
    by_frame: bool = dataclasses.field(default=False, kw_only=True)

    cuts: ClassVar[bool] = True
    """Whether tokens of the prompt are dropped."""
    in_blocks: ClassVar[bool] = False
    """Whether counts are those of the blocks that a reducer names in its plan's `diagnostics["block"]`."""
    by_place: ClassVar[bool] = False
    """Whether the block of a token is its place in its frame instead, one number in all frames of a video."""

    def held(self, slots: int, width: int, itemsize: int) -> int:
        """Bytes that the stage puts aside for a later one, of one prompt.

        Args:
          slots: of the prompt, padding included.
          width: of the language model.
          itemsize: bytes of one number of a hidden state.
        """
        return 0


@dataclasses.dataclass(frozen=True)
class InnerStage:
    """One stage inside the language model, declared as data: the decoder runs it, the reducer only carries it.

    A cut stands between two decoder layers: layers before `layer` see every position, `layer` and those after it see
    the kept ones. Text is always kept, each stretch of layers has its own length of KV cache, and nothing is cut during
    decoding. Several stages make a schedule. The one exception is a rule that acts while decoding (DyCoke), which
    leaves the prompt alone. A rule that routes drops nothing either: its stage is one layer that some tokens pass by.

    Attributes:
      layer: 0-based index of the first decoder layer after the cut, or of the routed layer; a layer beyond the last one
        means no cut.
      rule: what is chosen, and by what; one of `cuts.rules` or a user's own.
      kept: how many visual positions stay.
      positions: whether the tokens behind the cut keep their rotary positions or count from 0 again ("renumber").
      seed: of a rule that draws.
      where: "middle" lets layer `layer` attend to all tokens and cache them, cuts behind its attention branch, whose
        rows and keys the rule can read, and lets its MLP see the tokens that stay (FrameFusion, arXiv 2501.01986).
      weights: arrays that the rule reads beside the model's own, such as those of a router.
    """

    layer: int
    rule: StageRule
    kept: Kept = Kept()
    positions: CutPositions = "keep"
    seed: int = 0
    where: CutWhere = "before"
    weights: Weights | None = None

    def __post_init__(self) -> None:
        """Refuses what is no stage.

        Raises:
          JvidpruneError: a layer below 0, no rule, or an unknown name for the positions.
        """
        checked(self.layer, Index, "layer", "InnerStage")
        checked(self.positions, CutPositions, "positions", "InnerStage")
        checked(self.where, CutWhere, "where", "InnerStage")
        if not isinstance(self.rule, StageRule):
            raise JvidpruneError(
                f"the rule of a stage inside the language model must be a StageRule such as those of cuts.rules, "
                f"got {self.rule!r}."
            )

    @property
    def boundary(self) -> int:
        """First layer whose cache holds the tokens that stay; at or behind the last layer the stage does nothing.

        Behind a cut inside the last layer nothing attends any more, and text passes its MLP as it is.
        """
        return self.layer + (self.where == "middle")

    @property
    def shared(self) -> tuple[int, StageRule, CutPositions, CutWhere, Weights | None]:
        """What the prompts of one batch must have in common; counts and seeds are each prompt's own."""
        return self.layer, self.rule, self.positions, self.where, self.weights
