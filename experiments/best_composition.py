"""The best composition of the library's parts against the published methods at 5 % of the tokens.

    python -m experiments.best_composition

Compositions of a selection, a transport and a sink rule are compared on validation clips of the procedural benchmark.
The one with most right answers is then compared, once, on test clips with the published methods that are best there in
the committed table (retention_all.csv, the same clips). Writes best_composition.csv and best_composition.md; no times.
A stopped run goes on.
"""

import argparse
import csv
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.transport_ablation import write_pages
from jvidprune.evals.markdown import difference_table, grid
from jvidprune.evals.metrics import ALL, Cell, summarise
from jvidprune.evals.paired import corrected, paired_difference
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.runner import run_sweep
from jvidprune.evals.tasks import answerable_part
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.ops import compact
from jvidprune.ops.sink import sink_scores
from jvidprune.ops.transport import LogSinkhorn, Rows, TokenCost, Transport, Uniform, blend
from jvidprune.reducers import Sequential, registry
from jvidprune.reducers.aot.intra import positions
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import Budget, Layout, Plan, VideoTokens
from jvidprune.viz.sweep_style import CONTROLS

RATIO = 0.05
MOST, ALL_TOKENS = 20, 288
"""Tokens of methods that count as equal at 5 % of all of them: 14 are the ratio itself."""

MOVED = Transport(TokenCost(), Uniform(), LogSinkhorn(0.1), "mass")


@dataclasses.dataclass(frozen=True)
class Transported:
    """A selection whose dropped tokens move, by transport inside each frame, onto the tokens that it keeps.

    Attributes:
      base: a method that keeps tokens as they are.
      scale: a kept token x_a becomes (x_a + s sum_r P_ra x_r) / (1 + s sum_r P_ra), as in AOT.
      sinks: share of its mass that a token at the strongest attention sink keeps to itself (SToP's sink score).
      transport: cost, masses, solver and projection.
    """

    base: Any
    scale: float = 1.0
    sinks: float = 0.0
    transport: Transport = MOVED

    @property
    def needs(self) -> frozenset[str]:
        """What the selection reads, and attention for the sinks."""
        return frozenset(self.base.needs) | {"attention_last"}

    def budget(self, layout: Layout, ratio: float) -> Budget:
        """The selection's."""
        return self.base.budget(layout, ratio)

    def capacity(self, layout: Layout, ratio: float) -> int:
        """The selection's."""
        return self.base.capacity(layout, ratio)

    def plan(self, video: VideoTokens, budget: Budget, *, capacity: int) -> Plan:
        """The selection's rows, each with what is moved onto it."""
        frames, tokens, _ = video.features.shape
        chosen = self.base.plan(video, budget, capacity=capacity)
        kept = jnp.zeros(frames * tokens + 1, bool).at[chosen.ids].max(chosen.valid)[:-1].reshape(frames, tokens)
        salient = video.evidence["attention_last"]
        score = sink_scores(salient, jnp.zeros(frames, jnp.int32), video.frame_mask)
        place = jnp.asarray(positions(video.grid))

        def one(x: Array, salient: Array, score: Array, kept: Array, there: Array, time: Array) -> tuple[Array, Array]:
            sides = [Rows(x, place, jnp.full(tokens, time), salient, mask) for mask in (there & ~kept, kept)]
            cost, mu, nu = self.transport.problem(*sides)
            mu = mu * (1 - self.sinks * score)
            mu = mu / jnp.maximum(mu.sum(), 1e-9)
            plan = self.transport.weights(self.transport.solver(cost, mu, nu).plan)
            own, moved = blend(jnp.where(kept[None] & (there & ~kept)[:, None], plan, 0.0), self.scale)
            return own, moved

        times = jnp.arange(frames, dtype=jnp.float32)
        own, moved = jax.vmap(one)(video.features, salient, score, kept, video.frame_mask, times)
        # Slot a of a token is its weight in the frame's token a.
        weight = moved + jnp.eye(tokens) * own[:, :, None]
        weight = jnp.where(kept[:, None], weight, 0.0).transpose(2, 0, 1).reshape(tokens, frames * tokens)
        target = jnp.arange(frames)[None, :, None] * tokens + jnp.arange(tokens)[:, None, None]
        target = jnp.broadcast_to(target, (tokens, frames, tokens)).reshape(tokens, frames * tokens)
        target = jnp.where(weight > 0, target, frames * tokens)
        return compact.ascending_plan(jnp.zeros(kept.size, jnp.int32), kept.reshape(-1), target, weight, capacity)


def candidates(llm: VideoLLM) -> dict[str, Reducer]:
    """What the library can make of selections, transports and sink rules."""
    texts = {
        "AOT, global anchors alone": "aot(global_ratio=1.0)",
        "SToP over AOT": "stop(base=aot)",
        "SToP over AOT, global anchors alone": "stop(base=aot(global_ratio=1.0))",
        "SToP over V-CAST": "stop(base=vcast)",
    }
    found: dict[str, Any] = {name: llm.reducer(text) for name, text in texts.items()}
    for name, text in (("VidCom2", "vidcom2"), ("V-CAST", "vcast")):
        base = llm.reducer(text)
        found[f"{name}, then transport, s 0.1"] = Transported(base, 0.1)
        found[f"{name}, then transport, s 1"] = Transported(base)
        found[f"{name}, then transport, s 1, sinks stay"] = Transported(base, sinks=1.0)
    attended, covered = llm.reducer("attention_topk(scope='frame')"), llm.reducer("ottvid(temporal=False)")
    found["Attention top-k, then VidCom2"] = Sequential(attended, llm.reducer("vidcom2"), ladder=(0.5,))
    found["OTT-Vid's selection, then VidCom2"] = Sequential(covered, llm.reducer("vidcom2"), ladder=(0.5,))
    return found


def measured(llm: VideoLLM, task: Any, methods: dict[str, Reducer], out: Path, say: Any) -> tuple[Any, dict[str, Cell]]:
    """Samples, and accuracies by name."""
    found = run_sweep(llm, task, SweepPlan(methods, (RATIO,)), out, progress=lambda text, done, total: say(text, done))
    cells = summarise(found.samples, [(name, RATIO) for name in methods])
    return found.samples, {cell.method: cell for cell in cells if cell.category == ALL}


def accuracy(cell: Cell) -> str:
    """In per cent, with its interval."""
    return f"{100 * cell.accuracy:.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"


def titled(name: str) -> str:
    """A method's title for people; compositions are named by theirs."""
    known = {*registry.names(), *registry.framed(), *registry.learned()}
    return (
        (f"{registry.title(name)} (control)" if name in CONTROLS else registry.title(name)) if name in known else name
    )


def committed(path: Path, most: int = MOST) -> list[dict[str, str]]:
    """Rows of the committed table at this ratio with so many tokens at most, the best first."""
    with path.open(newline="", encoding="utf8") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] == ALL and float(row["ratio"]) == RATIO]
    rows = [row for row in rows if float(row["kept"]) <= most]
    return sorted(rows, key=lambda row: -float(row["accuracy"]))


def line_of(row: dict[str, str]) -> list[str]:
    """What the page shows of a row of the committed table."""
    accuracy, low, high = (100 * float(row[name]) for name in ("accuracy", "low", "high"))
    title = f"{titled(row['method'])}, from the committed table"
    return [title, f"{accuracy:.1f} [{low:.1f}, {high:.1f}]", f"{float(row['kept']):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", type=int, default=40, help="validation clips to choose on")
    parser.add_argument("--clips", type=int, default=60, help="test clips, as in the committed table")
    parser.add_argument("--published", type=int, default=4, help="best methods of the committed table that run again")
    parser.add_argument("--table", type=Path, default=Path("experiments/retention_all.csv"))
    parser.add_argument("--model", default=None, help="by default the embedded one")
    parser.add_argument("--folder", type=Path, default=Path("runs/best_composition"))
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    args = parser.parse_args()
    begin, last = time.time(), [""]

    def say(text: str, done: int = 0) -> None:
        if text != last[0]:
            print(f"{time.time() - begin:6.0f} s {done} {text}", flush=True)
            last[0] = text

    llm = VideoLLM.load(args.model, dtype="float32")
    tried = candidates(llm)
    task = answerable_part(llm, "validation", args.validation)
    _, on_validation = measured(llm, task, tried, args.folder / "validation", say)
    order = sorted(tried, key=lambda name: (-on_validation[name].accuracy, on_validation[name].kept))
    args.tokens = llm.encode(task[0].load()).tokens.layout().total
    args.most = MOST * args.tokens // ALL_TOKENS
    known = committed(args.table, args.most)
    again = [row["method"] for row in known if row["method"] not in CONTROLS][: args.published]
    published: dict[str, Reducer] = {name: llm.reducer(name) for name in again}
    methods = {order[0]: tried[order[0]], **published}
    test = answerable_part(llm, "test", args.clips)
    samples, on_test = measured(llm, test, methods, args.folder / "test", say)
    write(args, order, on_validation, on_test, samples, known)
    say(str(args.out / "best_composition.md"))


def write(
    args: Any,
    order: Sequence[str],
    on_validation: dict[str, Cell],
    on_test: dict[str, Cell],
    samples: Any,
    known: Sequence[dict[str, str]],
) -> None:
    """Table and page."""
    best, again = order[0], [name for name in on_test if name != order[0]]
    found = [paired_difference(samples, name, best, RATIO) for name in again]
    tests = [f"{one.adjusted:.2g}" for one in corrected([one for one in found if one is not None])]
    asked = on_validation[best].questions, on_test[best].questions
    others = [row for row in known if row["method"] not in on_test]
    lines = [
        "# The best composition at 5 % of the tokens\n",
        f"{len(order)} compositions of a selection, a transport and a sink rule were compared on {args.validation} "
        f"validation clips ({asked[0]} questions that the embedded model answers above chance). The composition with "
        "the most right answers was chosen; in a tie, the one with fewer tokens. It was then compared once, on "
        f"{args.clips} test clips ({asked[1]} questions), with the {len(again)} published methods that are best on "
        "these clips in [retention_all.md](retention_all.md). Only methods that keep at most "
        f"{args.most} of {args.tokens} tokens before the language model are compared. Methods that prune inside it are "
        "left out, because its first layers read all tokens. Values are per cent, with 95 % bootstrap intervals over "
        "clips. Written by `python -m experiments.best_composition`.\n",
        "## The choice, on validation clips\n",
        grid(
            ["composition", "answers", "tokens"],
            [[name, accuracy(on_validation[name]), f"{on_validation[name].kept:.1f}"] for name in order],
        ),
        "\n## The comparison, on test clips\n",
        grid(
            ["method", "answers", "tokens"],
            [
                *([titled(name), accuracy(cell), f"{cell.kept:.1f}"] for name, cell in on_test.items()),
                *map(line_of, others),
            ],
        ),
        f"\nPoints of accuracy from a method to {best}, paired; bold where zero lies outside. McNemar's p, corrected "
        f"for {len(again)} comparisons: {', '.join(tests)}.\n",
        difference_table([f"{titled(name)} → {best}" for name in again], [[one] for one in found]),
    ]
    both = (("validation", on_validation), ("test", on_test))
    rows = [{"clips": where} | dataclasses.asdict(cell) for where, cells in both for cell in cells.values()]
    args.out.mkdir(parents=True, exist_ok=True)
    write_pages(args.out / "best_composition", rows, lines)


if __name__ == "__main__":
    main()
