"""How many windows of a video go: host integers, truncated in float32 as the released code does."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jvidprune.stts.config import check_removed


def windows_to_remove(frames: int, windows: int, removed: float, prune_from_frame: int = 0) -> int:
    """n = int32(float32(P * removed) * float32(T - prune_from_frame)), not below 0.

    The product is truncated in float32: 0.95 of 81 windows in 100 frames gives 7694, not 7695. The released code has a
    literal 81 in place of P; for other P this is its arithmetic with the share scaled by P / 81.

    Args:
      frames: T, of one video.
      windows: P, of one frame.
      removed: share in [0, 1).
      prune_from_frame: frames that do not count.

    Raises:
      JvidpruneError: a share out of range.
    """
    share = np.float32(windows * check_removed(removed))
    return max(0, int(np.int32(share * np.float32(frames - prune_from_frame))))


def windows_kept(frames: int, windows: int, removed: float, prune_from_frame: int = 0) -> int:
    """K = P * T - n: windows that stay of a video, known before any data is seen."""
    return frames * windows - windows_to_remove(frames, windows, removed, prune_from_frame)


def budgets(
    frames: Sequence[int],
    windows: int,
    removed: float,
    *,
    prune_from_frame: int = 0,
    video: Sequence[bool] | None = None,
) -> Int[np.ndarray, "E"]:
    """n of each example of a packed row; 0 for what is no video.

    Args:
      frames: of each example.
      windows, removed, prune_from_frame: as for `windows_to_remove`.
      video: which examples are videos, by default all; images are never pruned.
    """
    kinds = [True] * len(frames) if video is None else list(video)
    found = [
        windows_to_remove(count, windows, removed, prune_from_frame) if kind else 0
        for count, kind in zip(frames, kinds, strict=True)
    ]
    return np.asarray(found, np.int32)
