"""One video and one question through several methods: answers, tokens, times, and what is drawn on the frames."""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from jvidprune.costs.fits import check_question
from jvidprune.errors import JvidpruneError
from jvidprune.evals.datasets.videos import VIDEO_SUFFIXES
from jvidprune.llm.encoded import EncodedVideo, clip_of, reduce_video
from jvidprune.llm.stages import Stage, StageClock
from jvidprune.llm.video_llm import Answer, VideoLLM
from jvidprune.own_code import code_refused
from jvidprune.reducers import registry
from jvidprune.reducers.protocol import Reducer, check_ratio
from jvidprune.tokens import QUESTION
from jvidprune.video.container import existing_file
from jvidprune.video.limits import Limits
from jvidprune.viz.decision import Decision, decision_of
from jvidprune.viz.drawn import check_drawn, drawn_frames
from jvidprune.viz.overlay import draw_frame, fit
from jvidprune.weights import files_refused

ALL_TOKENS = "none"
"""The method that keeps everything; it is asked at ratio 1 whatever the others are asked at."""

LONGEST_QUESTION = 2000
"""Characters."""

MOST_METHODS = 6
"""Side by side."""

WIDTH = 384
"""Pixels of a drawn frame."""

Progress = Callable[[float, str], None]
"""Called with the share done and what is being done."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One method on the video.

    Attributes:
      name: as it was asked for.
      title: as its paper writes it.
      decision: what it did to the tokens, None where it refused.
      answer: what was answered, None where it refused.
      refused: why, in one sentence.
    """

    name: str
    title: str
    decision: Decision | None = None
    answer: Answer | None = None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything the page shows.

    Attributes:
      question: what was asked.
      ratio: retention ratio.
      frames: (T, H, W, 3) uint8, one a token grid, scaled for drawing.
      labels: time of each.
      columns: the methods in the order asked for.
      stages: decode and encode, which all methods share; empty where the video was read before.
    """

    question: str
    ratio: float
    frames: UInt8[np.ndarray, "frames height width 3"]
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    stages: tuple[Stage, ...]

    def drawn(self, t: int) -> list[np.ndarray | None]:
        """Frame `t` with the tokens of each method, None for those that refused."""
        return [
            None if column.decision is None else draw_frame(self.frames[t], column.decision, t)
            for column in self.columns
        ]

    def record(self) -> dict[str, Any]:
        """Plain values for JSON: question, ratio, and for each method its answer, token counts and seconds."""
        methods = []
        for column in self.columns:
            row: dict[str, Any] = {"method": column.name, "refused": column.refused}
            if column.answer is not None:
                seconds = {stage.name: round(stage.seconds, 6) for stage in column.answer.stages}
                row |= {"answer": column.answer.text, "kept": column.answer.kept, "visual": column.answer.visual}
                row |= {"prompt": column.answer.prompt, "seconds": seconds}
            methods.append(row)
        shared = {stage.name: round(stage.seconds, 6) for stage in self.stages}
        return {"question": self.question, "ratio": self.ratio, "frames": len(self.frames), "methods": methods} | {
            "seconds": shared
        }


class SideBySide:
    """A loaded model that compares methods; one comparison at a time, the last video stays encoded."""

    def __init__(
        self,
        llm: VideoLLM,
        *,
        source: str | None,
        limits: Limits,
        max_new_tokens: int = 64,
        frames: int | None = None,
        fps: float | None = None,
        own: Sequence[str] = (),
    ):
        """Keeps the model.

        Args:
          llm: the model.
          source: where it was loaded from, for the check that a question fits into memory; None for the embedded one.
          limits: what is accepted of a video file.
          max_new_tokens: longest answer.
          frames, fps: as for `VideoLLM.sample`.
          own: further methods to offer, as on the command line. Classes of the user's own are taken from these alone:
            what a visitor of the page types imports nothing and reads no weights.
        """
        self.llm = llm
        self._source = source
        self._limits = limits
        self._longest = max_new_tokens
        self._frames, self._fps = frames, fps
        self._own = {name: (llm.reducer(name), registry.title(name)) for name in own}
        self._lock = threading.Lock()
        self._last: tuple[str, EncodedVideo] | None = None

    def methods(self) -> dict[str, str]:
        """Titles of the methods that this model has the evidence for, by name."""
        config, found = self.llm.loaded.config, {}
        for info, needs in registry.listing():
            if info.name not in (*registry.combinators(), *registry.learned()) and needs <= config.provides | QUESTION:
                with contextlib.suppress(JvidpruneError):
                    registry.for_model(info.name, config)
                    found[info.name] = info.label
        return found | {name: title for name, (_, title) in self._own.items()}

    def _named(self, name: str) -> tuple[Reducer, str]:
        """A method and its title."""
        if name in self._own:
            return self._own[name]
        with code_refused(), files_refused():
            return self.llm.reducer(name), registry.title(name)

    def compare(
        self,
        path: str | Path | None,
        question: str,
        names: Sequence[str],
        ratio: float,
        progress: Progress | None = None,
    ) -> Comparison:
        """Asks every method the same question about the same video.

        Args:
          path: video file.
          question: what to ask.
          names: methods as on the command line, settings and chains included.
          ratio: retention ratio.
          progress: called as the work goes on.

        Raises:
          JvidpruneError: no video, no question, no method or too many, an unknown one, a file of another kind or beyond
            the limits, or something that does not fit. A method that cannot serve the ratio is a column that says so.
        """
        report = progress or (lambda share, text: None)
        path, question = self._check(path, question, names, ratio)
        methods = {name: self._named(name) for name in dict.fromkeys(names)}
        for name, (method, _) in methods.items() if self._source is not None else ():
            check_question(
                self._source or "",
                path,
                question,
                reducer=method,
                ratio=_ratio_of(name, ratio),
                dtype=self.llm.loaded.dtype,
                quantise=self.llm.loaded.quantise,
                frames=self._frames,
                fps=self._fps,
                max_new_tokens=self._longest,
                limits=self._limits,
                convention=self.llm.settings.convention,
            )
        needs = frozenset[str]().union(*(method.needs for method, _ in methods.values()))
        with self._lock:
            report(0.05, "reading and encoding the video")
            video, stages = self._encoded(path, needs - QUESTION)
            columns = []
            for number, (name, (method, title)) in enumerate(methods.items()):
                report(0.2 + 0.8 * number / len(methods), f"{title}: reducing and answering")
                columns.append(self._column(name, title, method, video, question, _ratio_of(name, ratio)))
        if all(column.refused for column in columns):
            raise JvidpruneError(columns[0].refused)
        drawn = drawn_frames(clip_of(video), video.tokens.features.shape[0])
        frames = np.stack([fit(frame, WIDTH) for frame in drawn.frames])
        return Comparison(question, ratio, frames, drawn.labels, tuple(columns), stages)

    def _check(self, path: str | Path | None, question: str, names: Sequence[str], ratio: float) -> tuple[Path, str]:
        if not path:
            raise JvidpruneError("choose a video first: upload a file or take one of the examples.")
        path = Path(path)
        if not path.exists():
            raise JvidpruneError(f"{path.name} is no longer here: upload it again.")
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise JvidpruneError(f"{path.name} is no video file: its name must end in {', '.join(VIDEO_SUFFIXES)}.")
        question = (question or "").strip()
        if not question:
            raise JvidpruneError("type a question about the video first.")
        if len(question) > LONGEST_QUESTION:
            raise JvidpruneError(
                f"the question has {len(question)} characters, more than the {LONGEST_QUESTION} allowed."
            )
        if not 1 <= len(names) <= MOST_METHODS:
            raise JvidpruneError(f"choose 1 to {MOST_METHODS} methods, not {len(names)}.")
        check_ratio(ratio)
        return path, question

    def _encoded(self, path: Path, needs: frozenset[str]) -> tuple[EncodedVideo, tuple[Stage, ...]]:
        with existing_file(path).open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()
        known = self._last
        if known is not None and known[0] == key and needs <= known[1].tokens.evidence.keys():
            return known[1], ()
        clock = StageClock()
        with clock("decode", "frames") as stage:
            clip = self.llm.sample(path, frames=self._frames, fps=self._fps, limits=self._limits)
            stage.tokens = len(clip.frames)
        check_drawn(self.llm, clip)
        with clock("encode") as stage:
            video = self.llm.encode(clip, needs=needs)
            stage.tokens = jax.block_until_ready(video.tokens).layout().total
        self._last = (key, video)
        return video, tuple(clock.stages)

    def _column(self, name: str, title: str, method: Any, video: EncodedVideo, question: str, ratio: float) -> Column:
        clock = StageClock()
        try:
            with clock("reduce") as stage:
                video = self.llm.with_evidence(video, method, question)
                reduced = reduce_video(video, method, ratio, diagnostics=True)
                stage.tokens = reduced.kept
            answer = self.llm.ask(reduced, question, max_new_tokens=self._longest, clock=clock)
        except JvidpruneError as error:
            return Column(name, title, refused=str(error))
        return Column(name, title, decision_of(reduced, title), answer)


def _ratio_of(name: str, ratio: float) -> float:
    return 1.0 if name == ALL_TOKENS else ratio
