"""What the Qwen-VL families need around their models: patches, prompts woven with video blocks, DeepStack levels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.inference.prompt import PromptTemplate
from jvidprune.inference.sequence import SlotMap, padded_source
from jvidprune.models.qwen_vl import QwenVLConfig, spread_levels
from jvidprune.models.tokenizer import Tokenizer
from jvidprune.reducers.base import apply_plan
from jvidprune.tokens import Reduced, Reducer, VideoTokens
from jvidprune.video.decode import Clip
from jvidprune.video.preprocess import QWEN2_5_VL, QWEN3_VL, Patches, QwenUtils, qwen_patches
from jvidprune.video.sampling import DEFAULT_RATE, pair_timestamps, stamp

_PIXELS = {"qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}


def patches(frames: np.ndarray, config: QwenVLConfig) -> Patches:
    """Frames to patches as the reference pipeline makes them: the sizes of qwen-vl-utils, then the processor's rule."""
    vision = config.vision
    family = dataclasses.replace(_PIXELS[config.family], patch=vision.patch_size, merge=vision.merge, pair=vision.pair)
    return qwen_patches(frames, family, utils=QwenUtils())


def step_seconds(clip: Clip | None, pair: int) -> float:
    """Seconds between grid frames: `pair` over the sampling rate; 1.0 where it is unknown, as lmms-eval has it."""
    return 1.0 if clip is None else pair / clip.sampled_fps


def stamps(clip: Clip | None, frames: int, pair: int) -> list[str]:
    """The time stamp of each grid frame; without a clip, consecutive frames at 24 a second as the processor has it."""
    indices, rate = (np.arange(pair * frames), DEFAULT_RATE) if clip is None else (clip.indices, clip.fps)
    return [stamp(seconds) for seconds in pair_timestamps(indices, rate)]


def prompt_texts(
    template: PromptTemplate, question: str, video: VideoTokens, clip: Clip | None, config: Any
) -> list[str]:
    """The text before, between and behind the video blocks of a prompt.

    Qwen2.5-VL wraps the whole video in vision_start and vision_end; Qwen3-VL does so with every grid frame and writes
    its time stamp before (as transformers 4.57, the format of its training).
    """
    before, after = template.parts(question)
    first, last = "<|vision_start|>", "<|vision_end|>"
    frames, pair = video.features.shape[0], config.vision.pair
    if config.tokens_per_second:
        return [before + first, last + after]
    times = [text + first for text in stamps(clip, frames, pair)]
    return [before + times[0], *(last + text for text in times[1:]), last + after]


def weave(
    tokenizer: Tokenizer,
    config: QwenVLConfig,
    template: PromptTemplate,
    video: VideoTokens,
    reduced: Reduced,
    question: str,
    clip: Clip | None,
    reserve: int,
) -> tuple[SlotMap, np.ndarray]:
    """The slots of a prompt with the positions of the unpruned one, and its text ids.

    Positions are laid out on the full prompt; text and kept tokens keep theirs, and the first generated token follows
    the largest of the full prompt. All text stays, stamps and markers of frames without a kept token included.

    Raises:
      JvidpruneError: prompt and answer do not fit into the model's positions.
    """
    frames, (height, width) = video.features.shape[0], video.grid
    merge = config.vision.merge
    texts = [tokenizer.encode(text) for text in prompt_texts(template, question, video, clip, config)]
    blocks = config.blocks((frames, height * merge, width * merge), step_seconds(clip, config.vision.pair))
    pieces: list[Any] = [len(texts[0])]
    for block, text in zip(blocks, texts[1:], strict=True):
        pieces += [block, len(text)]
    whole = config.positions(pieces)

    count = sum(map(len, texts))
    index = np.asarray(reduced.index)[np.asarray(reduced.valid)]
    block_of = index // blocks[0].tokens
    source, full, text_at, slot = [], [], 0, 0
    for number, text in enumerate(texts):
        source.append(np.arange(text_at, text_at + len(text)))
        full.append(np.arange(slot, slot + len(text)))
        text_at, slot = text_at + len(text), slot + len(text)
        if number < len(blocks):
            rows = np.flatnonzero(block_of == number)
            source.append(count + 1 + rows)
            full.append(slot + index[rows] - number * blocks[0].tokens)
            slot += blocks[number].tokens
    rows = padded_source(np.concatenate(source), len(index), max_positions=config.text.max_positions, reserve=reserve)
    kept = whole.keep(np.concatenate(full))
    length = kept.ids.shape[1]
    positions = np.pad(kept.ids, ((0, 0), (0, len(rows) - length)))
    inside = (len(texts[0]), length - len(texts[-1]))
    return SlotMap(rows, length, inside, positions, whole.next), np.concatenate(texts).astype(np.int32)


def kept_levels(video: VideoTokens, reduced: Reduced, slots: SlotMap, text: int) -> jax.Array | None:
    """(S, 1, L, D) what a prefill adds behind its first S layers, or None for a model without DeepStack.

    The levels are those of the kept ids, also where tokens are merged, as FlashVID's code has it; `merged_levels`
    weighs them like the tokens.

    Args:
      video: with the evidence "features_deepstack", or without.
      reduced: the kept tokens.
      slots: of the prompt.
      text: its text tokens.
    """
    levels = video.evidence.get("features_deepstack")
    if levels is None:
        return None
    flat = levels.reshape(-1, *levels.shape[2:])
    return _spread(flat[jnp.minimum(reduced.index, len(flat) - 1)], slots, text)


def merged_levels(
    reducer: Reducer, video: VideoTokens, ratio: float, slots: SlotMap, text: int, *, capacity: int
) -> jax.Array:
    """`kept_levels` with the weights that made the tokens; the reducer plans once more with the same capacity."""
    levels = video.evidence["features_deepstack"]
    budget = reducer.budget(video.layout(), ratio)
    wide = levels.reshape(*levels.shape[:2], -1)
    kept = _weighed(reducer, video, budget, wide, capacity=capacity)
    return _spread(kept.reshape(-1, *levels.shape[2:]), slots, text)


@functools.partial(jax.jit, static_argnames=("reducer", "capacity"))
def _weighed(reducer: Reducer, video: VideoTokens, budget: Any, wide: jax.Array, *, capacity: int) -> jax.Array:
    plan = reducer.plan(video, budget, capacity=capacity)
    return apply_plan(reducer, plan, dataclasses.replace(video, features=wide)).tokens


def _spread(kept: jax.Array, slots: SlotMap, text: int) -> jax.Array:
    rows = np.where(slots.valid, slots.source - text - 1, -1)
    return spread_levels(kept, jnp.asarray(rows[None]))
