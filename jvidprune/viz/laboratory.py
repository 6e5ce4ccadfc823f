"""Table and figure of `jvidprune costs`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.evals.laboratory_table import change, mean, of, rows, shown
from jvidprune.evals.markdown import grid
from jvidprune.files import atomic_output, write_table

PANELS = (
    ("error", "error of dropped tokens, share of variance", 1.0),
    ("recall", "objects recalled, %", 100.0),
    ("accuracy", "right answers, %", 100.0),
    ("marginal", "marginal error", 1.0),
)
"""Measure, label and scale of each panel."""


LEGEND = """\
Means over clips with 95 % bootstrap intervals; a dash where nothing is known of these clips.

- transport: the part that differs; "own" is what the method itself has in its place.
- error: dropped tokens rebuilt as their nearest output token, as a share of their variance. 0 is exact, 1 what their
  mean does.
- objects: of the tokens on an object those whose nearest output token stands on one of the same colour and shape.
- answers: right ones of {asked} questions.
- marginal error: mass that plans send or take too much or too little, of 1 on each side; iterations: updates of the
  solver; both are means over a method's transports. An early stop leaves an error.
- tokens: that are left, mean over clips.
"""
"""What the columns of a page are."""


def write_laboratory(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    settings: Sequence[str],
    ratios: Sequence[float],
    *,
    title: str,
    times: Mapping[str, float] | None = None,
) -> list[Path]:
    """costs.csv, costs.md and costs.svg of the records that are there.

    Args:
      folder: of the files.
      records: from `run_laboratory`.
      settings: in their order; the first is what the others are compared with.
      ratios: in their order.
      title: first line of the page.
      times: milliseconds of one reduction by setting, where they were measured.
    """
    table = rows(records, settings, ratios)
    for row in table:
        if times is not None:
            row["ms"] = times.get(row["setting"], math.nan)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "costs.csv", [{k: "" if _missing(v) else v for k, v in row.items()} for row in table])
    with atomic_output(folder / "costs.md") as part:
        part.write_text(page(records, settings, ratios, title=title, times=times), encoding="utf8")
    draw(folder / "costs.svg", table, settings, ratios)
    return [folder / name for name in ("costs.csv", "costs.md", "costs.svg")]


def _missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def page(
    records: Sequence[Mapping[str, Any]],
    settings: Sequence[str],
    ratios: Sequence[float],
    *,
    title: str,
    times: Mapping[str, float] | None = None,
) -> str:
    """The page: means with intervals over clips, then each setting against the first."""
    asked = sum(len(record["right"]) for record in of(records, settings[0], ratios[0]))
    parts = [f"# {title}\n", LEGEND.format(asked=asked)]
    for ratio in ratios:
        lines = []
        for setting in settings:
            own = of(records, setting, ratio)
            cells = [shown(mean(own, name), percent=scale > 1) for name, _, scale in PANELS[:3]]
            plain = [mean(own, name).value for name in ("marginal", "iterations", "kept")]
            lines.append([setting, *cells, *("–" if math.isnan(x) else f"{x:.3g}" for x in plain)])
            if times is not None:
                lines[-1].append(f"{times[setting]:.2f}" if setting in times else "–")
        head = ["transport", "error", "objects, %", "answers, %", "marginal error", "iterations", "tokens"]
        parts += [f"\n## {100 * ratio:g} %\n", grid([*head, *(["ms"] if times is not None else [])], lines)]
        if len(settings) > 1:
            base = of(records, settings[0], ratio)
            changes = []
            for setting in settings[1:]:
                other = of(records, setting, ratio)
                cells = [shown(change(base, other, name), scale > 1, True) for name, _, scale in PANELS[:3]]
                changes.append([setting, *cells])
            parts.append(
                f"\nChange from {settings[0]}, paired by clip; bold where zero lies outside of the interval.\n"
            )
            parts.append(grid(["transport", "error", "objects, points", "answers, points"], changes))
    return "\n".join(parts) + "\n"


def draw(path: Path, table: Sequence[Mapping[str, Any]], settings: Sequence[str], ratios: Sequence[float]) -> None:
    """A panel for each measure that there is, over ratios, or over settings where there is one ratio."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jvidprune"
    from matplotlib.figure import Figure

    there = [panel for panel in PANELS if any(not _missing(row[panel[0]]) for row in table)]
    figure = Figure(figsize=(4.2 * max(len(there), 1), 3.6 + 0.16 * len(settings)), layout="constrained")
    axes = figure.subplots(1, max(len(there), 1), squeeze=False)[0]
    for axis, (measure, label, scale) in zip(axes, there, strict=False):
        for setting in settings:
            own = [row for row in table if row["setting"] == setting]
            places = [100 * row["ratio"] for row in own]
            axis.plot(places, [scale * row[measure] for row in own], "o-", markersize=3, linewidth=1, label=setting)
        axis.set(xlabel="retained ratio asked for, %", ylabel=label)
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    with atomic_output(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None, "Creator": None})
