"""Token features that behave like a video's, without a model: scenes with cuts, moving objects, noise, attention sinks.

For examples, experiments and tests of reducers; drawn from a seed on the host.
"""

import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.ops.pool import find_pooling, pool_tokens
from jvidprune.tokens import VideoTokens


def synthetic_tokens(
    seed: int = 0,
    frames: int = 8,
    grid: tuple[int, int] = (14, 14),
    dim: int = 64,
    scenes: int = 2,
    *,
    unpooled_grid: tuple[int, int] | None = None,
    objects: int = 2,
    noise: float = 0.15,
    sinks: int = 3,
    text: int = 6,
) -> VideoTokens:
    """Tokens of one invented video with every evidence a reducer may ask for, except DeepStack levels.

    A scene is a smooth random background with objects that drift over it; attention follows the objects, and a few
    sinks, fixed places of large attention and nearly constant features, persist over the whole video.

    Args:
      seed: of all draws.
      frames, grid, dim: T, (h, w) and D.
      scenes: number of scenes, at most one a frame.
      unpooled_grid: (h, w) of the tower, e.g. (27, 27) for a grid of (14, 14); by default the grid itself.
      objects: moving objects a scene.
      noise: standard deviation of the noise of each number.
      sinks: number of sinks.
      text: number of question tokens.

    Returns:
      float32 tokens with N = h * w.

    Raises:
      JvidpruneError: no frames, or a grid that no 2x2 pooling gives.
    """
    if frames < 1 or scenes < 1:
        raise JvidpruneError(f"a synthetic video needs at least one frame and one scene, got {frames} and {scenes}.")
    rng = np.random.default_rng(seed)
    full = grid if unpooled_grid is None else unpooled_grid
    kind = find_pooling(full, grid)
    shared = rng.normal(size=dim)
    cuts = np.sort(rng.permutation(np.arange(1, frames))[: scenes - 1])
    features, saliency = [], []
    for length in np.diff(np.concatenate([[0], cuts, [frames]])):
        tokens, weight = _scene(rng, int(length), full, dim, objects)
        features.append(tokens + shared)
        saliency.append(weight)
    x, attention = np.concatenate(features), np.concatenate(saliency)
    x += noise * rng.normal(size=x.shape)
    for place in rng.permutation(x.shape[1])[:sinks]:
        x[:, place] = 3.0 * shared + 0.05 * rng.normal(size=(frames, dim))
        attention[:, place] = attention.max() * rng.uniform(1.0, 2.0)

    def attended() -> np.ndarray:
        noisy = attention * np.exp(0.3 * rng.normal(size=attention.shape))
        return (noisy / noisy.sum(1, keepdims=True)).astype(np.float32)

    def pooled(values: np.ndarray) -> np.ndarray:
        return np.asarray(pool_tokens(jnp.asarray(values, jnp.float32), full, kind))

    tokens = x.shape[1]
    evidence = {
        "attention_last": pooled(attended()),
        "attention_pooling_head": pooled(attended()),
        "attention_mean_query": pooled(attended()),
        "attention_shallow": tokens * attended(),
        "attention_deep": tokens * attended(),
        "keys": pooled(x @ rng.normal(size=(dim, 16)) / np.sqrt(dim)),
        "features_unpooled": x.astype(np.float32),
        "frame_embedding": x.mean(1).astype(np.float32),
        "text": (x[rng.integers(frames), rng.integers(tokens)] + rng.normal(size=(text, dim))).astype(np.float32),
        "newline": rng.normal(size=dim).astype(np.float32),
    }
    return VideoTokens.create(pooled(x), evidence, grid=grid, unpooled_grid=full)


def _scene(
    rng: np.random.Generator, length: int, grid: tuple[int, int], dim: int, objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """(length, N, dim) tokens and (length, N) positive saliency of one scene."""
    y, x = (axis.ravel().astype(np.float64) for axis in np.indices(grid))
    waves = np.sin(np.outer(y, rng.normal(size=5)) / 2 + np.outer(x, rng.normal(size=5)) / 2 + rng.uniform(0, 6, 5))
    tokens = np.repeat((waves @ rng.normal(size=(5, dim)))[None], length, axis=0)
    saliency = np.full((length, y.size), 0.05)
    steps = np.arange(length)[:, None]
    for _ in range(objects):
        start, speed = rng.uniform(0, grid), rng.normal(0, 0.6, 2)
        centre_y, centre_x = ((start[i] + speed[i] * steps) % grid[i] for i in (0, 1))
        shape = np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * rng.uniform(1, 2.5) ** 2))
        tokens = tokens * (1 - shape[..., None]) + 2 * rng.normal(size=dim) * shape[..., None]
        saliency += shape
    return tokens, saliency
