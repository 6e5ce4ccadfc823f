"""Videos of random tokens with scenes and just the evidence a method needs."""

from collections.abc import Callable

import numpy as np

from jvidprune import VideoTokens


def video_tokens(
    needs: frozenset[str],
    *,
    scenes: tuple[int, ...],
    grid: int,
    unpooled_grid: int,
    dim: int,
    dtype: type = np.float32,
    seed: int = 0,
) -> VideoTokens:
    """Scenes of random tokens, a part of whose places changes from frame to frame.

    Args:
      needs: evidence.
      scenes: lengths of the scenes in frames.
      grid: side of the frames' token grid.
      unpooled_grid: side before pooling.
      dim: D.
      dtype: of the features.
      seed: of everything.
    """
    rng = np.random.default_rng(seed)
    n, m, d = grid**2, unpooled_grid**2, dim
    scene = np.repeat(np.arange(len(scenes)), scenes)
    t = len(scene)

    def tokens(count: int) -> np.ndarray:
        out = np.empty((t, count, d), dtype)
        change = rng.uniform(0.2, 0.9, (count, 1)).astype(np.float32)
        for number in range(len(scenes)):
            place = rng.standard_normal((count, d), np.float32) + rng.standard_normal(d, np.float32)
            for frame in np.flatnonzero(scene == number):
                out[frame] = place + change * rng.standard_normal((count, d), np.float32)
        return out

    def saliency(count: int) -> np.ndarray:
        return rng.dirichlet(np.full(count, 0.5), size=t).astype(np.float32)

    features = tokens(n)
    makers: dict[str, Callable[[], np.ndarray]] = {
        "attention_shallow": lambda: saliency(m) * m,
        "attention_deep": lambda: saliency(m) * m,
        "keys": lambda: rng.standard_normal((t, n, 72), np.float32),
        "features_unpooled": lambda: tokens(m),
        "frame_embedding": lambda: features.mean(1),
        "text": lambda: tokens(1)[:8, 0],
    }
    evidence = {name: makers.get(name, lambda: saliency(n))() for name in needs}
    return VideoTokens.create(features, evidence, grid=(grid, grid), unpooled_grid=(unpooled_grid, unpooled_grid))


def scenes_of(frames: int) -> tuple[int, ...]:
    """Scenes of 6, 10, 4 and 12 frames, again and again, cut off at `frames`."""
    lengths, left = [], frames
    while left:
        for length in (6, 10, 4, 12):
            if left:
                lengths.append(min(length, left))
                left -= lengths[-1]
    return tuple(lengths)
