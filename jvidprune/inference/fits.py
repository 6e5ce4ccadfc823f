"""Whether a question about a video file fits into memory, from the checkpoint's config and the file's header alone."""

from pathlib import Path
from typing import Any

from jvidprune.inference import qwen
from jvidprune.inference.memory import Need, ask_need, check_fits, tower_shape
from jvidprune.inference.pipeline import FAMILIES
from jvidprune.inference.processor import video_processor
from jvidprune.models.load import read_config
from jvidprune.ops.newline import NewlineKind, newline_count
from jvidprune.reducers.presets import BACKBONES, from_text
from jvidprune.reducers.prompting import prompt_rules
from jvidprune.tokens import Layout
from jvidprune.video.decode import probe

_WORDS, _STAMP = 64, 12
"""Tokens of a template, and of a time stamp with its markers."""


def check_question(
    source: str | Path,
    video: str | Path,
    question: str,
    *,
    reducer: str,
    ratio: float,
    dtype: Any,
    frames: int | None = None,
    fps: float | None = None,
    max_new_tokens: int = 64,
    available: int | None = None,
) -> Need:
    """Refuses a question that cannot fit, before anything is loaded or compiled.

    Args:
      source: checkpoint folder or hub id.
      video: file; its header is read where the number or size of frames depends on it.
      question: text.
      reducer: name with settings.
      ratio: retention ratio.
      dtype: of parameters and activations.
      frames, fps: as for `VideoLLM.sample`.
      max_new_tokens: longest answer.
      available: bytes; by default those of the default device.

    Returns:
      What it needs.

    Raises:
      JvidpruneError: it does not fit, or the checkpoint, the file or the reducer is not what it should be.
    """
    family, config, folder = read_config(source)
    settings = FAMILIES[family]
    # Impossible numbers of frames are refused where frames are sampled.
    count = settings.frames if frames is None else max(1, frames)
    info = probe(video) if fps is not None or settings.woven else None
    if fps is not None and info is not None:
        count = max(1, round(info.duration * fps))
    if settings.woven and info is not None:
        height, width = qwen.grid_of(config, count, info.height, info.width, video_processor(folder))
        layout, merge = Layout(-(-count // config.vision.pair), (height, width)), config.vision.merge
        shape = tower_shape(config, count, (layout.frames, height * merge, width * merge))
    else:
        shape, layout = tower_shape(config, count), Layout(count, config.grid, config.unpooled_grid)
    method = from_text(reducer, family if family in BACKBONES else None)
    newline: NewlineKind = prompt_rules(method).newline or getattr(config, "newline", settings.newline)
    kept = method.capacity(layout, ratio) + newline_count(newline, layout.grid, layout.frames)
    words = _WORDS + len(question.encode()) // 2 + (_STAMP * layout.frames if settings.woven else 0)
    options: dict[str, Any] = {"kept": kept, "text": words, "max_new_tokens": max_new_tokens, "dtype": dtype}
    need = ask_need(config, shape, **options)
    what = f"{family} reading {count} frames at ratio {ratio:g}"
    check_fits(need, what=what, dtype=dtype, available=available)
    return need
