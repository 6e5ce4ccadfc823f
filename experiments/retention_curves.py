"""Which methods hold at 25, 20, 15, 10 and 5 % of the tokens, and which categories of questions collapse first.

    python experiments/retention_curves.py --clips 60

Runs (or resumes) two sweeps of the embedded model on the procedural test split, of some methods or all with kept tokens
at the positions that the model was made for, and of some at the others, and writes retention_curves.csv and
retention_curves.md. Neither holds times. Controls and reconstructions are marked.

    python experiments/retention_curves.py --clips 60 --methods all --moved "" --name retention_all \
        --covipal runs/train_pruners/covipal/pruner.safetensors

CoViPAL is run with a trained module alone; `experiments/train_pruners.py` trains that one. With `--onto` the rows that
both files hold stay, and only methods that they lack are run, beside `random`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from added_rows import joined_csv, joined_markdown, methods_in

from jvidprune.cli.console import Console
from jvidprune.cli.options import ModelChoice
from jvidprune.cli.reading import open_model
from jvidprune.cli.sweep import METHODS
from jvidprune.errors import JvidpruneError
from jvidprune.evals.markdown import accuracy_table, category_table, difference_table, grid
from jvidprune.evals.metrics import ALL, FULL
from jvidprune.evals.paired import Difference, paired_difference
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.results import make_table
from jvidprune.evals.runner import SweepRecords, run_sweep
from jvidprune.evals.tasks import answerable_part
from jvidprune.files import write_table
from jvidprune.reducers import registry
from jvidprune.reducers.prompt_rules import PositionRule
from jvidprune.viz.sweep_style import CONTROLS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--clips", type=int, default=60)
parser.add_argument("--methods", default=METHODS, help='names, or "all"')
parser.add_argument("--moved", default=METHODS, help="methods that are also run at the other positions")
parser.add_argument("--onto", action="store_true", help="add the methods that the files lack; what is there stays")
parser.add_argument("--covipal", type=Path, default=None, help="file of a trained module for covipal")
parser.add_argument("--model", default=None)
parser.add_argument("--out", type=Path, default=Path("experiments"))
parser.add_argument("--name", default="retention_curves", help="of the two files")
args = parser.parse_args()
written, sheet = args.out / f"{args.name}.md", args.out / f"{args.name}.csv"
there = methods_in(sheet.read_text(encoding="utf8")) if args.onto else []

console = Console()
with console.working():
    llm = open_model(ModelChoice(args.model, dtype="float32"), console)
    task = answerable_part(llm, "test", args.clips)
    everything = (*registry.names(), *registry.framed(), *registry.learned())
    asked = everything if args.methods == "all" else args.methods.split(",")
    methods, refused = {}, {}
    for name in asked:
        if name == "none" or (name in there and name != "random"):
            continue
        try:
            typed = f"covipal(module='{args.covipal}')" if name == "covipal" and args.covipal else name
            methods[name] = llm.reducer(typed)
        except JvidpruneError as error:
            refused[name] = str(error)
    moving = [name for name in args.moved.split(",") if name in methods]


def swept(positions: PositionRule | None, names: Sequence[str]) -> SweepRecords:
    """A sweep with the positions that the checkpoint declares, or with others."""
    told = dataclasses.replace(llm, settings=dataclasses.replace(llm.settings, positions=positions))
    with console.working():
        return run_sweep(told, task, SweepPlan({name: methods[name] for name in names}), progress=console.bars())


def marked(name: str) -> str:
    """A method's name for people; registry titles already mark reconstructions."""
    return f"{registry.title(name)} (control)" if name in CONTROLS else registry.title(name)


own = llm.settings.declared_positions
other: PositionRule = "renumbered" if own == "original" else "original"
found = swept(None, list(methods))
table = make_table(found, task, {name: marked(name) for name in methods})
refused |= {name: next(iter(why.values())) for name, why in table.refused.items() if len(why) == len(table.ratios)}
names = [name for name in methods if name not in refused]
moving = [name for name in moving if name not in refused]
moved = swept(other, moving) if moving else None
other_table = table if moved is None else make_table(moved, task, {name: marked(name) for name in moving})
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


def both(method: str) -> list[str]:
    """Accuracy under the two rules at every ratio."""
    cells = [(table.cell(method, ratio), other_table.cell(method, ratio)) for ratio in table.ratios]
    texts = ["–" if a is None or b is None else f"{100 * a.accuracy:.1f} / {100 * b.accuracy:.1f}" for a, b in cells]
    return [table.titles[method], *texts]


def by_moving(method: str) -> list[Difference | None]:
    """Paired differences from the checkpoint's own positions to the others, at every ratio."""
    assert moved is not None
    renamed = [record | {"method": "moved"} for record in moved.samples if record["method"] == method]
    return [paired_difference([*found.samples, *renamed], method, "moved", ratio) for ratio in table.ratios]


def by_positions() -> list[str]:
    """The section on the other positions; nothing where no method was run there."""
    if not moving:
        return []
    return [
        "\n## Positions of kept tokens\n",
        f"Accuracy with {own or 'the references'} positions, which hold everywhere else in this file, and with {other} "
        f"ones (`--positions {other}`), then the change from one to the other.\n",
        grid(["method", *(f"{100 * r:g} %" for r in table.ratios)], [both(m) for m in moving]),
        "",
        difference_table([table.titles[m] for m in moving], [by_moving(m) for m in moving]),
    ]


trained = (
    " CoViPAL chooses by a module that `experiments/train_pruners.py` trained on other clips."
    if "covipal" in names
    else ""
)
rows = sorted((collapse(category) for category in table.categories), key=lambda row: row[-1].rjust(4))
parts = [
    "# Accuracy at few tokens\n",
    f"{table.clips} clips of the procedural test split, {len(found.samples) // len(table.runs)} questions of the kinds "
    "that the embedded model answers above chance; accuracy in per cent with 95 % bootstrap intervals over clips. "
    "Written by `experiments/retention_curves.py`; "
    f"model files {found.identity['model']['files']}.{trained}\n",
    accuracy_table(table),
    "\n## Against tokens chosen at random\n",
    "Points of accuracy over `random` at the same nominal ratio, paired; bold where zero lies outside. Methods read a "
    "ratio differently: the tokens they really keep stand in the table below.\n",
    difference_table([table.titles[m] for m in published], [over_random(m) for m in published]),
    *by_positions(),
    "\n## How many clips are needed\n",
    *(f"- {one}." for ratio in table.ratios if (one := table.resolution(ratio)) is not None),
    f"\n## Tokens kept of {table.cells[FULL, 1.0, ALL].kept:.0f}\n",
    grid(["method", *(f"{100 * r:g} %" for r in table.ratios)], [kept(m) for m in names]),
    "\n## Categories that collapse first\n",
    "Mean accuracy of the published methods in per cent of the unpruned model's, and the first ratio below 90 %.\n",
    grid(["category", "below 90 % at", *(f"{100 * r:g} %" for r in table.ratios)], rows),
    *(["\n## Not run on this model\n"] if refused else []),
    *(f"- {marked(name)}: {why}" for name, why in refused.items()),
    *(f"\n## By category at {100 * r:g} %\n\n{category_table(table, r)}" for r in table.ratios),
]
args.out.mkdir(parents=True, exist_ok=True)
cells = [{"positions": own or "reference"} | dataclasses.asdict(cell) for cell in table.cells.values()]
if moving:
    cells += [{"positions": other} | dataclasses.asdict(cell) for cell in other_table.cells.values()]
text, before = "\n".join(parts) + "\n", sheet.read_text(encoding="utf8") if args.onto else ""
write_table(sheet, cells)
if args.onto:
    # What was run again must not have changed: rows of two models or benchmarks do not belong into one table.
    new = sheet.read_text(encoding="utf8")
    again = [line for line in new.splitlines() if line.split(",")[1] in there]
    same = set(again) <= set(before.splitlines())
    sheet.write_text(joined_csv(before, new, everything) if same else before, encoding="utf8")
    if not same:
        raise SystemExit(f"{sheet} was not made with this model and these clips: its rows of random are others now.")
    added = [marked(name) for name in names if name not in there]
    said = f"Without {', '.join(added)}, which were added later."
    kept_sections = dict.fromkeys(("How many clips are needed", "Categories that collapse first"), said)
    titles = [marked(name) for name in everything]
    text = joined_markdown(written.read_text(encoding="utf8"), text, titles, kept_sections)
written.write_text(text, encoding="utf8")
print(written)
