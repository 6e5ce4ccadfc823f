"""Running a probe: clips one by one, each encoded once, every method at all ratios on it in one compiled call."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.evals.pairs import possible_ratios
from jvidprune.evals.plan import RATIOS
from jvidprune.evals.probe.measures import ProbedRows, Sums, measure, nearest, token_of
from jvidprune.evals.probe.oracle import Oracle, told
from jvidprune.evals.probe.readouts import Fitting, Readouts
from jvidprune.evals.probe.table import ALL_TOKENS, GUESS, ProbeTable, Run, summarised
from jvidprune.evals.tasks import benchmark_of
from jvidprune.fields import Count, checked
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.evidence import check_evidence
from jvidprune.procedural.benchmark import Procedural, Split
from jvidprune.procedural.masks import Masks, masks
from jvidprune.procedural.paint import paint
from jvidprune.procedural.world import Scene
from jvidprune.reducers import registry
from jvidprune.reducers.composition import Composition, compositions
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import Reducer, check_ratio, check_weighs_features, inner_stages, title_of
from jvidprune.tokens import QUESTION, Layout
from jvidprune.video.decode import Clip

CATEGORIES = ("rare", "needle", "attribute", "motion")
"""What the clips are made for, in turns: a tiny object, one that is shown in one frame, and neither."""

CLIPS, FITTED = 48, 64
"""Clips that are measured, and others that read-outs are fitted on."""

ORACLE = "oracle"
"""Name of the control that is told the masks; a probe alone knows it."""

CONTROLS = ("random", "uniform", "pool_space", "pool_time", "norm_topk", ORACLE)
"""What methods stand beside unless somebody says otherwise."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many clips are done of how many."""


def probe(
    llm: VideoLLM,
    methods: Mapping[str, Reducer] | Sequence[str],
    ratios: Sequence[float] = RATIOS,
    *,
    controls: Sequence[str] = CONTROLS,
    clips: int = CLIPS,
    fitted: int = FITTED,
    frames: int | None = None,
    draws: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeTable:
    """Measures what methods leave of generated clips, without a language model and without training.

    Clips are those of the procedural test split; read-outs (`readouts`) are fitted on the training split. Of a method
    that also works inside the language model only what it does before counts; one that does nothing before is refused.
    A method that reads the question is given the first question of each clip.

    Args:
      llm: whose tower and projector make the tokens; the language model is not run.
      methods: as they are typed, or shown name -> reducer.
      ratios: retention ratios in (0, 1].
      controls: names that stand beside the methods, "oracle" among them or not.
      clips: measured.
      fitted: clips that read-outs are fitted on.
      frames: of a clip; by default as many as the benchmark has that the model was trained for.
      draws, seed: of the bootstrap over clips.
      progress: called before every clip.

    Raises:
      JvidpruneError: no method or ratio, an unknown one, impossible numbers, or no method that can be probed.
    """
    ratios = tuple(dict.fromkeys(check_ratio(ratio) for ratio in ratios))
    checked(clips, Count, "clips")
    checked(fitted, Count, "fitted")
    if not ratios or not len(methods):
        raise JvidpruneError("a probe needs at least one method and one retention ratio.")
    typed = isinstance(methods, Mapping)
    wanted = dict(methods) if isinstance(methods, Mapping) else {name: _made(llm, name) for name in methods}
    beside = {name: _made(llm, name) for name in controls if name not in wanted}
    task = _task(llm, "test", clips, frames)
    layout = _layout(llm, task)
    refused = {name: why for name, one in (wanted | beside).items() if (why := _refusal(llm, one, layout, ratios))}
    running = {name: one for name, one in (wanted | beside).items() if name not in refused}
    if not running.keys() & wanted.keys():
        raise JvidpruneError(next(refused[name] for name in wanted))
    progress = progress or (lambda text, done, total: None)
    readouts = _fit(llm, _task(llm, "train", fitted, frames), progress)
    found = _Found(refused)
    needs = frozenset().union(*(one.needs for one in running.values() if not isinstance(one, Oracle))) - QUESTION
    for turn, known in enumerate(_clips(llm, task, needs)):
        progress("probing", turn, clips)
        found.add(_measured(llm, known, running, ratios, readouts, refused))
    progress("probing", clips, clips)
    order = [(GUESS, 0.0), (ALL_TOKENS, 1.0), *((name, ratio) for name in running for ratio in ratios)]
    runs = tuple(run for run in order if run in found.sums)
    titles = {name: name if typed and name in wanted else _title(name, one) for name, one in running.items()}
    return ProbeTable(
        ratios,
        runs,
        titles,
        summarised({run: found.sums[run] for run in runs}, draws=draws, seed=seed),
        {run: float(np.mean(found.tokens[run])) for run in runs},
        layout.total,
        refused,
        clips,
        fitted,
        tuple(name for name in running if name in beside),
    )


def before_the_model() -> tuple[str, ...]:
    """Names of all registered methods that leave fewer tokens before the language model, by their default settings."""
    layout = Layout(8, (6, 6), (12, 12))
    return tuple(name for name in registry.names() if not _keeps_all(registry.get(name), layout, (0.25, 0.1)))


class _Known(NamedTuple):
    """A clip of which everything is known."""

    scene: Scene
    owner: np.ndarray
    asked: str
    video: EncodedVideo

    def masks(self, grid: tuple[int, int]) -> Masks:
        """Of the objects, on a grid."""
        return masks(self.scene, self.owner, grid, self.video.tokens.features.shape[0])


_Clip = dict[Run, tuple[int, Sums]]
"""Of one clip: run -> rows that were left, and what was counted."""


@dataclasses.dataclass
class _Found:
    """What was counted, clip by clip; all runs have as many clips, some of them empty.

    Attributes:
      refused: method -> why it is not there, or not at all ratios.
    """

    refused: dict[str, str]

    def __post_init__(self) -> None:
        self.sums: dict[Run, list[Sums]] = {}
        self.tokens: dict[Run, list[int]] = {}
        self._clips = 0

    def add(self, clip: _Clip) -> None:
        """Takes a clip in."""
        for run in clip.keys() | self.sums.keys():
            count, some = clip.get(run, (None, {}))
            self.sums.setdefault(run, [{}] * self._clips).append(some)
            if count is not None:
                self.tokens.setdefault(run, []).append(count)
        self._clips += 1


def _made(llm: VideoLLM, name: str) -> Reducer:
    return Oracle() if name == ORACLE else llm.reducer(name)


def _title(name: str, reducer: Reducer) -> str:
    return title_of(reducer) if name == ORACLE else registry.title(name)


def _task(llm: VideoLLM, split: Split, clips: int, frames: int | None) -> Procedural:
    return benchmark_of(llm, split, clips, frames=frames, categories=CATEGORIES)


def _clips(llm: VideoLLM, task: Procedural, needs: frozenset[str]) -> Iterator[_Known]:
    for number in range(len(task)):
        scene, questions = task.scene(number)
        frames, owner = paint(scene)
        count = len(frames)
        clip = Clip(frames, np.arange(count), np.arange(count, dtype=np.float64), 1.0, count)
        yield _Known(scene, owner, questions[0].prompt(), llm.encode(clip, needs=needs))


def _layout(llm: VideoLLM, task: Procedural) -> Layout:
    """What the tokens of a clip look like; all clips have one size."""
    return next(_clips(llm, task, frozenset())).video.tokens.layout()


def _refusal(llm: VideoLLM, reducer: Reducer, layout: Layout, ratios: Sequence[float]) -> str:
    """Why a method cannot be probed, empty where it can."""
    try:
        check_weighs_features(reducer, "the probe cannot run")
        if not isinstance(reducer, Oracle):
            check_evidence(llm.loaded.family, reducer.needs - QUESTION, llm.loaded.model.provides, None)
        if _keeps_all(reducer, layout, ratios):
            return f"{title_of(reducer)} works inside the language model, which the probe does not run."
    except JvidpruneError as error:
        return str(error)
    return ""


def _keeps_all(reducer: Reducer, layout: Layout, ratios: Sequence[float]) -> bool:
    """Whether every token gets to the language model at all ratios that the method can be asked for."""
    found = []
    for ratio in ratios:
        try:
            reducer.budget(layout, ratio)
            found.append(reducer.capacity(layout, ratio) >= layout.total and bool(inner_stages(reducer, ratio)))
        except JvidpruneError:
            continue
    return isinstance(reducer, Full) or (bool(found) and all(found))


def _fit(llm: VideoLLM, task: Procedural, progress: Progress) -> Readouts:
    fitting = None
    for turn, known in enumerate(_clips(llm, task, frozenset())):
        progress("fitting the read-outs", turn, len(task))
        features = _features(known.video)
        fitting = fitting or Fitting(features.shape[1])
        fitting.add(features, known.masks(known.video.tokens.grid), task.frames)
    assert fitting is not None
    return fitting.fit()


def _features(video: EncodedVideo) -> np.ndarray:
    features = np.asarray(video.tokens.features, np.float32)
    return features.reshape(-1, features.shape[-1])


def _measured(
    llm: VideoLLM,
    known: _Known,
    running: Mapping[str, Reducer],
    ratios: Sequence[float],
    readouts: Readouts,
    refused: dict[str, str],
) -> _Clip:
    """All runs on one clip; ratios that a method refuses are told in `refused`."""
    side = known.scene.knobs.side
    coarse, features = known.masks(known.video.tokens.grid), _features(known.video)
    out: _Clip = {(GUESS, 0.0): (0, readouts.guess(coarse, side))}
    for name, reducer, some in ((ALL_TOKENS, Full(), (1.0,)), *((name, one, ratios) for name, one in running.items())):
        possible, why = possible_ratios(reducer, known.video.tokens, tuple(some))
        if why:
            refused[name] = f"at {', '.join(f'{100 * ratio:g}' for ratio in why)} %: {next(iter(why.values()))}"
        if not possible:
            continue
        shown = told(known.video.tokens, coarse) if isinstance(reducer, Oracle) else known.video.tokens
        if reducer.needs & QUESTION:
            shown = llm.with_evidence(known.video, reducer, known.asked).tokens
        found = compositions(reducer, shown, possible)
        fine = coarse if found.grid == coarse.grid else known.masks(found.grid)
        place = token_of(found.grid, coarse.grid, coarse.steps)
        for ratio, rows in zip(possible, _rows(found, shown.features), strict=True):
            if not len(rows.index):
                continue
            sums = measure(features, rows, coarse, fine, place) | readouts.read(rows, coarse, side)
            out[name, ratio] = len(rows.index), sums
    return out


def _rows(found: Composition, features: jax.Array) -> list[ProbedRows]:
    """The valid rows of every ratio, on the host."""
    near = nearest(features.reshape(-1, features.shape[-1]), found.reduced.tokens, found.reduced.valid)
    reduced, weights, off = jax.device_get((found.reduced, found.weights, near))
    out = []
    for i, valid in enumerate(reduced.valid):
        tokens = np.asarray(reduced.tokens[i], np.float32)[valid]
        out.append(ProbedRows(tokens, reduced.index[i][valid], reduced.slot[i], weights[i][valid], off[i]))
    return out
