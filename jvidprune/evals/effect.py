"""Did a method act? What it kept, merged and dropped of each clip, and whether the model then answers otherwise at all.

A method that keeps every token, or whose answers have the logits of the unpruned model, is flagged in plain words: its
accuracy says nothing about it. Logits are the log-probabilities of the likeliest first tokens of an answer, as
`pairs.answer_job` records them beside the costs; answers without them are compared by their texts.
"""

import csv
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvidprune.evals.metrics import FULL
from jvidprune.evals.paired import Run
from jvidprune.evals.plan import BASELINES
from jvidprune.evals.store import Record
from jvidprune.files import atomic_output
from jvidprune.llm.encoded import ReducedVideo
from jvidprune.tokens import place_fates

ROUNDING = {"float32": 0.005}
"""Log-probabilities closer than this are equal, by dtype of the model: batches of other lengths round otherwise."""

COARSE = 0.1
"""The same for narrower dtypes."""


@dataclasses.dataclass(frozen=True)
class ClipEffect:
    """What a method at a ratio did to one clip.

    Attributes:
      clip: id.
      kept: tokens at the language model's input, a share of all there were.
      merged, dropped: shares of all tokens that went into another one, and into none; None in older records.
      inside: whether the method prunes inside the language model too.
      questions: asked of the unpruned model as well.
      by_logits: of these, compared by logits.
      differ: of `questions`, those with other logits or another answer.
      answers: of `questions`, those with another answer.
    """

    clip: str
    kept: float
    merged: float | None
    dropped: float | None
    inside: bool
    questions: int
    by_logits: int
    differ: int
    answers: int

    @property
    def whole(self) -> bool:
        """Whether every token was kept, and none merged."""
        return self.kept >= 1 and not self.merged and not self.inside

    @property
    def same(self) -> bool:
        """Whether all answers have the logits of the unpruned model."""
        return self.by_logits == self.questions > 0 and self.differ == 0


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a method at a ratio did to the clips of a run.

    Attributes:
      run: method and ratio.
      clips: one each.
    """

    run: Run
    clips: tuple[ClipEffect, ...]

    def mean(self, name: str) -> float:
        """Mean share over clips of "kept", "merged" or "dropped"; NaN where no record says."""
        known = [value for clip in self.clips if (value := getattr(clip, name)) is not None]
        return math.fsum(known) / len(known) if known else math.nan

    def count(self, name: str) -> int:
        """Questions over all clips, "by_logits", "differ" or "answers"."""
        return sum(getattr(clip, name) for clip in self.clips)

    @property
    def idle(self) -> bool:
        """Whether the method kept every token of every clip although fewer were asked for, or changed no answer."""
        whole = self.run[1] < 1 and all(clip.whole for clip in self.clips)
        return whole or (self.count("questions") > 0 and self.count("differ") == 0)

    @property
    def flags(self) -> list[str]:
        """What is wrong, as parts of a sentence; nothing if the method acted on every clip."""
        out, total = [], len(self.clips)
        whole, same = sum(clip.whole for clip in self.clips), sum(clip.same for clip in self.clips)
        if whole and self.run[1] < 1:
            out.append("kept every token" + ("" if whole == total else f" of {whole} of {total} clips"))
        questions, by_logits = self.count("questions"), self.count("by_logits")
        if questions and not self.count("differ"):
            known = "no logits differ from" if by_logits == questions else "no answer differs from"
            out.append(f"{known} the unpruned model's")
        elif same:
            out.append(f"on {same} of {total} clips no logits differ from the unpruned model's")
        return out


def fates(videos: Sequence[ReducedVideo]) -> dict[str, Any]:
    """Mean numbers of tokens kept, merged and dropped over the reductions of a clip to one ratio, for its record.

    Padding frames do not count.
    """
    found = []
    for video in videos:
        reduced = video.reduced
        kept, merged, _ = place_fates(np.asarray(reduced.index)[np.asarray(reduced.valid)], np.asarray(reduced.slot))
        found.append((kept, merged, video.visual - kept - merged))
    means = (math.fsum(column) / len(found) for column in zip(*found, strict=True))
    return dict(zip(("places_kept", "places_merged", "places_dropped"), means, strict=True)) | {
        "inside": any(video.inner for video in videos)
    }


def effects(
    samples: Sequence[Record], batches: Sequence[Record], runs: Sequence[Run], dtype: str = "float32"
) -> dict[Run, Effect]:
    """What every method at every ratio did, the baselines left out.

    Args:
      samples, batches: records of a run; batches may lack what this version adds.
      runs: (method, ratio) in the order wanted.
      dtype: of the model, which decides what is rounding.
    """
    rounding = ROUNDING.get(dtype, COARSE)
    full = {(r["clip"], r["question"]): r["prediction"] for r in samples if r["method"] == FULL}
    costs = {(r["method"], r["ratio"], r["clip"]): r for r in batches if not r["refused"]}
    logits = {clip: r.get("logits", {}) for (method, _, clip), r in costs.items() if method == FULL}
    mine: dict[Run, dict[str, list[Record]]] = {run: {} for run in runs if run[0] not in BASELINES}
    for record in samples:
        run = record["method"], record["ratio"]
        if run in mine:
            mine[run].setdefault(record["clip"], []).append(record)
    out = {}
    for run, clips in mine.items():
        found = []
        for clip, records in sorted(clips.items()):
            pairs = [(r, full[clip, r["question"]]) for r in records if (clip, r["question"]) in full]
            found.append(_clip(records, pairs, costs.get((*run, clip), {}), logits.get(clip, {}), rounding))
        if found:
            out[run] = Effect(run, tuple(found))
    return out


def _clip(
    records: Sequence[Record],
    pairs: Sequence[tuple[Record, str]],
    batch: Record,
    full: Mapping[str, Sequence[Sequence[float]]],
    rounding: float,
) -> ClipEffect:
    """The effect on one clip.

    Args:
      records: answers of the method.
      pairs: those of them that the unpruned model gave as well, with its answer.
      batch: the method's record of costs; empty where there is none.
      full: the unpruned model's logits by question.
      rounding: difference of logits that is none.
    """
    visual = max(1, records[0]["visual"])
    kept = math.fsum(record["kept"] for record in records) / len(records) / visual
    merged, dropped = (batch[name] / visual if name in batch else None for name in ("places_merged", "places_dropped"))
    own = batch.get("logits", {})
    changes = [logit_change(own.get(one["question"]), full.get(one["question"])) for one, _ in pairs]
    answers = [one["prediction"] != said for one, said in pairs]
    differ = [other or (change or 0.0) > rounding for change, other in zip(changes, answers, strict=True)]
    by_logits = sum(change is not None for change in changes)
    inside = bool(batch.get("inside", False))
    clip = records[0]["clip"]
    return ClipEffect(clip, kept, merged, dropped, inside, len(pairs), by_logits, sum(differ), sum(answers))


def logit_change(one: Sequence[Sequence[float]] | None, other: Sequence[Sequence[float]] | None) -> float | None:
    """Largest change of a log-probability among the likeliest tokens of two answers; None where one has none.

    Args:
      one, other: (id, log-probability) of the likeliest first tokens, the first one first.

    Returns:
      The largest over the ids in both; infinity where the likeliest of either is not among those of the other.
    """
    if not one or not other:
        return None
    first, second = ({int(i): value for i, value in found} for found in (one, other))
    if int(one[0][0]) not in second or int(other[0][0]) not in first:
        return math.inf
    return max(abs(first[i] - second[i]) for i in first.keys() & second.keys())


def flagged(found: Collection[Effect], titles: Mapping[str, str]) -> list[str]:
    """A line for every method and ratio that did not act as it should."""
    lines = []
    for one in found:
        if one.flags:
            name, where = titles.get(one.run[0], one.run[0]), "" if one.idle else " on every clip"
            lines.append(f"{name} at {100 * one.run[1]:g} % did not act{where}: {'; '.join(one.flags)}")
    return lines


def write_effects(found: Collection[Effect], path: Path) -> None:
    """One line a method, ratio and clip, with what it did to it."""
    names = [field.name for field in dataclasses.fields(ClipEffect)]
    with atomic_output(path) as part, part.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "ratio", *names, "whole", "same"])
        for one in found:
            for clip in one.clips:
                values = [getattr(clip, name) for name in names]
                texts = [f"{value:.6g}" if isinstance(value, float) else value for value in values]
                writer.writerow([*one.run, *texts, clip.whole, clip.same])
