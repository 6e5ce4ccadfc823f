"""Which embedding stands in which slot of the prompt: text before, kept tokens with newlines, text after, padding."""

import dataclasses

import numpy as np

from jvidprune.errors import JvidpruneError

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

    The prompt's embeddings are `table[source]` with table = [text before | text after | newline | reduced tokens].

    Attributes:
      source: (S,) int32 row of that table, S a bucket length; padding points at row 0.
      length: slots in use.
      visual: (start, stop) slots of the visual block, newlines included; text may stand between (Qwen3-VL).
      positions: (3, S) rotary positions, or None where slots count from 0.
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
            return self.positions[:, None]
        return np.minimum(np.arange(len(self.source)), self.length - 1)[None]

    @property
    def valid(self) -> np.ndarray:
        """(S,) bool."""
        return np.arange(len(self.source)) < self.length


def slot_map(before: int, after: int, visual: np.ndarray, *, max_positions: int, reserve: int) -> SlotMap:
    """Lays out one prompt.

    Args:
      before: text tokens in front of the video.
      after: text tokens behind it.
      visual: (V,) rows of the reduced tokens in sequence order, -1 for a newline embedding.
      max_positions: what the language model can address.
      reserve: tokens that will be generated.

    Raises:
      JvidpruneError: prompt and answer do not fit into the model's positions.
    """
    newline = before + after
    rows = np.where(visual < 0, newline, newline + 1 + visual)
    source = np.concatenate([np.arange(before), rows, before + np.arange(after)])
    padded = padded_source(source, len(visual), max_positions=max_positions, reserve=reserve)
    return SlotMap(padded, len(source), (before, before + len(visual)))


def padded_source(source: np.ndarray, visual: int, *, max_positions: int, reserve: int) -> np.ndarray:
    """`source` as int32, filled up with row 0 to a bucket length.

    Raises:
      JvidpruneError: prompt and answer do not fit into the model's positions.
    """
    length = len(source)
    if length + reserve > max_positions:
        raise JvidpruneError(
            f"the prompt has {length:,} tokens ({visual:,} visual) and {reserve:,} may be generated, but the "
            f"model has {max_positions:,} positions: lower the ratio, the number of frames or the answer length."
        )
    padded = np.zeros(min(bucket_length(length), max(max_positions, length)), np.int32)
    padded[:length] = source
    return padded
