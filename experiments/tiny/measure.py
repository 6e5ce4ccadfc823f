"""Accuracy of a checkpoint on held-out clips, through the same path as any question."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jvidprune import reducers
from jvidprune.evals.items import Question, chance
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import VideoTokens

CLIPS = 16
"""Clips whose questions are asked together."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One answered question.

    Attributes:
      question: what was asked.
      said: the model's answer.
    """

    question: Question
    said: str

    @property
    def right(self) -> bool:
        """Whether the answer is the expected word or letter."""
        return self.said.strip().lower() == self.question.answer.lower()


def answers(
    model: VideoLLM,
    task: Procedural,
    *,
    reducer: Reducer | None = None,
    ratio: float = 1.0,
    blind: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Asks every question of a task, decoding greedily.

    Args:
      model: with its tokenizer.
      task: clips and questions.
      reducer: by default none: all visual tokens are read.
      ratio: retention ratio.
      blind: visual tokens are zeros: what the text alone gives away.
      progress: called as (clips done, clips in all).
    """
    method = reducers.get("none") if reducer is None else reducer

    def dark(_: int, tokens: VideoTokens) -> VideoTokens:
        return dataclasses.replace(tokens, features=tokens.features * 0)

    ways = {"": (method, ratio)}
    return answers_of(model, task, ways, see=dark if blind else None, progress=progress)[""]


def answers_of(
    model: VideoLLM,
    task: Procedural,
    ways: Mapping[str, tuple[Reducer, float]],
    *,
    see: Callable[[int, VideoTokens], VideoTokens] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Result]]:
    """Asks every question of a task in several ways; clips are encoded once.

    Args:
      model: with its tokenizer.
      task: clips and questions.
      ways: a reducer and its ratio by name.
      see: (number of the clip, its tokens) to the tokens that are reduced.
      progress: called as (clips done, clips in all).
    """
    needs = frozenset[Any]().union(*(method.needs for method, _ in ways.values())) - {"relevance"}
    found: dict[str, list[Result]] = {name: [] for name in ways}
    for start in range(0, len(task), CLIPS):
        numbers = range(start, min(start + CLIPS, len(task)))
        items = [task[index] for index in numbers]
        videos = [model.encode(item.load(), needs=needs) for item in items]
        if see is not None:
            videos = [
                dataclasses.replace(video, tokens=see(number, video.tokens))
                for number, video in zip(numbers, videos, strict=True)
            ]
        asked = [question for item in items for question in item.questions]
        for name, (method, ratio) in ways.items():
            prompts = []
            for item, video in zip(items, videos, strict=True):
                reduced = model.reduce(video, reducer=method, ratio=ratio)
                prompts += [Prompt(reduced, question.prompt()) for question in item.questions]
            replies = answer_many(model, prompts, max_new_tokens=3, batch=16, min_fill=0)
            found[name] += [Result(question, reply.text) for question, reply in zip(asked, replies, strict=True)]
        if progress:
            progress(start + len(items), len(task))
    return found


def accuracy_table(results: list[Result]) -> list[dict[str, Any]]:
    """Rows of category, kind, questions, right, accuracy and chance; "all" sums over kinds and over categories."""
    names = ["all", *dict.fromkeys(result.question.category for result in results)]
    rows = []
    for category in names:
        for kind in ("all", "choice", "short", "yes_no"):
            part = [
                result
                for result in results
                if category in ("all", result.question.category) and kind in ("all", result.question.kind)
            ]
            if part:
                right = sum(result.right for result in part)
                rows.append(
                    {
                        "category": category,
                        "kind": kind,
                        "questions": len(part),
                        "right": right,
                        "accuracy": round(right / len(part), 4),
                        "chance": round(float(np.mean([chance(result.question) for result in part])), 4),
                    }
                )
    return rows
