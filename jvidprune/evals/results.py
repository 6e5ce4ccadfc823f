"""The table of a sweep: accuracies and costs of every method and ratio, and the file they are written to."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvidprune.evals.controls import WRITTEN, Standing, against_controls, is_control, written
from jvidprune.evals.counts import Counts, counts_of
from jvidprune.evals.difficulty import Difficulty, difficulty, own_lengths
from jvidprune.evals.effect import Effect, effects
from jvidprune.evals.items import LeftOut
from jvidprune.evals.joined import JoinedPart
from jvidprune.evals.judge.scores import JudgedRun, judged_run
from jvidprune.evals.matching import MATCHED_FIELDS, Matched, matched_runs
from jvidprune.evals.metrics import ALL, Cell, summarise
from jvidprune.evals.paired import Difference, Resolution, Run, every_pair, resolution, two_best
from jvidprune.evals.plan import BASELINES, SINGLE
from jvidprune.evals.records import counted, opened
from jvidprune.evals.runner import SweepRecords
from jvidprune.evals.spans import Grounding, ground
from jvidprune.evals.store import Record
from jvidprune.evals.throughput import Throughput
from jvidprune.files import atomic_output

STILL = 0.9
"""Share of the unpruned model's right answers from which on a category is said to need one frame alone."""


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What one method at one ratio cost.

    Attributes:
      method, ratio: of the run.
      encode: seconds of encoding a clip.
      reduce: seconds of reducing a clip to this ratio; all ratios of a method share one call, this is its share.
      prefill: seconds of reading one prompt, asked alone.
      generate: seconds of writing one answer, asked alone.
      compile: seconds of compilation that the method caused, encoding left out; at its first ratio.
      memory: most bytes in use until then.
      tflops, prefill_tflops: 10^12 floating-point operations of an answer from frames on, and of its prefill.

    Seconds are medians over clips (those of questions asked alone over the first few), compilation left out.
    """

    method: str
    ratio: float
    encode: float
    reduce: float
    prefill: float
    generate: float
    compile: float
    memory: int
    tflops: float
    prefill_tflops: float

    @property
    def answer(self) -> float:
        """Seconds from encoded tokens to an answer."""
        return self.reduce + self.prefill + self.generate


@dataclasses.dataclass(frozen=True)
class SweepTable:
    """Everything that tables, plots and the report show.

    Attributes:
      identity: what the run is.
      folder: where its files are.
      runs: (method, ratio) that have results, in order.
      categories: of the questions, in the task's order.
      cells: accuracies by (method, ratio, category); the category "all" is every question.
      costs: by (method, ratio).
      refused: method -> ratio -> why it cannot be asked for.
      chance: category -> accuracy of a guess.
      clips: number of clips.
      titles: method -> name as its paper writes it.
      left_out: what could not be asked and is not counted.
      opened: open answers, which stand in no accuracy, and what judges made of them.
      controls: names of the methods that are controls.
      standings: how the other methods stand against them, by (method, ratio); empty without a control.
      pairs: any two methods or controls compared on the same questions, by ratio.
      grounding: how well spans of seconds were found, for the runs that were asked for any.
      parts: the benchmarks of a joined run (`evals.joined`), none of that of one benchmark.
      throughput: speed and memory, where they were measured; no part of what is found right or wrong.
      effects: what methods and controls did to the clips, by (method, ratio).
      counts: tokens, FLOPs and memory that every run really used, by (method, ratio).
      matched: how near the runs came to the cost of a plain selection, where costs were made equal.
      difficulty: by length of clips, and on the questions that smaller frames at as many tokens get wrong.
    """

    identity: dict[str, Any]
    folder: Path
    runs: list[tuple[str, float]]
    categories: list[str]
    cells: dict[tuple[str, float, str], Cell]
    costs: dict[tuple[str, float], RunCost]
    refused: dict[str, dict[float, str]]
    chance: dict[str, float]
    clips: int
    titles: dict[str, str]
    left_out: tuple[LeftOut, ...] = ()
    opened: JudgedRun = dataclasses.field(default_factory=JudgedRun)
    controls: tuple[str, ...] = ()
    standings: dict[Run, Standing] = dataclasses.field(default_factory=dict)
    effects: dict[Run, Effect] = dataclasses.field(default_factory=dict)
    pairs: dict[float, list[Difference]] = dataclasses.field(default_factory=dict)
    grounding: list[Grounding] = dataclasses.field(default_factory=list)
    counts: dict[Run, Counts] = dataclasses.field(default_factory=dict)
    matched: dict[Run, Matched] = dataclasses.field(default_factory=dict)
    throughput: list[Throughput] = dataclasses.field(default_factory=list)
    difficulty: Difficulty = dataclasses.field(default_factory=Difficulty)
    parts: list[JoinedPart] = dataclasses.field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """Names in order, without repeats."""
        return list(dict.fromkeys(method for method, _ in self.runs))

    @property
    def ratios(self) -> list[float]:
        """The swept ratios, in the order they were asked for."""
        return [float(ratio) for ratio in self.identity["ratios"]]

    def best_two(self, ratio: float) -> Difference | None:
        """From the second best to the best method of a ratio that acted, None where fewer than two can be compared."""
        return two_best(self.pairs.get(ratio, ()), self.cells, [run for run, one in self.effects.items() if one.idle])

    @property
    def frozen(self) -> list[str]:
        """Categories of which the middle frame alone is right on `STILL` as many questions as all tokens are."""
        cells = {name: self.cell(SINGLE, 1.0, name) for name in self.categories}
        return [name for name, cell in cells.items() if cell is not None and cell.relative >= STILL]

    def resolution(self, ratio: float) -> Resolution | None:
        """How many clips it takes to tell methods 5 points apart at a ratio; None where no two can be compared."""
        return resolution(self.pairs.get(ratio, ()), self.clips)

    def category_mean(self, method: str, ratio: float) -> float | None:
        """Mean accuracy of a run over the categories, each counting alike, as MLVU is reported; None without any."""
        found = [cell.accuracy for name in self.categories if (cell := self.cell(method, ratio, name)) is not None]
        return math.fsum(found) / len(found) if found else None

    @property
    def unjudged(self) -> int:
        """Open answers that no judge has read."""
        return self.opened.awaiting

    def cell(self, method: str, ratio: float, category: str = ALL) -> Cell | None:
        """The accuracy of a run, None where there is none."""
        return self.cells.get((method, ratio, category))


def make_table(
    found: SweepRecords, task: Any, titles: dict[str, str], *, draws: int = 2000, seed: int = 0
) -> SweepTable:
    """Accuracies with bootstrap intervals and costs from the records of a run.

    Args:
      found: what the run wrote.
      task: what it was run on, for the order of categories and the level of chance.
      titles: method -> shown name.
      draws, seed: of the bootstrap.
    """
    samples = counted(found.samples)
    cells = {(c.method, c.ratio, c.category): c for c in summarise(samples, found.runs, draws=draws, seed=seed)}
    seen = {category for _, _, category in cells}
    runs = [run for run in found.runs if (*run, ALL) in cells]
    told, match = found.identity.get("controls", ()), found.identity.get("match")
    controls = tuple(name for name in dict.fromkeys(name for name, _ in runs) if name in told or is_control(name))
    family = found.identity.get("model", {}).get("family")
    compared = [name for name in dict.fromkeys(name for name, _ in runs) if name not in BASELINES]
    return SweepTable(
        found.identity,
        found.files.folder,
        runs,
        [category for category in task.categories if category in seen],
        cells,
        {run: _cost(run, found.batches) for run in runs},
        _refusals(found.batches),
        _chance(task),
        len({record["clip"] for record in samples}),
        titles,
        found.left_out,
        judged_run(found.files.folder, opened(found.samples), draws=draws, seed=seed),
        controls,
        against_controls(samples, cells, controls, matched=match is not None, draws=draws, seed=seed),
        effects(samples, found.batches, runs, found.identity.get("model", {}).get("dtype", "float32")),
        every_pair(samples, compared, found.identity["ratios"], draws=draws, seed=seed),
        ground(samples, runs, draws=draws, seed=seed),
        counts_of(samples, found.batches, cells),
        matched_runs(found.batches, match),
        difficulty=difficulty(
            samples,
            found.batches,
            runs,
            found.identity["ratios"],
            own_lengths(task),
            family,
            draws=draws,
            seed=seed,
        ),
    )


def _refusals(batches: Sequence[Record]) -> dict[str, dict[float, str]]:
    """Why methods refused; where one refused some clips only, with their number."""
    refused: dict[str, dict[float, list[str]]] = {}
    asked: dict[tuple[str, float], int] = {}
    for record in batches:
        run = record["method"], record["ratio"]
        asked[run] = asked.get(run, 0) + 1
        if record["refused"]:
            refused.setdefault(run[0], {}).setdefault(run[1], []).append(record["refused"])

    def told(reasons: list[str], clips: int) -> str:
        some = "" if len(reasons) == clips else f" (on {len(reasons)} of {clips} clips)"
        return f"{reasons[-1].rstrip('.')}{some}." if some else reasons[-1]

    return {
        method: {ratio: told(reasons, asked[method, ratio]) for ratio, reasons in by_ratio.items()}
        for method, by_ratio in refused.items()
    }


def _cost(run: tuple[str, float], batches: Sequence[Record]) -> RunCost:
    mine = [b for b in batches if (b["method"], b["ratio"]) == run and not b["refused"]]
    seconds = {
        name: float(np.median([b[name] for b in mine if name in b] or [np.nan]))
        for name in ("encode", "reduce", "prefill", "generate")
    }
    counted = {name: float(np.mean([b[name] for b in mine])) for name in ("tflops", "prefill_tflops")}
    compiled, memory = math.fsum(b["compile"] for b in mine), max(b["memory"] for b in mine)
    return RunCost(method=run[0], ratio=run[1], compile=compiled, memory=memory, **seconds, **counted)


def _chance(task: Any) -> dict[str, float]:
    guesses: dict[str, list[float]] = {ALL: []}
    for number in range(len(task)):
        for question in (one for one in task[number].questions if one.kind != "open"):
            value = task.chance(question)
            guesses[ALL].append(value)
            guesses.setdefault(question.category, []).append(value)
    return {category: math.fsum(values) / len(values) for category, values in guesses.items() if values}


def write_csv(table: SweepTable, path: Path) -> None:
    """One line a method, ratio and category; costs and controls stand on the lines of all categories together."""
    fields = [field.name for field in dataclasses.fields(Cell)]
    costs = [field.name for field in dataclasses.fields(RunCost) if field.name not in fields]
    with atomic_output(path) as part, part.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(
            file, [*fields, "chance", *costs, *WRITTEN, *EFFECTS, *COUNTED, *MATCHED_FIELDS[2:]], restval=""
        )
        writer.writeheader()
        for run in table.runs:
            for category in (ALL, *table.categories):
                cell = table.cell(*run, category)
                if cell is None:
                    continue
                row = dataclasses.asdict(cell) | {"chance": table.chance.get(category, 0.0)}
                if category == ALL:
                    row |= {name: getattr(table.costs[run], name) for name in costs}
                    row |= written(table.standings[run]) if run in table.standings else {}
                    row |= _effect(table.effects[run]) if run in table.effects else {}
                    row |= {name: getattr(table.counts[run], name) for name in COUNTED if run in table.counts}
                    row |= table.matched[run].row() if run in table.matched else {}
                writer.writerow({k: _written(v) for k, v in row.items()})


COUNTED = ("tokens_all", "layer_tokens", "layer_all", "kv_bytes")
"""What table.csv says of a run's counts beside `kept` and `prefill_tflops`."""

EFFECTS = ("merged", "dropped", "logits_differ", "answers_differ", "did_not_act")
"""What table.csv says of a method's effect: mean shares of tokens, shares of questions, and what is wrong."""


def _effect(effect: Effect) -> dict[str, Any]:
    asked = effect.count("questions") or math.nan
    shares = effect.mean("merged"), effect.mean("dropped"), effect.count("differ") / asked
    return dict(zip(EFFECTS, (*shares, effect.count("answers") / asked, "; ".join(effect.flags)), strict=True))


def _written(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
