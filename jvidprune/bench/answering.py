"""Answers of one clip: every ratio of a method from one reduction, all questions at all ratios in few batches."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jvidprune.inference.batch import Prompt, Reply, answer_many
from jvidprune.inference.pipeline import VideoLLM
from jvidprune.inference.reduced import sweep_video
from jvidprune.inference.stages import StageClock
from jvidprune.tokens import Reducer, VideoTokens
from jvidprune.video.decode import Clip

BATCH = 16
"""Prompts read together."""

MIN_FILL = 0.4
"""Prompts join longer ones from this share of their padded length: a sweep has few compiled programs."""


def compile_all(methods: Sequence[tuple[str, Reducer, Sequence[float]]], video: VideoTokens) -> dict[str, float]:
    """Compiles the reductions of several methods side by side, and says how many seconds each took.

    Args:
      methods: (name, reducer, ratios that are possible for it).
      video: one clip; others of its shape run the same programs.
    """

    def one(method: tuple[str, Reducer, Sequence[float]]) -> float:
        start = time.perf_counter()
        sweep_video(video, method[1], method[2])
        return time.perf_counter() - start

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip((name for name, *_ in methods), pool.map(one, methods), strict=True))


def answer_all(
    llm: VideoLLM,
    video: VideoTokens,
    clip: Clip,
    reducer: Reducer,
    ratios: Sequence[float],
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    clock: StageClock,
) -> list[list[Reply]]:
    """Asks every question at every ratio about one encoded clip.

    Args:
      llm: the model.
      video: the clip, encoded with the evidence the reducer needs.
      clip: its frames, whose times some families put into the prompt.
      reducer: the method; its plans for all ratios come from one compiled call.
      ratios: at least one, all possible for the method.
      questions: whole texts as the model is asked.
      max_new_tokens: longest answer.
      clock: gets the stages "reduce", "prefill" and "generate".

    Returns:
      Replies [ratio][question].
    """
    with clock("reduce") as stage:
        reduced = sweep_video(video, reducer, ratios, clip)
        stage.tokens = sum(one.kept for one in reduced)
    prompts = [Prompt(one, question) for one in reduced for question in questions]
    options = {"batch": BATCH, "min_fill": MIN_FILL}
    replies = answer_many(llm, prompts, max_new_tokens=max_new_tokens, clock=clock, **options)
    return [replies[i : i + len(questions)] for i in range(0, len(replies), len(questions))]
