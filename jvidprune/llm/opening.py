"""From what can be encoded to tokens with evidence: sources are opened, frames encoded, evidence is attached."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, all_tokens, check_picture
from jvidprune.models.checkpoint.processor import image_processor
from jvidprune.models.evidence import NO_QUESTION, NO_TEXT_TOWER
from jvidprune.models.settings import PictureMap, PictureShape
from jvidprune.parallel import on_every_device, on_mesh_of
from jvidprune.reducers.controls import spread
from jvidprune.reducers.frames import one_size
from jvidprune.reducers.protocol import Reducer, title_of, with_defaults
from jvidprune.tokens import QUESTION, Layout, VideoTokens
from jvidprune.video.decode import Clip, as_frames
from jvidprune.video.tiles import Tiles

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

Source = str | os.PathLike[str] | np.ndarray | Clip
"""What is encoded: the path of a file, (T, H, W, 3) uint8 frames, or a clip, which is frames with their times."""


QUESTION_ROWS = 32
"""Embeddings of questions are padded to a multiple of it."""


def open_source(llm: "VideoLLM", source: Source, fps: float | None, times: Sequence[float] | None) -> Clip | np.ndarray:
    """Frames with their times where these are known, from anything that can be encoded.

    Args:
      llm: whose frames are sampled of a file.
      source: see `Source`.
      fps, times: as for `VideoLLM.encode`.

    Raises:
      JvidpruneError: a file that cannot be read, what is no frames, times given twice, or frames without times where
        the family writes these into its prompts.
    """
    if isinstance(source, str | os.PathLike):
        if times is not None:
            raise JvidpruneError("a file has times of its own: leave times= out.")
        return llm.sample(Path(source), fps=fps)
    if isinstance(source, Clip):
        if fps is not None or times is not None:
            raise JvidpruneError("a clip has times of its own: leave fps= and times= out.")
        return source
    if isinstance(source, EncodedVideo | ReducedVideo | VideoTokens | list | tuple):
        raise JvidpruneError(
            f"a path, (T, H, W, 3) uint8 frames or a Clip can be encoded, got {type(source).__name__}."
        )
    if fps is not None or times is not None:
        return Clip.from_frames(source, fps=fps, times=times)
    if llm.settings.writes_times:
        raise JvidpruneError(
            f"the prompts of {llm.loaded.family} hold the times of frames: give fps= or times= with the frames."
        )
    return as_frames(source)


def encode_frames(
    llm: "VideoLLM", source: Clip | np.ndarray, needs: frozenset[str], question: str | None
) -> EncodedVideo:
    """Tokens of frames with evidence.

    Args:
      llm: model, tokenizer and settings.
      source: of `open_source`; it is kept with the tokens.
      needs: names of `tokens.EVIDENCE`.
      question: what "text" and "joint_text" hold the embeddings of.

    Raises:
      JvidpruneError: evidence that this checkpoint cannot give, or that of a question without one.
    """
    asked = needs & QUESTION
    if asked and question is None:
        raise JvidpruneError(NO_QUESTION)
    video = _encoded(llm, source, None, needs - QUESTION)
    # Attached here, so that the tower does not compile anew for every length of a question.
    return video if question is None else _with_question(llm, video, question, asked)


def add_evidence(llm: "VideoLLM", video: EncodedVideo, method: Reducer, question: str | None) -> EncodedVideo:
    """The video with the evidence that a method needs; see `VideoLLM.with_evidence`.

    Raises:
      JvidpruneError: evidence that is missing where the frames were not kept, that this checkpoint cannot give, or no
        question where the method reads it; or a method that `check_picture` refuses.
    """
    if video.picture:
        check_picture([one.layout for one in video.maps], method)
    missing = frozenset(method.needs - video.tokens.evidence.keys() - QUESTION)
    if missing:
        if video.frames is None:
            raise JvidpruneError(
                f"{title_of(method)} needs the evidence {', '.join(sorted(missing))}, which the video does not "
                "carry, and its frames were not kept: encode it with this reducer."
            )
        whole = video.frames if video.clip is None else video.clip
        video = _joined(video, _encoded(llm, whole, None, missing).maps)
    asked, known = method.needs & QUESTION, video.tokens.evidence.keys() & QUESTION
    if not asked or (asked <= known and question in (None, video.question)):
        return video
    question = video.question if question is None else question
    if question is None:
        raise JvidpruneError(NO_QUESTION)
    return _with_question(llm, video, question, asked | known if question == video.question else asked)


def lower_encode(
    llm: "VideoLLM", source: Clip | np.ndarray, needs: frozenset[str], grid: tuple[int, int] | None = None
) -> Any:
    """The program that encodes these frames with evidence, as JAX lowers it; nothing is run.

    Args:
      llm: the model.
      source: of `open_source`.
      needs: names of `tokens.EVIDENCE`.
      grid: (h, w) of tokens of a frame where the frames are resized to one, see `encode_seen`.
    """
    pixels, mask = _read(_pixels(llm, source, grid))
    with on_mesh_of(llm.loaded.model):
        return encode_tokens.lower(_model(llm, source), pixels, needs - QUESTION, mask)


def _pixels(llm: "VideoLLM", source: Clip | np.ndarray, grid: tuple[int, int] | None) -> Any:
    """What the tower reads of frames, resized to a grid of tokens where one is given and the tower has no other."""
    frames, settings = source.frames if isinstance(source, Clip) else source, llm.settings
    config, given = llm.loaded.config, llm.processor
    shown = is_picture(llm, source)
    if shown:
        frames, config, given = frames[:1], llm.picture_model.config, image_processor(llm.loaded.folder)
    if grid is not None and settings.sized is not None:
        return settings.sized(config, given)(frames, grid)
    if shown and settings.picture_pixels is not None:
        return settings.picture_pixels(config, given)(frames)
    return llm.pixels(frames)


def is_picture(llm: "VideoLLM", source: Clip | np.ndarray | None) -> bool:
    """Whether a source is a still picture that the family reads by a path of its own."""
    return llm.settings.picture_pixels is not None and isinstance(source, Clip) and source.picture


def _model(llm: "VideoLLM", source: Clip | np.ndarray | None) -> Any:
    """What encodes a source."""
    return llm.picture_model if is_picture(llm, source) else llm.loaded.model


def shape_of(llm: "VideoLLM", source: Clip | np.ndarray) -> PictureShape:
    """Grid frames and tokens that the tower would make of frames, of each map of a picture; nothing is encoded."""
    frames = source.frames if isinstance(source, Clip) else source
    config, size = llm.loaded.config, frames[0].shape[:2]
    if isinstance(source, Clip) and source.picture:
        return llm.settings.shape_of_picture(config, size, llm.processor, image_processor(llm.loaded.folder))
    layout = llm.settings.layout(config, len(frames), size, llm.processor)
    return PictureShape((layout,), layout.frames)


def check_method(llm: "VideoLLM", source: Clip | np.ndarray, method: Reducer) -> None:
    """Refuses a method that has no meaning on a picture of this size, before anything is encoded.

    Raises:
      JvidpruneError: see `check_picture`.
    """
    if is_picture(llm, source):
        check_picture(shape_of(llm, source).layouts, method)


def encode_seen(llm: "VideoLLM", source: Clip | np.ndarray, seen: Layout) -> EncodedVideo:
    """Tokens of other frames of a source: fewer, evenly spread, or smaller, resized once from those of the source.

    Args:
      llm: model and settings.
      source: of `open_source`.
      seen: its frames are at most those of the source (grid frames for the Qwen-VL families), its grid that of the
        tokens.

    Raises:
      JvidpruneError: another grid than the source's where the tower reads frames of one size.
    """
    (whole,) = shape_of(llm, source).layouts
    if seen.frames < whole.frames:
        source = _fewer(source, seen.frames * getattr(llm.loaded.config.vision, "pair", 1))
    if llm.settings.sized is None and seen.grid != whole.grid:
        raise JvidpruneError(one_size(llm.loaded.family))
    return _encoded(llm, source, seen.grid, frozenset())


def reduce_frames(llm: "VideoLLM", source: Clip | np.ndarray, method: Reducer, ratio: float) -> ReducedVideo:
    """What a method of other frames makes of a source; the source itself is not encoded.

    Raises:
      JvidpruneError: an impossible ratio, or a method that has no meaning on this model.
    """
    check_method(llm, source, method)
    own, (whole,) = with_defaults(method), shape_of(llm, source).layouts
    own.check_model(llm.loaded.config)
    seen = own.seen(whole, ratio)
    video = encode_frames(llm, source, frozenset(), None) if seen == whole else encode_seen(llm, source, seen)
    return all_tokens(video, method, ratio, whole)


def _fewer(source: Clip | np.ndarray, count: int) -> Clip | np.ndarray:
    """So many frames, each in the middle of its stretch of all, at their own times."""
    picks = spread(len(source.frames if isinstance(source, Clip) else source), count)
    if not isinstance(source, Clip):
        return source[picks]
    indices, times = source.indices[picks], source.timestamps[picks]
    return dataclasses.replace(source, frames=source.frames[picks], indices=indices, timestamps=times)


def _encoded(
    llm: "VideoLLM", source: Clip | np.ndarray, grid: tuple[int, int] | None, needs: frozenset[str]
) -> EncodedVideo:
    """Tokens of a source, of a picture those of its maps beside each other."""
    read, model, again = _pixels(llm, source, grid), _model(llm, source), functools.partial(encode_seen, llm, source)
    with on_mesh_of(llm.loaded.model):
        pixels, mask = _read(read)
        made = (PictureMap(encode_tokens(model, pixels, needs, mask)),)
        if isinstance(read, Tiles) and llm.settings.picture_maps is not None:
            made = llm.settings.picture_maps(model, made[0].tokens, read)
    first, *rest = (EncodedVideo(one.tokens, source, again=again, newline=one.newline) for one in made)
    return dataclasses.replace(first, beside=tuple(rest))


def _read(pixels: Any) -> tuple[Any, jax.Array | None]:
    """Pixels as the tower's program takes them, and which of them are tiles of a picture."""
    if isinstance(pixels, Tiles):
        return jnp.asarray(pixels.values), jnp.asarray(pixels.mask)
    return jax.tree.map(jnp.asarray, pixels), None


def _joined(video: EncodedVideo, added: Sequence[EncodedVideo]) -> EncodedVideo:
    """The video with the evidence of others of the same maps, its own first."""
    found = []
    for own, other in zip(video.maps, added, strict=True):
        evidence = other.tokens.evidence | own.tokens.evidence
        found.append(dataclasses.replace(own, tokens=dataclasses.replace(own.tokens, evidence=evidence)))
    return dataclasses.replace(found[0], beside=tuple(found[1:]))


def _with_question(llm: "VideoLLM", video: EncodedVideo, question: str, asked: frozenset[str]) -> EncodedVideo:
    """The video with the evidence of a question, that of another one left out."""
    if video.beside:
        first, *rest = (_with_question(llm, one, question, asked) for one in video.maps)
        return dataclasses.replace(first, beside=tuple(rest))
    tokens = video.tokens
    tokens = dataclasses.replace(tokens, evidence={n: v for n, v in tokens.evidence.items() if n not in QUESTION})
    if "joint_text" in asked:
        if llm.text_tower is None:
            raise JvidpruneError(NO_TEXT_TOWER)
        # From the host: it goes where the tokens are.
        joint = jnp.asarray(np.asarray(llm.text_tower.embed(question)))
        tokens = dataclasses.replace(tokens, evidence=tokens.evidence | {"joint_text": joint})
    video = dataclasses.replace(video, tokens=tokens, question=question if asked else video.question)
    return _with_text(llm, video, question) if asked & {"text", "text_mask"} else video


def _with_text(llm: "VideoLLM", video: EncodedVideo, question: str) -> EncodedVideo:
    known = video.tokens.evidence
    ids = np.asarray(llm.tokenizer.encode(question), np.int32)
    # Padded, so that neither the embedding nor a reduction compiles anew for every length of a question.
    padded = np.zeros(-(-len(ids) // QUESTION_ROWS) * QUESTION_ROWS, np.int32)
    padded[: len(ids)] = ids
    tokens = video.tokens.with_text(llm.loaded.model.embed_text(jnp.asarray(padded)), np.arange(len(padded)) < len(ids))
    tokens = dataclasses.replace(tokens, evidence=tokens.evidence | {n: known[n] for n in known if n == "joint_text"})
    return dataclasses.replace(video, tokens=tokens, question=question)


@functools.partial(jax.jit, static_argnames="needs")
def encode_tokens(model: Any, pixels: Any, needs: frozenset[str], frame_mask: Any = None) -> VideoTokens:
    """The jitted tower: tokens and evidence of one video, held whole by every device; a mask marks tiles of a picture.

    A model that reads no tiles need not know of masks.
    """
    masked = {} if frame_mask is None else {"frame_mask": frame_mask}
    return on_every_device(model.encode(pixels, needs, **masked))
