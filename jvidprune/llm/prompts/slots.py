"""Which embedding stands in which slot of the prompt: text and the runs of visual tokens between it, then padding."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jvidprune.errors import JvidpruneError
from jvidprune.models.positions import VideoBlock
from jvidprune.reducers.prompt_rules import PositionRule

_BUCKETS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


def bucket_length(length: int) -> int:
    """Rounds a prompt length up to one of few sizes, so that the number of compilations stays bounded."""
    for size in _BUCKETS:
        if length <= size:
            return size
    return -(-length // 1024) * 1024


@dataclasses.dataclass(frozen=True)
class SlotMap:
    """Host-side layout of one prompt.

    The prompt's embeddings are `table[source]` with table = [all text | newline | reduced tokens of all videos].

    Attributes:
      source: (S,) int32 row of that table, S a bucket length; padding points at row 0.
      length: slots in use.
      visual: (start, stop) slots from the first visual token to the last, newlines included; text may stand between
        (Qwen3-VL's time stamps, a second video).
      positions: (S,) or (3, S) rotary positions, or None where slots count from 0.
      next_position: of the first generated token, where `positions` are given.
    """

    source: np.ndarray
    length: int
    visual: tuple[int, int]
    positions: np.ndarray | None = None
    next_position: int | None = None

    @property
    def rotary(self) -> np.ndarray:
        """(1, S) or (3, 1, S) positions of a batch of one."""
        if self.positions is not None:
            return self.positions[..., None, :]
        return np.minimum(np.arange(len(self.source)), self.length - 1)[None]

    @property
    def valid(self) -> np.ndarray:
        """(S,) bool."""
        return np.arange(len(self.source)) < self.length

    def widened(self, size: int) -> "SlotMap":
        """The same prompt padded to `size` slots, at least as many as it has."""
        more = size - len(self.source)
        positions = self.positions
        if positions is not None:
            positions = np.pad(positions, [(0, 0)] * (positions.ndim - 1) + [(0, more)])
        return dataclasses.replace(self, source=np.pad(self.source, (0, more)), positions=positions)


class Run(NamedTuple):
    """Visual tokens that stand together in a prompt.

    Attributes:
      rows: (V,) row of the reduced tokens in sequence order, -1 for a newline embedding.
      places: (V,) place of each in the same run without any reduction.
      length: of the run without any reduction.
    """

    rows: Int[np.ndarray, "V"]
    places: Int[np.ndarray, "V"]
    length: int


class Interleaved(NamedTuple):
    """Texts and runs in the order of the prompt.

    Attributes:
      source: (L,) row of the table of `SlotMap`.
      full: (L,) slot of each in the prompt without any reduction.
      visual: (start, stop) from the first visual token to the last.
      text: rows of the table that are text.
      whole: length of the prompt without any reduction.
    """

    source: Int[np.ndarray, "L"]
    full: Int[np.ndarray, "L"]
    visual: tuple[int, int]
    text: int
    whole: int

    @property
    def visual_count(self) -> int:
        """Slots with a visual token or a newline embedding."""
        return int((self.source >= self.text).sum())


def block_runs(index: Int[np.ndarray, "V"], blocks: Sequence[VideoBlock], first_row: int = 0) -> list[Run]:
    """The kept tokens of a video, block by block, in the order of the reducer.

    Args:
      index: (V,) id of each kept token, frame * N + token.
      blocks: of the video.
      first_row: of this video among the reduced tokens of all videos.
    """
    size = blocks[0].tokens
    runs = []
    for number, block in enumerate(blocks):
        rows = np.flatnonzero(index // size == number)
        runs.append(Run(first_row + rows, index[rows] - number * size, block.tokens))
    return runs


def interleave(
    texts: Sequence[Sequence[int] | np.ndarray], runs: Sequence[Run], *, dropped: Collection[int] = ()
) -> Interleaved:
    """Alternates texts and runs: the first text, the first run, the second text, ...

    Args:
      texts: token ids, one more text than there are runs; may be empty.
      runs: visual tokens, possibly none of a run kept.
      dropped: ids of text tokens that are left out (FlashVID's vision markers on Qwen3-VL).
    """
    count = sum(map(len, texts))
    source, full, text_at, slot = [], [], 0, 0
    for number, text in enumerate(texts):
        there = ~np.isin(np.asarray(text, np.int64), list(dropped)) if dropped else np.ones(len(text), bool)
        kept = np.flatnonzero(there)
        source.append(text_at + kept)
        full.append(slot + kept)
        text_at, slot = text_at + len(text), slot + len(text)
        if number < len(runs):
            rows = np.asarray(runs[number].rows, np.int64)
            source.append(np.where(rows < 0, count, count + 1 + rows))
            full.append(slot + np.asarray(runs[number].places, np.int64))
            slot += runs[number].length
    starts = np.cumsum([0, *map(len, source)])
    # Without any run the visual part is empty, behind all text.
    visual = (int(starts[1]), int(starts[-2]) if len(runs) else int(starts[1]))
    return Interleaved(np.concatenate(source), np.concatenate(full), visual, count, slot)


def original_slots(prompt: Interleaved, rule: PositionRule) -> dict[str, Any]:
    """What `laid_out` is told of positions where they are counted on one axis: nothing if they are renumbered."""
    return {"positions": prompt.full, "next_position": prompt.whole} if rule == "original" else {}


def laid_out(
    prompt: Interleaved,
    *,
    max_positions: int,
    reserve: int,
    positions: Int[np.ndarray, "... L"] | None = None,
    next_position: int | None = None,
) -> SlotMap:
    """The slots of a prompt, padded to a bucket length.

    Args:
      prompt: from `interleave`.
      max_positions: what the language model can address.
      reserve: tokens that will be generated.
      positions: (L,) or (3, L) rotary positions; None counts the slots from 0.
      next_position: of the first generated token, with `positions`.

    Raises:
      JvidpruneError: prompt and answer do not fit into the model's positions.
    """
    length, visual = len(prompt.source), prompt.visual_count
    if length + reserve > max_positions:
        raise JvidpruneError(
            f"the prompt has {length:,} tokens ({visual:,} visual) and {reserve:,} may be generated, but the "
            f"model has {max_positions:,} positions: lower the ratio, the number of frames or the answer length."
        )
    padded = np.zeros(min(bucket_length(length), max(max_positions, length)), np.int32)
    padded[:length] = prompt.source
    if positions is not None:
        room = [(0, 0)] * (positions.ndim - 1) + [(0, len(padded) - length)]
        positions = np.pad(positions.astype(np.int32), room)
    return SlotMap(padded, length, prompt.visual, positions, next_position)
