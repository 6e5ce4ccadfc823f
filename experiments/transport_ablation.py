"""Which part of AOT's transport matters, and does it beat averaging, or no merging at all?

    python -m experiments.transport_ablation                 what the committed table shows, going on where it stopped
    python -m experiments.transport_ablation --minutes 2     a piece of it

With the embedded model on held-out test clips and the questions that it answers above chance, at equal tokens. Writes
transport_ablation.csv, transport_ablation.md and transport_ablation.svg; no times.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.evals.laboratory import LabClip, Laboratory, procedural_clips, run_laboratory
from jvidprune.evals.laboratory_table import Mean, change, mean, of, rows, shown
from jvidprune.evals.markdown import grid
from jvidprune.evals.tasks import answerable_part
from jvidprune.files import write_table
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.ops.transport import LocalityCost, Saliency, Sinkhorn, TokenCost, Transport
from jvidprune.procedural.benchmark import Split
from jvidprune.reducers import AOT

READING = "## What it shows\n"
"""Heading behind which a person writes; another run leaves that as it is."""

RATIOS = (0.05, 0.1, 0.2)
AOT_ITSELF, MEANS = "AOT", "anchors as means"
"""The reference, and AOT whose anchors become means of what they receive (columns inside frames, no nearest share).
"""

NOTHING, NEAREST, PURE = "merging: none", "merging: nearest anchor", "merging: transport without nearest share"


def ablations(aot: AOT) -> dict[str, AOT]:
    """One part changed at a time."""

    def inside(**parts: Any) -> AOT:
        return dataclasses.replace(aot, intra_transport=Transport(**parts).over(aot.intra_transport))

    def both(**parts: Any) -> AOT:
        along = Transport(**parts).over(aot.inter_transport)
        return dataclasses.replace(inside(**parts), inter_transport=along)

    solved = Sinkhorn(threshold=1e-6, stop="each", max_iterations=200)
    return {
        AOT_ITSELF: aot,
        NOTHING: dataclasses.replace(aot, nearest=0.0, intra_scale=0.0, inter_scale=0.0),
        NEAREST: dataclasses.replace(aot, nearest=1.0),
        PURE: dataclasses.replace(aot, nearest=0.0),
        "anchors: local alone": dataclasses.replace(aot, global_ratio=0.0),
        "anchors: global alone": dataclasses.replace(aot, global_ratio=1.0),
        "cost: features alone": inside(cost=TokenCost(1.0, 0.0)),
        "cost: places alone": inside(cost=TokenCost(0.0, 0.5)),
        "cost: the least alike": inside(cost=TokenCost(-1.0, -0.5)),
        "cost: LocalityCost, both stages": both(cost=LocalityCost()),
        "masses: saliency": both(marginals=Saliency()),
        "masses: saliency stays": both(marginals=Saliency(-1.0, 1.0)),
        "epsilon: 0.03": both(solver=Sinkhorn(0.03)),
        "epsilon: 1": both(solver=Sinkhorn(1.0)),
        "solver: converged": both(solver=solved),
        "projection: row inside": inside(projection="row"),
        "projection: column inside": inside(projection="column"),
        MEANS: as_means(aot),
    }


def as_means(aot: AOT) -> AOT:
    """See `MEANS`."""
    column = Transport(projection="column").over(aot.intra_transport)
    return dataclasses.replace(aot, nearest=0.0, intra_transport=column)


def clips_of(llm: VideoLLM, split: Split, count: int) -> list[LabClip]:
    """The clips of `answerable_part` for a laboratory."""
    return procedural_clips(answerable_part(llm, split, count))


def draw(path: Path, changes: Mapping[str, Sequence[Mean]]) -> None:
    """Changes of accuracy against AOT, one part at a time."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jvidprune"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axis, names = figure.subplots(), list(changes)
    for place, ratio in enumerate(RATIOS):
        values = [changes[name][place] for name in names]
        heights = [i + 0.22 * (place - 1) for i in range(len(names))]
        middle = [100 * v.value for v in values]
        spans = [[100 * (v.value - v.low) for v in values], [100 * (v.high - v.value) for v in values]]
        axis.errorbar(middle, heights, xerr=spans, fmt="o", markersize=3, linewidth=1, label=f"{100 * ratio:g} %")
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="points of accuracy against AOT")
    axis.legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=30, help="held-out test clips")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, to go on another time")
    parser.add_argument("--apart", action="store_true", help="a program for each structure, so that pieces are short")
    parser.add_argument("--model", default=None, help="by default the embedded one")
    parser.add_argument("--folder", type=Path, default=Path("runs/transport_ablation"))
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    args = parser.parse_args()
    begin = time.time()
    args.late = lambda: time.time() - begin > 60 * args.minutes

    def say(text: str) -> None:
        print(f"{time.time() - begin:6.0f} s {text}", flush=True)

    llm = VideoLLM.load(args.model, dtype="float32")
    test = clips_of(llm, "test", args.clips)
    options: dict[str, Any] = {"until": args.late}

    def measured(name: str, methods: Mapping[str, Any], ratios: tuple[float, ...], clips: list[Any]) -> list[Any]:
        say(f"{name}: {len(methods)} methods")
        found: list[Any] = []
        whole = Laboratory(llm, methods, ratios)
        parts = [list(methods)]
        if args.apart:
            layout = llm.encode(clips[0].load(), needs=whole.needs).tokens.layout()
            parts = [names for _, names in whole.groups(layout)[0]]
        for names in parts:
            lab = dataclasses.replace(whole, methods={one: methods[one] for one in names})
            found += run_laboratory(lab, clips, args.folder / name, **options)
            say(f"{name}: {', '.join(names)}")
            if args.late():
                raise TimeoutError
        order = {one: place for place, one in enumerate(methods)}
        return sorted(found, key=lambda record: order[record["setting"]])

    try:
        aot: Any = llm.reducer("aot")
        records = measured("ablation", ablations(aot), RATIOS, test)
    except TimeoutError:
        say("not finished: run again")
        return
    write(args, records)
    say(str(args.out / "transport_ablation.md"))


def write(args: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """Table, figure and page."""
    base = {ratio: of(records, AOT_ITSELF, ratio) for ratio in RATIOS}
    percent = [f"{100 * ratio:g} %" for ratio in RATIOS]

    def line(name: str, first: Callable[[float], Any], second: Callable[[float], Any], measure: str) -> list[str]:
        return [name, *(shown(change(first(r), second(r), measure), measure != "error", True) for r in RATIOS)]

    others = list(dict.fromkeys(record["setting"] for record in records))
    ablated = {n: [change(base[r], of(records, n, r), "accuracy") for r in RATIOS] for n in others if n != AOT_ITSELF}
    merging = [
        line(f"{a} → {b}, {what}", lambda r, a=a: of(records, a, r), lambda r, b=b: of(records, b, r), measure)
        for a, b in (
            (NOTHING, AOT_ITSELF),
            (NOTHING, NEAREST),
            (NEAREST, AOT_ITSELF),
            (NEAREST, PURE),
            (NEAREST, MEANS),
        )
        for measure, what in (("accuracy", "answers, points"), ("error", "error"))
    ]
    table = rows(records, others, RATIOS)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / "transport_ablation.svg", ablated)
    head = ["change, paired", *percent]
    lines = [
        "# What of a transport matters\n",
        f"{args.clips} held-out clips of the procedural test split, {sum(len(r['right']) for r in base[RATIOS[0]])}"
        " questions "
        "that the embedded model answers above chance; 95 % bootstrap intervals over clips, bold where zero lies "
        "outside. "
        f"Settings of one table keep the same number of tokens unless their tokens are "
        "listed. The error is that of dropped tokens rebuilt as their nearest output "
        "token, as a share of their variance. Of eight frames AOT's fixed rule makes clips of one frame, so that its "
        "stage along clips does nothing unless clips of four are asked for. Written by "
        "`python -m experiments.transport_ablation`.\n",
        "![Changes of accuracy](transport_ablation.svg)\n",
        "\n## Transport, averaging, nothing\n\nInside frames.\n",
        grid(head, merging),
        "\n## One part at a time\n\nPoints of accuracy against AOT.\n",
        grid(head, [[n, *(shown(v, True, True) for v in values)] for n, values in ablated.items()]),
        "\n## Accuracies and tokens\n",
        grid(
            ["setting", *percent, *(f"tokens at {p}" for p in percent)],
            [
                [
                    n,
                    *(shown(mean(of(records, n, r), "accuracy"), True) for r in RATIOS),
                    *(f"{mean(of(records, n, r), 'kept', 1).value:.1f}" for r in RATIOS),
                ]
                for n in others
            ],
        ),
    ]
    write_pages(args.out / "transport_ablation", table, lines)


def write_pages(path: Path, table: Sequence[Mapping[str, Any]], lines: Sequence[str]) -> None:
    """Table and page beside each other; what a person wrote behind `READING` stays."""
    blank = [{k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in table]
    write_table(path.with_suffix(".csv"), blank)
    page = path.with_suffix(".md")
    known = page.read_text(encoding="utf8").partition(READING)[2] if page.exists() else ""
    page.write_text("\n".join(lines) + "\n" + (f"\n{READING}{known}" if known else ""), encoding="utf8")


if __name__ == "__main__":
    main()
