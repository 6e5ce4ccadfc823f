"""Models and videos on paper: configs, sizes and counts as the command line writes them; no weights are read."""

from pathlib import Path
from typing import Annotated, Any

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.fields import Range, checked
from jvidprune.llm.conventions import settings_of
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.models.checkpoint.published import PUBLISHED, config_of, published, short_name
from jvidprune.texts import whole_number
from jvidprune.tokens import Layout

_MOST_FRAMES, _LARGEST_SIDE = 100_000, 100_000
"""What a video can have on paper; tables of some methods grow with the frames."""


def layout_of(config: Any, frames: int, size: tuple[int, int], convention: str | None = None) -> Layout:
    """Frames and tokens of a video as a family's preprocessing makes them.

    Args:
      config: of a family.
      frames: video frames; a Qwen grid frame takes two.
      size: (height, width) in pixels; LLaVA squashes every size to a square.
      convention: that the video is read in, see `llm.conventions`.

    Raises:
      JvidpruneError: no frame, a size that the family's rule refuses, or a convention that it does not have.
    """
    checked(frames, Annotated[int, Range(1, _MOST_FRAMES)], "frames")
    return settings_of(config.family, convention).layout(config, frames, size, {})


def config_named(model: str) -> Any:
    """The config of a published model, or of a folder's config.json.

    Raises:
      JvidpruneError: neither.
    """
    if short_name(model) in PUBLISHED and not Path(model).is_dir():
        return published(model)
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise JvidpruneError(f"{model!r} is neither a folder with a config.json nor one of {', '.join(PUBLISHED)}.")
    return config_of(read_json(folder / "config.json"))


def read_size(size: str) -> tuple[int, int]:
    """(height, width) from "448x448".

    Raises:
      JvidpruneError: another text.
    """
    height, _, width = size.lower().partition("x")
    sides = whole_number(height), whole_number(width)
    if not all(side and side <= _LARGEST_SIDE for side in sides):
        raise JvidpruneError(
            f"a size is written HEIGHTxWIDTH in pixels, each from 1 to {_LARGEST_SIDE}, got {quoted(repr(size))}."
        )
    return sides  # type: ignore[return-value]


def check_counts(**counts: int) -> None:
    """JvidpruneError for a number of tokens or prompts below 1 or beyond ten million."""
    for name, value in counts.items():
        checked(value, Annotated[int, Range(1, 10_000_000)], name)
