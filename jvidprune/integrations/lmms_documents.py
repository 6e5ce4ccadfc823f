"""Requests and documents of lmms-eval: what they ask, what they show, and the answers in their order."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.files import content_mark
from jvidprune.video.decode import Clip
from jvidprune.video.wish import FrameWish


class Answered(NamedTuple):
    """A reply's text, cut at what ends it, and the lengths of prompt and answer in tokens."""

    text: str
    prompt: int
    generated: int


class Failed(NamedTuple):
    """Why a document was not answered."""

    reason: str


class UnsupportedTask(JvidpruneError):
    """A task that asks about something else than videos: no document of it can be answered."""


def frames_of(pictures: Sequence[Any], wish: FrameWish) -> Clip:
    """Pictures as the frames of a video, one a second.

    Raises:
      JvidpruneError: pictures of several sizes.
    """
    places = wish.indices(len(pictures), 1.0)
    arrays = [np.asarray(pictures[i].convert("RGB")) for i in places]
    if len({array.shape for array in arrays}) > 1:
        raise JvidpruneError("the pictures of a video must have one size.")
    return Clip(np.stack(arrays), places, places.astype(np.float64), 1.0, len(pictures))


def mark_of(shown: Any) -> str:
    """What a video or picture holds."""
    if isinstance(shown, Failed):
        return shown.reason
    if isinstance(shown, str | Path):
        return content_mark(Path(shown))
    if hasattr(shown, "tobytes"):
        size = getattr(shown, "size", "")
        return hashlib.sha256(f"{size}:".encode() + shown.tobytes()).hexdigest()[:16]
    return type(shown).__name__


def called(args: tuple[Any, ...]) -> str:
    """What a sentence calls the document of a request."""
    return f"document {args[3]} of {args[4]}"


def checked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a request about a document.

    Raises:
      JvidpruneError: another kind of request.
    """
    if len(args) != 6:
        raise JvidpruneError(
            f"a request of {len(args)} parts is not supported: jvidprune answers questions about videos, given as "
            "(context, settings or continuation, doc_to_visual, doc_id, task, split)."
        )
    return args


def same_prompt(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two requests ask the same about the same document."""
    return (one[0], *one[3:]) == (other[0], *other[3:])


def occurrences(keys: Sequence[str]) -> list[int]:
    """How often each key stood before."""
    seen: dict[str, int] = {}
    found = []
    for key in keys:
        found.append(seen.get(key, 0))
        seen[key] = found[-1] + 1
    return found


def continuation(args: tuple[Any, ...], documents: Mapping[str, Any]) -> str:
    """The text whose likelihood is asked for."""
    _, target, _, doc_id, task, split = args
    return target if isinstance(target, str) else str(target(documents[task][split][doc_id]))
