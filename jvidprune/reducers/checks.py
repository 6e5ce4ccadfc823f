"""What a call refuses of a video: missing evidence, and NaN or infinite numbers, which its program looks for."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jvidprune.errors import JvidpruneError
from jvidprune.reducers.programs import NOT_FINITE, arrays_read
from jvidprune.reducers.protocol import (
    Reducer,
    title_of,
)
from jvidprune.tokens import Reduced, VideoTokens

Check = Literal["now", "lazy", False]
"""When NaN and infinite input is refused: before the call returns, when `check_finite` is asked, or never.

The compiled program looks for it in any case but the last, in one reduction beside its own. "now" waits for the program
to end; "lazy" leaves what was found in `diagnostics["not_finite"]` and returns while the program runs, as False does.
"""


def check_needs(reducer: Reducer, video: VideoTokens) -> None:
    """Refuses a video without what a reducer reads.

    Raises:
      JvidpruneError: missing evidence.
    """
    missing = sorted(reducer.needs - video.evidence.keys())
    if missing:
        raise JvidpruneError(
            f"{title_of(reducer)} needs the evidence {', '.join(missing)}, which the video does not carry "
            f"(it has {', '.join(sorted(video.evidence)) or 'none'})"
            + ("; text is the question: give it to encode, or its embeddings as text=." if missing == ["text"] else ".")
        )


def check_finite(reducer: Reducer, video: VideoTokens, reduced: Reduced) -> Reduced:
    """The result of a call with `check="lazy"` without what its program found; waits for the program.

    Raises:
      JvidpruneError: NaN or infinite features or evidence.
    """
    return cleared(reducer, [video], reduced)


def cleared(reducer: Reducer, videos: Sequence[VideoTokens], reduced: Reduced) -> Reduced:
    """The result of one program on several videos without what it found.

    Args:
      reducer: that ran.
      videos: what it ran on; the first with numbers that are not finite is named.
      reduced: its result; one without anything that was looked for comes back as it is.

    Raises:
      JvidpruneError: NaN or infinite features or evidence.
    """
    found = reduced.diagnostics.get(NOT_FINITE)
    if found is None:
        return reduced
    if not isinstance(found, Tracer) and np.asarray(found).any():
        for video in videos:
            check_numbers(reducer, video)
    return reduced._replace(diagnostics={name: v for name, v in reduced.diagnostics.items() if name != NOT_FINITE})


def check_numbers(reducer: Reducer, video: VideoTokens) -> None:
    """Refuses NaN and infinite numbers; counts them, which takes a pass of its own over every array."""
    for name, array in arrays_read(reducer, video):
        bad = jnp.size(array) - jnp.isfinite(array).sum()
        if not isinstance(bad, Tracer) and bad:
            raise JvidpruneError(f"{name} hold {bad} NaN or infinite values; a reducer needs finite numbers.")


def check_kind(check: Any) -> Check:
    """What a caller gave as `check`.

    Raises:
      JvidpruneError: none of the three.
    """
    for known in get_args(Check):
        if type(check) is type(known) and check == known:
            return known
    raise JvidpruneError(f"check must be 'now', 'lazy' or False, got {check!r}.")
