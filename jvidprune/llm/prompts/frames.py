"""What prompts share that show a video frame by frame on one axis of positions."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jvidprune.llm.encoded import ReducedVideo, prompt_positions
from jvidprune.llm.prompts.builder import PromptBuilder
from jvidprune.llm.prompts.slots import SlotMap, block_runs, interleave, laid_out, original_slots
from jvidprune.models.positions import frame_blocks
from jvidprune.reducers.prompt_rules import PositionRule


def lay_out(
    videos: Sequence[ReducedVideo],
    texts: Sequence[Any],
    config: Any,
    *,
    reserve: int,
    positions: PositionRule | None = None,
    by_row: bool = False,
) -> SlotMap:
    """The slots of a prompt; what is written around every frame stays, also where none of its tokens is kept.

    Args:
      videos: in the order of the prompt.
      texts: token ids, one more text than there are frames (or rows of pictures).
      config: of the model.
      reserve: tokens that will be generated.
      positions: rule of the prompt; None takes the methods' settings, else the rule of their references.
      by_row: something is written between the rows of pictures too.

    Raises:
      JvidpruneError: prompt and answer do not fit into the model's positions.
    """
    runs, first_row = [], 0
    for one in videos:
        index = np.asarray(one.reduced.index)[np.asarray(one.reduced.valid)]
        frames, (height, width) = one.video.layout.frames, one.video.tokens.grid
        if by_row and one.video.picture:
            frames, height = frames * height, 1
        blocks = frame_blocks(frames, height, width)
        runs += block_runs(index, blocks, first_row)
        first_row += one.capacity
    whole = interleave(texts, runs)
    where = original_slots(whole, positions or prompt_positions(videos))
    return laid_out(whole, max_positions=config.text.max_positions, reserve=reserve, **where)


class FrameByFrame(PromptBuilder):
    """Base of the ways that write something before every frame: its `ids` are one text more than there are frames.

    Attributes:
      by_row: something is written between the rows of pictures too, see `lay_out`.
    """

    by_row: ClassVar[bool] = False

    def lay_out(
        self, videos: Sequence[ReducedVideo], ids: Sequence[Any], *, reserve: int, positions: PositionRule
    ) -> SlotMap:
        """See `PromptBuilder.lay_out`."""
        return lay_out(videos, ids, self.config, reserve=reserve, positions=positions, by_row=self.by_row)
