"""Running a reducer: `reduce` for one ratio, `sweep` for many in one compilation, `reduce_batch` for many videos."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jvidprune.errors import JvidpruneError, JvidpruneWarning
from jvidprune.reducers.checks import Check, check_finite, check_kind, check_needs, check_numbers, cleared
from jvidprune.reducers.own import check_given
from jvidprune.reducers.programs import bucket_capacity, run_batch, run_budgets, run_questions
from jvidprune.reducers.protocol import (
    BaseReducer,
    Reducer,
    check_ratio,
    check_weighs_features,
    of_frames,
    title_of,
    with_defaults,
)
from jvidprune.tokens import QUESTION, Budget, Layout, Reduced, VideoTokens, stack_budgets


def reduce(
    reducer: Reducer | str,
    video: VideoTokens,
    ratio: float,
    *,
    text: Any | None = None,
    text_mask: Any | None = None,
    capacity: int | None = None,
    frames: int | None = None,
    diagnostics: bool = False,
    check: Check = "now",
) -> Reduced:
    """Reduces one video to a retention ratio: one compiled program, and nothing outside of it.

    Args:
      reducer: any object with the `Reducer` protocol, or a text for `registry.from_text` such as "cdpruner".
      video: features (T, N, D) and the evidence the reducer needs.
      text: (L, D) embeddings of a question, for methods that read it, in place of those that the video may carry; or
        (Q, L, D) for one reduction a question, in one program.
      text_mask: (L,) or (Q, L) bool, False on padding rows of `text`.
      ratio: retention ratio in (0, 1]; what it means exactly is the method's own definition.
      capacity: static number of output rows; by default the method's bound, rounded up so that nearby ratios share a
        compilation.
      frames: real frames, by default those of the frame mask. Inside jit, where the mask has no values, a video with
        padding frames needs it: budgets would count them otherwise.
      diagnostics: also return what the method can show (segments, scores, plans), and warn where it says that its
        numbers do not hold (`JvidpruneWarning`).
      check: when NaN and infinite input is refused; "now" waits for the result, "lazy" and False do not, see `Check`.
        Inside transformations nothing is.

    Returns:
      `Reduced` with K = capacity rows; with a leading axis Q where there are several questions.

    Raises:
      JvidpruneError: what is no reducer, an impossible ratio or budget, missing evidence or a missing question,
        non-finite input, too small a capacity.
    """
    given = {"text": text, "text_mask": text_mask, "capacity": capacity, "frames": frames}
    return _run(reducer, video, [ratio], single=True, diagnostics=diagnostics, check=check, **given)


def sweep(
    reducer: Reducer | str,
    video: VideoTokens,
    ratios: Sequence[float],
    *,
    text: Any | None = None,
    text_mask: Any | None = None,
    capacity: int | None = None,
    frames: int | None = None,
    diagnostics: bool = False,
    check: Check = "now",
) -> Reduced:
    """Reduces one video to several retention ratios with one compilation.

    Ratio-independent work is done once, the rest ratio by ratio inside the same compiled program: batched D-wide
    temporaries cost more than they save. On accelerators decisions that are small are made side by side.

    Args:
      reducer, video, text, text_mask, frames, diagnostics, check: as for `reduce`.
      ratios: any number of ratios in (0, 1].
      capacity: static number of output rows of every ratio; by default the bound of the largest one.

    Returns:
      `Reduced` with a leading axis of length len(ratios), behind that of the questions where there are several.

    Raises:
      JvidpruneError: as for `reduce`.
    """
    if len(ratios) == 0:
        raise JvidpruneError("a sweep needs at least one retention ratio, got none.")
    given = {"text": text, "text_mask": text_mask, "capacity": capacity, "frames": frames}
    return _run(reducer, video, ratios, single=False, diagnostics=diagnostics, check=check, **given)


def _run(
    reducer: Reducer | str,
    video: VideoTokens,
    ratios: Sequence[float],
    *,
    text: Any | None,
    text_mask: Any | None,
    capacity: int | None,
    frames: int | None,
    diagnostics: bool,
    check: Check,
    single: bool,
) -> Reduced:
    """`sweep`, or `reduce` of the only ratio."""
    reducer = _named(reducer)
    if of_frames(reducer):
        check_weighs_features(reducer, "tokens alone cannot be reduced by")
    check = check_kind(check)
    asked = _asked(reducer, video, text, text_mask)
    check_needs(reducer, asked[0])
    layout = _layout(video, frames)
    made = [reducer.budget(layout, check_ratio(ratio)) for ratio in ratios]
    budgets = jax.tree.map(_array, made[0]) if single else stack_budgets(made)
    capacity = _capacity(reducer, [(layout, ratio) for ratio in ratios], capacity)
    checked = bool(check) and not isinstance(video.frame_mask, Tracer)
    own = with_defaults(reducer)
    static = {"capacity": capacity, "diagnostics": diagnostics}
    program = own.without_numbers()
    several = _questions(text)
    alike = len({tuple(one.evidence[name].shape for name in sorted(one.evidence)) for one in asked}) == 1
    if own.tokens_from != "tower" and several and alike:
        known = [{name: one.evidence[name] for name in one.evidence.keys() & QUESTION} for one in asked]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *known)
        reduced = run_questions(program, video, stacked, budgets, single=single, checked=checked, **static)
    else:
        if own.tokens_from == "tower":
            # A method whose tokens are no weighting of the video's own (STTS runs the tower on) does all of it itself.
            each = [_from_tower(own, one, budgets, single=single, checked=checked, **static) for one in asked]
        else:
            # Questions of several lengths, for a method that knows no padding: a program for each length.
            each = [run_budgets(program, one, budgets, single=single, checked=checked, **static) for one in asked]
        reduced = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) if several else each[0]
    if check == "now":
        reduced = cleared(reducer, asked, reduced)
    if diagnostics:
        _warn(reducer, reduced)
    return reduced


def lower_sweep(reducer: Reducer, video: VideoTokens, ratios: Sequence[float], *, diagnostics: bool = False) -> Any:
    """The program that `sweep` runs on these arguments, as JAX lowers it; nothing is run.

    Args:
      reducer, video, ratios, diagnostics: as for `sweep`.

    Returns:
      The lowered program, None for a method that runs the tower, on or anew, whose programs are its own.
    """
    if with_defaults(reducer).tokens_from in ("tower", "frames"):
        return None
    (video,), layout = _asked(reducer, video, None, None), _layout(video, None)
    budgets = stack_budgets([reducer.budget(layout, ratio) for ratio in ratios])
    capacity = _capacity(reducer, [(layout, ratio) for ratio in ratios], None)
    given = {"capacity": capacity, "diagnostics": diagnostics, "single": False, "checked": True}
    return run_budgets.lower(with_defaults(reducer).without_numbers(), video, budgets, **given)


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _from_tower(
    own: BaseReducer,
    video: VideoTokens,
    budgets: Budget,
    *,
    capacity: int,
    diagnostics: bool,
    single: bool,
    checked: bool,
) -> Reduced:
    """One video by a method that runs the tower on; its numbers are looked at before it does."""
    if checked:
        check_numbers(own, video)
    stacked = jax.tree.map(lambda leaf: leaf[None], budgets) if single else budgets
    reduced = own.run_budgets(video, stacked, capacity=capacity, diagnostics=diagnostics)
    return jax.tree.map(lambda leaf: leaf[0], reduced) if single else reduced


def _named(reducer: Reducer | str) -> Reducer:
    if not isinstance(reducer, str):
        return check_given(reducer)
    from jvidprune.reducers.registry import from_text

    return from_text(reducer)


def _questions(text: Any | None) -> bool:
    """Whether these are the embeddings of several questions."""
    return text is not None and np.ndim(text) == 3


def _asked(reducer: Reducer, video: VideoTokens, text: Any | None, text_mask: Any | None) -> list[VideoTokens]:
    """The video with each question, in the form that the reducer reads.

    Raises:
      JvidpruneError: embeddings or a mask of another shape, a mask without embeddings, no question, or, inside jit,
        padding that the method does not know of.
    """
    if text is None:
        if text_mask is not None:
            raise JvidpruneError("text_mask marks the rows of text=, which is missing.")
        return [_unpadded(reducer, video)]
    if not _questions(text):
        return [_unpadded(reducer, video.with_text(text, text_mask))]
    masks = [None] * len(text) if text_mask is None else text_mask
    if len(text) == 0 or len(masks) != len(text):
        raise JvidpruneError(f"text has {len(text)} questions, but text_mask has {len(masks)} rows.")
    return [_unpadded(reducer, video.with_text(one, mask)) for one, mask in zip(text, masks, strict=True)]


def _unpadded(reducer: Reducer, video: VideoTokens) -> VideoTokens:
    """The video as a reducer can read it that may know nothing of padding rows of a question."""
    if "text_mask" not in video.evidence or with_defaults(reducer).reads_text_mask:
        return video
    rest = {name: value for name, value in video.evidence.items() if name != "text_mask"}
    if "text" in reducer.needs:
        mask = _on_host(video.evidence["text_mask"])
        if mask is None or (mask.ndim > 1 and not mask.all()):
            raise JvidpruneError(
                f"{title_of(reducer)} does not read text_mask: give it questions without padding, of one length in a "
                "batch."
            )
        rest |= {"text": rest["text"][mask] if mask.ndim == 1 else rest["text"]}
    return dataclasses.replace(video, evidence=rest)


def _warn(reducer: Reducer, reduced: Reduced) -> None:
    """Says what a method's `warning(diagnostics)` says of a result, outside of transformations."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(reduced.diagnostics)):
        return
    text = with_defaults(reducer).warning(reduced.diagnostics)
    if text is not None:
        warnings.warn(text, JvidpruneWarning, stacklevel=4)


def reduce_batch(
    reducer: Reducer | str,
    videos: VideoTokens,
    ratio: float,
    *,
    text: Any | None = None,
    text_mask: Any | None = None,
    capacity: int | None = None,
    diagnostics: bool = False,
    check: Check = "now",
) -> Reduced:
    """Reduces a batch of videos, padded to a common number of frames, in one call: vmapped, on CPU one by one.

    Args:
      reducer: as for `reduce`.
      videos: `VideoTokens` whose arrays carry a leading batch axis; `frame_mask` marks each video's real frames.
      ratio: retention ratio in (0, 1], applied to each video's real frames.
      text: (B, L, D) embeddings of one question a video, for methods that read it.
      text_mask: (B, L) bool, False on padding rows of `text`.
      capacity: static number of output rows of every video; by default the bound of the one that needs most.
      diagnostics: also return what the method can show.
      check: as for `reduce`.

    Returns:
      `Reduced` with a leading batch axis.

    Raises:
      JvidpruneError: as for `reduce`, a video without any real frame, or STTS, which takes one video at a time.
    """
    if videos.features.ndim != 4:
        raise JvidpruneError(f"a batch of videos has features (B, T, N, D), got shape {videos.features.shape}.")
    reducer = _named(reducer)
    check_weighs_features(reducer, "reduce_batch cannot run")
    if text is None and text_mask is not None:
        raise JvidpruneError("text_mask marks the rows of text=, which is missing.")
    videos = _unpadded(reducer, videos if text is None else videos.with_text(text, text_mask))
    check = check_kind(check)
    check_needs(reducer, videos)
    known = _on_host(videos.frame_mask)
    layouts = [videos.layout(_real_frames(mask)) for mask in (videos.frame_mask if known is None else known)]
    budgets = stack_budgets([reducer.budget(layout, check_ratio(ratio)) for layout in layouts])
    capacity = _capacity(reducer, [(layout, ratio) for layout in layouts], capacity)
    checked = bool(check) and known is not None
    program = with_defaults(reducer).without_numbers()
    reduced = run_batch(program, videos, budgets, capacity=capacity, diagnostics=diagnostics, checked=checked)
    return check_finite(reducer, videos, reduced) if check == "now" else reduced


def _capacity(reducer: Reducer, cases: Sequence[tuple[Layout, float]], capacity: int | None) -> int:
    needed = max(reducer.capacity(layout, float(ratio)) for layout, ratio in cases)
    if capacity is None:
        layout = cases[0][0]
        return bucket_capacity(needed, layout.slots * layout.tokens)
    if capacity < needed:
        raise JvidpruneError(f"capacity {capacity} is too small: {title_of(reducer)} may return {needed} tokens here.")
    return capacity


def _layout(video: VideoTokens, frames: int | None) -> Layout:
    slots, known = video.features.shape[-3], _on_host(video.frame_mask)
    if frames is None or known is not None:
        real = _real_frames(video.frame_mask)
        if frames not in (None, real):
            raise JvidpruneError(f"the frame mask has {real} real frames, but frames is {frames}.")
        frames = real
    elif not 1 <= frames <= slots:
        raise JvidpruneError(f"a video of {slots} frames has 1 to {slots} real ones, got {frames}.")
    return video.layout(None if frames == slots else frames)


def _on_host(array: jax.Array) -> np.ndarray | None:
    """The values, or None while tracing."""
    try:
        return np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None


def _real_frames(mask: jax.Array) -> int:
    known = _on_host(mask)
    if known is None:
        # Inside jit the mask has no values: the caller's frames all count as real.
        return mask.shape[0]
    frames = int(known.sum())
    if frames == 0:
        raise JvidpruneError("the video has no real frame: its frame mask is all False.")
    if not known[:frames].all():
        raise JvidpruneError("padding frames must follow all real frames in the frame mask.")
    return frames
