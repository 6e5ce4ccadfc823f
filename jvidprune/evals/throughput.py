"""How fast methods answer and how much memory they hold, measured beside the accuracies of a sweep.

One question about one clip is asked at every method and ratio: alone, and as many copies of it together as memory has
room for. The memory plan (`costs.memory`) says how many these are; what then does not fit is halved until it does.
Every number is a median behind a run that warms up, compilation left out. Records are kept beside those of the answers,
which they never change: a run goes on where it was stopped.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jvidprune.costs.footprint import USABLE
from jvidprune.costs.memory import ask_need, device_bytes, video_shape
from jvidprune.errors import JvidpruneError
from jvidprune.evals.hosts import one_at_a_time
from jvidprune.evals.identity import run_hash
from jvidprune.evals.items import Item
from jvidprune.evals.keys import RecordKeys
from jvidprune.evals.metrics import FULL
from jvidprune.evals.pairs import make_job
from jvidprune.evals.peak import PeakWatch, Source, programs_peak
from jvidprune.evals.plan import BLIND, MODEL, SINGLE, SweepPlan
from jvidprune.evals.runner import SweepRecords, matcher_of
from jvidprune.evals.store import Record, RecordStore
from jvidprune.llm.batch import Prompt, Reply, answer_many
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, sweep_video
from jvidprune.llm.stages import StageClock
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.parallel import mesh_of
from jvidprune.reducers.protocol import Reducer, of_frames
from jvidprune.tokens import QUESTION
from jvidprune.video.decode import Clip

REPEATS = 3
"""Runs that a median is taken of, behind one that warms up."""

LIMIT = 32
"""Largest batch that is tried unless the caller says otherwise."""

FILE = "throughput.jsonl"
"""Records in the folder of a run."""

KEY = ("method", "ratio", "part", "limit", "device", "key")

Part = Literal["alone", "largest"]
"""One question by itself, or the largest batch."""

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Speed:
    """A batch of copies of one question.

    Attributes:
      batch: how many.
      prefill: seconds of reading them together.
      generate: seconds of writing their answers together.
      tokens: of one answer, end of sequence included.
      decoding: tokens a second of all rows behind the first ones, over answers of the full length; NaN where an answer
        may be one token long.
      memory: most bytes on a device; 0 where nothing tells.
      memory_from: "device" statistics, or XLA's analysis of the compiled "programs"; empty where neither tells.
    """

    batch: int
    prefill: float
    generate: float
    tokens: int
    decoding: float
    memory: int
    memory_from: Source


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What was measured of a method at a ratio.

    Attributes:
      method, ratio: of the run.
      clip: whose question was asked.
      device: that it was measured on, and how many of them where the model is divided.
      platform: of the device, as JAX names it.
      kept, prompt: visual tokens kept, and tokens of the prompt.
      encode: seconds from frames in memory to tokens with the evidence that the method reads.
      reduce: seconds of the reduction to this ratio alone.
      alone: one question.
      largest: the largest batch.
      planned: the batch that the memory plan has room for, at most `limit`.
      limit: the largest batch that was allowed.
    """

    method: str
    ratio: float
    clip: str
    device: str
    platform: str
    kept: float
    prompt: float
    encode: float
    reduce: float
    alone: Speed
    largest: Speed
    planned: int
    limit: int

    @property
    def first_token(self) -> float:
        """Seconds from frames in memory to the first token, asked alone."""
        return self.encode + self.reduce + self.alone.prefill

    def answers(self, speed: Speed) -> float:
        """Answers a second to questions about a clip each: clips are encoded and reduced one after another."""
        return speed.batch / (speed.batch * (self.encode + self.reduce) + speed.prefill + speed.generate)

    def from_tokens(self, speed: Speed) -> float:
        """Answers a second where the tokens of clips are there: what the language model alone can do."""
        return speed.batch / (speed.prefill + speed.generate)

    def row(self) -> dict[str, Any]:
        """Everything as one flat record; numbers that do not exist are None."""
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("alone", "largest")}
        row["first_token"] = self.first_token
        for name, speed in (("alone", self.alone), ("largest", self.largest)):
            row |= {f"{name}_{key}": value for key, value in dataclasses.asdict(speed).items()}
            row |= {f"{name}_answers": self.answers(speed), f"{name}_from_tokens": self.from_tokens(speed)}
        return {key: None if value != value else value for key, value in row.items()}


class _Asked(NamedTuple):
    """The clip and the question that everything is measured on, and where its records belong."""

    number: int
    item: Item
    question: str
    keys: RecordKeys
    device: str


def check_limit(limit: int) -> None:
    """JvidpruneError for a largest batch that is none."""
    if limit < 1:
        raise JvidpruneError(f"the largest batch is at least 1, got {limit}.")


def measure_throughput(
    llm: VideoLLM,
    task: Any,
    plan: SweepPlan,
    found: SweepRecords,
    *,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> list[Throughput]:
    """Measures the methods of a run that were not measured yet, and returns all of them.

    All runs are measured alone before any is in batches, so that statistics of a device's peak still tell something.

    Args:
      llm: the model.
      task, plan: of the run.
      found: its records; the clip is the first that has answers.
      limit: largest batch that is tried.
      progress: called with what is being done and how many of how many runs are done.

    Raises:
      JvidpruneError: a limit below 1, or a file that cannot be written.
    """
    check_limit(limit)
    asked = _asked(llm, task, plan, found)
    if asked is None:
        return []
    progress = progress or (lambda text, done, total: None)
    runs = _runs(plan, found)
    with one_at_a_time(found.files.folder):
        store = _store(found.files.folder)
        try:
            clip, encoded = None, _Encodings(llm)
            parts: tuple[Part, Part] = ("alone", "largest")
            for turn, (part, (name, reducer, ratio)) in enumerate(itertools.product(parts, runs)):
                progress(f"throughput · {name}", turn, 2 * len(runs))
                record = _label(asked, name, ratio, part, limit)
                if store.key(record) in store:
                    continue
                clip = asked.item.load() if clip is None else clip
                store.append([record | _measured(llm, asked, clip, encoded, name, reducer, ratio, part, limit, plan)])
            progress("throughput", 2 * len(runs), 2 * len(runs))
        finally:
            store.close()
    return read_throughput(llm, task, plan, found, limit=limit)


def read_throughput(
    llm: VideoLLM, task: Any, plan: SweepPlan, found: SweepRecords, *, limit: int | None = None
) -> list[Throughput]:
    """What was measured of a run on such a device until now, in the order of its tables.

    Args:
      llm, task, plan, found: as for `measure_throughput`.
      limit: that batches were tried up to; by default the one that was tried last.
    """
    asked = _asked(llm, task, plan, found) if (found.files.folder / FILE).exists() else None
    if asked is None:
        return []
    store = _store(found.files.folder)
    store.close()
    known: dict[tuple[Any, ...], Record] = {}
    for record in store.records():
        wanted = limit is None or record["limit"] in (0, limit)
        if wanted and not record["refused"] and record["device"] == asked.device:
            known[record["method"], record["ratio"], record["part"], record["key"]] = record
    out = []
    for name, _, ratio in sorted(_runs(plan, found), key=lambda run: found.runs.index((run[0], run[2]))):
        key = _label(asked, name, ratio, "alone", 0)["key"]
        alone, largest = (known.get((name, ratio, part, key)) for part in ("alone", "largest"))
        if alone is not None and largest is not None:
            out.append(_throughput(alone, largest))
    return out


def _store(folder: Path) -> RecordStore:
    return RecordStore(folder / FILE, KEY, _whole)


def _whole(record: Record) -> bool:
    """Whether a record has all that is read of it."""
    texts = ("method", "part", "device", "key", "refused")
    if not all(isinstance(record.get(name), str) for name in texts):
        return False
    if record["refused"]:
        return True
    return all(isinstance(record.get(name), int | float) for name in _NUMBERS) and isinstance(record.get("clip"), str)


_NUMBERS = ("ratio", "limit", "planned", "kept", "prompt", "encode", "reduce", "batch", "prefill", "generate", "memory")


def _throughput(alone: Record, largest: Record) -> Throughput:
    fields = [field.name for field in dataclasses.fields(Speed)]
    first, most = ({name: record[name] for name in fields} for record in (alone, largest))
    for speed in (first, most):
        speed["decoding"] = math.nan if speed["decoding"] is None else speed["decoding"]
    shared = ("method", "ratio", "clip", "device", "platform", "kept", "prompt", "encode", "reduce")
    limits = {name: largest[name] for name in ("planned", "limit")}
    return Throughput(**{name: alone[name] for name in shared}, **limits, alone=Speed(**first), largest=Speed(**most))


def _asked(llm: VideoLLM, task: Any, plan: SweepPlan, found: SweepRecords) -> _Asked | None:
    """The first clip with answers and its first question; None where nothing was answered."""
    keys = RecordKeys(task, plan, {name: found.identity.get(name) for name in MODEL})
    answered = {record["clip"] for record in found.samples}
    number = next((i for i, item in enumerate(keys.items) if item.id in answered), None)
    if number is None:
        return None
    mesh, device = mesh_of(llm.loaded.model), jax.local_devices()[0]
    several = "" if mesh is None or mesh.size == 1 else f" x {mesh.size}"
    item = keys.items[number]
    return _Asked(number, item, item.questions[0].prompt(), keys, device.device_kind + several)


def _runs(plan: SweepPlan, found: SweepRecords) -> list[tuple[str, Reducer, float]]:
    """What is measured, shortest prompts first: every run that has answers, the question alone left out."""
    there = {(record["method"], record["ratio"]) for record in found.samples}
    runs = [
        (name, reducer, ratio)
        for name, reducer, ratios in plan.groups()
        if name not in (BLIND, SINGLE)
        for ratio in ratios
    ]
    return sorted((run for run in runs if (run[0], run[2]) in there), key=lambda run: run[2])


def _label(asked: _Asked, name: str, ratio: float, part: Part, limit: int) -> Record:
    """What a record belongs to."""
    key = run_hash({"batch": asked.keys.batch(asked.number, name), "question": asked.question})
    known = {"method": name, "ratio": ratio, "part": part, "limit": 0 if part == "alone" else limit}
    return known | {"device": asked.device, "key": key}


class _Encodings:
    """Encodes the clip once for each set of evidence, and remembers how long that took."""

    def __init__(self, llm: VideoLLM):
        self._llm = llm
        self._known: dict[frozenset[str], tuple[EncodedVideo, float]] = {}

    def __call__(self, clip: Clip, needs: frozenset[str]) -> tuple[EncodedVideo, float]:
        needs = needs - QUESTION
        if needs not in self._known:
            video, seconds = _median(lambda: jax.block_until_ready(self._llm.encode(clip, needs=needs).tokens))
            self._known[needs] = EncodedVideo(video, clip), seconds
        return self._known[needs]


def _median(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a function and the median of its seconds, behind a run that warms up."""
    result = run()
    clock = StageClock()
    for _ in range(REPEATS):
        with clock("run"):
            result = run()
    return result, statistics.median(stage.seconds for stage in clock.stages)


def _measured(
    llm: VideoLLM,
    asked: _Asked,
    clip: Clip,
    encoded: _Encodings,
    name: str,
    reducer: Reducer,
    ratio: float,
    part: Part,
    limit: int,
    plan: SweepPlan,
) -> Record:
    """The record of a method at a ratio, without its label."""
    watch = PeakWatch()
    try:
        # At equal cost a method is asked for another ratio than that of its column.
        whole, encode = encoded(clip, frozenset() if of_frames(reducer) else reducer.needs)
        job = make_job(name, reducer, whole.tokens, (ratio,), matcher_of(llm, plan))
        if job.refused:
            return {"refused": job.refused[ratio]}
        if of_frames(reducer):
            # What it makes is what is encoded.
            reduced, encode = _median(lambda: llm.reduce(clip, reducer=reducer, ratio=job.asked[0]))
            reduce = 0.0
        else:
            shown = llm.with_evidence(whole, reducer, asked.question)
            (reduced,), reduce = _median(lambda: sweep_video(shown, reducer, job.asked))
        most = plan.max_new_tokens
        (reply,) = answer_many(llm, [Prompt(reduced, asked.question)], max_new_tokens=most)
        planned = 1 if part == "alone" else planned_batch(llm, clip, reduced, reply, most=most, limit=limit)
        speed = _fitting(llm, reduced, asked.question, planned, most, watch)
    except JvidpruneError as error:
        return {"refused": str(error)}
    row = dataclasses.asdict(speed)
    row["decoding"] = None if math.isnan(speed.decoding) else speed.decoding
    known = {"refused": "", "clip": asked.item.id, "platform": jax.local_devices()[0].platform, "repeats": REPEATS}
    known |= {"kept": reply.kept, "prompt": reply.prompt, "planned": planned, "max_new_tokens": most}
    return known | {"encode": encode, "reduce": reduce} | row


def planned_batch(
    llm: VideoLLM, clip: Clip, video: ReducedVideo, reply: Reply, *, most: int, limit: int, available: int | None = None
) -> int:
    """The largest batch that the memory plan has room for: the limit, halved until it fits, and at least 1.

    Args:
      llm: the model.
      clip: what was encoded.
      video: reduced.
      reply: to the question, for the length of the prompt.
      most: tokens of an answer.
      limit: largest batch.
      available: bytes; by default what arrays can have of the default device.
    """
    config, loaded = llm.loaded.config, llm.loaded
    available = int(USABLE * device_bytes()) if available is None else available
    seen = clip.frames if video.video.frames is None else video.video.frames
    shape = video_shape(config, len(seen), video.video.tokens.layout())
    mesh = mesh_of(loaded.model)
    sizes = {"kept": reply.kept, "text": reply.prompt - reply.kept, "max_new_tokens": most}
    batch = limit
    while batch > 1:
        axes = None if mesh is None else dict(mesh.shape)
        need = ask_need(config, shape, **sizes, dtype=loaded.dtype, batch=batch, mesh=axes, stages=video.inner)
        if need.peak <= available:
            break
        batch //= 2
    return batch


def _fitting(llm: VideoLLM, video: ReducedVideo, question: str, batch: int, most: int, watch: PeakWatch) -> Speed:
    """The speed of a batch, of half of it if that does not fit, and so on.

    Raises:
      JvidpruneError: not even one question fits, or the model cannot have this prompt.
    """
    while True:
        try:
            return _speed(llm, video, question, batch, most, watch)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if batch == 1:
                raise JvidpruneError("one question does not fit into the memory of the device.") from error
            batch //= 2


def out_of_memory(error: Exception) -> bool:
    """Whether an error of JAX says that memory is at its end."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def _speed(llm: VideoLLM, video: ReducedVideo, question: str, batch: int, most: int, watch: PeakWatch) -> Speed:
    prompts = [Prompt(video, question)] * batch

    def run(ends: bool) -> tuple[Sequence[Reply], StageClock]:
        clock = StageClock()
        settings = {"max_new_tokens": most, "batch": batch, "min_fill": 0.0, "ends": ends, "clock": clock}
        return answer_many(llm, prompts, **settings), clock

    run(False)
    timed = [run(True) for _ in range(REPEATS)]
    full = [run(False)[1] for _ in range(REPEATS)] if most > 1 else []
    prefill, generate = (statistics.median(clock.stages[i].seconds for _, clock in timed) for i in (0, 1))
    decoding = math.nan
    if full:
        seconds = statistics.median(clock.stages[1].seconds for clock in full)
        decoding = batch * (most - 1) / seconds if seconds > 0 else math.nan
    memory, source = watch.risen()
    if not source:
        memory, source = programs_peak(llm, video, prompts, max_new_tokens=most)
    return Speed(batch, prefill, generate, timed[0][0][0].generated, decoding, memory, source)


def unpruned(found: Sequence[Throughput]) -> Throughput | None:
    """The unpruned model among what was measured."""
    return next((one for one in found if one.method == FULL), None)
