"""What the verbs that read videos share: the model, the limits, the frames and their encoding, with progress."""

from pathlib import Path
from typing import NamedTuple, TypedDict

import jax

from jvidprune.cli.console import Console
from jvidprune.cli.options import CheckpointChoice, ModelChoice, QuantiseName
from jvidprune.costs.fits import check_encoding, check_question
from jvidprune.errors import JvidpruneError
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.stages import StageClock, cache_folder
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.parallel import make_mesh, read_mesh
from jvidprune.procedural.clips import default_clip
from jvidprune.reducers.protocol import Reducer, check_ratio
from jvidprune.reducers.registry import from_text
from jvidprune.tokens import QUESTION
from jvidprune.video.container import existing_file
from jvidprune.video.decode import Clip
from jvidprune.video.limits import Limits
from jvidprune.video.sampling import check_wish


def open_model(choice: CheckpointChoice, console: Console, *, dtype: str | None = None) -> VideoLLM:
    """The chosen checkpoint, or the embedded one, loaded with progress.

    Args:
      choice: which one, and how videos get into it.
      console: talks to people.
      dtype: in place of the choice's own.
    """
    if choice.model is None and choice.revision:
        raise JvidpruneError(f"a revision, here {choice.revision!r}, is one of a hub id: name it with --model.")
    if choice.model is None:
        console.note("embedded model: a tiny LLaVA-OneVision, trained on generated clips of moving shapes")
    bar = console.task("loading the model")
    devices = choice if isinstance(choice, ModelChoice) else ModelChoice()
    # Every process reads its own clips on its own devices.
    mesh = make_mesh(**read_mesh(devices.mesh), devices=jax.local_devices()) if devices.mesh else None
    return VideoLLM.load(
        EMBEDDED if choice.model is None else choice.model,
        dtype=dtype or devices.dtype,
        quantise=devices.quantise,
        mesh=mesh,
        progress=lambda done, total, _: bar(done, total),
        template=choice.template,
        pooling_head=choice.pooling_head,
        text_tower=choice.text_tower,
        revision=choice.revision,
        positions=choice.positions,
        convention=choice.convention,
        mrope_rule=choice.mrope_rule,
        allow_code=choice.allow_code,
    )


def check_reading(choice: CheckpointChoice) -> Limits:
    """What is accepted of a video, where frames and rate are such as a video can be sampled by.

    Raises:
      JvidpruneError: no frame, no rate above 0, or limits that are none.
    """
    fps = choice.fps if isinstance(choice, ModelChoice) else None
    if choice.frames is not None:
        check_wish(None, choice.frames, None, None)
    if fps is not None:
        check_wish(None, None, fps, None)
    return Limits.from_text(choice.limits)


def check_asked(path: Path | None, names: list[str], ratio: float) -> None:
    """Refuses a file that is not there, unknown methods and an impossible ratio, before anything is loaded."""
    check_ratio(ratio)
    for name in names:
        from_text(name)
    if path is not None:
        existing_file(path)


class Asked(NamedTuple):
    """A question whose answer is checked to fit, too.

    Attributes:
      question: text.
      reducer: method as text, or the reducer.
      ratio: retention ratio.
      max_new_tokens: longest answer.
    """

    question: str
    reducer: str | Reducer
    ratio: float
    max_new_tokens: int


class _Reading(TypedDict):
    """How a video gets into a checkpoint, as both checks of memory take it."""

    frames: int | None
    fps: float | None
    dtype: str
    quantise: QuantiseName | None
    mesh: str
    limits: Limits
    revision: str | None
    convention: str | None


def check_fits(path: Path | None, choice: ModelChoice, limits: Limits, asked: Asked | None = None) -> None:
    """Refuses a video whose encoding by a checkpoint, or a question whose answer, does not fit into memory.

    The embedded model always does.

    Args:
      path: the video; None is the generated clip.
      choice: the checkpoint, and how videos get into it.
      limits: what is accepted of a video.
      asked: what is asked about it, None for nothing.
    """
    if choice.model is None:
        return
    source, video = choice.model, path or default_clip(cache_folder())
    reading: _Reading = {
        "frames": choice.frames,
        "fps": choice.fps,
        "dtype": choice.dtype,
        "quantise": choice.quantise,
        "mesh": choice.mesh,
        "limits": limits,
        "revision": choice.revision,
        "convention": choice.convention,
    }
    if asked is None:
        check_encoding(source, video, **reading)
    else:
        question, reducer, ratio, longest = asked
        check_question(source, video, question, reducer=reducer, ratio=ratio, max_new_tokens=longest, **reading)


def encode_clip(
    clip: Clip, model: VideoLLM, needs: frozenset[str], clock: StageClock, question: str | None = None
) -> EncodedVideo:
    """Encodes a video, timed; methods may read the question."""
    with clock("encode") as stage:
        video = model.encode(clip, needs=needs, question=question if needs & QUESTION else None)
        jax.block_until_ready(video.tokens)
        stage.tokens = video.total
    return video


def read_clip(path: Path | None, model: VideoLLM, choice: ModelChoice, clock: StageClock, console: Console) -> Clip:
    """Decodes a video (the generated clip without a path), timed."""
    if path is None:
        path = default_clip(cache_folder())
        console.note(f"no video given: using the generated clip {path}")
    with clock("decode", "frames") as stage:
        bar = console.task("decoding")
        limits = check_reading(choice)
        clip = model.sample(path, frames=choice.frames, fps=choice.fps, limits=limits, progress=bar)
        stage.tokens = len(clip.frames)
    if clip.picture:
        console.note(f"{path} is a picture: it is read by the family's own path of pictures")
    return clip
