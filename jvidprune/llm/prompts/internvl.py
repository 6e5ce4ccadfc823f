"""Prompts in which every frame stands behind its number, between markers, pictures without one (InternVL)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.prompts.frames import FrameByFrame
from jvidprune.llm.prompts.messages import Asked
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import Layout


class Marks(NamedTuple):
    """Tokens, as text, before and behind the tokens of a frame."""

    start: str
    end: str


def marks(folder: Path) -> Marks:
    """Those that the tokenizer of a folder names, else the published ones."""
    path = folder / "tokenizer_config.json"
    given = read_json(path) if path.exists() else {}
    more = given.get("extra_special_tokens")
    named = given | more if isinstance(more, dict) else given
    found = (named.get(key) for key in ("start_image_token", "end_image_token"))
    start, end = (value if isinstance(value, str) and value else None for value in found)
    return Marks(start or "<img>", end or "</img>")


class NumberedPrompts(FrameByFrame):
    """Frame by frame behind "Frame1: ", markers around each, a line for each; numbers begin anew with every video."""

    between: ClassVar[str] = "\n"

    def ids(self, videos: Sequence[ReducedVideo], question: Asked) -> list[list[int]]:
        """See `PromptBuilder.ids`: one text more than there are frames."""
        texts, around = self.texts_around(question, videos), marks(self.folder)
        found, waiting = [], texts[0]
        for one, text in zip(videos, texts[1:], strict=True):
            frames = one.video.layout.frames
            if one.video.picture:
                # Its tiles follow each other between one pair of markers.
                found += [waiting + around.start, *[""] * (frames - 1)]
            else:
                lines = [f"Frame{number + 1}: {around.start}" for number in range(frames)]
                found += [waiting + lines[0], *(f"{around.end}\n{line}" for line in lines[1:])]
            waiting = around.end + text
        return [self.tokenizer.encode(text) for text in [*found, waiting]]

    @staticmethod
    def marker_tokens(config: Any, layout: Layout, reducer: Reducer) -> int:
        """Two markers, a line break and about 5 tokens of its number a frame."""
        return 8 * layout.frames
