"""Prompts in which every frame stands behind its time in words (VideoLLaMA3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jvidprune.llm.encoded import ReducedVideo, clip_of
from jvidprune.llm.prompts.frames import FrameByFrame
from jvidprune.llm.prompts.messages import Asked
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import Layout
from jvidprune.video.decode import Clip


def placeholder(folder: Path) -> str:
    """The token that the folder's chat template writes for a video: the tokenizer's own, else that of Qwen."""
    path = folder / "tokenizer_config.json"
    given = read_json(path) if path.exists() else {}
    more = given.get("extra_special_tokens")
    for found in (more.get("video_token") if isinstance(more, dict) else None, given.get("video_token")):
        if isinstance(found, str) and found:
            return found
    return "<|video_pad|>"


def stamps(clip: Clip) -> list[str]:
    """What stands before the tokens of each frame."""
    return [f"{',' * (number > 0)}Time {seconds:.1f}s:" for number, seconds in enumerate(clip.timestamps.tolist())]


class TimePrompts(FrameByFrame):
    """Frame by frame behind "Time 1.0s:", a comma between two frames, no markers."""

    between: ClassVar[str] = "\n"

    @property
    def stands_for(self) -> str:
        """See `PromptBuilder.stands_for`."""
        return placeholder(self.folder)

    def ids(self, videos: Sequence[ReducedVideo], question: Asked) -> list[list[int]]:
        """See `PromptBuilder.ids`: one text more than there are frames."""
        texts = self.texts_around(question, videos)
        found = [texts[0]]
        for one, text in zip(videos, texts[1:], strict=True):
            clip = clip_of(one.video)
            # A still picture has no time.
            times = [""] if clip.picture else stamps(clip)
            found[-1] += times[0]
            found += [*times[1:], text]
        return [self.tokenizer.encode(text) for text in found]

    @staticmethod
    def marker_tokens(config: Any, layout: Layout, reducer: Reducer) -> int:
        """About 7 tokens of time a frame."""
        return 7 * layout.frames
