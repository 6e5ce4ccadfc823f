"""What a step of every stage of a recipe costs on this machine, and what the whole recipe will."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.tiny import optimiser
from experiments.tiny.features import Pool
from experiments.tiny.regime import (
    POOLED,
    Regime,
    begin,
    held_accuracy,
    pooled_shape,
    see_with,
    stage_batches,
    stage_loss,
)
from experiments.tiny.regime_batches import PACKED


def pace(
    regime: Regime, folder: Path, report: Callable[[dict[str, Any]], None], steps: int = 3
) -> list[dict[str, Any]]:
    """CPU seconds and seconds of a pooled clip, of a measurement, and of a step of every stage and share of tokens.

    Args:
      regime: what is measured; nothing is trained.
      folder: for the tokenizer.
      report: called with each row.
      steps: that are timed behind one that compiles.

    Returns:
      rows of stage, part (1 for all tokens, or one of so many), steps of the recipe, clips, CPU seconds and seconds of
      a step with its batch, and CPU minutes and minutes of all steps.
    """
    network, params, tokenizer, words = begin(regime, folder)
    see, rows = see_with(network, regime.precision), []

    def timed(stage: str, part: int, many: int, clips: int, run: Callable[[int], Any], times: int = steps) -> None:
        run(0)
        cpu, wall = time.process_time(), time.time()
        for step in range(1, times + 1):
            run(step)
        cpu, wall = (time.process_time() - cpu) / times, (time.time() - wall) / times
        row = {"stage": stage, "part": part, "steps": many, "clips": clips, "cpu_s": round(cpu, 2), "s": round(wall, 2)}
        rows.append(row | {"cpu_min": round(cpu * many / 60, 1), "min": round(wall * many / 60, 1)})
        report(rows[-1])

    frames = np.zeros((regime.task.frames, regime.task.side, regime.task.side, 3), np.uint8)
    timed("pool", 1, regime.pool, 1, lambda _: jax.block_until_ready(see(params, frames)))
    shape = (16, *pooled_shape(network, regime.task))
    pooled = Pool(regime.task, POOLED, np.random.default_rng(0).normal(size=shape).astype(np.float16))
    measured = 0
    for stage in regime.stages:
        answers = stage.kind == "answer"
        measured += -(-stage.steps // regime.measure) * answers
        tx = optimiser.muon(params, stage.trained, rate=1e-4, warmup=1, steps=100)
        update = optimiser.training_step(stage_loss(network, stage, words, tokenizer, regime.precision), tx)
        for part, share in zip(PACKED, stage.shares if answers else (1.0, 0.0, 0.0, 0.0), strict=True):
            if not share:
                continue
            alone = dataclasses.replace(stage, shares=tuple(float(other == part) for other in PACKED))
            make = stage_batches(network, alone, regime, tokenizer, pooled)
            state = optimiser.OptimiserState(params, tx.init(params))
            clips = stage.clips * (PACKED[part] if answers and not stage.tower else 1)
            many = round(stage.steps * share)
            timed(stage.name, part, many, clips, functools.partial(_step, update, state, make))
    take = held_accuracy(network, dataclasses.replace(regime, held=4), tokenizer)
    state = optimiser.OptimiserState(params, None)
    timed("held", 1, measured * regime.held // 4, 4, lambda _: take(state))
    return rows


def _step(update: Callable[..., Any], state: Any, make: Callable[[int], Any], step: int) -> None:
    jax.block_until_ready(update(state, make(step), np.int32(step)))
