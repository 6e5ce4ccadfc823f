"""The sweep: clips one by one, each encoded once, every method at every ratio on it; resumes where it was stopped."""

import contextlib
import dataclasses
import json
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jvidprune.bench import plan as plans
from jvidprune.bench.answering import answer_all, compile_all, time_alone
from jvidprune.bench.extract import is_correct
from jvidprune.bench.flops import count
from jvidprune.bench.hosts import (
    ALONE,
    GRACE,
    Host,
    join,
    one_at_a_time,
    only_writer,
    part_files,
    record_files,
    wait_for_others,
)
from jvidprune.bench.identity import run_hash
from jvidprune.bench.plan import SweepPlan
from jvidprune.bench.records import is_batch, is_sample
from jvidprune.bench.store import Record, RecordStore
from jvidprune.errors import JvidpruneError, quoted
from jvidprune.files import atomic_output, load_json
from jvidprune.inference.batch import Reply
from jvidprune.inference.pipeline import VideoLLM
from jvidprune.inference.reduced import sweep_video
from jvidprune.inference.stages import StageClock
from jvidprune.tokens import Reducer, VideoTokens

Group = tuple[str, Reducer, tuple[float, ...]]
"""Name, reducer and ratios that are run together."""

TIMED = 3
"""Clips on which one question is asked alone at every ratio, to see what a ratio costs."""

SAMPLE_KEY = ("clip", "question", "method", "ratio")
BATCH_KEY = ("clip", "method", "ratio")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many (clip, method) pairs are done of how many."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files of a run in its folder that one process writes."""

    folder: Path
    host: Host = ALONE

    @property
    def settings(self) -> Path:
        """What the run is."""
        return self.folder / "run.json"

    @property
    def samples(self) -> Path:
        """One record a clip, question, method and ratio; of one host, if there are several."""
        return self.folder / f"samples{self.host.mark}.jsonl"

    @property
    def batches(self) -> Path:
        """One record a clip, method and ratio: times, memory, or why the method refused; alike."""
        return self.folder / f"batches{self.host.mark}.jsonl"


@dataclasses.dataclass(frozen=True)
class SweepRecords:
    """What a run has written.

    Attributes:
      files: where.
      identity: what the run is.
      runs: (method, ratio) in the order of the tables.
      samples: one record a clip, question, method and ratio.
      batches: one record a clip, method and ratio.
      resumed: samples that were there before this process started.
      complete: whether nothing is missing; False while other hosts have clips to do.
    """

    files: RunFiles
    identity: dict[str, Any]
    runs: list[tuple[str, float]]
    samples: list[Record]
    batches: list[Record]
    resumed: int
    complete: bool = True


def run_sweep(
    llm: VideoLLM,
    task: Any,
    plan: SweepPlan,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
    host: Host = ALONE,
    grace: float = GRACE,
) -> SweepRecords:
    """Runs what is not yet on disk of a sweep.

    Records reach the disk after every clip and method. A process that is killed loses the pair it was at; started again
    it makes the same batches and writes the records that are missing, so the final table is that of an uninterrupted
    run.

    Several processes that share a folder each run the clips of their number (`bench.hosts`); the last one to finish, or
    any that is started later, joins their records into what a single process would have written.

    Args:
      llm: the model.
      task: a `bench.items.Task`.
      plan: methods, ratios and length of answers.
      out: folder of the run; by default runs/<hash of everything that changes results>.
      progress: called before every clip and method.
      host: which of several processes this is.
      grace: see `hosts.wait_for_others`.

    Raises:
      TransientError: another process writes there.
      JvidpruneError: the folder holds another run or cannot be written to, or a video cannot be read.
    """
    identity = plans.identity(llm, task, plan)
    files = RunFiles(out or Path("runs") / run_hash(identity), host)
    progress = progress or (lambda text, done, total: None)
    with only_writer(files.folder, host):
        with contextlib.ExitStack() as closing:
            with one_at_a_time(files.folder):
                _write_settings(files.settings, identity)
                stores = closing.enter_context(_stores(files))
            resumed = len(stores[0])
            _run_missing(llm, task, plan, *stores, progress, host)
        if host.of > 1:
            progress("waiting for the other hosts", 0, 1)
        items = [task[number] for number in range(len(task))]
        complete = wait_for_others(files.folder, host, lambda: _joined(files, items, plan), grace)
        with one_at_a_time(files.folder), _stores(files) as (samples, batches):
            records = samples.records(), batches.records()
        return SweepRecords(files, identity, plan.runs(), *records, resumed, complete)


@contextlib.contextmanager
def _stores(files: RunFiles) -> Iterator[tuple[RecordStore, RecordStore]]:
    """Samples and batches: our own files, and what other processes have written."""
    with contextlib.ExitStack() as closing:
        stores = []
        kinds = (files.samples, "samples", SAMPLE_KEY, is_sample), (files.batches, "batches", BATCH_KEY, is_batch)
        for path, name, key, whole in kinds:
            others = [other for other in record_files(files.folder, name) if other != path]
            stores.append(RecordStore(path, key, whole, others))
            closing.callback(stores[-1].close)
        yield stores[0], stores[1]


def _joined(files: RunFiles, items: Sequence[Any], plan: SweepPlan) -> bool:
    """Whether nothing is missing; if so, all records are in the files of a single process afterwards."""
    with one_at_a_time(files.folder), _stores(files) as (samples, batches):
        groups = plan.groups()
        if any(_missing(item, group, samples, batches) for item in items for group in groups):
            return False
        parts = {name: part_files(files.folder, name) for name in ("samples", "batches")}
        if any(parts.values()):
            clips = {item.id: number for number, item in enumerate(items)}
            questions = {(item.id, q.id): n for item in items for n, q in enumerate(item.questions)}
            runs = {run: number for number, run in enumerate(plan.runs())}

            def place(record: Record) -> tuple[int, ...]:
                question = questions.get((record["clip"], record.get("question")), 0)
                return clips[record["clip"]], runs[record["method"], record["ratio"]], question

            for name, store in (("samples", samples), ("batches", batches)):
                ours = [r for r in store.records() if r["clip"] in clips and (r["method"], r["ratio"]) in runs]
                join(files.folder, name, sorted(ours, key=place), parts[name])
        return True


def _write_settings(path: Path, identity: dict[str, Any]) -> None:
    text = json.dumps({"hash": run_hash(identity)} | identity, indent=1, ensure_ascii=False) + "\n"
    if path.exists():
        try:
            known = quoted(load_json(path).get("hash"))
        except (ValueError, AttributeError):
            known = "?"
        if known != run_hash(identity):
            raise JvidpruneError(f"{path.parent} holds another run ({known}); choose another --out for this one.")
        return
    with atomic_output(path) as part:
        part.write_text(text, encoding="utf8")


def _run_missing(
    llm: VideoLLM,
    task: Any,
    plan: SweepPlan,
    samples: RecordStore,
    batches: RecordStore,
    progress: Progress,
    host: Host,
) -> None:
    groups, mine = plan.groups(), host.clips(len(task))
    total = len(mine) * len(groups)
    compiled: dict[str, float] | None = None
    for turn, number in enumerate(mine):
        item = task[number]
        waiting = [group for group in groups if _missing(item, group, samples, batches)]
        done = (turn + 1) * len(groups) - len(waiting)
        if not waiting:
            progress("reading what is there", done, total)
            continue
        progress(f"{item.id} · encoding", done, total)
        clip = item.load()
        clock = StageClock()
        with clock("encode"):
            video = jax.block_until_ready(llm.encode(clip.frames, plan.needs))
        jobs = [_Job(name, reducer, *possible_ratios(reducer, video, ratios)) for name, reducer, ratios in waiting]
        if compiled is None:
            progress("compiling the reducers", 0, len(jobs))
            names: list[str] = []

            def finished(name: str, names: list[str] = names, of: int = len(jobs)) -> None:
                names.append(name)
                progress("compiling the reducers", len(names), of)

            compiled = compile_all([(job.name, job.reducer, job.asked) for job in jobs if job.ratios], video, finished)
        for job in jobs:
            progress(f"{item.id} · {job.name}", done, total)
            known = {"clip": item.id, "method": job.name, "encode": clock.stages[0].seconds}
            batches.append([known | {"ratio": ratio, "refused": reason} for ratio, reason in job.refused.items()])
            if job.ratios:
                new, costs = _answer(llm, task, item, clip, video, job, plan, timed=number < TIMED)
                costs[0]["compile"] += compiled.pop(job.name, 0.0)
                batches.append([known | cost for cost in costs])
                samples.append(new)
            done += 1


class _Job(NamedTuple):
    """A method on a clip: the ratios it can be asked for, and why not the others."""

    name: str
    reducer: Reducer
    ratios: tuple[float, ...]
    refused: dict[float, str]

    @property
    def asked(self) -> list[float]:
        """The question without video stands at ratio 0, which no budget can be made from."""
        return [ratio or 1.0 for ratio in self.ratios]


def _missing(item: Any, group: Group, samples: RecordStore, batches: RecordStore) -> bool:
    name, _, ratios = group
    found = {ratio: batches.get((item.id, name, ratio)) for ratio in ratios}
    asked = [ratio for ratio, batch in found.items() if not (batch and batch["refused"])]
    keys = ((item.id, q.id, name, ratio) for q in item.questions for ratio in asked)
    return None in found.values() or any(key not in samples for key in keys)


def possible_ratios(
    reducer: Reducer, video: VideoTokens, ratios: tuple[float, ...]
) -> tuple[tuple[float, ...], dict[float, str]]:
    """The ratios a method can be asked for on one video, and why not the others; another video may have other ones."""
    possible: list[float] = []
    refused: dict[float, str] = {}
    for ratio in ratios:
        try:
            reducer.budget(video.layout(), ratio or 1.0)
            possible.append(ratio)
        except ValueError as error:
            refused[ratio] = str(error)
    return tuple(possible), refused


def _answer(
    llm: VideoLLM, task: Any, item: Any, clip: Any, video: VideoTokens, job: _Job, plan: SweepPlan, *, timed: bool
) -> tuple[list[Record], list[Record]]:
    """Records of the samples and of the batches of one method on one clip."""
    questions = [question.prompt() for question in item.questions]
    clock = StageClock()
    with clock("reduce"):
        videos = sweep_video(video, job.reducer, job.asked, clip)
    with clock("answer"):
        replies = answer_all(llm, videos, questions, max_new_tokens=plan.max_new_tokens)
    reduce, answer = clock.stages
    alone = time_alone(llm, videos, questions[0], max_new_tokens=plan.max_new_tokens) if timed else []
    rule = getattr(task, "extraction", "letters")
    samples, batches = [], []
    for i, (ratio, row) in enumerate(zip(job.ratios, replies, strict=True)):
        for question, reply in zip(item.questions, row, strict=True):
            right = is_correct(reply.text, question.answer, question.kind, question.options, rule=rule)
            record = {"clip": item.id, "question": question.id, "method": job.name, "ratio": ratio}
            record |= {"category": question.category, "prediction": reply.text, "answer": question.answer}
            counts = {"kept": reply.kept, "visual": reply.visual, "prompt": reply.prompt}
            samples.append(record | {"correct": right} | counts)
        costs = {"ratio": ratio, "refused": "", "reduce": reduce.seconds / len(job.ratios)}
        if timed:
            costs |= {"prefill": alone[i][0], "generate": alone[i][1]}
        costs |= {"compile": (reduce.compile_seconds + answer.compile_seconds) * (i == 0), "memory": peak_memory()}
        batches.append(costs | _tflops(llm, video, job, ratio, row))
    return samples, batches


def _tflops(llm: VideoLLM, video: VideoTokens, job: _Job, ratio: float, replies: Sequence[Reply]) -> dict[str, float]:
    """TFLOPs of an answer of mean length, and of its prefill; nothing for a method that cannot be counted."""
    means = {name: round(sum(getattr(r, name) for r in replies) / len(replies)) for name in ("prompt", "generated")}
    sizes = {"kept": replies[0].kept, "prompt": means["prompt"], "new_tokens": max(1, means["generated"])}
    reducer = {"reducer": job.reducer, "ratio": ratio or 1.0}
    report = count(llm.loaded.config, video.layout(), **sizes, **reducer)
    return {"tflops": report.total / 1e12, "prefill_tflops": report.of("prefill") / 1e12}


def peak_memory() -> int:
    """Most bytes in use since the process started: of the device where it tells, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
