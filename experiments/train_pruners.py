"""Trains routers of a mixture of depths and a CoViPAL module beside the embedded model, and compares what they choose.

    python experiments/train_pruners.py

The model itself stays as it is. Routers (`videollm_mod`, a share of each frame's tokens in every other layer) learn
from answers through their gates alone; the module learns first what a deep layer looks at and then from answers, in
front of the language model. Both are trained on clips of the procedural benchmark's training split, and may be killed
at any time and started again. Then held-out questions are answered with what was trained, with what training started
from, with draws and places at equal distances, with FastV and with PyramidDrop, at equal numbers of visual tokens: mean
over the layers of the language model. Writes train_pruners.csv, .md, .svg and train_pruners_curve.csv, without times.
"""

import os

# One thread a matrix product: at these sizes it is faster than two, and sums never depend on the number of cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from jvidprune.costs.flops_model import segments
from jvidprune.covipal import PPM, CoViPAL, module_weights
from jvidprune.evals.extract import is_correct
from jvidprune.evals.identity import model_fingerprint, run_hash
from jvidprune.evals.markdown import difference_table, grid
from jvidprune.evals.metrics import ALL, FULL, Cell, summarise
from jvidprune.evals.paired import paired_difference
from jvidprune.evals.store import RecordStore
from jvidprune.evals.tasks import answerable_part
from jvidprune.files import write_table
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.reducers import FastV, PyramidDrop, Random, Uniform, VideoLLMMoD
from jvidprune.training.loop import read_curve
from jvidprune.training.pruners import PrunerChoice, train_pruner
from jvidprune.training.routers import train_router
from jvidprune.weights import Weights

READING = "## What it shows\n"
"""Heading behind which a person writes; another run leaves that as it is."""

MODULE, GUIDED, UNTRAINED = "CoViPAL (reconstruction)", "CoViPAL, first stage only", "CoViPAL, not trained"
ROUTER, START = "MoD router", "MoD router, not trained"
DRAWN, ROUTED = "random", "random routes"
"""Methods with a row for each seed."""


def names_of(llm: VideoLLM, args: Any, modules: dict[str, Weights], router: Weights) -> dict[Any, Any]:
    """(name, ratio, seed) -> (reducer, its own ratio) of all that is compared; ratios are means over the layers."""
    depth = llm.loaded.config.text.layers
    routes = VideoLLMMoD(depth=depth, share=args.share)
    mean = 1 - (1 - args.share) * (depth // 2) / depth
    found: dict[Any, Any] = {(FULL, 1.0, 0): (llm.reducer("none"), 1.0)}
    for ratio in (mean, *args.ratios):
        found |= {(name, ratio, 0): (CoViPAL(module), ratio) for name, module in modules.items()}
        found[("uniform", ratio, 0)] = Uniform(), ratio
        found |= {(DRAWN, ratio, seed): (Random(seed=seed), ratio) for seed in range(args.seeds)}
        for first in (1, 2):
            # All layers in front of a cut read everything.
            if ratio * depth > first + 0.05:
                cut = FastV(layer=first), (ratio * depth - first) / (depth - first)
                found[(f"FastV, layer {first}", ratio, 0)] = cut
                places = sorted({first, -(-depth // 4) + first - 1, depth // 2})
                pyramid = PyramidDrop(depth=depth, cut_layers=tuple(places))
                found[(f"PyramidDrop from layer {first}", ratio, 0)] = pyramid, ratio
                pyramid = dataclasses.replace(pyramid, cut_positions="keep")
                found[(f"PyramidDrop from layer {first}, positions kept", ratio, 0)] = pyramid, ratio
    found[(ROUTER, mean, 0)] = dataclasses.replace(routes, router=router), mean
    found[(START, mean, 0)] = routes, mean
    found[("uniform routes", mean, 0)] = dataclasses.replace(routes, choice="uniform"), mean
    for seed in range(args.seeds):
        found[(ROUTED, mean, seed)] = dataclasses.replace(routes, choice="random", seed=seed), mean
    return found


def mean_tokens(reduced: ReducedVideo, layers: int) -> float:
    """Visual tokens that a layer of the language model reads, mean over the layers."""
    parts = segments(reduced.inner, layers, tokens=reduced.kept, visual=reduced.kept)
    return sum((part.stop - part.start) * part.tokens for part in parts) / layers


def answer(llm: VideoLLM, item: Any, made: dict[Any, Any]) -> list[dict[str, Any]]:
    """Records of all questions about a clip."""
    layers, video = llm.loaded.config.text.layers, llm.encode(item.load())
    asked = []
    for name, (reducer, ratio) in made.items():
        for question in item.questions:
            text = question.prompt()
            needs = {"question": text} if "text" in reducer.needs else {}
            asked.append((name, question, llm.reduce(video, reducer=reducer, ratio=ratio, **needs)))
    prompts = [Prompt(reduced, question.prompt()) for _, question, reduced in asked]
    replies = answer_many(llm, prompts, max_new_tokens=4, batch=16, min_fill=0.3)
    records = []
    for ((method, ratio, seed), question, reduced), reply in zip(asked, replies, strict=True):
        record = {"clip": item.id, "question": question.id, "method": method, "ratio": ratio, "seed": seed}
        record |= {"category": question.category, "prompt": reply.prompt, "kept": mean_tokens(reduced, layers)}
        right = is_correct(reply.text, question.answer, question.kind, question.options)
        records.append(record | {"correct": right})
    return records


def spread(records: Sequence[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """A record for each seed, also of methods that draw nothing: pairs are by question and seed."""
    found = []
    for record in records:
        own = [record["seed"]] if record["method"] in (DRAWN, ROUTED) else range(seeds)
        found += [record | {"question": f"{record['question']}#{seed}"} for seed in own]
    return found


def shown(cell: Cell | None) -> str:
    return "–" if cell is None else f"{100 * cell.accuracy:.1f} [{100 * cell.low:.0f}, {100 * cell.high:.0f}]"


def plot(path: Path, curves: dict[str, list[dict[str, float]]], cells: dict[Any, Cell], methods: Sequence[str]) -> None:
    """Two panels: losses by steps, and accuracy by visual tokens."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jvidprune"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, lines in curves.items():
        left.plot([line["step"] for line in lines], [line["loss"] for line in lines], label=name)
    left.set(xlabel="steps", ylabel="loss, nats", ylim=(0, None))
    for method in methods:
        own = sorted((ratio, cell.accuracy) for (name, ratio), cell in cells.items() if name == method)
        right.plot(
            [100 * ratio for ratio, _ in own], [100 * value for _, value in own], "o-", label=method, markersize=3
        )
    full = cells[FULL, 1.0]
    right.axhline(100 * full.accuracy, color="0.6", linestyle=":", label="all tokens")
    right.set(xlabel="visual tokens, mean over layers, %", ylabel="right answers, %")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.2, help="of each frame's tokens, in a routed layer")
    parser.add_argument(
        "--steps", type=int, nargs=3, default=(300, 150, 300), help="of both stages, and of the routers"
    )
    parser.add_argument("--rows", type=int, default=4, help="questions of a step")
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.5, 0.25, 0.1))
    parser.add_argument("--width", type=int, default=64, help="of the module")
    parser.add_argument("--clips", type=int, default=60, help="held-out clips")
    parser.add_argument("--seeds", type=int, default=2, help="of draws")
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--folder", type=Path, default=Path("runs/train_pruners"), help="of the runs")
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    args = parser.parse_args()
    begin = time.time()

    def say(text: str) -> None:
        print(f"{time.time() - begin:6.0f} s {text}", flush=True)

    def report(line: dict[str, float]) -> None:
        say(" ".join(f"{name}={value:.4g}" for name, value in line.items()))

    llm = VideoLLM.load(args.model, dtype="float32")
    held = answerable_part(llm, "test", args.clips)
    learned = answerable_part(llm, "train", args.rows * max(args.steps))
    say(f"{len(learned)} clips to learn from")
    choice = PrunerChoice(
        steps=tuple(args.steps[:2]),
        rates=(1e-3, 1e-4),
        width=args.width,
        hidden=4 * args.width,
        rows=args.rows,
        log=20,
        every=20,
    )
    guided, trained = train_pruner(llm, learned, args.folder / "covipal", choice, report=report)
    depth, width = llm.loaded.config.text.layers, llm.loaded.config.text.width
    start = VideoLLMMoD(depth=depth, share=args.share)
    options: dict[str, Any] = {"steps": args.steps[2], "rows": args.rows, "log": 20, "every": 20, "report": report}
    router = train_router(llm, learned, args.folder / "router", start, 1.0, **options)
    fresh = PPM(width, width=choice.width, hidden=choice.hidden, rngs=nnx.Rngs(choice.seed))
    modules = {MODULE: trained, GUIDED: guided, UNTRAINED: module_weights(fresh)}
    made = names_of(llm, args, modules, router)

    weights = [model_fingerprint(args.model), *(one.digest for one in (*modules.values(), router))]
    key = run_hash({"weights": weights, "task": held.fingerprint(), "share": args.share})
    store = RecordStore(args.folder / f"samples-{key}.jsonl", ("clip", "question", "method", "ratio", "seed"))
    for number in range(len(held)):
        item = held[number]
        wanted = {name: one for name, one in made.items() if (item.id, item.questions[-1].id, *name) not in store}
        if wanted:
            store.append(answer(llm, item, wanted))
            say(f"{number + 1} of {len(held)} clips")
    asked_of = {item.id for item in (held[number] for number in range(len(held)))}
    kept = [
        one for one in store.records() if one["clip"] in asked_of and (one["method"], one["ratio"], one["seed"]) in made
    ]
    records = spread(kept, args.seeds)
    runs = list(dict.fromkeys((method, ratio) for method, ratio, _ in made))
    cells = [cell for cell in summarise(records, runs) if cell.category == ALL]
    table = {(cell.method, cell.ratio): cell for cell in cells}
    ratios = sorted({ratio for _, ratio in runs} - {1.0}, reverse=True)
    methods = list(dict.fromkeys(method for method, _ in runs if method != FULL))
    order = sorted(methods, key=lambda name: [-table[name, r].accuracy if (name, r) in table else 0 for r in ratios])

    curves = {
        "guidance (KL)": read_curve(args.folder / "covipal" / "guided"),
        "answers, pruned": read_curve(args.folder / "covipal" / "answers"),
        "answers, routed": read_curve(args.folder / "router"),
    }
    lines = [{"run": name, **line} for name, curve in curves.items() for line in curve]
    fields = list(dict.fromkeys(field for line in lines for field in line))
    args.out.mkdir(parents=True, exist_ok=True)
    write_table(args.out / "train_pruners.csv", [dataclasses.asdict(cell) for cell in cells])
    curve_rows = [{field: line.get(field, "") for field in fields} for line in lines]
    write_table(args.out / "train_pruners_curve.csv", curve_rows, digits=5)
    drawn_in = [MODULE, GUIDED, ROUTER, DRAWN, "uniform", "PyramidDrop from layer 1, positions kept"]
    plot(args.out / "train_pruners.svg", curves, table, drawn_in)

    def change(second: str, others: Sequence[str], at: Sequence[float]) -> str:
        rows = [[paired_difference(records, other, second, ratio) for ratio in at] for other in others]
        return difference_table([f"{other} → {second}" for other in others], rows)

    head = ["method", *(f"{100 * ratio:g} %" for ratio in ratios)]
    mean, routed = max(ratios), (START, "uniform routes", ROUTED)
    beside = [name for name in methods if name not in (MODULE, ROUTER, *routed)]
    full = table[FULL, 1.0]
    parts = [
        "# A pruning module and routers, trained beside the embedded model\n",
        f"{len(held)} held-out clips of the procedural test split, {full.questions // args.seeds} questions of the "
        "kinds that the embedded model answers above chance; accuracy in per cent with 95 % bootstrap intervals over "
        f"clips; {args.seeds} seeds of what draws. The module of CoViPAL (a reconstruction, of width {args.width}) "
        f"stands in front of the language model and was trained for {args.steps[0]} steps by the attention of layer "
        f"{round(0.6 * depth)} and for {args.steps[1]} by answers; the routers of `videollm_mod` let "
        f"{100 * args.share:g} % of each frame's tokens into every other layer and were trained for {args.steps[2]} "
        f"steps; {args.rows} questions a step. The model stays as it is. Written by `experiments/train_pruners.py`; "
        f"model files {model_fingerprint(args.model)}, positions "
        f"{llm.settings.declared_positions or 'of the references'}.\n",
        f"Unpruned: {shown(full)} with {full.kept:.0f} visual tokens.\n",
        "Columns are visual tokens that a layer of the language model reads, mean over its layers. Routers were "
        "trained for one share; FastV and PyramidDrop read everything in front of their first cut. Behind its cuts "
        "PyramidDrop counts positions anew, as its code does, or keeps them, as this model learned.\n",
        grid(head, [[name, *(shown(table.get((name, ratio))) for ratio in ratios)] for name in order]),
        "\n## Tokens, mean over the layers\n",
        grid(
            head,
            [[name, *(f"{table[name, r].kept:.0f}" if (name, r) in table else "–" for r in ratios)] for name in order],
        ),
        "\n## The module against the others\n",
        "Points of accuracy, paired by question and seed; bold where zero lies outside.\n",
        change(MODULE, beside, ratios),
        "\n## The routers against the others\n",
        change(ROUTER, (*routed, MODULE, *beside[2:]), [mean]),
        "\n## In training\n",
        "![Losses by steps, and accuracy by tokens](train_pruners.svg)\n",
        grid(
            ["run", "steps", "loss", "what else"],
            [
                [name, f"{curve[at]['step']:.0f}", f"{curve[at]['loss']:.3f}", beside_loss(curve[at])]
                for name, curve in curves.items()
                for at in (0, -1)
            ],
        ),
        "\nThe loss of the first stage is a KL to the attention of the deep layer: `uniform` is that of equal scores, "
        "`recall` the share of the best quarter by that attention among the best quarter by score.",
    ]
    path = args.out / "train_pruners.md"
    said = path.read_text(encoding="utf8").partition(READING)[2] if path.exists() else ""
    path.write_text("\n".join(parts) + "\n" + (f"\n{READING}{said}" if said else ""), encoding="utf8")
    say(str(path))


def beside_loss(line: dict[str, float]) -> str:
    """The other metrics of a line."""
    names = ("uniform", "recall", "answer", "unpruned", "apart", "accuracy/all")
    return ", ".join(f"{name.removesuffix('/all')} {line[name]:.3f}" for name in names if name in line)


if __name__ == "__main__":
    main()
