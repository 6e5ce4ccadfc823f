"""A vision tower with STTS inside: dense up to the scores, one biased block, then kept patches alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.models.fused import implementation
from jvidprune.models.layers import map_chunks
from jvidprune.stts.attention import flat_attention, rows_attention
from jvidprune.stts.baselines import random_keep, similarity_keep
from jvidprune.stts.bias import key_bias
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.loss import auxiliary_loss
from jvidprune.stts.packing import (
    FrameRows,
    Slots,
    first_fit,
    flat_slots,
    gather_slots,
    refill_alone,
    row_slots,
    scatter_slots,
)
from jvidprune.stts.scorer import Scorer, ScorerSizes
from jvidprune.stts.select import Examples, keep_windows
from jvidprune.stts.windows import Windows

PackedAttend = Callable[[Array, Array, Array, Any], Array]
"""(q, k, v, whole) of packed tokens to outputs; `whole` says whether the block sees frames or its own windows."""


class Tower:
    """A vision tower as `run_tower` needs it; `siglip.SiglipTower` and `grid_tower.GridTower` are two.

    Positions must be in the tokens before the first block, or be told by the place of a patch in its frame alone
    (rotary): a packed block finds them through `patches`. A subclass gives `frames_at_once`, `run_chunk`, `run_packed`
    and, where blocks see windows, `groups`.
    """

    vision: Any

    @property
    def layers(self) -> int:
        """Blocks that run."""
        return self.vision.config.layers

    @property
    def sizes(self) -> ScorerSizes:
        """Sizes of a scorer that fits: those of the tower, as in the released models."""
        config = self.vision.config
        return ScorerSizes(config.width, config.heads, config.mlp)

    @property
    def groups(self) -> Int[np.ndarray, "N"] | None:
        """Attention window of each patch for blocks that do not see whole frames; None where all blocks do."""
        return None

    @property
    def frames_at_once(self) -> int:
        """Whole frames that go through at once, static."""
        raise NotImplementedError

    def run_frames(
        self,
        x: Float[Array, "F N D"],
        start: int,
        stop: int,
        *,
        active: Bool[Array, "F N"] | None = None,
        bias: Float[Array, "F N"] | None = None,
    ) -> Float[Array, "F N D"]:
        """Blocks [start, stop) on whole frames, chunk by chunk; keys that are not active are not seen.

        `bias` is added to keys. In blocks of windows keys count inside these.
        """
        given = {"x": x, "active": active, "bias": bias}
        parts = {name: part for name, part in given.items() if part is not None}
        return map_chunks(lambda chunk: self.run_chunk(start=start, stop=stop, **chunk), parts, self.frames_at_once)

    def run_chunk(
        self, x: Array, start: int, stop: int, *, active: Array | None = None, bias: Array | None = None
    ) -> Array:
        """`run_frames` of the frames of a chunk."""
        raise NotImplementedError

    def run_packed(
        self, y: Float[Array, "R S D"], start: int, stop: int, *, patches: Int[Array, "R S"], attend: PackedAttend
    ) -> Float[Array, "R S D"]:
        """Blocks [start, stop) on any tokens; `patches` tells the place of each in its frame."""
        raise NotImplementedError


class Scored(NamedTuple):
    """What a tower with STTS leaves.

    Attributes:
      hidden: (F, N, D) output of the last block, zeros where patches were pruned.
      recorded: outputs of the blocks asked for; dense up to the biased block, zeros at pruned patches behind it.
      scores: (F, P) float32 of the scorer; zeros for the baselines.
      bias: (F, N) float32 on the keys of block `prune_at` + 1; zeros without.
      keep: (F, P) windows that stay; False on padding frames.
      active: (F, N) patches that stay.
      refilled: (F, N) pruned patches that take part in the blocks behind all the same.
      loss: () float32, the auxiliary loss with its coefficient; 0 for the baselines.
      rows: the released packing where it was made, else None.
    """

    hidden: Float[Array, "F N D"]
    recorded: dict[int, Array]
    scores: Float[Array, "F P"]
    bias: Float[Array, "F N"]
    keep: Bool[Array, "F P"]
    active: Bool[Array, "F N"]
    refilled: Bool[Array, "F N"]
    loss: Float[Array, ""]
    rows: FrameRows | None


class Prefix(NamedTuple):
    """What does not depend on the budget: block `prune_at`'s output, what entered block 0, and the scores."""

    x: Float[Array, "F N D"]
    entered: Float[Array, "F N D"]
    scores: Float[Array, "F P"]


def run_tower(
    tower: Tower,
    x: Float[Array, "F N D"],
    windows: Windows,
    examples: Examples,
    config: STTSConfig,
    *,
    kept: int,
    scorer: Scorer | None = None,
    record: tuple[int, ...] = (),
    key: Array | None = None,
) -> Scored:
    """Runs a tower's blocks with scoring and pruning; pure, differentiable in x, tower and scorer.

    Selection is hard: the scorer learns through the bias of the next block and the auxiliary loss.

    Args:
      tower: the blocks.
      x: (F, N, D) patches with positions, of all frames of one or several examples.
      windows: of a frame.
      examples: which frames belong together and how many windows of each go; the numbers may be traced.
      config: settings.
      kept: static bound of the windows that stay, of all examples together (`budget.windows_kept`; for several shares
        that of the smallest).
      scorer: needed by method "scorer".
      record: blocks whose outputs are returned, static.
      key: needed by method "random".

    Raises:
      JvidpruneError: a tower that is too shallow, windows of another frame size, or no scorer or key where one is
        needed.
    """
    _check(tower, x, windows, config, scorer, key)
    recorded: dict[int, Array] = {}
    prefix = run_prefix(tower, x, windows, config, scorer=scorer, record=record, recorded=recorded)
    return run_kept(tower, prefix, windows, examples, config, kept=kept, key=key, record=record, recorded=recorded)


def run_prefix(
    tower: Tower,
    x: Float[Array, "F N D"],
    windows: Windows,
    config: STTSConfig,
    *,
    scorer: Scorer | None,
    record: tuple[int, ...] = (),
    recorded: dict[int, Array] | None = None,
) -> Prefix:
    """Blocks 0..prune_at and the scores: the part of `run_tower` that budgets share."""
    at = _frames(tower, x, 0, config.prune_at + 1, record, {} if recorded is None else recorded)
    scores = jnp.zeros((x.shape[0], windows.count))
    if config.method == "scorer" and scorer is not None:
        scores = scorer(at, windows)
    return Prefix(at, x, scores)


def run_kept(
    tower: Tower,
    prefix: Prefix,
    windows: Windows,
    examples: Examples,
    config: STTSConfig,
    *,
    kept: int,
    key: Array | None = None,
    record: tuple[int, ...] = (),
    recorded: dict[int, Array] | None = None,
) -> Scored:
    """The part of `run_tower` behind the scores, vmappable over `examples.remove`."""
    recorded = {} if recorded is None else recorded
    x, scores = prefix.x, prefix.scores
    bias, loss = jnp.zeros(x.shape[:2]), jnp.zeros(())
    if config.method == "scorer":
        keep = keep_windows(lax.stop_gradient(scores), examples)
        bias = key_bias(scores, windows, examples, floor=config.min_bias_scale, rescale=config.rescale)
        loss = auxiliary_loss(
            scores,
            x,
            windows,
            examples,
            coefficient=config.coefficient,
            detach_target=config.detach_target,
            within_examples=config.within_examples,
        )
        stop = config.first_packed
        x = _frames(tower, x, stop - 1, stop, record, recorded, bias=bias if config.bias else None)
    elif config.method == "random":
        assert key is not None
        keep = random_keep(key, windows, examples)
    else:
        entered = lax.stop_gradient(prefix.entered)
        keep = similarity_keep(
            entered, windows, examples, method=config.method, threshold=config.threshold, retry=config.retry
        )
    active = _kept_patches(keep, windows, examples)
    hidden, refilled, rows = _run_packed(tower, x, active, windows, config, kept, record, recorded)
    return Scored(hidden, recorded, scores, bias, keep, active, refilled, loss, rows)


def _kept_patches(keep: Array, windows: Windows, examples: Examples) -> Array:
    """Patches of kept windows; frames of which nothing may go keep those that no window reads, too."""
    whole = examples.there & ~examples.prunable
    return windows.spread_mask(keep) | whole[:, None]


def _check(
    tower: Tower, x: Array, windows: Windows, config: STTSConfig, scorer: Scorer | None, key: Array | None
) -> None:
    config.check_layers(tower.layers)
    if x.ndim != 3 or x.shape[1] != windows.patch_count:
        raise JvidpruneError(f"the windows are of frames of {windows.patch_count} patches, got tokens {x.shape}.")
    if config.method == "scorer" and scorer is None:
        raise JvidpruneError("method 'scorer' needs a scorer.")
    if config.method == "random" and key is None:
        raise JvidpruneError("method 'random' needs a key to draw with.")


def _frames(
    tower: Tower,
    x: Array,
    start: int,
    stop: int,
    record: tuple[int, ...],
    recorded: dict[int, Array],
    **options: Any,
) -> Array:
    """Dense blocks [start, stop), noting the outputs asked for."""
    for end in sorted({*(block + 1 for block in record if start <= block < stop), stop}):
        x = tower.run_frames(x, start, end, **options)
        if end - 1 in record:
            recorded[end - 1] = x
        start = end
    return x


def _run_packed(
    tower: Tower,
    x: Array,
    active: Array,
    windows: Windows,
    config: STTSConfig,
    kept: int,
    record: tuple[int, ...],
    recorded: dict[int, Array],
) -> tuple[Array, Array, FrameRows | None]:
    """The blocks behind the pruning, one execution or the other."""
    frames, size = active.shape
    rows, refilled = None, jnp.zeros_like(active)
    taking_part, capacity, most = active, windows.active_bound(kept, frames), frames
    if config.refill == "official":
        rows, refilled = refill_alone(active)
        taking_part, capacity = active | refilled, frames * size
    elif config.packing == "rows":
        most = min(frames, 2 * capacity // size + 1)
        rows = first_fit(active.sum(axis=1, dtype=jnp.int32), size, most)
    ends = sorted({*(b + 1 for b in record if b >= config.first_packed), tower.layers})
    if config.packing == "masked":
        state, run = x, _masked_run(tower, taking_part)
        finish = lambda y: jnp.where(active[:, :, None], y, 0)  # noqa: E731
    else:
        if config.packing == "rows":
            assert rows is not None
            slots = row_slots(taking_part, rows, most)
        else:
            groups = tower.groups
            order = None if groups is None else np.argsort(groups, kind="stable")
            slots = flat_slots(taking_part, capacity, order)
        state, run = gather_slots(x, slots), _slots_run(tower, slots, (frames, size), config)
        finish = lambda y: scatter_slots(y, slots, active)  # noqa: E731
    at = config.first_packed
    for end in ends:
        state = run(state, at, end) if end > at else state
        if end - 1 in record:
            recorded[end - 1] = finish(state)
        at = end
    return finish(state), refilled, rows


def _masked_run(tower: Tower, active: Array) -> Callable[[Array, int, int], Array]:
    return lambda y, start, stop: tower.run_frames(y, start, stop, active=active)


def _slots_run(
    tower: Tower, slots: Slots, shape: tuple[int, int], config: STTSConfig
) -> Callable[[Array, int, int], Array]:
    frames, size = shape
    patches = slots.source % size
    groups = tower.groups

    def over(q: Array, k: Array, v: Array, segment: Array, longest: int, unused: int) -> Array:
        if config.packing == "flat":
            return flat_attention(q, k, v, segment, longest, unused, kind=config.attention)
        which = implementation(config.attention, q, simple=True)
        if which != "splash":
            return rows_attention(q, k, v, segment, which=which)
        # Frames are contiguous in rows laid end to end, which is all that the kernel asks for.
        a, b, c, flat = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v, segment))
        return flat_attention(a, b, c, flat, longest, unused, kind="splash").reshape(q.shape)

    def attend(q: Array, k: Array, v: Array, whole: Any) -> Array:
        def seen(q: Array, k: Array, v: Array) -> Array:
            return over(q, k, v, slots.segment, size, frames)

        if groups is None or whole is True:
            return seen(q, k, v)
        count, longest = int(groups.max()) + 1, int(np.bincount(groups).max())
        inside = jnp.asarray(groups, jnp.int32)[patches]
        unused = frames * count
        segment = jnp.where(slots.segment < frames, slots.segment * count + inside, unused)

        def grouped(q: Array, k: Array, v: Array) -> Array:
            return over(q, k, v, segment, longest, unused)

        return grouped(q, k, v) if whole is False else lax.cond(whole, seen, grouped, q, k, v)

    return lambda y, start, stop: tower.run_packed(y, start, stop, patches=patches, attend=attend)
