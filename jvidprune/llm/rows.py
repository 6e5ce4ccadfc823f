"""Prompts laid out in padded rows: which share a batch, and what a prefill is given for them.

Lengths, rows and the lengths behind cuts inside the language model are rounded up to few sizes, so that few programs
serve all prompts.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jvidprune.cuts.cache import Cache
from jvidprune.errors import JvidpruneError
from jvidprune.llm.encoded import (
    ReducedVideo,
    maps_of,
    shared_blocks,
    shared_frames,
    shared_places,
    shared_stages,
)
from jvidprune.llm.prompt_cuts import join_inner, prompt_inner
from jvidprune.llm.prompts.messages import Asked
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.models.prefill import PromptParts, prefill
from jvidprune.models.qwen.model import spread_levels
from jvidprune.ops.newline import NewlineKind
from jvidprune.tokens import InnerStage

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

_NEWLINE, _TEXT = -1, -2
"""What stands in a slot that holds no reduced token."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question about one reduced video, or several, or a conversation about them, or about none.

    Attributes:
      video: what `VideoLLM.reduce` or `reduced.sweep_video` made of a video; or several, in the order of the prompt.
      question: text, or a conversation that says where the videos stand.
      tail: ids that go on behind the prompt.
    """

    video: ReducedVideo | Sequence[ReducedVideo]
    question: Asked
    tail: tuple[int, ...] = ()

    @property
    def videos(self) -> list[ReducedVideo]:
        """All of them."""
        return [self.video] if isinstance(self.video, ReducedVideo) else list(self.video)


class Row(NamedTuple):
    """A prompt laid out: its place among the prompts, its videos (of pictures all maps), slots and text ids."""

    number: int
    videos: list[ReducedVideo]
    slots: SlotMap
    text: np.ndarray

    @property
    def size(self) -> int:
        return len(self.slots.source)


class Rows(NamedTuple):
    """A batch: the prompts in it, the longest first, and the number of rows, fillers included."""

    used: list[Row]
    size: int

    def filled(self, parts: list[Any]) -> list[Any]:
        """One part for each row: those of the prompts, then the first one's again."""
        return parts + parts[:1] * (self.size - len(parts))


def batches(llm: "VideoLLM", prompts: Sequence[Prompt], *, reserve: int, batch: int, min_fill: float) -> Iterator[Rows]:
    """Prompts put together: those of one kind inside the model, the longest first.

    Args:
      llm: the model.
      prompts: any mixture.
      reserve: tokens that will follow each.
      batch: most prompts in a batch.
      min_fill: share of the longest's padded length that a prompt needs to join it.

    Raises:
      JvidpruneError: settings out of range, or a prompt longer than the model's positions.
    """
    if batch < 1:
        raise JvidpruneError(f"a batch has at least 1 prompt, got {batch}.")
    if not 0 <= min_fill <= 1:
        raise JvidpruneError(f"min_fill must lie in [0, 1], got {min_fill}.")
    groups: dict[Any, list[Row]] = {}
    for number, prompt in enumerate(prompts):
        videos = prompt.videos
        # Text alone has neither stages nor levels: it shares no batch with videos.
        stages = (bool(videos), _alike(shared_stages(videos), llm.loaded.config.text.layers))
        row = Row(number, maps_of(videos), *llm.lay_out(videos, prompt.question, reserve, prompt.tail))
        groups.setdefault(stages, []).append(row)
    made = []
    for group in groups.values():
        waiting = sorted(group, key=lambda row: -row.size)
        while waiting:
            used = [row for row in waiting[:batch] if row.size >= min_fill * waiting[0].size]
            made.append(Rows(used, min(batch, power_of_two(len(used)))))
            waiting = waiting[len(used) :]
    return iter(made)


def _alike(stages: Sequence[InnerStage], layers: int) -> Any:
    """What prompts of one batch must have in common: layers, rules and positions, not the shares kept."""
    return tuple(stage.shared for stage in stages if stage.boundary < layers)


def read_rows(llm: "VideoLLM", rows: Rows, room: int) -> tuple[jax.Array, Cache]:
    """Prefill of a batch: (B, V) logits and a cache with room for more tokens."""
    (embeds, positions, valid), capacity, parts = lay_out_rows(llm, rows, room)
    return prefill(llm.loaded.model, embeds, positions, valid, capacity=capacity, **parts)


def laid_out(
    llm: "VideoLLM", prompt: Prompt, room: int
) -> tuple[Int[np.ndarray, "S"], tuple[jax.Array, np.ndarray, np.ndarray], int, PromptParts]:
    """One prompt as `prefill` is given it.

    Args:
      llm: the model.
      prompt: the prompt.
      room: tokens that will follow it.

    Returns:
      The row of the videos' reduced tokens that each slot holds, negative for text and newlines; embeddings, positions
      and valid slots; slots of the cache; all else.
    """
    (rows,) = batches(llm, [prompt], reserve=room, batch=1, min_fill=0.0)
    (row,) = rows.used
    return row.slots.source - len(row.text) - 1, *lay_out_rows(llm, rows, room)


def lay_out_rows(
    llm: "VideoLLM", rows: Rows, room: int
) -> tuple[tuple[jax.Array, np.ndarray, np.ndarray], int, PromptParts]:
    """What `prefill` is given for a batch: embeddings, positions and valid slots; the cache's slots; all else."""
    model, layers = llm.loaded.model, llm.loaded.config.text.layers
    width = rows.used[0].size
    embeds, inners, levels, slots, mutual = [], [], [], [], []
    for row in rows.used:
        videos, count = row.videos, len(row.text)
        wide = row.slots.widened(width)
        at = wide.source - count - 1
        ids = np.where(at < _NEWLINE, row.text[np.minimum(wide.source, count - 1)], 0).astype(np.int32)
        held = np.where(wide.valid, np.maximum(at, _TEXT), _TEXT).astype(np.int32)
        slots.append(wide)
        nothing = [jnp.zeros((1, llm.loaded.config.text.width), model.lm.dtype)]
        embeds.append(_embed(model, ids, held, [one.reduced.tokens for one in videos] or nothing))
        levels.append(kept_levels(videos, wide, count))
        mutual.append(llm.prompts.bidirectional(wide, row.text))
        if not videos:
            inners.append(None)
            continue
        # The first layout with newlines decides which compete at a cut.
        newline = videos[0].newline_layout(llm.newline)
        for one in videos[1:]:
            newline = one.newline_layout(llm.newline) if newline == "no_token" else newline
        group = _groups(videos, newline)
        found = prompt_inner(videos[0].inner, wide, count, newline=newline, layers=layers, block=group)
        inners.append(found)
    slots = rows.filled(slots)
    following = [one.length if one.next_position is None else one.next_position for one in slots]
    parts: PromptParts = {"next_position": np.asarray(following, np.int32)}
    if inners[0] is not None:
        parts["inner"] = join_inner(rows.filled(inners))
    if mutual[0] is not None:
        parts["bidirectional"] = np.stack(rows.filled(mutual))
    if levels[0] is not None:
        parts["deepstack"] = jnp.concatenate(rows.filled(levels), axis=1)
    positions = np.concatenate([one.rotary for one in slots], axis=-2)
    valid = np.stack([one.valid for one in slots])
    return (jnp.stack(rows.filled(embeds)), positions, valid), width + room, parts


def _groups(videos: Sequence[ReducedVideo], newline: NewlineKind) -> np.ndarray | None:
    """What the stages inside the model count in: frames, places in a frame, or the blocks of the plans."""
    rules = [stage.rule for stage in videos[0].inner]
    if any(rule.by_frame for rule in rules):
        return shared_frames(videos)
    return shared_places(videos, newline) if any(rule.by_place for rule in rules) else shared_blocks(videos)


@jax.jit
def _embed(model: Any, ids: jax.Array, held: jax.Array, parts: list[jax.Array]) -> jax.Array:
    """(S, D) embeddings of a prompt's slots: text ids, or what they hold of the reduced tokens of its videos."""
    tokens = model.embed_visual(jnp.concatenate(parts))
    words = model.embed_text(ids)
    if model.newline is not None:
        words = jnp.where((held == _NEWLINE)[:, None], model.newline.astype(words.dtype), words)
    return jnp.where((held >= 0)[:, None], tokens[jnp.maximum(held, 0)].astype(words.dtype), words)


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def kept_levels(videos: Sequence[ReducedVideo], slots: SlotMap, text: int) -> jax.Array | None:
    """(S, 1, L, D) what a prefill adds behind its first S layers, or None for a model without DeepStack and for
    text alone.

    The levels are those of the kept ids, also where tokens are merged, as FlashVID's code has it. A method that
    runs the tower itself (STTS) gives levels of its own.

    Args:
      videos: with the evidence "features_deepstack", or without.
      slots: of the prompt.
      text: its text tokens.
    """
    if not videos or "features_deepstack" not in videos[0].video.tokens.evidence:
        return None
    kept = []
    for one in videos:
        own = one.reduced.diagnostics.get("features_deepstack")
        levels = one.video.tokens.evidence["features_deepstack"]
        flat = levels.reshape(-1, *levels.shape[2:])
        kept.append(flat[jnp.minimum(one.reduced.index, len(flat) - 1)] if own is None else own)
    return _spread(jnp.concatenate(kept), slots, text)


def _spread(kept: jax.Array, slots: SlotMap, text: int) -> jax.Array:
    rows = np.where(slots.valid, slots.source - text - 1, -1)
    return spread_levels(kept, jnp.asarray(rows[None]))
