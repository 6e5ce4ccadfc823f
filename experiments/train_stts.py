"""Trains STTS on the embedded model and compares it, at equal token counts, with random pruning and other methods.

    python experiments/train_stts.py

For every share of removed tokens and every seed a scorer is trained on the procedural benchmark's training clips (kill
the script at any time and start it again); then all methods answer the same questions about held-out clips. Writes
train_stts.csv and train_stts.md.
"""

import os

# One thread a matrix product: at these sizes it is faster than two, and sums never depend on the number of cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.timing import in_turns
from jvidprune.cli.train import TrainChoice, describe, read_rates
from jvidprune.evals.answering import BATCH, MIN_FILL
from jvidprune.evals.extract import is_correct
from jvidprune.evals.identity import model_fingerprint, run_hash
from jvidprune.evals.markdown import difference_table, grid
from jvidprune.evals.metrics import FULL, Cell, summarise
from jvidprune.evals.paired import paired_difference
from jvidprune.evals.store import RecordStore
from jvidprune.evals.tasks import answerable_part
from jvidprune.files import write_table
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.stts import attach
from jvidprune.training.stts import Pruned, open_run, publish

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--removed", default="0.3,0.5,0.8")
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--steps", type=int, default=120)
parser.add_argument("--rates", default="scorer=1e-3", help="groups that are not named stay as they are")
parser.add_argument("--methods", default="uniform,visionzip,fastvid,flashvid", help="training-free reducers")
parser.add_argument("--clips", type=int, default=60, help="held-out clips")
parser.add_argument("--model", type=Path, default=EMBEDDED)
parser.add_argument("--folder", type=Path, default=Path("runs/train_stts"), help="of the runs")
parser.add_argument("--out", type=Path, default=Path("experiments"))
parser.add_argument("--keep-times", action="store_true", help="leave the section of times as the last run wrote it")
args = parser.parse_args()

SHARES = [float(text) for text in args.removed.split(",")]
RATES = read_rates(args.rates)
ADAPTED = set(RATES) - {"scorer"}
TRAINED = ("scorer", "random") if ADAPTED else ("scorer",)
TITLES = {
    "scorer": "STTS",
    "random": "random in the tower",
    "heuristic": "heuristic in the tower",
    "easy": "easy in the tower",
    "tokens": "random tokens",
}
begin = time.time()


def say(text: str) -> None:
    print(f"{time.time() - begin:6.0f} s {text}", flush=True)


def choice_of(method: str, removed: float, seed: int) -> TrainChoice:
    settings: dict[str, Any] = {"topk": removed, "seed": seed, "prune_method": method, "steps": args.steps}
    return TrainChoice(**settings, rates=args.rates, every=args.steps // 4, log=args.steps // 12, eval_every=0)


def train(llm: VideoLLM, method: str, removed: float, seed: int) -> Path:
    """The checkpoint of one setting; a run with other settings has another folder."""
    choice = choice_of(method, removed, seed)
    name = run_hash({"model": model_fingerprint(args.model), **dataclasses.asdict(choice)})
    folder = args.folder / f"{method}-{removed:g}-{seed}-{name}"
    if not (folder / "model").is_dir():
        rates = {name: rate for name, rate in RATES.items() if name != "scorer" or method == "scorer"}
        run = open_run(llm, choice, rates)
        trained = run.tuner.run(folder, report=lambda line: say(f"{method} {removed:g} {seed} {describe(line)}"))
        publish(folder / "model", run, trained)
    return folder / "model"


def ways(llm: VideoLLM, item: Any, models: dict[Any, VideoLLM]) -> Iterator[tuple[str, float, int, VideoLLM, Any]]:
    """(method, removed share, seed, model that answers, reduced video) of everything that is compared on a clip."""
    clip = item.load()
    names = [name for name in args.methods.split(",") if name]
    # Any of the models with a scorer has the baselines inside the tower, which do not look at it.
    plain = models["scorer", SHARES[0], 0] if not ADAPTED else attach(llm, *untrained(llm))
    texts = {TITLES[name]: f"stts:method={name}" for name in ("heuristic", "easy")} | {name: name for name in names}
    reducers = {name: plain.reducer(text) for name, text in texts.items()}
    for seed in range(args.seeds):
        reducers[TITLES["tokens"], seed] = plain.reducer(f"random:seed={seed}")
        if "random" not in TRAINED:
            reducers[TITLES["random"], seed] = plain.reducer(f"stts:method=random,seed={seed}")
    needs = frozenset().union(*(reducer.needs for reducer in reducers.values()))
    video = plain.encode(clip, needs=needs)
    yield FULL, 0.0, 0, llm, llm.reduce(video, reducer=llm.reducer("none"), ratio=1.0)
    for removed in SHARES:
        ratio = round(1 - removed, 12)
        easy = plain.reduce(video, reducer=reducers[TITLES["easy"]], ratio=ratio)
        for name, reducer in reducers.items():
            # Methods behind the tower get the ratio of the tokens that the tower really keeps.
            kept = ratio if hasattr(reducer, "bind") else easy.kept / easy.visual
            title, seed = name if isinstance(name, tuple) else (name, 0)
            yield title, removed, seed, llm, plain.reduce(video, reducer=reducer, ratio=kept)
        for seed in range(args.seeds):
            for method in TRAINED:
                own = models[method, removed, seed]
                reducer = own.reducer(f"stts:method={method},seed={seed}")
                pruned = own.reduce(own.encode(clip, needs=reducer.needs), reducer=reducer, ratio=ratio)
                yield TITLES[method], removed, seed, own if ADAPTED else llm, pruned


def untrained(llm: VideoLLM) -> tuple[Any, Any]:
    """Settings and scorer of a run that has not begun."""
    run = open_run(llm, choice_of("scorer", SHARES[0], 0), {"scorer": 1.0})
    return run.config, run.scorer


def read_prompt(method: str, removed: float, text: int = 48) -> Callable[[], jax.Array]:
    """From pixels to the language model's last states over a clip and a question."""
    base, frames = llm.loaded.model, task[0].load().frames
    config = dataclasses.replace(models["scorer", removed or SHARES[0], 0].loaded.model.stts, method="scorer")
    if method in ("scorer", "random"):
        config = dataclasses.replace(config, method=method)
    reader = Pruned(base.config, config, len(frames))

    @jax.jit
    def run(model: Any, scorer: Any, pixels: jax.Array) -> jax.Array:
        if removed and method != "tokens":
            tokens = reader({"model": model, "scorer": scorer}, pixels[None], jax.random.key(0)).tokens[0]
        else:
            tokens = model.encode(pixels).features.reshape(reader.whole, -1)[: reader.kept if removed else None]
        x = jnp.concatenate([model.embed_text(jnp.zeros(text, jnp.int32)), tokens])[None]
        step = model.lm.step(jnp.arange(x.shape[1])[None], jnp.ones(x.shape[:2], bool), packed=True)
        return model.lm.run(x, step, 0, model.config.text.layers)[0]

    scorer = models["scorer", removed or SHARES[0], 0].loaded.model.scorer
    pixels = jnp.asarray(llm.pixels(frames))
    return lambda: run(base, scorer, pixels)


def answer(item: Any, found: list[tuple[str, float, int, VideoLLM, Any]]) -> list[dict[str, Any]]:
    """Records of all questions about a clip, those to one model asked together."""
    records = []
    for model in {id(way[3]): way[3] for way in found}.values():
        own = [way for way in found if way[3] is model]
        prompts = [Prompt(way[4], question.prompt()) for way in own for question in item.questions]
        replies = iter(answer_many(model, prompts, max_new_tokens=4, batch=BATCH, min_fill=MIN_FILL))
        for method, removed, seed, _, _ in own:
            for question in item.questions:
                reply = next(replies)
                right = is_correct(reply.text, question.answer, question.kind, question.options)
                record = {"clip": item.id, "question": question.id, "method": method, "removed": removed, "seed": seed}
                record |= {"category": question.category, "correct": right, "kept": reply.kept, "prompt": reply.prompt}
                records.append(record)
    return records


def spread(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record for each seed, also of methods that draw nothing, under the ratio that is kept: pairs are by seed."""
    shares: dict[bool, list[float]] = {True: [0.0], False: SHARES}
    out = []
    for record in records:
        draws = record["method"] in (TITLES["scorer"], TITLES["random"], TITLES["tokens"])
        for seed in [record["seed"]] if draws else range(args.seeds):
            for removed in [record["removed"]] if record["method"] != FULL else [*shares[True], *SHARES]:
                question = f"{record['question']}#{seed}"
                out.append(record | {"question": question, "ratio": round(1 - removed, 12)})
    return out


llm = VideoLLM.load(args.model)
models: dict[Any, VideoLLM] = {}
for removed in SHARES:
    for seed in range(args.seeds):
        for method in TRAINED:
            models[method, removed, seed] = VideoLLM.load(train(llm, method, removed, seed))
say("trained")
task = answerable_part(llm, "test", args.clips)
weights = [model_fingerprint(model.loaded.folder) for model in (llm, *models.values())]
name = run_hash({"models": weights, "task": task.fingerprint(), "methods": args.methods, "seeds": args.seeds})
store = RecordStore(args.folder / f"samples-{name}.jsonl", ("clip", "question", "method", "removed", "seed"))
for number in range(len(task)):
    item = task[number]
    # The last record of a clip tells that all are there.
    if (item.id, item.questions[-1].id, TITLES[TRAINED[-1]], SHARES[-1], args.seeds - 1) not in store:
        store.append(answer(item, list(ways(llm, item, models))))
        say(f"{number + 1} of {len(task)} clips")
records = spread(store.records())
methods = list(dict.fromkeys(record["method"] for record in records if record["method"] != FULL))
ratios = [round(1 - removed, 12) for removed in SHARES]
cells = summarise(records, [(FULL, 1.0), *((method, ratio) for method in methods for ratio in ratios)])
table = {(cell.method, cell.ratio): cell for cell in cells if cell.category == "all"}


def by_seed(method: str, ratio: float) -> str:
    """Accuracy of each seed."""
    rows = [record for record in records if (record["method"], record["ratio"]) == (method, ratio)]
    found = [
        np.mean([row["correct"] for row in rows if row["question"].endswith(f"#{seed}")]) for seed in range(args.seeds)
    ]
    return ", ".join(f"{100 * value:.1f}" for value in found)


def shown(cell: Cell) -> str:
    return f"{100 * cell.accuracy:.1f} [{100 * cell.low:.0f}, {100 * cell.high:.0f}]"


def measured() -> str:
    """The section of times; with --keep-times that of the last run, for a machine that has other work to do."""
    if args.keep_times:
        return (args.out / "train_stts.md").read_text(encoding="utf8").split("\n## Time\n")[1].split("\n## ")[0].strip()
    names = ("scorer", "random", "tokens")
    timed = [("none", 0.0), *((name, removed) for name in names for removed in SHARES)]
    times = in_turns({run: read_prompt(*run) for run in timed}, 10)
    dense = times["none", 0.0]
    shares = [[TITLES[name], *(f"{times[name, removed] / dense:.2f}" for removed in SHARES)] for name in names]
    return (
        f"From pixels to the read prompt of a clip of {task[0].load().frames.shape[0]} frames with 48 text tokens, as "
        f"a share of the unpruned model's {1000 * dense:.1f} ms ({jax.default_backend()}, fastest of 10 in turns).\n\n"
        + grid(head, shares)
    )


full = table[FULL, 1.0]
others = [method for method in methods if method != TITLES["scorer"]]
changes = [[paired_difference(records, other, TITLES["scorer"], ratio) for ratio in ratios] for other in others]
head = ["method", *(f"{100 * removed:g} % removed" for removed in SHARES)]
order = sorted(methods, key=lambda method: -table[method, ratios[-1]].accuracy)
parts = [
    "# A trained STTS on the embedded model\n",
    f"{len(task)} held-out clips of the procedural test split, {full.questions // args.seeds} questions of the kinds "
    f"that the embedded model answers above chance, {args.seeds} seeds; accuracy in per cent with 95 % bootstrap "
    f"intervals over clips. {args.steps} steps of 4 clips with their questions, learning rates {args.rates}. Written "
    f"by `experiments/train_stts.py`; model files {model_fingerprint(args.model)}, "
    f"positions {llm.settings.declared_positions or 'of the references'}.\n",
    f"Unpruned: {shown(full)} with {full.kept:.0f} visual tokens.\n",
    grid(head, [[method, *(shown(table[method, ratio]) for ratio in ratios)] for method in order]),
    "\n## Tokens kept\n",
    grid(head, [[method, *(f"{table[method, ratio].kept:.0f}" for ratio in ratios)] for method in order]),
    "\n## STTS against the others\n",
    "Points of accuracy at the share that is kept, paired by question and seed; bold where zero lies outside.\n",
    difference_table([f"{other} → STTS" for other in others], changes),
    "\n## Time\n",
    measured(),
    "\n## Seeds of STTS\n",
    grid(head, [[TITLES["scorer"], *(by_seed(TITLES["scorer"], ratio) for ratio in ratios)]]),
    "\n## Published figures\n",
    "Molmo2-4B, average of 13 video tasks, from second-hand summaries of arXiv 2603.18004: unpruned 63.0, STTS at 50 % "
    "62.3, random at 50 % 61.4; at 80 % STTS 59.8, random 57.5. Another model, other tasks: only the signs compare.",
]
args.out.mkdir(parents=True, exist_ok=True)
write_table(args.out / "train_stts.csv", [dataclasses.asdict(cell) for cell in cells])
(args.out / "train_stts.md").write_text("\n".join(parts) + "\n", encoding="utf8")
say(str(args.out / "train_stts.md"))
