"""Published benchmarks by name, and the wordings they can be asked in."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets.task import VideoTask
from jvidprune.evals.datasets.videos import wish_of
from jvidprune.texts import unknown
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.sampling import Rule
from jvidprune.video.wish import FrameWish

Prompts = Literal["lmms_eval", "stop", "official"]
"""Whose words a question is asked in: those of lmms-eval's task, of SToP's evaluation, or of the authors."""


class _Loader(NamedTuple):
    """Where a benchmark is read: a module with `entries`, `READING` and `ANSWER_TOKENS`, and a part of it."""

    module: str
    part: str = ""


_NAMES = {
    "videomme": _Loader("videomme"),
    "videomme_w_subtitle": _Loader("videomme", "subtitles"),
    "mvbench": _Loader("mvbench"),
    "egoschema": _Loader("egoschema"),
    "longvideobench": _Loader("longvideobench"),
    "mlvu": _Loader("mlvu"),
    "nextqa": _Loader("nextqa"),
    "eventhallusion": _Loader("eventhallusion"),
    "eventhallusion_descriptions": _Loader("eventhallusion", "descriptions"),
    "videocomp": _Loader("videocomp"),
    "charades_timelens": _Loader("timelens", "charades"),
    "activitynet_timelens": _Loader("timelens", "activitynet"),
    "vcgbench": _Loader("vcgbench"),
    "tempcompass": _Loader("tempcompass"),
    "tempcompass_captioning": _Loader("tempcompass", "captioning"),
    "tomato": _Loader("tomato"),
    "motionbench": _Loader("motionbench"),
    "perceptiontest": _Loader("perceptiontest"),
    "lvbench": _Loader("lvbench"),
    "videoevalpro": _Loader("videoevalpro"),
    "videoevalpro_open": _Loader("videoevalpro", "open"),
}
_KNOWN = _NAMES | {"exported": _Loader("exported")}


def names() -> tuple[str, ...]:
    """The published benchmarks that there are loaders for."""
    return tuple(_NAMES)


def prompt_presets(name: str) -> tuple[str, ...]:
    """The wordings that a benchmark can be asked in, its default first.

    Raises:
      JvidpruneError: an unknown name.
    """
    return tuple(_module(name)[1].READING)


def answer_tokens(name: str) -> int:
    """The longest answer that a benchmark's evaluation lets a model write.

    Raises:
      JvidpruneError: an unknown name.
    """
    key, module = _module(name)
    return module.ANSWER_TOKENS if isinstance(module.ANSWER_TOKENS, int) else module.ANSWER_TOKENS[_KNOWN[key].part]


def _module(name: str) -> tuple[str, ModuleType]:
    """A benchmark's name as it is listed, and its module."""
    listed = {known.replace("_", ""): known for known in _KNOWN}
    key = listed.get(name.lower().replace("-", "").replace("_", ""))
    if key is None:
        raise JvidpruneError(unknown("task", name, ("procedural", *_KNOWN)))
    return key, importlib.import_module(f"jvidprune.evals.datasets.{_KNOWN[key].module}")


def open_dataset(
    name: str,
    folder: Path | None,
    *,
    frames: int | None = None,
    fps: float | None = None,
    rule: Rule | None = None,
    wish: FrameWish | None = None,
    clips: int | None = None,
    limits: Limits = DEFAULT,
    strict: bool = False,
    prompts: Prompts | None = None,
) -> VideoTask:
    """A local copy of a benchmark as a task.

    Args:
      name: one of `names()`, written with or without dashes; or "exported", what `jvidprune bench export` wrote.
      folder: the copy: annotation files and videos, at the places where they are published or anywhere below.
      frames, fps, rule, wish: frames that are read of each video, see `videos.read_clip`.
      clips: only the first so many clips whose videos are there.
      limits: what is accepted of a video.
      strict: refuse the first annotation or video that cannot be asked, instead of leaving it out.
      prompts: whose wording and reading of answers; by default the first of `prompt_presets(name)`, which is that of
        lmms-eval where it has the benchmark.

    Raises:
      JvidpruneError: an unknown name, a wording that the benchmark is not asked in, no folder, no annotations, or
        nothing in them that can be asked.
    """
    key, module = _module(name)
    presets = tuple(module.READING)
    wording = presets[0] if prompts is None else prompts
    if wording not in presets:
        raise JvidpruneError(f"{key} is not asked with the prompts {wording!r}, only with {', '.join(presets)}.")
    if folder is None:
        raise JvidpruneError(f"{name} is read from a local copy: say where with --data.")
    part = (_KNOWN[key].part,) if _KNOWN[key].part else ()
    return VideoTask(
        key,
        module.entries(Path(folder), wording, *part),
        Path(folder),
        wish=wish_of(wish, frames, fps, rule),
        limits=limits,
        extraction=module.READING[wording],
        prompts=wording,
        unique=getattr(module, "UNIQUE", False),
        clips=clips,
        strict=strict,
    )
