"""The best windows of a video by dynamic programming over how many tokens stay the same (HoliTom, arXiv 2505.21334)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


def window_gains(unchanged: Bool[Array, "T-1 N"]) -> Int[Array, "T T"]:
    """Tokens that disappear when the window of frames s..e keeps one copy of every token unchanged throughout.

    Args:
      unchanged: whether token n is the same in frames t and t + 1.

    Returns:
      gain[s, e] = (e - s) * #{n unchanged from s to e} for s < e, 0 elsewhere.
    """
    frames, tokens = unchanged.shape[0] + 1, unchanged.shape[1]
    starts = jnp.arange(frames, dtype=jnp.int32)
    arrivals = jnp.concatenate([jnp.zeros((1, tokens), bool), unchanged])

    def step(since, inputs):
        end, same = inputs
        since = jnp.where(same, since, end)
        count = jnp.sum(since[None, :] <= starts[:, None], axis=1, dtype=jnp.int32)
        return since, jnp.where(starts < end, (end - starts) * count, 0)

    _, by_end = lax.scan(step, jnp.zeros(tokens, jnp.int32), (starts, arrivals))
    return by_end.T


def best_windows(gains: Int[Array, "T T"], max_window: int) -> tuple[Int[Array, "T"], Int[Array, "T"]]:
    """Largest total gain of a partition of frames 0..e, and the start of its last window, for every e.

    Of equally good partitions the one with the shortest last window wins, as in the reference, which tries windows in
    ascending length and replaces only by something strictly better. A window of one frame is always allowed.
    """
    frames = gains.shape[0]
    starts = jnp.arange(frames, dtype=jnp.int32)

    def step(before, inputs):
        end, gain = inputs
        allowed = (starts <= end) & ((end - starts < max_window) | (starts == end))
        candidate = jnp.where(allowed, before[:-1] + gain, -1)
        best = candidate.max()
        start = jnp.max(jnp.where(candidate == best, starts, -1))
        return before.at[end + 1].set(best), (best, start)

    _, (value, start) = lax.scan(step, jnp.zeros(frames + 1, jnp.int32), (starts, gains.T))
    return value, start


def window_cuts(start: Int[Array, "T"]) -> Bool[Array, "T-1"]:
    """Cut flags of the best partition: True after the last frame of each window but the last."""
    frames = jnp.arange(start.shape[0], dtype=jnp.int32)

    def step(end, inputs):
        frame, first = inputs
        is_end = frame == end
        return jnp.where(is_end, first - 1, end), is_end

    _, is_end = lax.scan(step, frames[-1], (frames, start), reverse=True)
    return is_end[:-1]
