"""Whether a video and a question about it fit into memory, before anything is loaded or decoded.

It is told from the checkpoint's config and from the number and size of the frames in the file, which is read through
for that (`video.decode.probe`).
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jvidprune.costs.flops import newline_tokens
from jvidprune.costs.memory import Need, TowerShape, ask_need, check_fits, video_shape
from jvidprune.llm.encoded import check_picture
from jvidprune.llm.folder import family_settings
from jvidprune.models.checkpoint.load import planned_dtype, read_config
from jvidprune.models.checkpoint.processor import image_processor, video_processor
from jvidprune.models.quantised import Quantise, with_quantise
from jvidprune.models.settings import FamilySettings
from jvidprune.parallel import read_mesh
from jvidprune.reducers.protocol import Reducer, inner_stages, with_defaults
from jvidprune.reducers.registry import for_model
from jvidprune.tokens import Layout
from jvidprune.video.decode import probe
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.tiles import slots_of

_WORDS, _STAMP = 64, 12
"""Tokens of a template, and of a time stamp with its markers."""

NOMINAL = (720, 1280)
"""Height and width that a video without a file is taken to have."""


class _Planned(NamedTuple):
    """A video or picture as a model will read it: the model's family, its settings and config, frames sampled, its
    tower's shape, layouts of its maps, type."""

    family: str
    settings: FamilySettings
    config: Any
    frames: int
    shape: TowerShape
    layouts: tuple[Layout, ...]
    picture: bool
    dtype: Any


def _plan(
    source: str | Path,
    video: str | Path | None,
    frames: int | None,
    fps: float | None,
    size: tuple[int, int] | None,
    limits: Limits,
    revision: str | None,
    dtype: Any,
    convention: str | None,
    quantise: Quantise | None,
) -> _Planned:
    family, config, folder = read_config(source, revision)
    config = with_quantise(config, quantise)
    dtype = planned_dtype(folder, dtype)
    settings = family_settings(family, folder, convention)
    wish = settings.wish(frames, fps)
    # A file that is not there is refused where it is read.
    there = video is not None and (settings.grid is not None or wish.fps is not None or Path(video).exists())
    info = probe(video, limits=limits) if video is not None and there else None
    # Of any video there are as many as the family reads, which a rate does not tell.
    count = wish.frames or settings.frames
    if info is not None:
        if info.picture:
            wish.check_picture(Path(video or ""))
        count = len(wish.indices(info.frames, info.fps))
    pixels = (info.height, info.width) if info is not None else size or NOMINAL
    picture = info is not None and info.picture
    if picture:
        made = settings.shape_of_picture(config, pixels, video_processor(folder), image_processor(folder))
        config, layouts = settings.config_of_pictures(config), made.layouts
        shape = video_shape(config, slots_of(made.frames), layouts[0])
    else:
        layouts = (settings.layout(config, count, pixels, video_processor(folder)),)
        shape = video_shape(config, count, layouts[0])
    return _Planned(family, settings, config, count, shape, layouts, picture, dtype)


def check_question(
    source: str | Path,
    video: str | Path | None,
    question: str,
    *,
    reducer: str | Reducer,
    ratio: float,
    dtype: Any,
    frames: int | None = None,
    fps: float | None = None,
    max_new_tokens: int = 64,
    available: int | None = None,
    size: tuple[int, int] | None = None,
    mesh: str = "",
    limits: Limits = DEFAULT,
    revision: str | None = None,
    convention: str | None = None,
    quantise: Quantise | None = None,
) -> Need:
    """Refuses a question that cannot fit, before anything is loaded or compiled.

    Args:
      source: checkpoint folder or hub id.
      video: file; read through, not decoded. None for any video.
      question: text.
      reducer: name with settings, or the reducer.
      ratio: retention ratio.
      dtype: of parameters and activations, as for `load_model`.
      frames, fps: as for `VideoLLM.sample`.
      max_new_tokens: longest answer.
      available: bytes; by default those of the default device.
      size: (height, width) in pixels where there is no file; by default `NOMINAL`.
      mesh: that the model is divided over, see `parallel.read_mesh`.
      limits: what is accepted of the file.
      revision: of a hub id.
      convention: that the video is read in, as for `VideoLLM.load`.
      quantise: how the language model's matrices are held, as for `load_model`.

    Returns:
      What it needs.

    Raises:
      JvidpruneError: it does not fit, or the checkpoint, the file or the reducer is not what it should be.
    """
    planned = _plan(source, video, frames, fps, size, limits, revision, dtype, convention, quantise)
    settings, config, layout = planned.settings, planned.config, planned.layouts[0]
    method = for_model(reducer, config) if isinstance(reducer, str) else reducer
    if planned.picture:
        check_picture(planned.layouts, method)
    seen = with_defaults(method).seen(layout, ratio)
    kept = method.capacity(layout, ratio) + newline_tokens(config, seen, method, settings)
    for more in planned.layouts[1:]:
        # Every row of a further map of a picture may end with a newline.
        kept += method.capacity(more, ratio) + more.grid[0]
    words = _WORDS + len(question.encode()) // 2 + _STAMP * seen.frames * settings.writes_times
    need = ask_need(
        config,
        planned.shape if seen == layout else video_shape(config, seen.frames, seen),
        kept=kept,
        text=words,
        max_new_tokens=max_new_tokens,
        dtype=planned.dtype,
        mesh=read_mesh(mesh),
        stages=inner_stages(method, ratio),
    )
    what = f"{planned.family} reading {_read(planned)} at ratio {ratio:g}"
    check_fits(need, what=what, dtype=planned.dtype, available=available)
    return need


def check_encoding(
    source: str | Path,
    video: str | Path,
    *,
    dtype: Any,
    frames: int | None = None,
    fps: float | None = None,
    available: int | None = None,
    mesh: str = "",
    limits: Limits = DEFAULT,
    revision: str | None = None,
    convention: str | None = None,
    quantise: Quantise | None = None,
) -> Need:
    """Refuses a video whose tokens cannot be made in the memory there is; nothing is asked about it.

    Args:
      source, video, dtype, frames, fps, available, mesh, limits, revision, convention, quantise: as for
        `check_question`.

    Raises:
      JvidpruneError: it does not fit, or the checkpoint or the file is not what it should be.
    """
    planned = _plan(source, video, frames, fps, None, limits, revision, dtype, convention, quantise)
    need = ask_need(
        planned.config, planned.shape, kept=0, text=0, max_new_tokens=1, mesh=read_mesh(mesh), dtype=planned.dtype
    )
    need = dataclasses.replace(need, prompt=0)
    what = f"{planned.family} encoding {_read(planned)}"
    check_fits(need, what=what, dtype=planned.dtype, available=available)
    return need


def _read(planned: _Planned) -> str:
    return "a picture" if planned.picture else f"{planned.frames} frames"
