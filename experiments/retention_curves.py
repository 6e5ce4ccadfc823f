"""Which methods hold at 25, 20, 15, 10 and 5 % of the tokens, and which categories of questions collapse first.

    python experiments/retention_curves.py --clips 60

Runs (or resumes) a sweep of the embedded model on the procedural test split and writes retention_curves.csv and
retention_curves.md.
"""

import argparse
from pathlib import Path

import numpy as np

from jvidprune.bench.markdown import accuracy_table, category_table, difference_table, grid
from jvidprune.bench.metrics import Difference, paired_difference
from jvidprune.bench.plan import SweepPlan
from jvidprune.bench.results import make_table, write_csv
from jvidprune.bench.runner import run_sweep
from jvidprune.commands.console import Console
from jvidprune.commands.run import open_model
from jvidprune.commands.sweep import METHODS, answerable_part
from jvidprune.reducers import presets
from jvidprune.viz.sweep_style import CONTROLS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--clips", type=int, default=60)
parser.add_argument("--methods", default=METHODS)
parser.add_argument("--model", default=None)
parser.add_argument("--out", type=Path, default=Path("experiments"))
args = parser.parse_args()

console = Console()
with console.working():
    llm = open_model({"model": args.model, "dtype": "float32"}, console)
    task = answerable_part(llm.loaded.folder / "accuracy.csv", args.clips)
    names = args.methods.split(",")
    plan = SweepPlan({name: llm.reducer(name) for name in names})
    found = run_sweep(llm, task, plan, progress=lambda text, done, total: console.task(text, total)(done, total))
table = make_table(found, task, {name: presets.title(name) for name in names})
published = [name for name in names if name not in CONTROLS]


def collapse(category: str, share: float = 0.9) -> list[str]:
    """Mean relative accuracy of the published methods at every ratio, and the first ratio where it is below `share`."""
    found = {r: [c.relative for m in published if (c := table.cell(m, r, category))] for r in table.ratios}
    means = {r: float(np.nanmean(values)) for r, values in found.items() if values}
    first = next((f"{100 * r:g} %" for r in sorted(means, reverse=True) if means[r] < share), "never")
    return [category, first, *(f"{100 * means[r]:.0f}" if r in means else "–" for r in table.ratios)]


def over_random(method: str) -> list[Difference | None]:
    """Paired differences at every ratio."""
    return [paired_difference(found.samples, "random", method, ratio) for ratio in table.ratios]


def kept(method: str) -> list[str]:
    """Mean tokens at every ratio."""
    cells = (table.cell(method, ratio) for ratio in table.ratios)
    return [table.titles[method], *("–" if cell is None else f"{cell.kept:.0f}" for cell in cells)]


rows = sorted((collapse(category) for category in table.categories), key=lambda row: row[-1].rjust(4))
parts = [
    "# Accuracy at few tokens\n",
    f"{table.clips} clips of the procedural test split, {len(found.samples) // len(table.runs)} questions of the kinds "
    "that the embedded model answers above chance; accuracy in per cent with 95 % bootstrap intervals over clips. "
    "Written by `experiments/retention_curves.py`; "
    f"model files {found.identity['model']['files']}.\n",
    accuracy_table(table),
    "\n## Against tokens chosen at random\n",
    "Points of accuracy over `random` at the same nominal ratio, paired; bold where zero lies outside. Methods read a "
    "ratio differently: the tokens they really keep stand in the table below.\n",
    difference_table([table.titles[m] for m in published], [over_random(m) for m in published]),
    "\n## Tokens kept of 288\n",
    grid(["method", *(f"{100 * r:g} %" for r in table.ratios)], [kept(m) for m in names]),
    "\n## Categories that collapse first\n",
    "Mean accuracy of the published methods in per cent of the unpruned model's, and the first ratio below 90 %.\n",
    grid(["category", "below 90 % at", *(f"{100 * r:g} %" for r in table.ratios)], rows),
    *(f"\n## By category at {100 * r:g} %\n\n{category_table(table, r)}" for r in table.ratios),
]
args.out.mkdir(parents=True, exist_ok=True)
write_csv(table, args.out / "retention_curves.csv")
(args.out / "retention_curves.md").write_text("\n".join(parts) + "\n", encoding="utf8")
print(args.out / "retention_curves.md")
