"""How well a probe without a language model predicts what the benchmark says of methods.

    python experiments/probe_predicts.py

Probes every method that works before the language model, the controls among them, and correlates each measure with the
accuracies of experiments/retention_all.csv by Spearman's rank correlation over methods: at each ratio, and in the mean
over ratios. Intervals resample methods. Writes probe_predicts.csv and probe_predicts.md; --probe reads the probe.csv of
`jvidprune probe --methods all` in place of probing.
"""

import argparse
import csv
from pathlib import Path

from jvidprune.cli.console import Console
from jvidprune.cli.options import ModelChoice
from jvidprune.cli.reading import open_model
from jvidprune.evals.markdown import grid
from jvidprune.evals.plan import RATIOS
from jvidprune.evals.probe import MEASURES, probe
from jvidprune.evals.probe.run import before_the_model
from jvidprune.evals.probe.table import BASELINES, write_probe
from jvidprune.evals.ranks import spearman_interval
from jvidprune.files import write_table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--clips", type=int, default=48)
parser.add_argument("--model", default=None, help="by default the embedded one")
parser.add_argument("--probe", type=Path, default=None, help="what a probe wrote")
parser.add_argument("--accuracies", type=Path, default=Path("experiments/retention_all.csv"))
parser.add_argument("--out", type=Path, default=Path("experiments"))
args = parser.parse_args()

if args.probe is None:
    console = Console()
    with console.working():
        llm = open_model(ModelChoice(args.model, dtype="float32"), console)
        table = probe(llm, before_the_model(), controls=(), clips=args.clips, progress=console.bars())
    args.probe = Path("runs/probe_predicts/probe.csv")
    args.probe.parent.mkdir(parents=True, exist_ok=True)
    write_probe(table, args.probe)

REACHED = {f"{name}_reached": (f"{name}_kept", f"{name}_merged") for name in ("object", "rare", "needle")}
"""Shares of tokens that are kept or merged: sums of two measures."""

values: dict[tuple[str, float, str], float] = {}
with args.probe.open(newline="", encoding="utf8") as file:
    for row in csv.DictReader(file):
        run = row["method"], float(row["ratio"])
        values[(*run, row["measure"])] = float(row["value"])
        values[(*run, "tokens")] = float(row["tokens"])
accuracies: dict[tuple[str, float], float] = {}
with args.accuracies.open(newline="", encoding="utf8") as file:
    for row in csv.DictReader(file):
        if row["category"] == "all":
            accuracies[row["method"], float(row["ratio"])] = float(row["accuracy"])
for method, ratio in {(method, ratio) for method, ratio, _ in values}:
    for name, parts in REACHED.items():
        values[method, ratio, name] = sum(values.get((method, ratio, part), float("nan")) for part in parts)

methods = sorted({method for method, _, _ in values if method not in BASELINES and (method, 0.25) in accuracies})
names = [*MEASURES, *REACHED, "tokens"]
nan = float("nan")


def correlation(name: str, ratios: tuple[float, ...]) -> tuple[float, float, float]:
    """Of a measure with the accuracies, over methods."""
    measured = [[values.get((method, ratio, name), nan) for method in methods] for ratio in ratios]
    reached = [[accuracies.get((method, ratio), nan) for method in methods] for ratio in ratios]
    return spearman_interval(measured, reached)


def told(found: tuple[float, float, float]) -> str:
    """A cell of the table; bold where zero lies outside of the interval."""
    if found[0] != found[0]:
        return "–"
    text = f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"
    return f"**{text}**" if found[1] > 0 or found[2] < 0 else text


rows, lines = [], []
for name in names:
    means = correlation(name, RATIOS)
    each = [correlation(name, (ratio,)) for ratio in RATIOS]
    for where, found in (("mean", means), *zip(map(str, RATIOS), each, strict=True)):
        rows.append({"measure": name, "ratio": where, "rho": found[0], "low": found[1], "high": found[2]})
    lines.append((means[0], [name.replace("_", " "), *map(told, (means, *each))]))
lines.sort(key=lambda line: -abs(line[0]) if line[0] == line[0] else 1.0)
head = ["measure", "mean of ratios", *(f"{100 * ratio:g} %" for ratio in RATIOS)]
parts = [
    "# How well the probe predicts accuracies\n",
    f"Spearman's rank correlation over {len(methods)} methods and controls between each measure of `jvidprune probe` "
    f"and the accuracy of the embedded model in {args.accuracies}, with 95 % bootstrap intervals over methods; bold "
    "where zero lies outside. Merged rows exist in some methods only: purity is compared among those. `tokens` is the "
    "number of rows, which methods read the same ratio as. Written by `experiments/probe_predicts.py`.\n",
    grid(head, [cells for _, cells in lines]),
    "\nMethods: " + ", ".join(methods) + ".",
]
args.out.mkdir(parents=True, exist_ok=True)
write_table(args.out / "probe_predicts.csv", rows)
(args.out / "probe_predicts.md").write_text("\n".join(parts) + "\n", encoding="utf8")
print(args.out / "probe_predicts.md")
