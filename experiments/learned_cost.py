"""Does a learned cost beat AOT's own on held-out clips, at equal tokens?

    python -m experiments.learned_cost                 what the committed table shows, going on where it stopped
    python -m experiments.learned_cost --minutes 9     a piece of it

Trains costs of the transport inside frames beside the embedded model with the code of `jvidprune train cost`, over
several seeds, once in AOT as it is and once in AOT whose anchors become means of what they receive, where nothing but
the plan decides. Then measures them on test clips, and writes learned_cost.csv, learned_cost_curve.csv, learned_cost.md
and learned_cost.svg; no times.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.transport_ablation import (
    AOT_ITSELF,
    MEANS,
    NEAREST,
    NOTHING,
    RATIOS,
    ablations,
    clips_of,
    write_pages,
)
from jvidprune.evals.laboratory import Laboratory, run_laboratory
from jvidprune.evals.laboratory_table import Mean, change, mean, of, pooled, rows, shown
from jvidprune.evals.markdown import grid
from jvidprune.evals.tasks import answerable_part
from jvidprune.files import write_table
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.training.loop import read_curve
from jvidprune.training.transports import CostChoice, CostTrainer

COSTS: dict[str, dict[str, Any]] = {
    "network": {"cost": "network", "rate": 1e-2},
    "Mahalanobis": {"cost": "mahalanobis", "rate": 1e-3},
    "network and masses": {"cost": "network", "masses": True, "rate": 1e-2},
}
OBJECTIVES = {"reconstruction": "reconstruction", "kl": "what the unpruned model says (KL)", "answer": "answers"}
BASES = (AOT_ITSELF, MEANS)
REFERENCES = (NEAREST, NOTHING)


class Learned(NamedTuple):
    """What was learned, in which method, from what; a run for every seed."""

    base: str
    cost: str
    objective: str

    def run(self, seed: int) -> str:
        """Name of a run."""
        return f"{self.base}, {self.cost} by {self.objective}, seed {seed}"

    @property
    def title(self) -> str:
        """As the tables say it."""
        return f"{self.base}: {self.cost} by {OBJECTIVES[self.objective]}"


def trained(llm: VideoLLM, args: Any, kinds: Sequence[Learned], say: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Methods and curves of training by the name of the run.

    Raises:
      TimeoutError: the time is up; what was trained stays in its folders.
    """
    bases = ablations(llm.reducer("aot"))  # pyright: ignore[reportArgumentType]
    task = answerable_part(llm, "train", args.train_clips)
    shared = {"stage": "intra", "steps": args.steps, "clips": args.batch, "log": args.log, "every": 4 * args.log}
    methods, curves = {}, {}
    for kind in kinds:
        choice = CostChoice(objective=kind.objective, **COSTS[kind.cost], **shared)  # pyright: ignore[reportArgumentType]
        trainer = CostTrainer(llm, bases[kind.base], choice, task)
        for seed in range(args.seeds):
            folder = args.folder / "train" / kind.run(seed)
            methods[kind.run(seed)] = trainer.with_seed(seed).run(folder, stop_at=args.late)
            curves[kind.run(seed)] = read_curve(folder)
            say(f"{kind.run(seed)}: loss {curves[kind.run(seed)][-1]['loss']:.4f}")
            if args.late():
                raise TimeoutError
    return methods, curves


def curve_of(curves: Mapping[str, list[dict[str, float]]], kind: Learned, seeds: int) -> dict[str, np.ndarray]:
    """Steps, and the mean, the lowest and the highest loss over the seeds at each."""
    own = [curves[kind.run(seed)] for seed in range(seeds)]
    losses = np.array([[line["loss"] for line in lines] for lines in own])
    steps = np.array([line["step"] for line in own[0]])
    return {"step": steps, "mean": losses.mean(0), "low": losses.min(0), "high": losses.max(0)}


def draw(path: Path, curves: Mapping[Learned, dict[str, np.ndarray]], found: Mapping[Any, Sequence[Mean]]) -> None:
    """Losses by steps for each objective, and changes against the method's own cost in error and in answers."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jvidprune"
    from matplotlib.figure import Figure

    kinds = list(curves)
    objectives = list(dict.fromkeys(kind.objective for kind in kinds))
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subfigures(2, 1)
    for axis, objective in zip(np.ravel(above.subplots(1, len(objectives))), objectives, strict=True):
        for kind in (one for one in kinds if one.objective == objective):
            line = curves[kind]
            axis.plot(line["step"], line["mean"], label=f"{kind.base}: {kind.cost}", linewidth=1)
            axis.fill_between(line["step"], line["low"], line["high"], alpha=0.15)
        axis.set(xlabel="steps", ylabel=f"loss: {OBJECTIVES[objective]}")
        axis.legend(frameon=False, fontsize=6)
    panels = (("error", 1, "error of dropped tokens against its own cost"), ("accuracy", 100, "points of accuracy"))
    for axis, (measure, scale, label) in zip(below.subplots(1, 2, sharey=True), panels, strict=True):
        for place, ratio in enumerate(RATIOS):
            values = [found[kind, measure][place] for kind in kinds]
            middle = [scale * v.value for v in values]
            spans = [[scale * (v.value - v.low) for v in values], [scale * (v.high - v.value) for v in values]]
            heights = [i + 0.22 * (place - 1) for i in range(len(kinds))]
            axis.errorbar(middle, heights, xerr=spans, fmt="o", markersize=3, linewidth=1, label=f"{100 * ratio:g} %")
        axis.axvline(0, color="0.6", linewidth=0.8)
        names = [f"{kind.base}: {kind.cost}, {kind.objective}" for kind in kinds]
        axis.set_yticks(range(len(kinds)), names, fontsize=6)
        axis.set(xlabel=label)
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60, help="held-out test clips")
    parser.add_argument("--train-clips", type=int, default=48, help="clips to learn from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=2, help="clips of a step, at two ratios each")
    parser.add_argument("--log", type=int, default=5, help="steps between lines of the curve")
    parser.add_argument("--costs", nargs="+", choices=COSTS, default=["network", "Mahalanobis"])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=["reconstruction", "kl"])
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, to go on another time")
    parser.add_argument("--model", default=None, help="by default the embedded one")
    parser.add_argument("--folder", type=Path, default=Path("runs/learned_cost"))
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    args = parser.parse_args()
    begin = time.time()
    args.late = lambda: time.time() - begin > 60 * args.minutes

    def say(text: str) -> None:
        print(f"{time.time() - begin:6.0f} s {text}", flush=True)

    llm = VideoLLM.load(args.model, dtype="float32")
    kinds = [Learned(base, cost, goal) for base in BASES for goal in args.objectives for cost in args.costs]
    try:
        learned, curves = trained(llm, args, kinds, say)
    except TimeoutError:
        say("not finished: run again")
        return
    fixed = ablations(llm.reducer("aot"))  # pyright: ignore[reportArgumentType]
    lab = Laboratory(llm, {name: fixed[name] for name in (*BASES, *REFERENCES)} | learned, RATIOS)
    test = clips_of(llm, "test", args.clips)
    done: dict[str, Any] = {"progress": lambda number, count: say(f"{number} of {count} clips"), "until": args.late}
    records = run_laboratory(lab, test, args.folder / "test", **done)
    if len(records) < len(test) * len(lab.methods) * len(RATIOS):
        say("not finished: run again")
        return
    write(args, kinds, records, curves)
    say(str(args.out / "learned_cost.md"))


def write(args: Any, kinds: Sequence[Learned], records: Sequence[Mapping[str, Any]], curves: Mapping[str, Any]) -> None:
    """Tables, figure and page."""
    percent, seeds = [f"{100 * ratio:g} %" for ratio in RATIOS], range(args.seeds)

    def own(kind: Learned, ratio: float) -> list[dict[str, Any]]:
        return pooled(records, [kind.run(seed) for seed in seeds], ratio)

    def changes(first: Any, second: Any, measure: str) -> list[Mean]:
        """From one setting or learned kind to another."""
        sides = [[own(x, r) if isinstance(x, Learned) else of(records, x, r) for r in RATIOS] for x in (first, second)]
        return [change(a, b, measure) for a, b in zip(*sides, strict=True)]

    def table(pairs: Sequence[tuple[str, Any, Any]], measure: str) -> str:
        points = measure == "accuracy"
        lines = [[name, *(shown(one, points, True) for one in changes(a, b, measure))] for name, a, b in pairs]
        return grid(["change, paired", *percent], lines)

    found = {(kind, m): changes(kind.base, kind, m) for kind in kinds for m in ("error", "accuracy")}
    own_cost = [(kind.title, kind.base, kind) for kind in kinds]
    others: list[tuple[str, Any, Any]] = [(f"{name} → {base}", name, base) for base in BASES for name in REFERENCES]
    others += [(f"{name} → {kind.title}", name, kind) for kind in kinds for name in REFERENCES]
    single = [(kind.run(seed), kind.base, kind.run(seed)) for kind in kinds for seed in seeds]
    lines_of = {kind: curve_of(curves, kind, args.seeds) for kind in kinds}
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / "learned_cost.svg", lines_of, found)
    asked = sum(len(record["right"]) for record in of(records, AOT_ITSELF, RATIOS[0]))
    fixed = [(name, [of(records, name, ratio) for ratio in RATIOS]) for name in (*BASES, *REFERENCES)]
    everything = [*fixed, *((kind.title, [own(kind, ratio) for ratio in RATIOS]) for kind in kinds)]
    lines = [
        "# Costs that were learned\n",
        "Costs of AOT's transport inside frames were trained for the frozen embedded model, with the code of "
        f"`jvidprune train cost`: {args.steps} steps of {args.batch} clips on {args.train_clips} training clips, with "
        f"two retention ratios for each clip, drawn between 5 and 25 %. {args.seeds} seeds set the first weights and "
        f"the draws. The costs were measured on {args.clips} test clips with {asked} questions that the model answers "
        "above chance, at equal tokens (the anchors are the same). Changes are paired by clip. Answers and errors of a "
        "clip are means over the seeds. Intervals are 95 % bootstrap intervals over clips, bold if they do not contain "
        "zero. The error is the squared error when each dropped token is replaced by its nearest output token, divided "
        'by the variance of the dropped tokens: lower is better. In the second method ("anchors as means") every '
        "anchor becomes the mean of what it receives, so only the plan decides what the anchors are. Written by "
        "`python -m experiments.learned_cost`.\n",
        "![Losses in training, and changes against the method's own cost](learned_cost.svg)\n",
        "\n## Against the method's own cost: answers, points\n",
        table(own_cost, "accuracy"),
        "\n## Against the method's own cost: error\n",
        table(own_cost, "error"),
        "\n## Against nearest-anchor averaging and no merging: answers, points\n",
        table(others, "accuracy"),
        "\n## Against nearest-anchor averaging and no merging: error\n",
        table(others, "error"),
        "\n## Each seed against the method's own cost: answers, points\n",
        table(single, "accuracy"),
        "\n## Accuracies, errors and tokens\n",
        grid(
            ["setting", *(f"{what} at {p}" for what in ("answers", "error", "tokens") for p in percent)],
            [
                [name]
                + [shown(mean(part, "accuracy"), True) for part in parts]
                + [shown(mean(part, "error")) for part in parts]
                + [f"{mean(part, 'kept', 1).value:.1f}" for part in parts]
                for name, parts in everything
            ],
        ),
        "\n## In training\n",
        "Mean loss over the seeds in the first and in the last tenth of the steps.\n",
        grid(["run", "first", "last"], [[kind.title, *ends(lines_of[kind])] for kind in kinds]),
    ]
    settings = [*BASES, *REFERENCES, *(kind.run(seed) for kind in kinds for seed in seeds)]
    write_pages(args.out / "learned_cost", rows(records, settings, RATIOS), lines)
    curve_rows = [{"run": name} | {k: line[k] for k in CURVE} for name, curve in curves.items() for line in curve]
    write_table(args.out / "learned_cost_curve.csv", curve_rows, digits=5)


CURVE = ("step", "loss", "reconstruction", "tokens", "slope")
"""What the table of the curves has of each line."""


def ends(line: Mapping[str, np.ndarray]) -> list[str]:
    """Means of the first and the last tenth of a curve."""
    part = max(1, len(line["mean"]) // 10)
    return [f"{line['mean'][:part].mean():.4f}", f"{line['mean'][-part:].mean():.4f}"]


if __name__ == "__main__":
    main()
