"""Which V of AOT reaches a retention ratio on given videos; the table behind `AOT.budget` is only an average."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.reducers.aot.reducer import AOT
from jvidprune.reducers.protocol import check_ratio
from jvidprune.tokens import VideoTokens


class Calibration(NamedTuple):
    """What `calibrate` found: the reducer with its V fixed, V, and the mean ratio it reaches on the videos."""

    reducer: AOT
    visual_tokens: int
    achieved: float


def calibrate(reducer: AOT, videos: Sequence[VideoTokens], ratio: float) -> Calibration:
    """The V whose mean retained ratio on sample videos is nearest to a target, by bisection; one compilation a shape.

    Args:
      reducer: its `visual_tokens` is what is searched for.
      videos: sample videos.
      ratio: output tokens / (T * P), in (0, 1].

    Raises:
      JvidpruneError: no videos, or a ratio outside (0, 1].
    """
    ratio = check_ratio(ratio)
    if not videos:
        raise JvidpruneError("calibration needs at least one sample video, got none.")
    count = jax.jit(
        lambda video, budget, capacity: reducer.plan(video, budget, capacity=capacity).count, static_argnums=2
    )

    def achieved(visual_tokens: int) -> float:
        ratios = []
        for video in videos:
            frames = int(video.frame_mask.sum())
            layout = video.layout(None if frames == video.features.shape[0] else frames)
            capacity = reducer.capacity_of(layout, most)
            rows = int(count(video, reducer.budget_of(layout, visual_tokens), capacity))
            ratios.append(rows / layout.total)
        return float(np.mean(ratios))

    most = min(reducer.geometry(v.grid, v.unpooled_grid).tokens for v in videos)
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if achieved(middle) >= ratio else (middle + 1, high)
    tries = {v: achieved(v) for v in (max(low - 1, 1), low)}
    best = min(tries, key=lambda v: (abs(tries[v] - ratio), v))
    return Calibration(dataclasses.replace(reducer, visual_tokens=best), best, tries[best])
