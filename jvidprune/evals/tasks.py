"""Which clips and questions a sweep asks: the procedural benchmark or a local copy of a published one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets.registry import Prompts
from jvidprune.evals.plan import RATIOS
from jvidprune.evals.subset import Pair, Subset, answerable
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural, Split, in_setting
from jvidprune.procedural.settings import BenchmarkSetting
from jvidprune.video.limits import DEFAULT, Limits


class DefaultSweep(NamedTuple):
    """How much a sweep of the procedural benchmark asks unless somebody says otherwise.

    Attributes:
      clips: number of clips.
      ratios: retention ratios in (0, 1].
    """

    clips: int
    ratios: tuple[float, ...]


DEFAULT_SWEEPS: Mapping[BenchmarkSetting, DefaultSweep] = MappingProxyType(
    {
        "default": DefaultSweep(50, RATIOS),
        # Provisional until it is measured: a clip has 1,024 tokens instead of 288.
        "detailed": DefaultSweep(16, (0.25, 0.1, 0.05)),
    }
)
"""By the setting that a model was trained for: all of a default run stays below five minutes on two cores."""

SIDE = 392
"""Height and width of its frames for towers of any resolution (the Qwen-VL families)."""

MEASURED = "accuracy.csv"
"""File of a checkpoint folder with what the model was measured to answer (`subset.answerable`)."""


def clip_side(llm: VideoLLM) -> int:
    """Height and width of the procedural benchmark's clips for a model: those of its tower's images, else `SIDE`."""
    return max(56, getattr(llm.loaded.config.vision, "image_size", SIDE))


def benchmark_of(
    llm: VideoLLM, split: Split, clips: int, *, frames: int | None = None, side: int | None = None, **changed: Any
) -> Procedural:
    """The procedural benchmark in the setting that a model's folder declares, the default one where it declares none.

    Args:
      llm: the model that is asked.
      split: of the benchmark.
      clips: number of clips.
      frames: of a clip; by default those of the setting.
      side: height and width of a clip in pixels; by default `clip_side`.
      **changed: further settings as of `Procedural`, which go before those of the declared one.

    Raises:
      JvidpruneError: what `Procedural` raises.
    """
    changed |= {} if frames is None else {"frames": frames}
    side = clip_side(llm) if side is None else side
    return in_setting(llm.settings.benchmark, split, clips, side=side, **changed)


def open_task(
    name: str,
    data: Path | None,
    llm: VideoLLM,
    *,
    clips: int | None = None,
    questions: Literal["answerable", "all"] = "answerable",
    frames: int | None = None,
    fps: float | None = None,
    limits: Limits = DEFAULT,
    strict: bool = False,
    prompts: Prompts | None = None,
) -> Any:
    """The procedural benchmark as the model was trained for it, or a local copy of a published one.

    Args:
      name: "procedural", or a published benchmark.
      data: folder of a published one.
      llm: the model that is asked.
      clips: the first so many alone; of the procedural benchmark by default as many as `DEFAULT_SWEEPS` has.
      questions: of the procedural benchmark, those that this model was measured to answer above chance, in the
        categories that its folder names if it names any, or all.
      frames, fps: as for `VideoLLM.sample`.
      limits: what is accepted of a video.
      prompts: whose wording a published one is asked in (`datasets.open_dataset`).
      strict: refuse annotations and videos that are wrong instead of leaving them out.

    Raises:
      JvidpruneError: an unknown task, or files that are not there.
    """
    if clips is not None and clips < 1:
        raise JvidpruneError(f"a sweep needs at least 1 clip, got {clips}.")
    if name == "procedural":
        if prompts is not None:
            raise JvidpruneError(f"the procedural benchmark has its own wording, not the prompts {prompts!r}.")
        if data is not None:
            raise JvidpruneError("the procedural benchmark reads no files: leave out --data or name a --task.")
        count = clips or DEFAULT_SWEEPS[llm.settings.benchmark].clips
        if questions == "answerable" and (llm.loaded.folder / MEASURED).exists():
            return answerable_part(llm, "test", count, frames=frames)
        whole = benchmark_of(llm, "test", count, frames=frames)
        known = None if questions == "all" else llm.settings.categories
        return whole if known is None else dataclasses.replace(whole, categories=known)
    from jvidprune.evals.datasets import open_dataset

    wish = llm.settings.wish(frames, fps)
    return open_dataset(name, data, clips=clips, wish=wish, limits=limits, strict=strict, prompts=prompts)


def answerable_pairs(llm: VideoLLM, measured: Path | None = None) -> list[Pair]:
    """(category, kind) that a model was measured to answer above chance, in the categories that its folder names.

    Args:
      llm: the model.
      measured: what was measured; by default `MEASURED` of its folder.

    Raises:
      JvidpruneError: nothing was measured.
    """
    measured = llm.loaded.folder / MEASURED if measured is None else measured
    if not measured.exists():
        raise JvidpruneError(f"there is no {measured}: nobody knows which questions the model answers above chance.")
    known = llm.settings.categories
    return [pair for pair in answerable(measured) if known is None or pair[0] in known]


def answerable_part(llm: VideoLLM, split: Split, clips: int, *, frames: int | None = None) -> Subset:
    """So many clips of the procedural benchmark with the questions that a model was measured to answer above chance.

    Args:
      llm, split, clips, frames: as for `benchmark_of`.

    Raises:
      JvidpruneError: nothing was measured, or no question was answered above chance.
    """
    pairs = answerable_pairs(llm)
    if not pairs:
        named = "" if llm.settings.categories is None else f" in {', '.join(llm.settings.categories)}"
        raise JvidpruneError(
            f"{llm.loaded.folder / MEASURED} has no question above chance{named}; ask --questions all."
        )
    categories = tuple(dict.fromkeys(category for category, _ in pairs))
    return Subset(benchmark_of(llm, split, 20 * clips, frames=frames, categories=categories), pairs, clips)
