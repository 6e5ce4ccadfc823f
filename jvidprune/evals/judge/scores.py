"""Judged answers as numbers: mean scores of every method, ratio and aspect, with bootstrap intervals over clips."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from jvidprune.evals.judge.cases import Case, NotJudged, cases_of
from jvidprune.evals.judge.verdicts import known_verdicts
from jvidprune.evals.metrics import FULL, bootstrap_ratio, clip_draws
from jvidprune.evals.store import Record
from jvidprune.files import atomic_output

MEAN = "mean"
"""The aspect under which the mean over all aspects of one scale stands, each counting the same."""

Run = tuple[str, float]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a judge makes of a method at a ratio.

    Attributes:
      judge: who.
      method, ratio: of the run.
      aspect: what was scored, or "mean".
      answers: with a verdict.
      missing: without one, which stand in no number.
      score: mean, from 0 to `top`, with the bounds `low` and `high` of its 95 % interval.
      top: of the scale; of yes and no it is 1.
      change: mean change from the unpruned model on the answers that both have a verdict for, with `change_low` and
        `change_high`; NaN where there are none, of the unpruned model itself, and of "mean".
    """

    judge: str
    method: str
    ratio: float
    aspect: str
    answers: int
    missing: int
    score: float
    low: float
    high: float
    top: int
    change: float
    change_low: float
    change_high: float

    def row(self) -> dict[str, Any]:
        """For machines: numbers that do not exist are None."""
        return {name: None if value != value else value for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class JudgedRun:
    """The open answers of a run and their scores.

    Attributes:
      answers: number of open answers.
      awaiting: of these, those that no judge has read, or not for every aspect.
      rows: by judge, run and aspect.
      not_judged: answers that cannot be put to a judge.
    """

    answers: int = 0
    awaiting: int = 0
    rows: tuple[Judged, ...] = ()
    not_judged: tuple[NotJudged, ...] = ()


def judged_run(folder: Path, answers: Sequence[Record], *, draws: int = 2000, seed: int = 0) -> JudgedRun:
    """The scores of a run's open answers by all judges whose verdicts are in its folder.

    Args:
      folder: of the run.
      answers: records of open answers.
      draws, seed: of the bootstrap.
    """
    cases, bad = cases_of(answers)
    verdicts = known_verdicts(folder)
    rows = [row for judge, scores in verdicts.items() for row in judged(cases, judge, scores, draws=draws, seed=seed)]
    known = {request for scores in verdicts.values() for request in scores}
    open_ones = {(c.clip, name, *c.run) for c in cases if c.request not in known for name in c.question.split(" + ")}
    open_ones |= {(one.clip, one.question, one.method, one.ratio) for one in bad}
    return JudgedRun(len(answers), len(open_ones), tuple(rows), tuple(bad))


def judged(
    cases: Sequence[Case], judge: str, scores: Mapping[str, float], *, draws: int = 2000, seed: int = 0
) -> list[Judged]:
    """One `Judged` for every run and aspect with a verdict, in the order of the cases; the mean of aspects last.

    Args:
      cases: of the run.
      judge: who.
      scores: of the judge, by request.
      draws, seed: of the bootstrap, whose resamples all rows share.
    """
    if not any(case.request in scores for case in cases):
        return []
    names = {name: i for i, name in enumerate(dict.fromkeys(sorted(case.clip for case in cases)))}
    counts = clip_draws(len(names), draws, seed)
    full = {
        (c.clip, c.question, c.rubric.aspect): scores[c.request]
        for c in cases
        if c.method == FULL and c.request in scores
    }
    rows = []
    for run in dict.fromkeys(case.run for case in cases):
        mine = [case for case in cases if case.run == run]
        parts: list[tuple[Judged, Float64[np.ndarray, " draws"]]] = []
        for aspect in dict.fromkeys(case.rubric.aspect for case in mine):
            one = _aspect([c for c in mine if c.rubric.aspect == aspect], judge, scores, full, names, counts)
            if one is not None:
                parts.append(one)
        rows += [row for row, _ in parts]
        wanted = {case.rubric.aspect for case in mine}
        if len(parts) > 1 and {row.aspect for row, _ in parts} == wanted and len({row.top for row, _ in parts}) == 1:
            rows.append(_mean([row for row, _ in parts], np.array([values for _, values in parts])))
    return rows


def _aspect(
    cases: Sequence[Case],
    judge: str,
    scores: Mapping[str, float],
    full: Mapping[tuple[str, str, str], float],
    names: Mapping[str, int],
    counts: Float64[np.ndarray, "draws clips"],
) -> tuple[Judged, Float64[np.ndarray, " draws"]] | None:
    """A row, and its mean in every resample; None without a verdict."""
    first, found = cases[0], [case for case in cases if case.request in scores]
    if not found:
        return None
    sums, changes = np.zeros((2, len(names), 1)), np.zeros((2, len(names), 1))
    for case in found:
        sums[:, names[case.clip], 0] += scores[case.request], 1.0
        base = full.get((case.clip, case.question, case.rubric.aspect))
        if base is not None and case.method != FULL:
            changes[:, names[case.clip], 0] += scores[case.request] - base, 1.0
    low, high = bootstrap_ratio(counts, sums[0], sums[1])
    change_low, change_high = bootstrap_ratio(counts, changes[0], changes[1])
    common = float(changes[1].sum())
    down = (counts @ sums[1])[:, 0]
    values = np.divide((counts @ sums[0])[:, 0], down, out=np.full(down.shape, np.nan), where=down > 0)
    row = Judged(
        judge=judge,
        method=first.method,
        ratio=first.ratio,
        aspect=first.rubric.aspect,
        answers=len(found),
        missing=len(cases) - len(found),
        score=math.fsum(scores[case.request] for case in found) / len(found),
        low=float(low[0]),
        high=float(high[0]),
        top=first.rubric.top,
        change=float(changes[0].sum()) / common if common else math.nan,
        change_low=float(change_low[0]),
        change_high=float(change_high[0]),
    )
    return row, values


def _mean(rows: Sequence[Judged], values: Float64[np.ndarray, "aspects draws"]) -> Judged:
    """The mean over aspects; resamples in which one of them has no answer are left out."""
    means = values.mean(0)
    known = means[~np.isnan(means)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return dataclasses.replace(
        rows[0],
        aspect=MEAN,
        answers=sum(row.answers for row in rows),
        missing=sum(row.missing for row in rows),
        score=math.fsum(row.score for row in rows) / len(rows),
        low=float(low),
        high=float(high),
        change=math.nan,
        change_low=math.nan,
        change_high=math.nan,
    )


class JudgedCell(NamedTuple):
    """A score, its interval, and in words the change from the unpruned model and the answers behind it."""

    score: str
    bounds: str
    tip: str


class JudgedLine(NamedTuple):
    """What a judge makes of a method at a ratio, as people read it; None where an aspect has no verdict."""

    method: str
    retention: str
    cells: list[JudgedCell | None]
    answers: str
    judge: str


def judged_lines(rows: Sequence[Judged], titles: Mapping[str, str]) -> tuple[list[str], list[JudgedLine]]:
    """Names of the aspects with their scales, and a line a run and judge; yes and no are per cent.

    Args:
      rows: of a run.
      titles: method -> shown name.
    """
    aspects = list(dict.fromkeys((row.aspect, row.top) for row in sorted(rows, key=lambda row: row.aspect == MEAN)))
    found: dict[tuple[str, str, float], dict[tuple[str, int], Judged]] = {}
    for row in rows:
        found.setdefault((row.judge, row.method, row.ratio), {})[row.aspect, row.top] = row
    lines = []
    for (judge, method, ratio), mine in found.items():
        single = [row for row in mine.values() if row.aspect != MEAN]
        answers, missing = sum(row.answers for row in single), sum(row.missing for row in single)
        cells = [_cell(mine[aspect]) if aspect in mine else None for aspect in aspects]
        counted = f"{answers:,} of {answers + missing:,}" if missing else f"{answers:,}"
        lines.append(JudgedLine(titles.get(method, method), f"{100 * ratio:g} %", cells, counted, judge))
    return [f"{name} (yes, %)" if top == 1 else f"{name} (of {top})" for name, top in aspects], lines


def _cell(one: Judged) -> JudgedCell:
    scale, digits = (100, 1) if one.top == 1 else (1, 2)
    score, low, high = (f"{scale * value:.{digits}f}" for value in (one.score, one.low, one.high))
    tip = f"{one.answers:,} judged" + (f", {one.missing:,} not" if one.missing else "")
    if not math.isnan(one.change):
        change, least, most = (
            f"{scale * value:+.{digits}f}" for value in (one.change, one.change_low, one.change_high)
        )
        tip += f"; {change} [{least}, {most}] from unpruned on the same answers"
    return JudgedCell(score, f"[{low}, {high}]", tip)


def write_judged(rows: Sequence[Judged], path: Path) -> None:
    """One line a row of numbers with six digits; no file without verdicts."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic_output(path) as part, part.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Judged)])
        writer.writeheader()
        for one in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in dataclasses.asdict(one).items()})
