"""What a tower's attention and norms do with objects: what the recipe is chosen by, beside unpruned accuracy."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jvidprune.evals.metrics import bootstrap_ratio, clip_draws
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.masks import masks
from jvidprune.procedural.paint import paint
from jvidprune.video.decode import Clip

MAPS = ("attention_last", "attention_pooling_head")
SINK = 10.0
"""Times its share of attention from which on a token is a sink of a frame."""


def auc(scores: Float[np.ndarray, "n"], shown: Bool[np.ndarray, "n"]) -> float:
    """Probability that a token which shows an object scores higher than one that does not; ties count half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    rank = below[place] + (counts[place] - 1) / 2
    yes, no = int(shown.sum()), int((~shown).sum())
    return float((rank[shown].sum() - yes * (yes - 1) / 2) / (yes * no)) if yes and no else float("nan")


def statistics(llm: VideoLLM, task: Procedural) -> dict[str, Any]:
    """Shares of attention on objects against their area, sinks, likeness of neighbouring frames, what norms tell.

    Args:
      llm: the model.
      task: clips.

    Returns:
      For each map `share` on tokens that show objects with its 95 % interval over clips, their `area`, the `auc` for
      objects, and `sinks`: places with more than `SINK` times their share in most frames of a clip, a clip. `norm_auc`
      of the features, `neighbours`: mean cosine of a token with the one before it, and `tokens`: mean number of tokens
      that an object covers in a frame.
    """
    sums: dict[str, list[tuple[float, float]]] = {name: [] for name in MAPS}
    found: dict[str, list[float]] = {f"{name}_{what}": [] for name in MAPS for what in ("auc", "sinks")}
    areas, norms, alike, sizes = [], [], [], []
    for number in range(len(task)):
        scene, _ = task.scene(number)
        frames, owner = paint(scene)
        count = len(frames)
        clip = Clip(frames, np.arange(count), np.arange(count, dtype=np.float64), 1.0, count)
        video = llm.encode(clip, needs=frozenset(MAPS)).tokens
        features = np.asarray(video.features, np.float32)
        known = masks(scene, owner, video.grid, len(features))
        shown = known.of().reshape(features.shape[:2])
        mains = [i for i, thing in enumerate(known.things) if thing.role == "main"]
        per_frame = known.shown[mains].reshape(len(mains), *shown.shape).sum(-1)
        sizes += per_frame[per_frame > 0].tolist()
        areas.append(float(shown.mean()))
        norms.append(auc(np.linalg.norm(features, axis=-1).ravel(), shown.ravel()))
        unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-9)
        alike.append(float((unit[1:] * unit[:-1]).sum(-1).mean()))
        for name in MAPS:
            attention = np.asarray(video.evidence[name], np.float64)
            share = attention / attention.sum(-1, keepdims=True)
            sums[name].append((float(share[shown].sum()), float(len(share))))
            found[f"{name}_auc"].append(auc(attention.ravel(), shown.ravel()))
            found[f"{name}_sinks"].append(float(((share > SINK / share.shape[1]).mean(0) > 0.5).sum()))
    draws = clip_draws(len(task), 2000, 0)
    out: dict[str, Any] = {"clips": len(task), "area": float(np.mean(areas)), "norm_auc": float(np.nanmean(norms))}
    out |= {"neighbours": float(np.mean(alike)), "tokens": float(np.mean(sizes))}
    for name in MAPS:
        above, below = (np.array(column)[:, None] for column in zip(*sums[name], strict=True))
        low, high = bootstrap_ratio(draws, above, below)
        out[name] = {
            "share": float(above.sum() / below.sum()),
            "low": float(low[0]),
            "high": float(high[0]),
            "auc": float(np.nanmean(found[f"{name}_auc"])),
            "sinks": float(np.mean(found[f"{name}_sinks"])),
        }
    return out
