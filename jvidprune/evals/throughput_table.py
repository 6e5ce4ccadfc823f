"""What was measured of speed and memory, as people and programs read it: rows, sentences, throughput.csv and .json."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.evals.throughput import REPEATS, Throughput, unpruned
from jvidprune.files import atomic_output

HEAD = ("method", "at", "first token ms")
"""Before what is told of each batch."""

SPEED_HEAD = ("batch", "answers /s", "from tokens /s", "decoded tokens /s", "peak MiB")
"""Told of one question alone, and of the largest batch."""

EXPLAINED = (
    "The first token is counted from frames in memory: encoding with the evidence that the method reads, reduction to "
    "this ratio alone, prefill.",
    "Answers a second are those to one question about each clip from its frames on; clips are encoded and reduced one "
    "after another, and read and answered together. Those from tokens start where the tokens of the clips are there.",
    "Answers end where the model ends them. Decoded tokens are counted over answers of the full length.",
)


def throughput_rows(found: Sequence[Throughput], titles: Mapping[str, str]) -> list[list[str]]:
    """A row for each run, under `HEAD` and twice `SPEED_HEAD`.

    Args:
      found: what was measured.
      titles: names of methods as they are shown.
    """
    rows = []
    for one in found:
        row = [titles.get(one.method, one.method), f"{100 * one.ratio:g} %", f"{1000 * one.first_token:,.1f}"]
        for speed in (one.alone, one.largest):
            batch = f"{speed.batch}"
            if speed is one.largest and speed.batch < one.planned:
                batch += f" (planned {one.planned})"
            mark = "*" if speed.memory_from == "programs" else ""
            row += [batch, _rate(one.answers(speed)), _rate(one.from_tokens(speed)), _rate(speed.decoding)]
            row += [f"{speed.memory / 2**20:,.0f}{mark}" if speed.memory_from else "–"]
        rows.append(row)
    return rows


def throughput_notes(found: Sequence[Throughput]) -> list[str]:
    """Sentences that belong to the rows: how they were measured, on what, and what they cannot tell."""
    if not found:
        return []
    notes = [
        f"Measured on {found[-1].device} with the first question about {found[-1].clip}. Each number is the median of "
        f"{REPEATS} runs behind one that compiles and warms up; compilation is left out."
    ]
    if any(one.platform == "cpu" for one in found):
        notes.append(
            "These times were measured on a CPU: they tell nothing about accelerators, and what else the machine did "
            "stands in them."
        )
    bounded = [one for one in found if one.largest.batch == one.limit]
    if bounded:
        some = "all" if len(bounded) == len(found) else f"{len(bounded)} of {len(found)} rows"
        notes.append(
            f"For {some} the largest batch is the limit that was asked for, {found[-1].limit}, and memory may have "
            "room for more."
        )
    sources = {speed.memory_from for one in found for speed in (one.alone, one.largest)}
    if "programs" in sources:
        notes.append(
            "* Peak memory from XLA's analysis of the compiled programs: weights, the encoded video and the largest "
            "program's arrays" + ("; all other peaks are the device's own statistics." if "device" in sources else ".")
        )
    elif "device" in sources:
        notes.append("Peak memory is from the device's own statistics.")
    return notes


def gain(one: Throughput, found: Sequence[Throughput]) -> float:
    """Answers a second in the largest batch as a multiple of the unpruned model's in its own; NaN without that."""
    whole = unpruned(found)
    return math.nan if whole is None else one.answers(one.largest) / whole.answers(whole.largest)


def throughput_records(found: Sequence[Throughput]) -> list[dict[str, Any]]:
    """One flat record a run, for machines."""
    return [one.row() | {"gain": None if math.isnan(times := gain(one, found)) else times} for one in found]


def write_throughput(found: Sequence[Throughput], folder: Path) -> None:
    """Writes throughput.csv and throughput.json; nothing where nothing was measured."""
    if not found:
        return
    rows = throughput_records(found)
    with atomic_output(folder / "throughput.csv") as part, part.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    shown = {"notes": throughput_notes(found), "rows": rows}
    with atomic_output(folder / "throughput.json") as part:
        part.write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


def _rate(value: float) -> str:
    """A number a second with about three digits; a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
