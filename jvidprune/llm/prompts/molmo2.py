"""Prompts in which every frame stands behind its time, and who sees whom in them (Molmo2)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jvidprune.errors import JvidpruneError
from jvidprune.llm.encoded import ReducedVideo, clip_of
from jvidprune.llm.prompts.frames import FrameByFrame
from jvidprune.llm.prompts.messages import Asked
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.models.molmo2.config import Molmo2Config
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import Layout
from jvidprune.video.decode import Clip


class Marks(NamedTuple):
    """Ids before and behind the placeholders of a frame, or of a map of a picture.

    Attributes:
      start, end: of the whole.
      column: behind every row, None for none.
    """

    start: int
    end: int
    column: int | None = None


def marks(config: Molmo2Config, folder: Path) -> Marks:
    """The markers that a folder's processor_config.json asks for: those of frames, or of images.

    Raises:
      JvidpruneError: markers behind the rows of a frame, which no pruned frame has.
    """
    path = folder / "processor_config.json"
    given = read_json(path) if path.exists() else {}
    if given.get("video_use_col_tokens"):
        raise JvidpruneError(
            f"{path} asks for column tokens in videos (video_use_col_tokens), which are not supported."
        )
    tokens = config.tokens
    if given.get("use_frame_special_tokens", True):
        return Marks(tokens.frame_start, tokens.frame_end)
    return Marks(tokens.image_start, tokens.image_end)


def picture_marks(config: Molmo2Config, folder: Path) -> tuple[Marks, Marks]:
    """The markers of the whole picture and of its crops, as a folder's processor_config.json asks for them."""
    path = folder / "processor_config.json"
    given = {key: value for key, value in (read_json(path) if path.exists() else {}).items() if value is not None}
    tokens, rows = config.tokens, given.get("image_use_col_tokens", True)
    start = tokens.low_res_start if given.get("use_single_crop_start_token", True) else tokens.image_start
    columns = given.get("use_single_crop_col_tokens", rows), rows
    first, second = (tokens.image_column if one else None for one in columns)
    return Marks(start, tokens.image_end, first), Marks(tokens.image_start, tokens.image_end, second)


def stamps(clip: Clip) -> list[str]:
    """The seconds that stand before each frame."""
    return [f"{seconds:.1f} " for seconds in clip.timestamps.tolist()]


def prompt_ids(
    texts: Sequence[str],
    videos: Sequence[ReducedVideo],
    around: Marks,
    encode: Callable[[str], list[int]],
    shown: Sequence[Marks] = (),
) -> list[list[int]]:
    """The texts of a prompt as ids, cut further, one more than there are frames, and rows of pictures.

    Before a frame stand its time and a marker, behind it another, and a space before every time but the first
    (the text that transformers' processor writes). Frames of which no token is kept leave all of these. Pictures have
    markers around each map and one behind every row, which stay as well.

    Args:
      texts: before, between and behind the videos.
      videos: with their clips.
      around: from `marks`.
      encode: text to ids.
      shown: from `picture_marks`, where there are pictures.
    """
    first, last = around.start, around.end
    found, waiting, head = [], texts[0], list[int]()
    for one, text in zip(videos, texts[1:], strict=True):
        if one.video.picture:
            head = [*head, *encode(waiting)]
            for part, own in zip(one.maps, shown, strict=True):
                behind = [] if own.column is None else [own.column]
                found += [[*head, own.start], *[behind] * (part.video.layout.grid[0] - 1)]
                head = [*behind, own.end]
            waiting = text
            continue
        for number, stamped in enumerate(stamps(clip_of(one.video))):
            found.append([*head, *encode(waiting + " " * (number > 0) + stamped), first])
            waiting, head = "", [last]
        waiting = text
    return [*found, [*head, *encode(waiting)]]


def seen_both_ways(slots: SlotMap, text: Int[np.ndarray, "L"], config: Molmo2Config) -> Bool[np.ndarray, "S"]:
    """Slots that see each other whatever their order: visual tokens and the markers around them, of all frames.

    Args:
      slots: of the prompt.
      text: ids of its text tokens in order.
      config: of the model.
    """
    ids = text[np.minimum(slots.source, len(text) - 1)]
    return slots.valid & ((slots.source > len(text)) | np.isin(ids, config.tokens.ids))


class FramePrompts(FrameByFrame):
    """Frame by frame behind its time, markers around each; frames and markers see each other."""

    placeholder: ClassVar[str] = "<|video|>"
    by_row: ClassVar[bool] = True
    picture_placeholder: ClassVar[str | None] = "<|image|>"

    def check(self) -> None:
        """See `PromptBuilder.check`."""
        super().check()
        marks(self.config, self.folder)

    def ids(self, videos: Sequence[ReducedVideo], question: Asked) -> list[list[int]]:
        """See `PromptBuilder.ids`."""
        around, shown = marks(self.config, self.folder), picture_marks(self.config, self.folder)
        return prompt_ids(self.texts_around(question, videos), videos, around, self.tokenizer.encode, shown)

    def bidirectional(self, slots: SlotMap, text: np.ndarray) -> np.ndarray | None:
        """See `PromptBuilder.bidirectional`."""
        return seen_both_ways(slots, text, self.config)

    @staticmethod
    def marker_tokens(config: Any, layout: Layout, reducer: Reducer) -> int:
        """Two markers and about 6 tokens of time a frame."""
        return 8 * layout.frames
