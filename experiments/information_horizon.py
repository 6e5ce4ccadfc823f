"""How far into its layers a model's visual tokens still tell it something (arXiv 2512.07580, the released probe).

    python experiments/information_horizon.py --clips 40

Up to layer K the model reads the whole prompt; from layer K on one window of visual tokens and all text are left, at
their own positions. A window's information at K is the probability of the right answer's first token, less that of
the run in which no visual token is left from K on. The horizon is the first layer from which no window stands out:
its spread, the largest less the smallest mean information over all windows, stays below a tolerance.

The prompt is read once: the states that enter every layer start the tails of all windows. Tails hold the text and one
window alone, and those that began at earlier layers run on together with those that begin now, so that a layer is one
batch. Any model that `--model` can load serves. Writes information_horizon.csv, .md and .svg, without times.
"""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune import JvidpruneError, VideoLLM
from jvidprune.evals.markdown import grid
from jvidprune.files import write_table
from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.rows import kept_levels
from jvidprune.parallel import on_mesh_of

READING = "## What it shows\n"
"""Heading behind which a person writes; another run leaves that as it is."""

PAD = 32
"""Tails are filled up to a multiple of so many slots, so that questions of other lengths share a program."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which tokens of a video stand together: blocks of `size` x `size` in `frames` frames; smaller at the edges.

    Attributes:
      size: tokens a side.
      frames: of a window.
    """

    size: int = 2
    frames: int = 1

    def of(self, frames: int, shape: tuple[int, int]) -> np.ndarray:
        """(frames * h * w,) int window of every token, rows of windows from left to right, frame after frame."""
        t, y, x = np.indices((frames, *shape))
        wide, high = -(-shape[1] // self.size), -(-shape[0] // self.size)
        return (((t // self.frames) * high + y // self.size) * wide + x // self.size).reshape(-1)


class Prompt(NamedTuple):
    """One prompt, ready to be probed.

    Attributes:
      embeds: (1, S, D).
      positions: (1, S) or (3, 1, S).
      valid: (1, S).
      deepstack: (L, 1, S, D), or None.
      bidirectional: (1, S), or None.
      index: (W + 1, C) slots of each tail: all text and one window, in order; the last tail has the text alone.
      there: (W + 1, C) which of them are in use.
    """

    embeds: Any
    positions: Any
    valid: Any
    deepstack: Any
    bidirectional: Any
    index: Any
    there: Any


def tails_of(window: np.ndarray, text: np.ndarray, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots of every tail, and which are in use.

    Args:
      window: (S,) window of the visual token in a slot, -1 elsewhere.
      text: (S,) slots of text.
      windows: W.
    """
    kept = [np.flatnonzero(text | (window == w)) for w in range(windows)] + [np.flatnonzero(text)]
    size = -(-max(map(len, kept)) // PAD) * PAD
    index, there = np.zeros((windows + 1, size), np.int32), np.zeros((windows + 1, size), bool)
    for row, slots in enumerate(kept):
        index[row, : len(slots)], there[row, : len(slots)] = slots, True
    return index, there


def lay_out(llm: VideoLLM, video: ReducedVideo, question: str, windows: Windows) -> Prompt:
    """The unpruned prompt of a question with the tails of all windows; newline embeddings leave with the tokens."""
    model = llm.loaded.model
    slots, ids = llm.lay_out([video], question, reserve=1)
    held = slots.source - len(ids) - 1
    tokens = video.video.tokens
    of = windows.of(tokens.features.shape[0], tokens.grid)
    row = np.asarray(video.reduced.index)[np.maximum(held, 0)]
    window = np.where(slots.valid & (held >= 0), of[np.minimum(row, len(of) - 1)], -1)
    index, there = tails_of(window, slots.valid & (held < -1), int(of.max()) + 1)
    words = model.embed_text(jnp.asarray(np.where(held < -1, ids[np.minimum(slots.source, len(ids) - 1)], 0)))
    if model.newline is not None:
        words = jnp.where((held == -1)[:, None], model.newline.astype(words.dtype), words)
    seen = model.embed_visual(video.reduced.tokens).astype(words.dtype)[np.maximum(held, 0)]
    embeds = jnp.where((held >= 0)[:, None], seen, words)[None]
    mutual = llm.prompts.bidirectional(slots, ids)
    deepstack = kept_levels([video], slots, len(ids))
    valid = slots.valid[None]
    return Prompt(embeds, slots.rotary, valid, deepstack, None if mutual is None else mutual[None], index, there)


@functools.partial(jax.jit, static_argnames="first")
def probe(model: Any, prompt: Prompt, label: Any, first: int = 1) -> tuple[Any, Any, Any]:
    """Probabilities of a token at the end of the prompt, from the whole of it and from every tail.

    Args:
      model: with a decoder `lm`.
      prompt: from `lay_out`.
      label: () id of the token.
      first: K of the first tails; those of K = first .. layers - 1 are run.

    Returns:
      () float32 of the whole prompt; (layers - first, W + 1) of the tails; and whether the token is the most probable
      one, (1 + layers - first,): of the whole prompt, then of the tails without any visual token.
    """
    decoder, index, there = model.lm, prompt.index, prompt.there
    layers, count = decoder.config.layers, index.shape[0]
    levels = 0 if prompt.deepstack is None else prompt.deepstack.shape[0]
    x = prompt.embeds.astype(decoder.dtype)
    tails = jnp.zeros((0, *index.shape[1:], x.shape[-1]), x.dtype)
    whole = decoder.step(prompt.positions, prompt.valid, bidirectional=prompt.bidirectional)

    def gather(part: Any) -> Any:
        """(W + 1, C, ...) of (S, ...)."""
        return part[index]

    def advance(state: Any, step: Any, layer: int, added: Any) -> Any:
        extra = None if added is None or layer >= levels else added[layer : layer + 1]
        return decoder.run(state, step, layer, layer + 1, deepstack=extra)[0]

    if jnp.ndim(prompt.positions) == 3:
        positions = jnp.stack([gather(axis[0]) for axis in jnp.asarray(prompt.positions)])
    else:
        positions = gather(jnp.asarray(prompt.positions)[0])
    mutual = None if prompt.bidirectional is None else gather(jnp.asarray(prompt.bidirectional)[0]) & there
    added = None if prompt.deepstack is None else jnp.stack([gather(level[0]) for level in prompt.deepstack])
    for layer in range(layers):
        if layer >= first:
            tails = jnp.concatenate([tails, gather(x[0])])
            turns = layer - first + 1
            axis = jnp.ndim(positions) - 2
            step = decoder.step(
                jnp.concatenate([positions] * turns, axis=axis),
                jnp.concatenate([there] * turns),
                bidirectional=None if mutual is None else jnp.concatenate([mutual] * turns),
            )
            repeated = None if added is None else jnp.concatenate([added] * turns, axis=1)
            tails = advance(tails, step, layer, repeated)
        x = advance(x, whole, layer, prompt.deepstack)

    def judged(hidden: Any) -> tuple[Any, Any]:
        logits = decoder.logits(hidden).astype(jnp.float32)
        return jax.nn.softmax(logits, axis=-1)[..., label], jnp.argmax(logits, axis=-1) == label

    end = jnp.sum(prompt.valid[0]) - 1
    full, right = judged(x[0, end])
    tails = tails.reshape(-1, count, *tails.shape[1:])
    ends = jnp.sum(there, axis=1) - 1
    scores, found = judged(tails[:, jnp.arange(count), ends])
    return full, scores, jnp.append(right[None], found[:, -1])


def horizon(spread: Sequence[float], first: int, tolerance: float) -> int | None:
    """The first layer from which the spread stays below a tolerance; None where it never does."""
    above = [at for at, value in enumerate(spread) if value >= tolerance]
    start = above[-1] + 1 if above else 0
    return first + start if start < len(spread) else None


def plot(path: Path, layers: Sequence[int], rows: Sequence[dict[str, float]], tolerance: float) -> None:
    """Two panels: the probability of the right answer over K, and what single windows add to it."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "jvidprune"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(layers, [row["whole"] for row in rows], "--", color="0.4", label="all tokens in all layers")
    left.plot(layers, [row["best_window"] for row in rows], "o-", label="the best window of each question")
    left.plot(layers, [row["none"] for row in rows], "s-", label="no visual token from K on")
    left.set(xlabel="layer K", ylabel="probability of the right answer", ylim=(0, 1))
    right.plot(layers, [row["spread_each"] for row in rows], "o-", label="spread of one question, mean")
    right.plot(layers, [row["spread"] for row in rows], "s-", label="spread of the means over questions")
    right.axhline(tolerance, color="0.6", linestyle=":", label="tolerance")
    right.set(xlabel="layer K", ylabel="largest less smallest information")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.set_xticks(layers)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    from jvidprune.cli.console import Console
    from jvidprune.cli.options import ModelChoice
    from jvidprune.cli.reading import open_model
    from jvidprune.evals.tasks import open_task

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--task", default="procedural")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", type=int, default=2, help="tokens a side of a window")
    parser.add_argument("--frames", type=int, default=1, help="frames of a window")
    parser.add_argument("--at-once", type=int, default=None, help="windows run together; all by default")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    args = parser.parse_args()

    console, windows = Console(), Windows(args.size, args.frames)
    found, right, asked, count = [], [], 0, 0
    with console.working():
        llm = open_model(ModelChoice(args.model, dtype=args.dtype), console)
        task = open_task(args.task, args.data, llm, clips=args.clips)
        for number in range(len(task)):
            item = task[number]
            video = llm.reduce(llm.encode(item.load()), reducer="none", ratio=1.0)
            for question in item.questions:
                prompt = lay_out(llm, video, question.prompt(), windows)
                if count not in (0, len(prompt.index)):
                    raise JvidpruneError("means over windows need clips of one size: give --clips that have it.")
                count = len(prompt.index)
                label = llm.tokenizer.encode(question.answer)[0]
                full, scores, best = measure(llm.loaded.model, prompt, label, at_once=args.at_once)
                found.append((full, scores))
                right.append(best)
                asked += 1
            console.note(f"{number + 1} of {len(task)} clips")
    whole = float(np.mean([full for full, _ in found]))
    scores, correct = np.stack([each for _, each in found]), np.stack(right).mean(axis=0)
    information = scores[..., :-1] - scores[..., -1:]
    layers = list(range(1, scores.shape[1] + 1))
    mean = information.mean(axis=0)
    rows = [
        {
            "layer": layer,
            "whole": whole,
            "none": float(scores[:, at, -1].mean()),
            "best_window": float(scores[:, at, :-1].max(axis=-1).mean()),
            "information_mean": float(mean[at].mean()),
            "information_best": float(information[:, at].max(axis=-1).mean()),
            "spread": float(np.ptp(mean[at])),
            "spread_each": float(np.ptp(information[:, at], axis=-1).mean()),
            "accuracy_none": float(correct[at + 1]),
        }
        for at, layer in enumerate(layers)
    ]
    ends = [horizon([row[name] for row in rows], 1, args.tolerance) for name in ("spread", "spread_each")]
    args.out.mkdir(parents=True, exist_ok=True)
    write_table(args.out / "information_horizon.csv", rows)
    plot(args.out / "information_horizon.svg", layers, rows, args.tolerance)
    shown = "the embedded model" if args.model is None else llm.loaded.folder.name
    head = ["from layer K", "no visual token", "right without any", "best window", "its information"]
    head += ["spread of means", "spread of one question"]
    table = grid(
        head,
        [
            [
                str(row["layer"]),
                f"{row['none']:.3f}",
                f"{100 * row['accuracy_none']:.0f} %",
                f"{row['best_window']:.3f}",
                f"{row['information_best']:.3f}",
                f"{row['spread']:.3f}",
                f"{row['spread_each']:.3f}",
            ]
            for row in rows
        ],
    )
    said = [f"layer {end}" if end is not None else "behind the last layer" for end in ends]
    parts = [
        "# How far into its layers a model's visual tokens matter\n",
        f"{shown[:1].upper()}{shown[1:]}, {len(layers) + 1} layers, {len(task)} clips, {asked} questions, {count - 1} "
        f"windows of {args.size} x {args.size} tokens in {args.frames} frame(s). Probability of the right answer's "
        f"first token; with all tokens in all layers {whole:.3f}, right {100 * correct[0]:.0f} % of the time. Written "
        "by `experiments/information_horizon.py`, after the probe of arXiv 2512.07580.\n",
        "![Probability of the right answer, and what single windows add](information_horizon.svg)\n",
        table,
        f"\nHorizon at a tolerance of {args.tolerance:g}: {said[0]} by the means over questions, which is how the "
        f"paper puts it, {said[1]} by single questions.",
    ]
    path = args.out / "information_horizon.md"
    said_of_it = path.read_text(encoding="utf8").partition(READING)[2] if path.exists() else ""
    text = "\n".join(parts) + "\n" + (f"\n{READING}{said_of_it}" if said_of_it else "")
    path.write_text(text, encoding="utf8")
    print(path)


def measure(
    model: Any, prompt: Prompt, label: int, *, at_once: int | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """`probe` with so many windows at once: (), (layers - 1, W + 1), (layers,) on the host.

    The prompt is read again for every part; the last part is filled up with tails that have no window.
    """
    count = len(prompt.index) - 1
    step = count if at_once is None else max(1, min(at_once, count))
    parts = []
    for start in range(0, count, step):
        rows = np.r_[np.arange(start, min(start + step, count)), np.full(max(0, start + step - count), count), count]
        part = prompt._replace(index=prompt.index[rows], there=prompt.there[rows])
        with on_mesh_of(model):
            parts.append(jax.device_get(probe(model, part, jnp.int32(label))))
    full, scores, best = zip(*parts, strict=True)
    kept = np.concatenate([each[:, :-1] for each in scores], axis=1)[:, :count]
    return float(full[0]), np.concatenate([kept, scores[0][:, -1:]], axis=1), best[0]


if __name__ == "__main__":
    main()
