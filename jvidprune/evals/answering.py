"""Answers of one clip: every ratio of a method from one reduction, all questions at all ratios in few batches."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jvidprune.errors import JvidpruneError
from jvidprune.llm.batch import Prompt, Reply, answer_many
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, sweep_video
from jvidprune.llm.stages import StageClock
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.reducers.protocol import Reducer

BATCH = 16
"""Prompts read together."""

MIN_FILL = 0.3
"""Prompts join longer ones from this share of their padded length: a sweep has few compiled programs."""

LIKELIEST = 5
"""First tokens of an answer whose log-probabilities are recorded."""


def compile_all(
    methods: Sequence[tuple[str, Reducer, Sequence[float]]], video: EncodedVideo, finished: Callable[[str], None]
) -> dict[str, float]:
    """Compiles the reductions of several methods side by side, and says how many seconds each took.

    Args:
      methods: (name, reducer, ratios that are possible for it).
      video: one clip; others of its shape run the same programs.
      finished: called with the name of a method when it is compiled.
    """

    def one(method: tuple[str, Reducer, Sequence[float]]) -> float:
        start = time.perf_counter()
        # A method that cannot do this clip says so again when it is asked.
        with contextlib.suppress(JvidpruneError):
            sweep_video(video, method[1], method[2])
        finished(method[0])
        return time.perf_counter() - start

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip((name for name, *_ in methods), pool.map(one, methods), strict=True))


def answer_all(
    llm: VideoLLM, videos: Sequence[Sequence[ReducedVideo]], questions: Sequence[str], *, max_new_tokens: int
) -> list[list[Reply]]:
    """Asks every question at every ratio, in as few batches as their lengths allow.

    Args:
      llm: the model.
      videos: of each question, the clip reduced to several ratios, from `sweep_video`.
      questions: whole texts as the model is asked.
      max_new_tokens: longest answer.

    Returns:
      Replies [ratio][question].
    """
    prompts = [
        Prompt(video, question)
        for ratio in zip(*videos, strict=True)
        for video, question in zip(ratio, questions, strict=True)
    ]
    asked = {"max_new_tokens": max_new_tokens, "batch": BATCH, "min_fill": MIN_FILL}
    replies = answer_many(llm, prompts, **asked, likeliest=LIKELIEST, count_cached=True)
    return [replies[i : i + len(questions)] for i in range(0, len(replies), len(questions))]


def time_alone(
    llm: VideoLLM, videos: Sequence[ReducedVideo], question: str, *, max_new_tokens: int
) -> list[tuple[float, float]]:
    """Seconds of prefill and of generation for one question at each ratio, asked alone, compilation left out.

    Batches mix ratios, so what a ratio costs is measured apart from them.
    """
    found = []
    for video in videos:
        clock = StageClock()
        answer_many(llm, [Prompt(video, question)], max_new_tokens=max_new_tokens, clock=clock)
        found.append((clock.stages[0].seconds, clock.stages[1].seconds))
    return found
