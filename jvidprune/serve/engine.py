"""Answers to many requests at once: one thread owns the model, rows of one cache answer side by side.

Requests wait in the order they came. A free row takes the next one as soon as its slots fit (`models.lane`), while the
others go on. A request whose method acts inside the language model has a cache of its own shape: it is answered by
itself, between two steps of the others.
"""

import collections
import contextlib
import dataclasses
import queue
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvidprune.errors import JvidpruneError, reason
from jvidprune.fields import Count, checked
from jvidprune.llm.asking import sample_seeds
from jvidprune.llm.batch import decoding
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo
from jvidprune.llm.generation import AnswerText, Ended, Generation, generation_of
from jvidprune.llm.rows import Prompt, Rows, batches, read_rows
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.generate import decode_pieces
from jvidprune.models.lane import STEPS, Lane
from jvidprune.own_code import code_refused
from jvidprune.reducers.protocol import check_ratio, of_frames
from jvidprune.serve.chat_requests import ChatRequest, Media
from jvidprune.tokens import QUESTION
from jvidprune.video.decode import Clip
from jvidprune.video.limits import Limits
from jvidprune.weights import files_refused

KEPT_VIDEOS = 4
"""Encoded videos that are kept for further requests about the same file."""


class Busy(JvidpruneError):
    """More requests wait than are allowed."""


class TooLate(JvidpruneError):
    """A request took longer than it may."""


class Broken(JvidpruneError):
    """The engine answers nothing any more."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a request is told.

    Attributes:
      sample: which of its answers.
      text: that has become certain.
      ended: the whole answer, with its last piece.
      error: why there is none.
      about: with the first piece, what the prompt is made of.
    """

    sample: int = 0
    text: str = ""
    ended: Ended | None = None
    error: Exception | None = None
    about: dict[str, Any] | None = None


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
      request: what is asked for.
      tell: gets its pieces, from the engine's thread.
      deadline: on the clock of `time.monotonic`.
      wanted: whether anybody still waits.
    """

    request: ChatRequest
    tell: Callable[[Piece], None]
    deadline: float
    wanted: bool = True


@dataclasses.dataclass(eq=False)
class _Answering:
    """One answer of a job, waiting for a row or in one."""

    job: Job
    sample: int
    rows: Rows
    generation: Generation
    text: AnswerText


class Engine:
    """The thread that answers; see the module."""

    def __init__(
        self,
        llm: VideoLLM,
        *,
        rows: int = 4,
        context: int = 4096,
        waiting: int = 32,
        seconds: float = 300.0,
        limits: Limits,
        reducer: str = "flashvid",
        ratio: float = 0.1,
        frames: int | None = None,
        fps: float | None = None,
    ):
        """Starts the thread.

        Args:
          llm: the model.
          rows: answers side by side.
          context: slots of a row: a prompt, its answer, and what others write while it goes on.
          waiting: requests that may wait.
          seconds: that a request may take, waiting included.
          limits: what is accepted of a video file.
          reducer, ratio: of requests that name none.
          frames, fps: of requests that name neither.
        """
        self.llm, self.seconds = llm, seconds
        self._waiting, self._limits = waiting, limits
        self._sampled = (frames, fps)
        self._reducer, self._ratio = llm.reducer(reducer), check_ratio(ratio)
        self.context, self._count = min(context, llm.loaded.config.text.max_positions), checked(rows, Count, "rows")
        self._lane = self._rows()
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._pending: collections.deque[_Answering] = collections.deque()
        self._answering: dict[int, _Answering] = {}
        self._videos: collections.OrderedDict[Any, tuple[EncodedVideo, frozenset[str]]] = collections.OrderedDict()
        self._open = 0
        self._death: BaseException | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="jvidprune-engine", daemon=True)
        self._thread.start()

    def ask(self, request: ChatRequest, tell: Callable[[Piece], None]) -> Job:
        """Queues a request.

        Raises:
          Busy: too many wait.
          Broken: nothing is answered any more.
        """
        job = Job(request, tell, time.monotonic() + self.seconds)
        with self._lock:
            if (broken := self.broken) is not None:
                raise broken
            if self._open >= self._waiting:
                raise Busy(f"{self._open} requests wait already, which is all that may: try again later.")
            self._open += 1
            self._jobs.put(job)
        return job

    @property
    def broken(self) -> Broken | None:
        """Why nothing is answered any more, None while requests are."""
        if self._death is None:
            return None
        why = f"{type(self._death).__name__}: {reason(self._death)}"
        return Broken(f"the model answers nothing any more, start the server again: {why}.")

    def close(self) -> None:
        """Ends the thread; requests that wait are not answered."""
        self._jobs.put(None)
        self._thread.join()

    def finished(self, job: Job) -> None:
        """Says that nobody waits for a job any more, answered or not."""
        with self._lock:
            self._open -= 1
        job.wanted = False

    def _run(self) -> None:
        try:
            while self._death is None and self._turn():
                pass
        except BaseException as error:
            self._die(error)

    def _turn(self) -> bool:
        """What is done between two looks at the queue; whether there is a next time."""
        # One request is opened between two steps, so that those that answer go on.
        with contextlib.suppress(queue.Empty):
            job = self._jobs.get(block=not (self._answering or self._pending))
            if job is None:
                return False
            self._guarded(job, lambda job=job: self._open_job(job))
        try:
            self._fill_rows()
            if self._answering:
                self._step()
        except Exception as error:
            self._start_anew(error)
        return True

    def _start_anew(self, error: Exception) -> None:
        """Empty rows, after something failed that all share (no memory, for one); whose answers they were is told."""
        for job in dict.fromkeys(one.job for one in self._answering.values()):
            self._pending = collections.deque(one for one in self._pending if one.job is not job)
            job.tell(Piece(error=error))
        self._answering.clear()
        # There may be no memory for two caches: the old one goes first, which the error's frames hold as well.
        del self._lane
        held: BaseException | None = error
        while held is not None:
            traceback.clear_frames(held.__traceback__)
            held = held.__cause__ or held.__context__
        try:
            self._lane = self._rows()
        except Exception as problem:
            self._die(problem)

    def _die(self, error: BaseException) -> None:
        """Nothing can be answered from here on: whoever waits is told, and `ask` refuses."""
        with self._lock:
            self._death = error
            jobs = [one.job for one in (*self._answering.values(), *self._pending)]
            while not self._jobs.empty():
                jobs += [job for job in (self._jobs.get(),) if job is not None]
        self._answering.clear()
        self._pending.clear()
        for job in dict.fromkeys(jobs):
            job.tell(Piece(error=self.broken))

    def _rows(self) -> Lane:
        """Empty rows."""
        llm, vocab = self.llm, self.llm.loaded.config.text.vocab
        return Lane(llm.loaded.model, rows=self._count, capacity=self.context, vocab=vocab, eos_ids=llm.eos_ids)

    def _guarded(self, job: Job, act: Callable[[], None]) -> None:
        """Runs what a job needs; whatever goes wrong is told to it, and no other job suffers."""
        try:
            if time.monotonic() > job.deadline:
                raise TooLate(f"the request took longer than the {self.seconds:g} seconds that it may.")
            if job.wanted:
                act()
        except Exception as error:
            job.tell(Piece(error=error))
            self._drop(job)

    def _drop(self, job: Job) -> None:
        self._pending = collections.deque(one for one in self._pending if one.job is not job)
        for row, one in list(self._answering.items()):
            if one.job is job:
                del self._answering[row]
                self._lane.free(row)

    def _open_job(self, job: Job) -> None:
        """From a request to its prompts, which wait for rows then."""
        request, llm = job.request, self.llm
        generation = generation_of(llm, request.generating)
        # What is longer was refused before, where the request named it.
        most = min(generation.max_new_tokens, request.longest)
        generation = dataclasses.replace(generation, max_new_tokens=most)
        videos = self._reduced(request)
        prompt = Prompt(videos, request.messages)
        (rows,) = batches(llm, [prompt], reserve=generation.max_new_tokens, batch=1, min_fill=0.0)
        layers = llm.loaded.config.text.layers
        alone = any(stage.boundary < layers for one in videos for stage in one.inner)
        if not alone:
            self._lane.fits(rows.used[0].size, generation.max_new_tokens)
        length = rows.used[0].slots.length
        about = {"prompt": length, "kept": sum(one.kept for one in videos), "visual": sum(v.visual for v in videos)}
        about |= {"reducer": ", ".join(dict.fromkeys(v.title for v in videos)) or None}
        job.tell(Piece(about=about | {"ratio": videos[0].ratio if videos else None}))
        for sample, seed in enumerate(sample_seeds(generation.seed, request.samples)):
            own = dataclasses.replace(generation, seed=seed)
            text = AnswerText(llm.tokenizer, llm.eos_ids, own)
            one = _Answering(job, sample, rows, own, text)
            if alone:
                self._answer_alone(one)
            else:
                self._pending.append(one)

    def _reduced(self, request: ChatRequest) -> list[ReducedVideo]:
        if not request.media:
            return []
        llm = self.llm
        with code_refused(), files_refused():
            # What a stranger types imports nothing and reads nothing.
            method = llm.chosen(request.reducer) or self._reducer
        own = None if llm.pruning is None or request.reducer is not None else llm.pruning.ratio
        ratio = check_ratio(request.ratio if request.ratio is not None else self._ratio if own is None else own)
        found = []
        for media in request.media:
            if of_frames(method):
                found.append(llm.reduce(self._clip(media, request), reducer=method, ratio=ratio))
                continue
            video = self._encoded(media, request, method.needs - QUESTION)
            found.append(llm.reduce(video, reducer=method, ratio=ratio, question=request.question))
        return found

    def _wish(self, request: ChatRequest) -> tuple[int | None, float | None]:
        return self._sampled if request.frames is None and request.fps is None else (request.frames, request.fps)

    def _clip(self, media: Media, request: ChatRequest) -> Clip:
        def read(path: Path) -> Clip:
            try:
                frames, fps = self._wish(request)
                return self.llm.sample(path, frames=frames, fps=fps, limits=self._limits)
            except JvidpruneError as error:
                raise JvidpruneError(str(error).replace(str(path), "the file of a video_url or image_url")) from error

        if media.path is not None:
            return read(media.path)
        with tempfile.TemporaryDirectory(prefix="jvidprune-api-") as folder:
            path = Path(folder) / "media"
            path.write_bytes(media.data or b"")
            return read(path)

    def _encoded(self, media: Media, request: ChatRequest, needs: frozenset[str]) -> EncodedVideo:
        key = (media.digest, *self._wish(request))
        video, known = self._videos.get(key, (None, frozenset[str]()))
        if video is None or not needs <= video.tokens.evidence.keys():
            source = None if video is None else video.source
            # What was needed before stays, else methods that take turns would encode at every turn.
            known |= needs
            video = self.llm.encode(self._clip(media, request) if source is None else source, needs=known)
            self._videos[key] = video, known
        self._videos.move_to_end(key)
        while len(self._videos) > KEPT_VIDEOS:
            self._videos.popitem(last=False)
        return video

    def _keys(self, one: _Answering, logits: Any) -> dict[str, Any]:
        return decoding(self.llm, one.rows, logits, one.generation, [jax.random.key(one.generation.seed)])

    def _answer_alone(self, one: _Answering) -> None:
        logits, cache = read_rows(self.llm, one.rows, one.generation.max_new_tokens - 1)
        for ids, _ in decode_pieces(self.llm.loaded.model, logits, cache, **self._keys(one, logits)):
            if not one.job.wanted or self._push(one, ids[0].tolist()):
                return
            if time.monotonic() > one.job.deadline:
                raise TooLate(f"the request took longer than the {self.seconds:g} seconds that it may.")

    def _push(self, one: _Answering, ids: Sequence[int]) -> bool:
        """Tells a job what has become certain of an answer; whether it has ended."""
        text = one.text.push(ids)
        answer = one.text.answer
        ended = answer if answer.finish is not None else None
        if text or ended is not None:
            one.job.tell(Piece(one.sample, text, ended))
        return ended is not None

    def _fill_rows(self) -> None:
        while self._pending:
            one = self._pending[0]
            if not one.job.wanted:
                self._pending.popleft()
                continue
            if not self._lane.fits(one.rows.used[0].size, one.generation.max_new_tokens):
                return
            self._pending.popleft()
            self._guarded(one.job, lambda one=one: self._start(one))

    def _start(self, one: _Answering) -> None:
        """Reads a prompt and puts it into a row."""
        llm, row = self.llm, one.rows.used[0]
        logits, cache = read_rows(llm, one.rows, self._lane.capacity - row.size)
        seen = np.zeros(logits.shape[-1], bool)
        seen[row.text[row.text < len(seen)]] = True
        key = jax.random.key(one.generation.seed)
        new, sampling = one.generation.max_new_tokens, one.generation.sampling
        try:
            number, token = self._lane.put(logits, cache, row.size, new, sampling, key, seen)
        except Exception as error:
            # Its row is taken, and the arrays of all rows may be gone.
            self._start_anew(error)
            raise
        self._answering[number] = one
        if self._push(one, [token]):
            self._end(number)

    def _end(self, row: int) -> None:
        del self._answering[row]
        self._lane.free(row)

    def _step(self) -> None:
        """A few tokens for every row, and what has become of each."""
        tokens = self._lane.go_on()
        for row, one in list(self._answering.items()):
            if self._answering.get(row) is not one:
                # Another row of the same request has ended all of them.
                continue

            def take(row: int = row, one: _Answering = one) -> None:
                if self._push(one, tokens[row].tolist()):
                    self._end(row)

            if one.job.wanted:
                self._guarded(one.job, take)
            else:
                self._end(row)


def context_of(context: int) -> int:
    """The slots of a row, checked.

    Raises:
      JvidpruneError: too few.
    """
    if context < 128 + STEPS:
        raise JvidpruneError(f"a row has at least {128 + STEPS} slots, got {context}.")
    return context
