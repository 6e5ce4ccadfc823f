"""The sweep: clips one by one, each encoded once, every method at every ratio on it; resumes where it was stopped."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jvidprune.errors import JvidpruneError, TransientError, quoted, reading
from jvidprune.evals import plan as plans
from jvidprune.evals.answering import compile_all
from jvidprune.evals.hosts import (
    ALONE,
    GRACE,
    Host,
    is_running,
    join,
    one_at_a_time,
    only_writer,
    part_files,
    record_files,
    wait_for_others,
)
from jvidprune.evals.identity import plain, run_hash
from jvidprune.evals.items import Item, LeftOut, left_out
from jvidprune.evals.judge.cases import write_open
from jvidprune.evals.keys import BATCH_KEY, FAILURE_KEY, SAMPLE_KEY, RecordKeys, Stores
from jvidprune.evals.matching import Costing, Matcher
from jvidprune.evals.pairs import MethodJob, answer_job, make_job
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.records import is_batch, is_failure, is_sample
from jvidprune.evals.store import Record, RecordStore, unusable_lines
from jvidprune.files import atomic_output, load_json
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.stages import StageClock
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.evidence import check_evidence
from jvidprune.tokens import QUESTION

TIMED = 3
"""Clips on which one question is asked alone at every ratio, to see what a ratio costs."""

KINDS = ("samples", "batches", "failures")
"""Records of a run: answers, costs, and clips that cannot be asked about."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many (clip, method) pairs are done of how many."""

Report = Callable[[LeftOut], None]
"""Called with what is left out, as soon as it is found."""


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

    @property
    def failures(self) -> Path:
        """One record a clip that could not be read; alike."""
        return self.folder / f"failures{self.host.mark}.jsonl"


@dataclasses.dataclass(frozen=True)
class SweepRecords:
    """What a run has written of what was asked for.

    Attributes:
      files: where.
      identity: what the run is, and under "controls" what ran beside its methods.
      runs: (method, ratio) in the order of the tables.
      samples: one record a clip, question, method and ratio.
      batches: one record a clip, method and ratio.
      resumed: samples that were there before this process started.
      complete: whether nothing is missing; False while other hosts have clips to do.
      left_out: what could not be asked and is not counted: annotations, videos that are not there or cannot be read.
    """

    files: RunFiles
    identity: dict[str, Any]
    runs: list[tuple[str, float]]
    samples: list[Record]
    batches: list[Record]
    resumed: int
    complete: bool = True
    left_out: tuple[LeftOut, ...] = ()


def run_sweep(
    llm: VideoLLM,
    task: Any,
    plan: SweepPlan,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    host: Host = ALONE,
    grace: float = GRACE,
    strict: bool = False,
) -> SweepRecords:
    """Runs what is not yet on disk of a sweep.

    Records reach the disk after every clip and method. A process that is killed loses the pair it was at; started again
    it makes the same batches and writes the records that are missing, so the final table is that of an uninterrupted
    run. Records are filed under their item as it is and the settings that decide them (`evals.keys`): a folder takes
    further clips, methods and ratios, mended videos and other settings, and nothing in it is ever removed.

    A clip that cannot be read is left out and listed; it is tried again whenever the sweep is started.

    Several processes that share a folder each run the clips of their number (`evals.hosts`); the last one to finish, or
    any that is started later, joins their records into what a single process would have written.

    When nothing is missing, the open answers among the samples are written to a file for `jvidprune judge`.

    Args:
      llm: the model.
      task: a `evals.items.Task`.
      plan: methods, ratios and length of answers.
      out: folder of the run; by default runs/<hash of what the run is, whatever clips there are>.
      progress: called before every clip and method.
      report: called with every clip that is left out.
      host: which of several processes this is.
      grace: see `hosts.wait_for_others`.
      strict: stop at the first clip that cannot be read.

    Raises:
      TransientError: another process writes there.
      JvidpruneError: the folder cannot be written to, evidence that the model cannot give, or `strict` and a clip that
        cannot be read.
    """
    identity = plans.identity(llm, task, plan)
    controls = {name: plain(reducer) for name, reducer in plan.controls.items()}
    files = RunFiles(out or Path("runs") / run_hash(identity), host)
    progress = progress or (lambda text, done, total: None)
    if plan.needs:
        check_evidence(llm.loaded.family, plan.needs - QUESTION, llm.loaded.model.provides, None)
    keys = RecordKeys(task, plan, {name: identity.get(name) for name in plans.MODEL})
    with only_writer(files.folder, host):
        with contextlib.ExitStack() as closing:
            with one_at_a_time(files.folder):
                _write_settings(files, identity, controls)
                stores = closing.enter_context(_stores(files))
            resumed = len(keys.select(stores, ())[0])
            failed = _run_missing(llm, keys, stores, progress, report, host, strict)
        if host.of > 1:
            progress("waiting for the other hosts", 0, 1)
        complete = wait_for_others(files.folder, host, lambda: _joined(files, keys), grace)
        with one_at_a_time(files.folder), _stores(files) as stores:
            absent = {number: failed.get(number) or keys.left_out(number, stores) for number in range(len(keys.items))}
            bad = {number: why for number, why in absent.items() if why is not None}
            samples, batches = keys.select(stores, tuple(bad))
            if complete:
                write_open(files.folder, samples)
        out_of_it = (*left_out(task), *bad.values())
        return SweepRecords(
            files, identity | {"controls": controls}, plan.runs(), samples, batches, resumed, complete, out_of_it
        )


@contextlib.contextmanager
def _stores(files: RunFiles) -> Iterator[Stores]:
    """Samples, batches and failures: our own files, and what other processes have written."""
    with contextlib.ExitStack() as closing:
        stores = []
        forms = (SAMPLE_KEY, is_sample), (BATCH_KEY, is_batch), (FAILURE_KEY, is_failure)
        for name, (key, whole) in zip(KINDS, forms, strict=True):
            path = getattr(files, name)
            others = [other for other in record_files(files.folder, name) if other != path]
            stores.append(RecordStore(path, key, whole, others))
            closing.callback(stores[-1].close)
        yield stores[0], stores[1], stores[2]


def _joined(files: RunFiles, keys: RecordKeys) -> bool:
    """Whether nothing is missing; if so, all records are in the files of a single process afterwards."""
    with one_at_a_time(files.folder), _stores(files) as stores:
        for number in range(len(keys.items)):
            if keys.unfinished(number, stores) and keys.left_out(number, stores) is None:
                return False
        parts = {name: part_files(files.folder, name) for name in KINDS}
        if any(parts.values()):
            for name, store, asked in zip(KINDS, stores, (*keys.select(stores, ()), []), strict=True):
                if not parts[name]:
                    continue
                # What is not asked for now stands first, as it was.
                ours = {store.key(record) for record in asked}
                others = [record for record in store.records() if store.key(record) not in ours]
                paths = record_files(files.folder, name)
                foreign = dict.fromkeys(line for path in paths for line in unusable_lines(path, store.usable))
                join(files.folder, name, [*others, *asked], parts[name], foreign)
        return True


def _write_settings(files: RunFiles, identity: dict[str, Any], controls: dict[str, Any]) -> None:
    """Says in run.json what the run is and what controls it has; what was run in the folder before stands below.

    Raises:
      TransientError: another host is running something else there.
    """
    name = run_hash(identity)
    known: dict[str, Any] = {}
    if files.settings.exists():
        with contextlib.suppress(JvidpruneError):
            found = load_json(files.settings)
            known = found if isinstance(found, dict) else {}
    if known.get("hash") == name and known.get("controls", {}) == controls:
        return
    if known and any(is_running(files.folder, other) for other in files.host.others()):
        going = quoted(known.get("hash"))
        raise TransientError(
            f"{files.folder} holds another run ({going}) that goes on; choose another --out for this one."
        )
    earlier = known.pop("earlier", [])
    before = {run.get("hash"): run for run in [*(earlier if isinstance(earlier, list) else []), known] if run}
    before.pop(name, None)
    shown = {"hash": name} | identity | ({"controls": controls} if controls else {})
    text = json.dumps(shown | {"earlier": list(before.values())}, indent=1, ensure_ascii=False)
    with atomic_output(files.settings) as part:
        part.write_text(text + "\n", encoding="utf8")


def _run_missing(
    llm: VideoLLM,
    keys: RecordKeys,
    stores: Stores,
    progress: Progress,
    report: Report | None,
    host: Host,
    strict: bool,
) -> dict[int, LeftOut]:
    """Makes the records that are missing of a host's clips; the clips that cannot be read, by number."""
    groups, mine = keys.plan.groups(), host.clips(len(keys.items))
    matcher = matcher_of(llm, keys.plan)
    total = len(mine) * len(groups)
    compiled: dict[str, float] | None = None
    failed: dict[int, LeftOut] = {}
    for turn, number in enumerate(mine):
        item = keys.items[number]
        ratios = [keys.missing(number, group, stores) for group in groups]
        waiting = [(name, reducer, some) for (name, reducer, _), some in zip(groups, ratios, strict=True) if some]
        done = (turn + 1) * len(groups) - len(waiting)
        if not waiting:
            progress("reading what is there", done, total)
            continue
        progress(f"{item.id} · encoding", done, total)
        key = keys.failure(number)
        clock = StageClock()
        try:
            with reading(item.file or item.id):
                clip = item.load()
            with clock("encode"):
                video = llm.encode(clip, needs=keys.plan.needs - QUESTION)
                jax.block_until_ready(video.tokens)
        except JvidpruneError as error:
            failed[number] = LeftOut(item.id, item.file, str(error))
            if strict:
                raise JvidpruneError(str(failed[number])) from error
            stores[2].append([{"clip": item.id, "key": key, "file": item.file, "reason": failed[number].reason}])
            if report is not None:
                report(failed[number])
            continue
        jobs = [make_job(name, reducer, video.tokens, ratios, matcher) for name, reducer, ratios in waiting]
        if compiled is None:
            compiled = _compiled(llm, item, jobs, video, progress)
        for job in jobs:
            progress(f"{item.id} · {job.name}", done, total)
            known = {"clip": item.id, "method": job.name, "key": keys.batch(number, job.name)}
            known |= {"encode": clock.stages[0].seconds, "seconds": clip.span or clip.duration}
            stores[1].append([known | {"ratio": ratio, "refused": why} for ratio, why in job.refused.items()])
            if job.ratios:
                first = number - len(failed) < TIMED
                try:
                    new, costs = answer_job(
                        llm,
                        item,
                        video,
                        job,
                        longest=keys.plan.max_new_tokens,
                        rule=keys.rule,
                        timed=first,
                        costing=None if matcher is None else matcher.costing,
                    )
                except JvidpruneError as error:
                    costs = [{"ratio": ratio, "refused": str(error)} for ratio in job.ratios]
                    new = []
                else:
                    costs[0]["compile"] += compiled.pop(job.name, 0.0)
                stores[1].append([known | cost for cost in costs])
                marks = keys.samples(number, job.name) * len(job.ratios)
                stores[0].append(record | {"key": mark} for record, mark in zip(new, marks, strict=False))
            done += 1
    return failed


def matcher_of(llm: VideoLLM, plan: SweepPlan) -> Matcher | None:
    """What finds the settings of a plan that makes costs equal; None where methods are asked for the ratios."""
    if plan.match is None:
        return None
    return Matcher(Costing(llm.loaded.config, plan.match, llm.loaded.dtype.itemsize))


def _compiled(
    llm: VideoLLM, item: Item, jobs: list[MethodJob], video: EncodedVideo, progress: Progress
) -> dict[str, float]:
    """Seconds of compiling the reductions of a clip's methods, by name."""
    progress("compiling the reducers", 0, len(jobs))
    names: list[str] = []

    def finished(name: str) -> None:
        names.append(name)
        progress("compiling the reducers", len(names), len(jobs))

    for job in jobs:
        if job.reducer.needs & QUESTION:
            # Any question will do: their embeddings are padded to few lengths.
            video = llm.with_evidence(video, job.reducer, item.questions[0].prompt())
    return compile_all([(job.name, job.reducer, job.asked) for job in jobs if job.ratios], video, finished)
