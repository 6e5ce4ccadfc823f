"""What the Qwen-VL families need around their models: patches, prompts woven with video blocks, DeepStack levels."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jvidprune.llm.encoded import ReducedVideo, clip_of, prompt_positions
from jvidprune.llm.processor import qwen_limits
from jvidprune.llm.prompts.slots import Run, SlotMap, laid_out, weave
from jvidprune.models import positions
from jvidprune.models.positions import MropeRule, VideoBlock
from jvidprune.models.qwen.model import QwenVLConfig, spread_levels
from jvidprune.reducers.protocol import PositionRule
from jvidprune.video.decode import Clip
from jvidprune.video.preprocess import QWEN2_5_VL, QWEN3_VL, Patches, QwenPixels, QwenUtils, qwen_patches
from jvidprune.video.sampling import pair_means, stamp

Markers = Literal["blocks", "around"]
"""Where Qwen3-VL has vision markers: around each grid frame ("blocks", as transformers 4.57, the format of its
training), or besides around all of them, where the template has them and transformers 5 leaves them."""

_PIXELS = {"qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}


@dataclasses.dataclass(frozen=True)
class PixelSteps:
    """How frames get to the pixels of a tower, before they are normalised.

    Attributes:
      utils: the resizing of qwen-vl-utils, which comes first; None leaves the processor alone.
      processor: the processor resizes (behind qwen-vl-utils once more, if its rule asks for another size).
      limits: smallest and largest area or volume that the processor is loaded with; None takes those of its folder.
    """

    utils: QwenUtils | None
    processor: bool = True
    limits: tuple[int, int] | None = None


TWICE = PixelSteps(QwenUtils())
"""qwen-vl-utils, then the processor's own rule, as the README of Qwen2.5-VL has it."""

ONCE = PixelSteps(QwenUtils(), processor=False)
"""qwen-vl-utils alone: the README of Qwen3-VL calls its processor with `do_resize=False`."""

ALONE = PixelSteps(None)
"""The processor's rule alone."""


def patches(config: QwenVLConfig, given: Mapping[str, Any], *, steps: PixelSteps) -> Callable[[np.ndarray], Patches]:
    """Frames to patches.

    Args:
      config: of the model.
      given: the settings of the folder's video processor; the published ones where they say nothing.
      steps: of a convention.

    Raises:
      JvidpruneError: settings that make no sense or belong to another model.
    """
    return functools.partial(qwen_patches, family=_rules(config, given, steps), utils=steps.utils)


def grid_of(
    config: QwenVLConfig, frames: int, height: int, width: int, given: Mapping[str, Any], *, steps: PixelSteps
) -> tuple[int, int]:
    """(rows, columns) of tokens that `patches` makes of a grid frame of a video of this size in pixels."""
    family = _rules(config, given, steps)
    if steps.utils is not None:
        height, width = steps.utils.size(frames, height, width, family.factor)
    sides = family.size(frames, height, width)
    return sides[0] // family.factor, sides[1] // family.factor


def _rules(config: QwenVLConfig, given: Mapping[str, Any], steps: PixelSteps) -> QwenPixels:
    vision = config.vision
    family = dataclasses.replace(_PIXELS[config.family], patch=vision.patch_size, merge=vision.merge, pair=vision.pair)
    found = qwen_limits(given, family)
    if steps.limits is not None:
        found = dataclasses.replace(found, min_pixels=steps.limits[0], max_pixels=steps.limits[1])
    return found if steps.processor else dataclasses.replace(found, do_resize=False)


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
        by_text = not config.tokens_per_second
        times = stamps(clip_of(one.video)) if by_text else [""]
        around = by_text and markers == "around"
        found[-1] += first * around
        for stamped in times:
            found[-1] += stamped + first
            found.append(last)
        found[-1] += last * around + text
    return found


def block_runs(index: Int[np.ndarray, "V"], blocks: Sequence[VideoBlock], first_row: int = 0) -> list[Run]:
    """The kept tokens of a video, block by block, in the order of the reducer.

    Args:
      index: (V,) id of each kept token, frame * N + token.
      blocks: of the video.
      first_row: of this video among the reduced tokens of all videos.
    """
    size = blocks[0].tokens
    runs = []
    for number, block in enumerate(blocks):
        rows = np.flatnonzero(index // size == number)
        runs.append(Run(first_row + rows, index[rows] - number * size, block.tokens))
    return runs


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
    woven = weave(texts, runs, dropped=(config.vision_start, config.vision_end) if drops else ())
    whole = config.positions(pieces_of([len(text) for text in texts], blocks), rule)
    chosen = positions or prompt_positions(videos, reference="original")
    kept = whole.keep(woven.full, reindexed=chosen == "renumbered")
    size = config.text.max_positions
    return laid_out(woven, max_positions=size, reserve=reserve, positions=kept.ids, next_position=kept.next)


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


def kept_levels(videos: Sequence[ReducedVideo], slots: SlotMap, text: int) -> jax.Array | None:
    """(S, 1, L, D) what a prefill adds behind its first S layers, or None for a model without DeepStack.

    The levels are those of the kept ids, also where tokens are merged, as FlashVID's code has it. A method that
    runs the tower itself (STTS) gives levels of its own.

    Args:
      videos: with the evidence "features_deepstack", or without.
      slots: of the prompt.
      text: its text tokens.
    """
    if "features_deepstack" not in videos[0].video.tokens.evidence:
        return None
    kept = []
    for one in videos:
        own = one.reduced.diagnostics.get("features_deepstack")
        levels = one.video.tokens.evidence["features_deepstack"]
        flat = levels.reshape(-1, *levels.shape[2:])
        kept.append(flat[jnp.minimum(one.reduced.index, len(flat) - 1)] if own is None else own)
    return _spread(jnp.concatenate(kept), slots, text)


def _spread(kept: jax.Array, slots: SlotMap, text: int) -> jax.Array:
    rows = np.where(slots.valid, slots.source - text - 1, -1)
    return spread_levels(kept, jnp.asarray(rows[None]))
