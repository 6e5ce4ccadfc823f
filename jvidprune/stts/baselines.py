"""What STTS is compared with in the same code: windows ranked by likeness to an earlier frame, or at random."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jvidprune.stts.select import Examples, keep_windows
from jvidprune.stts.windows import Windows

RETRIES = 5
STEP = 0.05
"""Tries after the first one, and by how much each lowers the threshold."""

_NEW, _PADDING, _GONE = -1.0, -100.0, -200.0
"""Scores of windows that must stay, of padding frames, and of windows that an earlier try has pruned."""

_SMALLEST = 1e-12


def reference_scores(
    x: Float[Array, "F N D"],
    windows: Windows,
    examples: Examples,
    threshold: Float[Array, ""] | float,
    *,
    method: Literal["heuristic", "easy"],
) -> Float[Array, "F P"]:
    """Cosine of each window with its reference; -1 for frames that are new as a whole, -100 for padding frames.

    "easy" compares with the frame before. "heuristic" keeps a reference frame for every window: where the cosine is
    below the threshold, this frame is the reference from here on. A frame whose mean cosine is below the threshold,
    and the first frame of a video, score -1 everywhere and become the reference.

    Args:
      x: (F, N, D) what enters the blocks, patches with positions.
      windows: of a frame.
      examples: of the flat axis.
      threshold: traced or not.
      method: which of the two.
    """
    parts = windows.gather(x.astype(jnp.float32))
    unit = parts.reshape(*parts.shape[:2], -1)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=-1, keepdims=True), _SMALLEST)

    def step(reference: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        vectors, first = now
        similarity = (reference * vectors).sum(axis=-1)
        new = first | (similarity.mean() < threshold)
        changed = new | (similarity < threshold) | (method == "easy")
        return jnp.where(changed[:, None], vectors, reference), jnp.where(new, _NEW, similarity)

    _, scores = lax.scan(step, unit[0], (unit, examples.first))
    return jnp.where(examples.there[:, None], scores, _PADDING)


def keep_unlike(
    scores: Float[Array, "F P"], examples: Examples, before: Bool[Array, "F P"] | None = None
) -> tuple[Bool[Array, "F P"], Bool[Array, "E"]]:
    """Windows that stay when the most alike of each video go, and whether none of them had to stay.

    Args:
      scores: of `reference_scores`.
      examples: of the flat axis, with the budgets.
      before: windows that are left by an earlier try; pruned ones do not count again.

    Returns:
      (F, P) mask, and for each example True where no window with score -1 was pruned.
    """
    left = jnp.ones(scores.shape, bool) if before is None else before
    ranked = jnp.where(left, scores, _GONE)
    keep = keep_windows(-ranked, examples, protect_first=False) & left
    lost = (left & ~keep & (scores == _NEW)).any(axis=1)
    count = jnp.asarray(examples.remove).shape[0]
    bad = jnp.zeros(count + 1, bool).at[jnp.where(examples.there, examples.owner, count)].max(lost)
    return keep, ~bad[:count]


def similarity_keep(
    x: Float[Array, "F N D"],
    windows: Windows,
    examples: Examples,
    *,
    method: Literal["heuristic", "easy"],
    threshold: float,
    retry: Literal["restart", "official"],
) -> Bool[Array, "F P"]:
    """Windows that the heuristics keep, with up to five retries of each video at lower thresholds.

    Args:
      x: (F, N, D) what enters the blocks.
      windows, examples, method: as for `reference_scores`.
      threshold: of the first try.
      retry: "restart" tries from the full mask; "official" from what the last try left, which prunes the budget again
        every time, so that fewer windows stay than the budget says.
    """

    def attempt(number: Array, left: Array) -> tuple[Array, Array]:
        scores = reference_scores(x, windows, examples, threshold - STEP * number, method=method)
        return keep_unlike(scores, examples, left if retry == "official" else None)

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, keep, good = state
        found, fine = attempt(number, keep)
        owner = jnp.maximum(examples.owner, 0)
        return number + 1, jnp.where(good[owner][:, None], keep, found), good | fine

    keep, good = attempt(jnp.asarray(0.0), jnp.ones((x.shape[0], windows.count), bool))
    state = (jnp.asarray(1.0), keep, good)
    return lax.while_loop(lambda s: (s[0] <= RETRIES) & ~s[2].all(), again, state)[1]


def random_keep(key: Array, windows: Windows, examples: Examples) -> Bool[Array, "F P"]:
    """All but `remove` windows of each example, drawn without replacement; the first frame takes part."""
    draw = jax.random.uniform(key, (jnp.asarray(examples.owner).shape[0], windows.count))
    return keep_windows(draw, examples, protect_first=False)
