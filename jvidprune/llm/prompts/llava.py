"""Prompts with newline embeddings between the tokens of a video, and LLaVA-Video's time instruction (LLaVA)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jvidprune.llm.encoded import ReducedVideo, prompt_positions
from jvidprune.llm.prompts.builder import PromptBuilder
from jvidprune.llm.prompts.messages import Asked
from jvidprune.llm.prompts.slots import Run, SlotMap, interleave, laid_out, original_slots
from jvidprune.ops.newline import NewlineKind, NewlineRows, arrange, full_length, unreduced_places
from jvidprune.reducers.prompt_rules import PositionRule
from jvidprune.video.decode import Clip
from jvidprune.video.sampling import llava_times, time_string

_arrange = jax.jit(arrange, static_argnames=("kind", "grid", "frames", "rows"))


def newline_run(one: ReducedVideo, kind: NewlineKind, rows: NewlineRows, first_row: int = 0) -> Run:
    """The kept tokens of a video with newline embeddings between them.

    Args:
      one: the video; what its reducer declares goes before the family's layout.
      kind: the family's layout.
      rows: the family's rule for rows of a grid.
      first_row: of this video among the reduced tokens of all videos.
    """
    kind, rows = one.newline_layout(kind), one.rules.newline_rows or rows
    grid, frames = one.video.tokens.grid, one.video.tokens.features.shape[0]
    real = int(one.video.tokens.frame_mask.sum())
    reduced = one.reduced
    places = reduced.diagnostics["place"] if one.rules.official_places else reduced.index
    layout = _arrange(places, reduced.valid, kind=kind, grid=grid, frames=frames, rows=rows, real_frames=real)
    valid, source, newline = (np.asarray(part) for part in (layout.valid, layout.source, layout.is_newline))
    position = np.asarray(layout.position)
    if one.rules.official_places:
        # Where a row is filed decides the order alone; its position is that of its own token.
        own = unreduced_places(np.asarray(reduced.index), kind, grid)
        position = np.where(newline, position, own[np.minimum(source, len(own) - 1)])
    found = np.where(newline, -1, first_row + source)
    return Run(found[valid], position[valid], full_length(kind, grid, real))


def lay_out(
    videos: Sequence[ReducedVideo],
    texts: Sequence[Any],
    *,
    newline: NewlineKind,
    newline_rows: NewlineRows,
    max_positions: int,
    reserve: int,
    positions: PositionRule | None = None,
) -> SlotMap:
    """The slots of a prompt of texts and videos in turn.

    Args:
      videos: in the order of the prompt.
      texts: token ids, one more than there are videos.
      newline, newline_rows: layout of the family, where a reducer declares none.
      max_positions: what the language model can address.
      reserve: tokens that will be generated.
      positions: rule of the prompt; None takes the methods' settings, else the rule of their references.

    Raises:
      JvidpruneError: prompt and answer do not fit into the model's positions.
    """
    firsts = np.cumsum([0, *(one.capacity for one in videos)])
    runs = [newline_run(one, newline, newline_rows, int(at)) for one, at in zip(videos, firsts, strict=False)]
    whole = interleave(texts, runs)
    where = original_slots(whole, positions or prompt_positions(videos))
    return laid_out(whole, max_positions=max_positions, reserve=reserve, **where)


class NewlinePrompts(PromptBuilder):
    """Every video, and every map of a picture, is one run of tokens with the newline embeddings of its layout."""

    def ids(self, videos: Sequence[ReducedVideo], question: Asked) -> list[list[int]]:
        """See `PromptBuilder.ids`: one text more than there are maps, nothing between those of one picture."""
        first, *behind = super().ids(videos, question)
        found = [first]
        for one, text in zip(videos, behind, strict=True):
            found += [*([] for _ in one.beside), text]
        return found

    def lay_out(
        self, videos: Sequence[ReducedVideo], ids: Sequence[Any], *, reserve: int, positions: PositionRule
    ) -> SlotMap:
        """See `PromptBuilder.lay_out`."""
        return lay_out(
            videos,
            ids,
            newline=self.settings.newline_of(self.config),
            newline_rows=self.settings.newline_rows,
            max_positions=self.config.text.max_positions,
            reserve=reserve,
            positions=positions,
        )


def time_instruction(clip: Clip, *, rule: str = "llava_video_force") -> str:
    """Sentences that LLaVA-Video's training put before a question: a clip's length, its number of frames, their times.

    Args:
      clip: what was sampled.
      rule: how; with "llava_video_upto" one-a-second frames of a constant rate are timed by the rounded rate, a quirk
        of the reference.
    """
    count = len(clip.indices)
    times, seconds = time_string(clip.timestamps), f"{clip.duration:.2f}"
    if rule == "llava_video_upto" and clip.regular:
        times, seconds = llava_times(clip.total, clip.fps, count, force=False)
    return (
        f"The video lasts for {seconds} seconds, and {count} frames are uniformly sampled from it. These frames are "
        f"located at {times}.Please answer the following questions related to this video."
    )


def with_times(question: str, clip: Clip, *, rule: str = "llava_video_force") -> str:
    """The question behind the time instruction; the published evaluations of LLaVA-Video leave the instruction out."""
    return f"{time_instruction(clip, rule=rule)}\n{question}"
