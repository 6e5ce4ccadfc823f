"""Transports side by side: many costs, temperatures, masses, solvers and ratios in one compiled call a clip.

What is shared by methods of one structure (their numbers, arrays and ratios travel in budgets) is one loop of the
program; what the loops have in common, the compiler shares. Measured of every method, ratio and clip:

- error: dropped tokens rebuilt as their nearest output token, as a share of their variance (`ops.rebuilt`);
- recall: of the tokens on an object those whose nearest output token stands on an object of the same colour and shape;
- marginal: sums of what the marginals of a transport are off by, mean over its problems;
- right answers, where there are questions.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jvidprune.errors import JvidpruneError
from jvidprune.evals.extract import is_correct
from jvidprune.evals.identity import model_identity, plain, run_hash
from jvidprune.evals.items import Question
from jvidprune.evals.keys import question_mark, source_of_item
from jvidprune.evals.store import RecordStore
from jvidprune.evals.subset import Subset
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.ops.rebuilt import dropped_tokens, reconstruction_error, squared_distances
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers.protocol import Reducer, StagedReducer, inner_stages, with_defaults
from jvidprune.reducers.run import reduce
from jvidprune.tokens import Layout, Reduced, VideoTokens, stack_budgets
from jvidprune.video.decode import Clip

KEY = ("clip", "setting", "ratio", "mark")
"""What identifies a record: the setting by its name and a hash of all that it is made of, the clip by its name and the
mark of what it is made from, what is asked about it and by whom (`clip_mark`)."""


ANSWER_TOKENS = 8
"""Longest answer, as in a sweep of the procedural benchmark."""


class LabClip(NamedTuple):
    """A clip to measure on.

    Attributes:
      name: of the clip.
      load: reads it.
      source: what decides the frames that `load` gives, as JSON holds it: content of the file and sampling. A clip
        whose source changes is measured again.
      questions: about it, may be none.
      labels: grid of a frame's tokens -> (T, h, w) int ids of colour and shape, 0 for background; None where nobody
        knows them.
    """

    name: str
    load: Callable[[], Clip]
    source: Callable[[], Any]
    questions: tuple[Question, ...] = ()
    labels: Callable[[tuple[int, int]], Int[np.ndarray, "T h w"]] | None = None


def procedural_clips(task: Procedural | Subset) -> list[LabClip]:
    """The clips of the procedural benchmark or of a part of it, with what is seen in them.

    Args:
      task: whose items are named "SPLIT-NUMBER".
    """
    benchmark: Any = task.whole if isinstance(task, Subset) else task

    def seen(number: int, grid: tuple[int, int]) -> np.ndarray:
        found = dataclasses.replace(benchmark, grid=grid).sample(number).labels.astype(np.int32)
        there = (found[..., 0] > 0) & (found[..., 1] > 0)
        return np.where(there, found[..., 0] * 128 + found[..., 1], 0)

    return [clip._replace(labels=partial(seen, int(clip.name.rpartition("-")[2]))) for clip in task_clips(task)]


def task_clips(task: Any) -> list[LabClip]:
    """The clips of a task with its questions; what is seen in them is not known."""
    items = [task[place] for place in range(len(task))]
    return [LabClip(item.id, item.load, partial(source_of_item, task, item), item.questions) for item in items]


class Measured(NamedTuple):
    """Of every method and ratio, leading axes (n, r) in the end; see the module."""

    error: Array
    recall: Array
    marginal: Array
    iterations: Array


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """Methods that are compared.

    Attributes:
      llm: the model.
      methods: reducers in front of the language model, by name.
      ratios: retention ratios.

    Raises:
      JvidpruneError: no method, or one that does not reduce tokens alone.
    """

    llm: VideoLLM
    methods: Mapping[str, Reducer]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.methods or not self.ratios:
            raise JvidpruneError("there is nothing to compare without a method and a ratio.")
        for name, method in self.methods.items():
            whole = with_defaults(method)
            if whole.tokens_from in ("tower", "frames") or any(inner_stages(method, r) for r in self.ratios):
                raise JvidpruneError(f"{name} does not reduce the tokens of a video alone, which is what is compared.")

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that any of the methods reads."""
        return frozenset().union(*(method.needs for method in self.methods.values()))

    def groups(self, layout: Layout) -> tuple[list[tuple[Reducer, list[str]]], int]:
        """Methods of one structure together, in their order, and the rows that all of them fit into."""
        found: dict[Any, list[str]] = {}
        structures: dict[Any, Reducer] = {}
        for name, method in self.methods.items():
            program = with_defaults(method).without_numbers()
            budget = method.budget(layout, self.ratios[0])
            key = program, jax.tree.structure(budget), tuple(np.shape(leaf) for leaf in jax.tree.leaves(budget))
            structures.setdefault(key, program)
            found.setdefault(key, []).append(name)
        capacity = max(method.capacity(layout, ratio) for method in self.methods.values() for ratio in self.ratios)
        return [(structures[key], names) for key, names in found.items()], capacity

    def measure(
        self, video: VideoTokens, labels: Int[np.ndarray, "T h w"] | None
    ) -> tuple[dict[str, Measured], dict[str, list[Reduced]]]:
        """Measures of a video by the name of the method, (ratios,) each, and its reductions.

        Args:
          video: with the evidence that the methods need.
          labels: ids of what each token stands on, 0 for background; None for unknown.
        """
        layout = video.layout()
        groups, capacity = self.groups(layout)
        budgets = [
            stack_budgets([self.methods[name].budget(layout, ratio) for name in names for ratio in self.ratios])
            for _, names in groups
        ]
        flat = np.zeros(layout.total, np.int32) if labels is None else np.asarray(labels, np.int32).reshape(-1)
        found = jax.device_get(_all_groups(tuple(program for program, _ in groups), capacity, video, budgets, flat))
        measures: dict[str, Measured] = {}
        reductions: dict[str, list[Reduced]] = {}
        count = len(self.ratios)
        for (_, names), (measured, reduced) in zip(groups, found, strict=True):
            for place, name in enumerate(names):
                part = slice(place * count, (place + 1) * count)
                measures[name] = jax.tree.map(lambda leaf, part=part: leaf[part], measured)
                rows = [jax.tree.map(lambda leaf, i=i: leaf[i], reduced) for i in range(part.start, part.stop)]
                reductions[name] = rows
        return measures, reductions

    def records(self, clip: LabClip, keys: Mapping[str, str]) -> list[dict[str, Any]]:
        """One record for every method and ratio.

        Args:
          clip: the clip.
          keys: names of the methods in records.
        """
        encoded = self.llm.encode(clip.load(), needs=self.needs)
        labels = None if clip.labels is None else clip.labels(encoded.tokens.grid)
        measures, reductions = self.measure(encoded.tokens, labels)
        known = []
        for name, measured in measures.items():
            for place, ratio in enumerate(self.ratios):
                record: dict[str, Any] = {"clip": clip.name, "setting": keys[name], "ratio": ratio}
                record["kept"] = int(reductions[name][place].count)
                for field, values in measured._asdict().items():
                    value = float(values[place])
                    record[field] = value if np.isfinite(value) else None
                made = ReducedVideo(encoded, reductions[name][place], self.methods[name], ratio, ())
                known.append((record, made))
        prompts = [Prompt(made, question.prompt()) for _, made in known for question in clip.questions]
        replies = iter(answer_many(self.llm, prompts, max_new_tokens=ANSWER_TOKENS, batch=16, min_fill=0.3))
        for record, _ in known:
            right = {
                question.id: is_correct(next(replies).text, question.answer, question.kind, question.options)
                for question in clip.questions
            }
            record["right"] = right
        return [record for record, _ in known]


@partial(jax.jit, static_argnames=("programs", "capacity"))
def _all_groups(
    programs: tuple[Any, ...], capacity: int, video: VideoTokens, budgets: list[Any], labels: Array
) -> list[tuple[Measured, Reduced]]:
    tokens = video.features.reshape(-1, video.features.shape[-1]).astype(jnp.float32)
    there = jnp.repeat(video.frame_mask, video.features.shape[1])

    def group(program: Any, stacked: Any) -> tuple[Measured, Reduced]:
        staged = isinstance(program, StagedReducer)
        shared = program.prepare(video, capacity=capacity) if staged else None

        def one(budget: Any) -> tuple[Measured, Reduced]:
            if staged:
                plan = program.decide(shared, budget, capacity=capacity)
            else:
                plan = program.plan(video, budget, capacity=capacity)
            made = with_defaults(program).apply(plan, video)
            apart = squared_distances(tokens, made.tokens.astype(jnp.float32))
            nearest = jnp.argmin(jnp.where(made.valid, apart, jnp.inf), axis=1)
            same = labels[jnp.minimum(made.index[nearest], labels.shape[0] - 1)] == labels
            objects = (labels > 0) & there
            recall = (objects & same).sum() / objects.sum()
            gone = dropped_tokens(made.index, made.valid, there)
            error = reconstruction_error(tokens, made.tokens, made.valid, gone)
            found = Measured(error, recall, *_solved(made.diagnostics))
            return found, made._replace(diagnostics={})

        return lax.map(one, stacked)

    return [group(program, stacked) for program, stacked in zip(programs, budgets, strict=True)]


def _solved(diagnostics: Mapping[str, Array]) -> tuple[Array, Array]:
    """Marginal error and iterations, means over the problems of all transports; NaN without one."""
    sums = [jnp.float32(0)] * 3
    for name, rows in diagnostics.items():
        stem = name.removesuffix("_row_error")
        if stem == name:
            continue
        steps = jnp.broadcast_to(diagnostics[f"{stem}_iterations"], rows.shape)
        there = (steps >= 0) & (rows >= 0)
        off = rows + jnp.broadcast_to(diagnostics[f"{stem}_column_error"], rows.shape)
        parts = off, steps.astype(jnp.float32), jnp.ones(rows.shape)
        sums = [a + jnp.where(there, b, 0.0).sum() for a, b in zip(sums, parts, strict=True)]
    return sums[0] / sums[2], sums[1] / sums[2]


def setting_keys(methods: Mapping[str, Reducer]) -> dict[str, str]:
    """Name of each method in records: its own and a hash of all that decides what it does, code of one's own too."""
    return {name: f"{name} #{run_hash({'method': plain(method)})[:6]}" for name, method in methods.items()}


def clip_mark(clip: LabClip, run: str) -> str:
    """Mark of a clip in records: what it is made from, what is known and asked of it, and by whom.

    Args:
      clip: the clip.
      run: hash of the model and its surroundings (`identity.model_identity`).
    """
    asked = [question_mark(question) for question in clip.questions]
    return run_hash({"run": run, "source": clip.source(), "questions": asked, "labels": clip.labels is not None})


def times_of(lab: Laboratory, clip: LabClip, repeats: int = 5) -> dict[str, float]:
    """Milliseconds of one reduction at the lowest ratio by each method alone, the best of several; compiles each.

    Args:
      lab: what is compared.
      clip: that is reduced.
      repeats: of each.
    """
    video, ratio, found = lab.llm.encode(clip.load(), needs=lab.needs).tokens, min(lab.ratios), {}
    for name, method in lab.methods.items():
        reduce(method, video, ratio)
        best = float("inf")
        for _ in range(repeats):
            begin = time.perf_counter()
            jax.block_until_ready(reduce(method, video, ratio))
            best = min(best, time.perf_counter() - begin)
        found[name] = 1e3 * best
    return found


def run_laboratory(
    lab: Laboratory,
    clips: Sequence[LabClip],
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """Measures all clips, going on where an earlier call in the same folder stopped.

    As in a sweep, another video under the same name, other frames of it, other questions, an edited cost of one's own
    and another version of the package are measured anew; records of an earlier state stay in their files.

    Args:
      lab: what is compared.
      clips: to measure on.
      folder: of the records; those of another model lie beside them.
      progress: called as (clips done, clips in all).
      until: asked before each clip; True ends the run early.

    Returns:
      Records of the clips that were measured, with the names of the methods as "setting", in the order of the clips.

    Raises:
      JvidpruneError: a folder that cannot be written to.
    """
    keys = setting_keys(lab.methods)
    known = model_identity(lab.llm)
    name, run = run_hash({key: known[key] for key in ("model", "prompt", "around")}), run_hash(known)
    found = []
    with closing(RecordStore(folder / f"transports-{name}.jsonl", KEY)) as store:
        for number, clip in enumerate(clips):
            mark = clip_mark(clip, run)
            wanted = {(clip.name, key, ratio, mark): own for own, key in keys.items() for ratio in lab.ratios}
            if any(one not in store for one in wanted):
                if until is not None and until():
                    break
                store.append(record | {"mark": mark} for record in lab.records(clip, keys))
            for one, setting in wanted.items():
                record = store.get(one)
                assert record is not None
                found.append(record | {"setting": setting})
            if progress is not None:
                progress(number + 1, len(clips))
    return found
