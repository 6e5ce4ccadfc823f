"""Our embedded model's retention curves beside the published ones of LLaVA-OneVision-7B, and how alike methods rank.

    python experiments/published_curves.py

Published numbers are those of experiments/reproduce (each file names its paper and table), of one table of simple
strategies and of two single sentences, below; nothing is run. Ours are the relative accuracies of
experiments/retention_all.csv. Prints Spearman's rank correlation over the methods that both have at 25, 15 and 10 %,
whatever it is, and writes published_curves.csv, .md and .svg.
"""

import argparse
import csv
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jvidprune.evals.markdown import grid
from jvidprune.evals.ranks import spearman_interval
from jvidprune.files import write_table
from jvidprune.reducers import registry
from jvidprune.viz.sweep_style import CONTROLS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--accuracies", type=Path, default=Path("experiments/retention_all.csv"))
parser.add_argument("--out", type=Path, default=Path("experiments"))
args = parser.parse_args()

HERE = Path(__file__).parent
RATIOS = (0.25, 0.2, 0.15, 0.1)
COMPARED = (0.25, 0.15, 0.1)


class Source(NamedTuple):
    """A published curve.

    Attributes:
      method: registry name.
      file: of experiments/reproduce.
      row: the table's name of the method.
      column: of the table; an average is taken over that of the unpruned model in the same table.
    """

    method: str
    file: str
    row: str
    column: str


# A method's own paper where its curve is at hand, else the table that reports it at most ratios.
CURVES = (
    Source("flashvid", "flashvid", "FlashVID", "relative"),
    Source("fastvid", "fastvid", "FastVID", "relative"),
    Source("aot", "aot", "AOT", "average"),
    Source("holitom", "holitom", "HoliTom", "average"),
    Source("visionzip", "holitom", "VisionZip", "average"),
    Source("prunevid", "holitom", "PruneVid", "average"),
    Source("fastv", "fastvid", "FastV", "relative"),
    Source("dycoke", "holitom", "DyCoke", "average"),
)

# Per cent of the unpruned model at 25 %, as it is said of this model without a curve.
STATED = {
    "vidcom2": (99.6, "arXiv 2505.14454, abstract, 25 %: per cent of the unpruned model, mean of its benchmarks"),
    "vcast": (
        99.5,
        "V-CAST's project page, 25 %: per cent of unpruned; mvbench, longvideobench, mlvu, videomme",
    ),
}

# Table of simple strategies at 10 %, as the SimpleCluster paper has it: MVBench, EgoSchema, LongVideoBench and VideoMME
# of the same model in the mean, the unpruned model 58.4. FastVID's 56.5 of the same table is another average than its
# own paper's and is not used.
SIMPLE = {"pool_space": 54.8, "pool_spacetime": 54.9, "sample_space": 55.6, "sample_spacetime": 55.4}
SIMPLE_FULL, SIMPLE_SOURCE = 58.4, "SimpleCluster's table of simple strategies"


def published(source: Source) -> dict[float, float]:
    """Relative accuracy in per cent at each ratio that the table has."""
    data = tomllib.loads((HERE / "reproduce" / f"{source.file}.toml").read_text(encoding="utf8"))
    place = data["columns"].index(source.column)
    full = 100.0 if source.column == "relative" else data["reported"]["none"]["1"][place]
    found = {float(ratio): 100 * row[place] / full for ratio, row in data["reported"][source.row].items()}
    return {ratio: value for ratio, value in found.items() if ratio in RATIOS and not math.isnan(value)}


def cited(source: Source) -> str:
    """Where a curve comes from."""
    data = tomllib.loads((HERE / "reproduce" / f"{source.file}.toml").read_text(encoding="utf8"))
    what = "per cent of the unpruned model" if source.column == "relative" else "mean over the unpruned model's"
    tasks = ", ".join(data["tasks"])
    return f"arXiv {data['paper']}, {data['table']} (experiments/reproduce/{source.file}.toml): {what}; {tasks}"


theirs: dict[str, dict[float, float]] = {source.method: published(source) for source in CURVES}
sources = {source.method: cited(source) for source in CURVES}
for name, value in SIMPLE.items():
    theirs[name] = {0.1: 100 * value / SIMPLE_FULL}
    sources[name] = (
        f"{SIMPLE_SOURCE}, 10 %: mean over the unpruned model's; mvbench, egoschema, longvideobench, videomme"
    )
for name, (value, source) in STATED.items():
    theirs[name], sources[name] = {0.25: value}, source
ours: dict[str, dict[float, float]] = {}
with args.accuracies.open(newline="", encoding="utf8") as file:
    for row in csv.DictReader(file):
        if row["category"] == "all" and row["method"] in theirs and float(row["ratio"]) in RATIOS:
            ours.setdefault(row["method"], {})[float(row["ratio"])] = 100 * float(row["relative"])


def ranked(ratio: float, *, controls: bool) -> tuple[list[str], tuple[float, float, float]]:
    """Methods that both have at a ratio, and the correlation of their ranks with its interval over methods."""
    names = [name for name in theirs if ratio in theirs[name] and ratio in ours.get(name, {})]
    names = [name for name in names if controls or name not in CONTROLS]
    if len(names) < 3:
        return names, (math.nan, math.nan, math.nan)
    return names, spearman_interval([[ours[n][ratio] for n in names]], [[theirs[n][ratio] for n in names]])


def drawn(curves: Mapping[str, Mapping[str, Mapping[float, float]]]) -> str:
    """Both sets of curves side by side on one scale, as an SVG file."""
    import io
    import re

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from jvidprune.viz.sweep_plots import spread, standalone
    from jvidprune.viz.sweep_style import INK, LINE, SOFT, series_styles, themed

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "jvidprune published"})
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    styles = series_styles(list(theirs))
    places = {ratio: i for i, ratio in enumerate(RATIOS)}
    for axes, (title, some) in zip(figure.subplots(1, 2, sharey=True), curves.items(), strict=True):
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.grid(axis="y", color=LINE, lw=0.8)
        axes.tick_params(colors=SOFT, length=0)
        axes.set_title(title, color=INK, fontsize=12, loc="left")
        ends = []
        for name, points in some.items():
            style, at = styles[name], sorted(points, reverse=True)
            axes.plot(
                [places[r] for r in at],
                [points[r] for r in at],
                color=style.colour,
                ls=style.dashes,
                lw=1.3 if style.control else 2,
                marker=style.marker,
                ms=5,
            )
            ends.append((points[at[-1]], name))
        ends.sort()
        low, high = axes.get_ylim()
        spots = spread([y for y, _ in ends], (high - low) * 0.04, low, high)
        for (_, name), y in zip(ends, spots, strict=True):
            text = registry.title(name)
            end = min(some[name])
            axes.plot([places[end] + 0.04, 3.12], [some[name][end], y], color=styles[name].colour, lw=0.6, ls=":")
            axes.text(3.15, y, text, color=styles[name].colour, va="center", fontsize=9.5)
        axes.set_xticks(range(len(RATIOS)), [f"{100 * ratio:g} %" for ratio in RATIOS])
        axes.set_xlim(-0.15, 5.0)
        axes.set_xlabel("retention ratio as the tables name it", color=SOFT)
    figure.axes[0].set_ylabel("per cent of the unpruned model's accuracy", color=SOFT)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = themed(buffer.getvalue()[buffer.getvalue().index("<svg") :])
    # Coordinates to a tenth of a point: nobody sees the rest.
    return re.sub(r"(\d+\.\d)\d+", r"\1", standalone(svg))


rows = [
    {
        "method": name,
        "ratio": ratio,
        "ours": ours.get(name, {}).get(ratio, math.nan),
        "published": theirs[name].get(ratio, math.nan),
        "source": sources[name],
    }
    for name in theirs
    for ratio in RATIOS
    if ratio in theirs[name]
]


def cell(name: str, ratio: float) -> str:
    """Ours and theirs."""
    a, b = ours.get(name, {}).get(ratio), theirs[name].get(ratio)
    return f"{'–' if a is None else f'{a:.1f}'} / {'–' if b is None else f'{b:.1f}'}"


told = []
for ratio in COMPARED:
    for controls in (False, True):
        names, (rho, low, high) = ranked(ratio, controls=controls)
        if controls and len(names) == len(ranked(ratio, controls=False)[0]):
            continue
        with_them = ", simple strategies among them" if controls else ""
        told.append(f"at {100 * ratio:g} %: {rho:+.2f} [{low:+.2f}, {high:+.2f}] over {len(names)} methods{with_them}")
print("Spearman's rank correlation of ours and the published relative accuracies, 95 % bootstrap over methods:")
print("\n".join(told))
parts = [
    "# Beside the published curves of LLaVA-OneVision-7B\n",
    "Per cent of the unpruned model's accuracy: the embedded model's on the generated benchmark / the published one on "
    "real benchmarks, at the ratio that both tables name (what is kept differs, and so do the benchmarks of the "
    "papers). Written by `experiments/published_curves.py`.\n",
    grid(
        ["method", *(f"{100 * r:g} %" for r in RATIOS)],
        [[registry.title(name), *(cell(name, r) for r in RATIOS)] for name in theirs],
    ),
    "\n![both](published_curves.svg)\n",
    "Spearman's rank correlation with 95 % bootstrap intervals over methods:\n",
    *(f"- {line}" for line in told),
    "\n## Sources\n",
    *(f"- {registry.title(name)}: {text}" for name, text in sources.items()),
]
args.out.mkdir(parents=True, exist_ok=True)
write_table(args.out / "published_curves.csv", rows)
(args.out / "published_curves.md").write_text("\n".join(parts) + "\n", encoding="utf8")
figure = drawn({"the embedded model, generated benchmark": ours, "LLaVA-OneVision-7B, as published": theirs})
(args.out / "published_curves.svg").write_text(figure, encoding="utf8")
