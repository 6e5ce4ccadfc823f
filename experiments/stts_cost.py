"""What STTS saves in tower, language model and training step as a video grows: FLOPs, and times taken in one run.

    python experiments/stts_cost.py

Writes stts_cost.csv and stts_cost.md.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.timing import in_turns
from jvidprune.costs.flops_model import Segment, prefill, vision_terms
from jvidprune.costs.flops_stts import stts_projector, stts_tower
from jvidprune.evals.markdown import grid
from jvidprune.files import write_table
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.stts import Scorer, SiglipTower, STTSConfig, pooling_windows
from jvidprune.tokens import Layout
from jvidprune.training import step
from jvidprune.training.data import PackedRows
from jvidprune.training.loss import ClipTokens, Trainee, read_rows, rows_loss
from jvidprune.training.stts import Pruned, prune_at
from jvidprune.training.tuning import with_remat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--frames", default="8,16,32,64,128")
parser.add_argument("--removed", default="0.3,0.5,0.8")
parser.add_argument("--text", type=int, default=48, help="tokens of prompt and question")
parser.add_argument("--repeat", type=int, default=3, help="the fastest run of so many counts")
parser.add_argument("--model", type=Path, default=EMBEDDED)
parser.add_argument("--out", type=Path, default=Path("experiments"))
args = parser.parse_args()

PARTS = ("tower", "language model", "training step")
llm = VideoLLM.load(args.model)
# Layers are computed again in the backward pass: at 128 frames activations would not fit.
model = with_remat(llm.loaded.model, True)
sizes = llm.loaded.config
config = STTSConfig(prune_at=prune_at(sizes.vision.layers), removed=0.5)
windows = pooling_windows(sizes, config.window)
scorer = Scorer(SiglipTower(model.vision).sizes, rngs=nnx.Rngs(0))
trainee, params = Trainee.split(model=model, scorer=scorer)
rates = step.rates_of_groups(step.RATES)
learned, frozen = step.split_groups(params, rates)
tx = step.optimiser(rates, steps=10, warmup=0)
rng = np.random.default_rng(0)


def row_of(pixels: np.ndarray, kept: int) -> PackedRows:
    """One clip with one question whose answer is one token."""
    length = kept + args.text
    number, slots = np.arange(length), np.zeros((1, length), np.int32)
    half = args.text // 2
    visual = np.where((number >= half) & (number < half + kept), number - half, -1)
    one = np.zeros((1, 1), np.int32)
    return PackedRows(
        pixels=pixels[None, None],
        share=np.ones((1, 1), np.float32),
        ids=slots,
        visual=visual[None].astype(np.int32),
        segment=slots + 1,
        branch=(number >= half + kept)[None].astype(np.int32),
        position=number[None].astype(np.int32),
        slot=one + length - 1,
        target=one,
        weight=np.ones((1, 1), np.float32),
        question=one,
    )


class Dense:
    """The plain model as a reader: all tokens, no scorer."""

    def __init__(self, tokens: int):
        self.kept = self.whole = tokens

    def __call__(self, parts: Any, pixels: Any, key: Any) -> ClipTokens:
        features = parts["model"].encode(pixels[0]).features
        return ClipTokens(features.reshape(1, self.kept, -1), jnp.zeros(1))


def prepare(frames: int, removed: float) -> tuple[dict[str, float], dict[str, Callable[[], Any]]]:
    """FLOPs of each part, and what runs it; a share of 0 is the plain model without a scorer."""
    pruned = Pruned(sizes, STTSConfig(prune_at=config.prune_at, removed=removed), frames)
    side = sizes.vision.image_size
    pixels = rng.standard_normal((frames, 3, side, side)).astype(np.float32)
    rows = row_of(pixels, pruned.kept)
    key = jax.random.key(0)

    reader: Any = pruned if removed else Dense(pruned.kept)
    tower = jax.jit(lambda params, pixels: reader(trainee.merge(params), pixels[None], key).tokens)
    read = jax.jit(lambda params, tokens: read_rows(trainee.merge(params)["model"], tokens, rows))
    tokens = tower(params, pixels)
    one = step.training_step(functools.partial(rows_loss, trainee, reader), tx)
    state, batch = step.begin(learned, tx, 0), step.split_batch(rows, 1)
    runs = {
        "tower": lambda: tower(params, pixels),
        "language model": lambda: read(params, tokens),
        "training step": lambda: one(state, frozen, batch),
    }
    return flops(frames, removed, pruned), runs


def flops(frames: int, removed: float, pruned: Pruned) -> dict[str, float]:
    """FLOPs of each part; the tower includes the projector, and a training step is a forward pass and twice as much."""
    layout = Layout(frames, sizes.grid, sizes.unpooled_grid)
    terms = vision_terms(sizes, layout)
    if removed:
        own = {"frames": frames, "kept": pruned.budget}
        terms = (
            stts_tower(sizes.vision, windows, pruned.config, **own),
            stts_projector(sizes.vision, windows, sizes.text.width, kept=pruned.budget),
        )
    seen = sum(sum(part.values()) for part in terms)
    length = pruned.kept + args.text
    segment = Segment(0, sizes.text.layers, length, pruned.kept, length)
    # The plain attention computes the whole square.
    language = sum(sum(part.values()) for part in prefill(sizes.text, [segment], causal=False))
    return {"tower": seen, "language model": language, "training step": 3 * (seen + language)}


shares = [0.0, *(float(text) for text in args.removed.split(","))]
rows: list[dict[str, Any]] = []
for frames in (int(text) for text in args.frames.split(",")):
    prepared = {removed: prepare(frames, removed) for removed in shares}
    for part in PARTS:
        times = in_turns({removed: runs[part] for removed, (_, runs) in prepared.items()}, args.repeat)
        for removed, (counted, _) in prepared.items():
            row = {"frames": frames, "removed": removed, "part": part, "gflops": counted[part] / 1e9}
            row |= {"flops_ratio": counted[part] / prepared[0.0][0][part], "seconds": times[removed]}
            rows.append(row | {"time_ratio": times[removed] / times[0.0]})
        print(frames, part, {removed: round(value / times[0.0], 3) for removed, value in times.items()}, flush=True)

amounts = [int(text) for text in args.frames.split(",")]
parts = [
    "# What STTS saves\n",
    "Cost of the embedded model with windows removed, as a share of the unpruned model's: FLOPs (counted, "
    f"`costs.flops_stts`) / time (measured, {jax.default_backend()}, one thread a matrix product, fastest of "
    f"{args.repeat} in turns). Block {config.prune_at} of {sizes.vision.layers} is scored, blocks from "
    f"{config.first_packed} run on what is kept; {args.text} text tokens. The tower includes the projector; a training "
    "step is that of one clip, all parameters learn, layers are computed again in the backward pass (counted as three "
    "forward passes whatever is computed again). Written by `experiments/stts_cost.py`.\n",
]
by = {(row["frames"], row["removed"], row["part"]): row for row in rows}
for part in PARTS:
    lines = [
        [
            f"{100 * removed:g} % removed",
            *(
                f"{by[frames, removed, part]['flops_ratio']:.2f} / {by[frames, removed, part]['time_ratio']:.2f}"
                for frames in amounts
            ),
        ]
        for removed in shares[1:]
    ]
    whole = (by[frames, 0.0, part] for frames in amounts)
    base = ["unpruned: GFLOP / s", *(f"{row['gflops']:.2f} / {row['seconds']:.3f}" for row in whole)]
    parts.append(f"## {part.capitalize()}\n\n" + grid(["frames", *map(str, amounts)], [base, *lines]) + "\n")
parts.append(
    "Published for Molmo2-4B at 50 % removed (arXiv 2603.18004): 1.62x in training and 1.61x in inference at 128 "
    f"frames, 2.25x and 2.22x at 256. There 5 of 25 tower blocks are dense, here {config.first_packed} of "
    f"{sizes.vision.layers}.\n"
)
args.out.mkdir(parents=True, exist_ok=True)
write_table(args.out / "stts_cost.csv", rows)
(args.out / "stts_cost.md").write_text("\n".join(parts), encoding="utf8")
print(args.out / "stts_cost.md")
