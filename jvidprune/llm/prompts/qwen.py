"""Prompts with blocks of visual tokens on three axes of positions, time stamps and vision markers (Qwen-VL)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jvidprune.llm.encoded import ReducedVideo, clip_of, prompt_positions
from jvidprune.llm.prompts.builder import PromptBuilder
from jvidprune.llm.prompts.messages import Asked
from jvidprune.llm.prompts.slots import SlotMap, block_runs, interleave, laid_out
from jvidprune.models import positions
from jvidprune.models.positions import MropeRule, VideoBlock
from jvidprune.models.qwen.model import QwenVLConfig
from jvidprune.models.settings import Markers
from jvidprune.reducers.prompt_rules import PositionRule
from jvidprune.reducers.protocol import Reducer, prompt_rules
from jvidprune.tokens import Layout
from jvidprune.video.decode import Clip
from jvidprune.video.sampling import pair_means, stamp


def step_seconds(clip: Clip, pair: int, rule: MropeRule = "released") -> float:
    """Seconds between grid frames, `pair` over the sampling rate, as a rule of positions takes them."""
    return positions.step_seconds(pair / clip.sampled_fps, rule)


def stamps(clip: Clip) -> list[str]:
    """The time stamp of each grid frame, which is made of two frames."""
    return [stamp(seconds) for seconds in pair_means(clip.timestamps.tolist())]


def video_texts(
    texts: Sequence[str], videos: Sequence[ReducedVideo], config: QwenVLConfig, markers: Markers = "blocks"
) -> list[str]:
    """The texts of a prompt cut further, one more than there are blocks of visual tokens.

    Qwen2.5-VL wraps each video in vision_start and vision_end; Qwen3-VL does so with every grid frame and writes its
    time stamp before.

    Args:
      texts: before, between and behind the videos, without vision markers.
      videos: with their clips.
      config: of the model.
      markers: see `Markers`.
    """
    first, last = "<|vision_start|>", "<|vision_end|>"
    found = [texts[0]]
    for one, text in zip(videos, texts[1:], strict=True):
        # A still picture has no time.
        by_text = not config.tokens_per_second and not clip_of(one.video).picture
        times = stamps(clip_of(one.video)) if by_text else [""]
        around = by_text and markers == "around"
        found[-1] += first * around
        for stamped in times:
            found[-1] += stamped + first
            found.append(last)
        found[-1] += last * around + text
    return found


def lay_out(
    videos: Sequence[ReducedVideo],
    texts: Sequence[Any],
    config: QwenVLConfig,
    *,
    reserve: int,
    rule: MropeRule = "released",
    positions: PositionRule | None = None,
) -> SlotMap:
    """The slots of a prompt, by default with the positions of the unpruned one.

    Positions are laid out on the full prompt; text and kept tokens keep theirs, and the first generated token follows
    the full prompt. All text stays, time stamps of frames without a kept token included; so do the
    vision markers, unless a reducer declares on Qwen3-VL that they go (FlashVID).

    Args:
      videos: in the order of the prompt.
      texts: token ids of `video_texts`.
      config: of the model.
      reserve: tokens that will be generated.
      rule: of positions, see `models.positions.MropeRule`.
      positions: of kept tokens; None takes the methods' settings, else original ones. "renumbered" counts the slots
        from 0 on all three axes, and new tokens behind them.

    Raises:
      JvidpruneError: prompt and answer do not fit into the model's positions, or an unknown rule.
    """
    runs, blocks, first_row = [], [], 0
    for one in videos:
        found = video_blocks(one, config, rule)
        index = np.asarray(one.reduced.index)[np.asarray(one.reduced.valid)]
        runs += block_runs(index, found, first_row)
        blocks += found
        first_row += one.capacity
    drops = not config.tokens_per_second and any(one.rules.vision_markers == "drop" for one in videos)
    everything = interleave(texts, runs, dropped=(config.vision_start, config.vision_end) if drops else ())
    whole = config.positions(pieces_of([len(text) for text in texts], blocks), rule)
    chosen = positions or prompt_positions(videos, reference="original")
    kept = whole.keep(everything.full, reindexed=chosen == "renumbered")
    size = config.text.max_positions
    return laid_out(everything, max_positions=size, reserve=reserve, positions=kept.ids, next_position=kept.next)


def video_blocks(one: ReducedVideo, config: QwenVLConfig, rule: MropeRule = "released") -> list[VideoBlock]:
    """What shares an origin in the prompt: the video, or each grid frame."""
    frames, merge = one.video.tokens.features.shape[0], config.vision.merge
    height, width = one.video.tokens.grid
    seconds = step_seconds(clip_of(one.video), config.vision.pair, rule)
    return config.blocks((frames, height * merge, width * merge), seconds)


def pieces_of(texts: Sequence[int], blocks: Sequence[VideoBlock]) -> list[int | VideoBlock]:
    """Lengths of texts and blocks in turn, as `prompt_positions` takes them."""
    pieces: list[int | VideoBlock] = [texts[0]]
    for block, text in zip(blocks, texts[1:], strict=True):
        pieces += [block, text]
    return pieces


class MropePrompts(PromptBuilder):
    """Blocks of visual tokens between vision markers, whole videos or grid frames behind their times, on three axes."""

    placeholder: ClassVar[str] = "<|vision_start|><|video_pad|><|vision_end|>"
    between: ClassVar[str] = ""

    def ids(self, videos: Sequence[ReducedVideo], question: Asked) -> list[list[int]]:
        """See `PromptBuilder.ids`."""
        texts = video_texts(self.texts_around(question, videos), videos, self.config, self.settings.markers)
        return [self.tokenizer.encode(text) for text in texts]

    def lay_out(
        self, videos: Sequence[ReducedVideo], ids: Sequence[Any], *, reserve: int, positions: PositionRule
    ) -> SlotMap:
        """See `PromptBuilder.lay_out`."""
        rule = self.settings.mrope_rule or "released"
        return lay_out(videos, ids, self.config, reserve=reserve, rule=rule, positions=positions)

    @staticmethod
    def marker_tokens(config: Any, layout: Layout, reducer: Reducer) -> int:
        """Two markers a video, or where time is told by text two and a stamp of about 8 tokens a grid frame."""
        if config.tokens_per_second:
            return 2
        return layout.frames * (8 if prompt_rules(reducer).vision_markers == "drop" else 10)
