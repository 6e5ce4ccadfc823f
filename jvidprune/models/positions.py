"""Rotary positions on three axes: where text and video tokens of a Qwen-VL prompt stand in time, height and width.

Everything here is host-side numpy: positions depend on the prompt's layout alone.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int

from jvidprune.errors import JvidpruneError

MropeRule = Literal["released", "transformers-5", "transformers-4.57", "lmms-eval"]
"""How a Qwen2.5-VL video is placed in time, how text goes on behind it, and where generated tokens stand.

"released": seconds between grid frames as they are; text goes on at the largest id of any axis plus one, generated
tokens too. So do transformers 4.49 and 4.50, which the models were released with, vLLM and tpu-inference.
"transformers-5": seconds as they are; text goes on at the video's start plus the larger of its height and width, even
where time ids are larger, and generated tokens at the last position plus one, as `generate()` has it.
"transformers-4.57": seconds cut to whole numbers (0.75 to 0), otherwise as "released": versions 4.52 to 4.57.
"lmms-eval": one second between grid frames whatever the video, otherwise as "released": its models pass no rate.

Qwen3-VL tells time by text, so that all four agree."""

MROPE_RULES: tuple[str, ...] = get_args(MropeRule)


class VideoBlock(NamedTuple):
    """A run of visual placeholders that share one origin.

    Attributes:
      frames, height, width: grid in tokens, after merging.
      seconds: between two grid frames, 2 / fps of the sample; 0 keeps time still.
    """

    frames: int
    height: int
    width: int
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Placeholders of the block."""
        return self.frames * self.height * self.width


class PromptPositions(NamedTuple):
    """Positions of a prompt of L tokens.

    Attributes:
      ids: (3, L) int32 time, height and width.
      next: position of the first generated token on all axes: the largest id of the UNPRUNED prompt plus one, or its
        last plus one ("transformers-5").
      rope_delta: the largest id of the unpruned prompt plus one, minus its length: what the references return beside
        the ids.
    """

    ids: Int[np.ndarray, "3 L"]
    next: int
    rope_delta: int

    def keep(self, slots: Int[np.ndarray, "K"], *, reindexed: bool = False) -> "PromptPositions":
        """The positions of a pruned prompt.

        Args:
          slots: (K,) prompt indices that stay.
          reindexed: False keeps every token's own ids and `next`, as all published reducers do; True counts
            0..K-1 on all axes.
        """
        if reindexed:
            count = len(slots)
            return PromptPositions(np.tile(np.arange(count, dtype=np.int32), (3, 1)), count, 0)
        return self._replace(ids=self.ids[:, slots])


def step_seconds(seconds: float, rule: MropeRule) -> float:
    """Seconds between two grid frames as a rule takes them.

    Args:
      seconds: in the video.
      rule: "lmms-eval" takes 1.0 whatever they are, "transformers-4.57" whole ones.
    """
    if rule == "lmms-eval":
        return 1.0
    return float(int(seconds)) if rule == "transformers-4.57" else seconds


def video_ids(
    block: VideoBlock, start: int, tokens_per_second: float, rule: MropeRule = "released"
) -> Int[np.ndarray, "3 M"]:
    """(3, tokens) ids of a block that starts at `start`: time floor(frame * seconds * tokens_per_second), row, column.

    The product is taken in float32, as torch takes it, from the left; "transformers-5" multiplies seconds and scale
    first.
    """
    frame, row, column = np.indices((block.frames, block.height, block.width)).reshape(3, -1)
    seconds, scale, steps = np.float32(block.seconds), np.float32(tokens_per_second), frame.astype(np.float32)
    times = steps * (seconds * scale) if rule == "transformers-5" else steps * seconds * scale
    return (start + np.stack([np.floor(times), row, column])).astype(np.int32)


def prompt_positions(
    pieces: Sequence[int | VideoBlock], *, tokens_per_second: float = 0.0, rule: MropeRule = "released"
) -> PromptPositions:
    """Positions of a prompt.

    Args:
      pieces: in order, a number of text tokens or a block of visual ones. Qwen2.5-VL has one block a video; Qwen3-VL
        has one of a single frame for each grid frame, with its time stamp as text before it (`frame_blocks`).
      tokens_per_second: ids of the time axis in a second (Qwen2.5-VL, from its config; 0 for Qwen3-VL).
      rule: see `MropeRule`; all agree where time stands still.

    Raises:
      JvidpruneError: an unknown rule, or an empty prompt.
    """
    check_rule(rule)
    parts, at, top = [], 0, -1
    for piece in pieces:
        if isinstance(piece, VideoBlock):
            ids = video_ids(piece, at, tokens_per_second, rule)
            at = at + max(piece.height, piece.width) if rule == "transformers-5" else int(ids.max()) + 1
        else:
            ids = np.tile(np.arange(at, at + piece, dtype=np.int32), (3, 1))
            at += piece
        top = max(top, int(ids.max(initial=-1)))
        parts.append(ids)
    if top < 0:
        raise JvidpruneError("a prompt without tokens has no positions.")
    ids = np.concatenate(parts, axis=1)
    after = int(ids[:, -1].max()) if rule == "transformers-5" else top
    return PromptPositions(ids, after + 1, top + 1 - ids.shape[1])


def check_rule(rule: str) -> None:
    """Refuses what is no M-RoPE rule.

    Raises:
      JvidpruneError: an unknown one.
    """
    if rule not in MROPE_RULES:
        raise JvidpruneError(f"unknown M-RoPE rule {rule!r}; known: {', '.join(MROPE_RULES)}.")


def frame_blocks(frames: int, height: int, width: int) -> list[VideoBlock]:
    """The blocks of a Qwen3-VL video: every grid frame stands alone, time is told by text."""
    return [VideoBlock(1, height, width)] * frames


def prompt_pieces(ids: Int[np.ndarray, "L"], video_token: int, blocks: Sequence[VideoBlock]) -> list[int | VideoBlock]:
    """The pieces of a tokenised prompt: its runs of placeholders filled with the blocks in their order.

    Raises:
      JvidpruneError: placeholders and blocks do not match.
    """
    visual = np.asarray(ids) == video_token
    wanted = sum(block.tokens for block in blocks)
    if int(visual.sum()) != wanted:
        raise JvidpruneError(f"the prompt holds {int(visual.sum())} video placeholders for {wanted} video tokens.")
    pieces, at = [], 0
    for block in blocks:
        start = at + int(np.argmax(visual[at:]))
        if not visual[start : start + block.tokens].all():
            raise JvidpruneError(f"text stands inside the {block.tokens} placeholders that begin at token {start}.")
        pieces += [start - at] * (start > at) + [block]
        at = start + block.tokens
    return pieces + [len(visual) - at] * (at < len(visual))
