"""What a trained model has to pass before it may be embedded, measured on its own files."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from experiments.tiny.measure import Result, answers_of
from experiments.tiny.statistics import statistics
from jvidprune import reducers
from jvidprune.evals.items import chance
from jvidprune.evals.probe.oracle import Oracle, told
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural
from jvidprune.procedural.masks import masks
from jvidprune.procedural.paint import paint
from jvidprune.reducers.protocol import Reducer
from jvidprune.tokens import VideoTokens

RATIOS = (1.0, 0.5, 0.25, 0.15, 0.1, 0.05)
SPARE = 0.01
"""Accuracy that a smaller ratio of random tokens may have more than a larger one: one question of a hundred."""
LEAST = 0.85
MOST_NORM, LEAST_TOKENS, MOST_MIB, APART = 0.8, 4.0, 8.0, 0.03
OF_RULES = (0.25, 0.1)
"""Ratios at which both rules of positions are compared."""


class Gate(NamedTuple):
    """One condition.

    Attributes:
      name: what has to hold.
      found: what was measured.
      passed: whether it holds.
    """

    name: str
    found: str
    passed: bool


def kept_categories(results: list[Result]) -> list[str]:
    """Categories answered above chance: by more than two standard errors of a guess."""
    names, found = dict.fromkeys(result.question.category for result in results), []
    for name in names:
        part = [result for result in results if result.question.category == name]
        guess = sum(chance(result.question) for result in part) / len(part)
        error = (guess * (1 - guess) / len(part)) ** 0.5
        if _accuracy(part) > guess + 2 * error:
            found.append(name)
    return found


def _accuracy(results: list[Result]) -> float:
    return sum(result.right for result in results) / max(1, len(results))


def measure(folder: Path, task: Procedural, looked: int = 64) -> dict[str, Any]:
    """Everything the gates read.

    Args:
      folder: of the checkpoint.
      task: held-out clips.
      looked: clips that attention and norms are measured on.

    Returns:
      `mib` of the weights, `grid` and `frames`, `statistics`, `kept` categories and their `unpruned` accuracy, and
      accuracies on these by ratio: of random tokens (`random`), the same with original positions (`original`), the
      largest feature norms (`norms`), and tokens chosen by object masks (`masks`).
    """
    llm = VideoLLM.load(folder)
    ways: dict[str, tuple[Reducer, float]] = {"random 1.0": (reducers.get("none"), 1.0)}
    ways |= {f"random {ratio}": (reducers.get("random"), ratio) for ratio in RATIOS[1:]}
    ways |= {f"original {ratio}": (reducers.get("random", positions="original"), ratio) for ratio in OF_RULES}
    ways |= {f"norms {ratio}": (reducers.get("norm_topk"), ratio) for ratio in OF_RULES}
    ways |= {f"masks {ratio}": (Oracle(), ratio) for ratio in OF_RULES}

    def see(number: int, tokens: VideoTokens) -> VideoTokens:
        scene, _ = task.scene(number)
        return told(tokens, masks(scene, paint(scene)[1], tokens.grid, tokens.features.shape[0]))

    results = answers_of(llm, task, ways, see=see)
    whole = results["random 1.0"]
    kept = kept_categories(whole)
    found: dict[str, Any] = {
        "mib": (folder / "model.safetensors").stat().st_size / 2**20,
        "grid": list(llm.encode(task[0].load()).tokens.grid),
        "frames": task.frames,
        "clips": len(task),
        "all": _accuracy(whole),
        "kept": kept,
        "unpruned": _accuracy([result for result in whole if result.question.category in kept]),
        "statistics": statistics(llm, dataclasses.replace(task, clips=min(looked, task.clips))),
    }
    for name, part in results.items():
        what, ratio = name.split()
        found.setdefault(what, {})[ratio] = _accuracy([one for one in part if one.question.category in kept])
    return found


def gates(found: dict[str, Any]) -> list[Gate]:
    """Which conditions hold, from what `measure` returns."""
    tokens = found["grid"][0] * found["grid"][1]
    of = found["statistics"]
    random = [found["random"][str(ratio)] for ratio in RATIOS]
    rise = max(low - high for high, low in itertools.pairwise(random))
    apart = max(abs(found["random"][str(ratio)] - found["original"][str(ratio)]) for ratio in OF_RULES)
    return [
        Gate(f"at most {MOST_MIB:.0f} MiB of weights", f"{found['mib']:.2f}", found["mib"] <= MOST_MIB),
        Gate("16 frames or more", str(found["frames"]), found["frames"] >= 16),
        Gate("64 tokens of a frame or more", str(tokens), tokens >= 64),
        Gate("1,000 tokens of a clip or more", str(tokens * found["frames"]), tokens * found["frames"] >= 1000),
        Gate(f"an object covers {LEAST_TOKENS:.0f} tokens", f"{of['tokens']:.2f}", of["tokens"] >= LEAST_TOKENS),
        Gate(f"AUC of norms for objects below {MOST_NORM}", f"{of['norm_auc']:.3f}", of["norm_auc"] < MOST_NORM),
        Gate(f"{LEAST:.0%} unpruned on {len(found['kept'])} categories", _per_cent(found["unpruned"]), _enough(found)),
        Gate("random never rises with fewer tokens", " ".join(map(_per_cent, random)), rise <= SPARE),
        Gate("rules of positions within 3 points", f"{100 * apart:.1f}", apart <= APART),
    ]


def _enough(found: dict[str, Any]) -> bool:
    return bool(found["kept"]) and found["unpruned"] >= LEAST


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"
