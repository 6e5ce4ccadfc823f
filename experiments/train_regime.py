"""Trains an embedded model in the regime of real ones: 1,024 visual tokens, a tower taught by language, no oracle.

    python experiments/train_regime.py --dry-run                # two steps of every stage, times and sizes
    python experiments/train_regime.py --folder runs/regime     # all of it; kill it at any time and start it again
    python experiments/train_regime.py --folder runs/regime --precision bfloat16 --batch 8      # on a GPU

Writes a checkpoint in the published layout with record.json beside it: the recipe, its learning curves, held-out
accuracies with and without the video, and what attention and norms do with objects.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax

from experiments.tiny.measure import accuracy_table, answers
from experiments.tiny.network import Network
from experiments.tiny.publish import write_checkpoint
from experiments.tiny.recipe import all_words, config_json
from experiments.tiny.regime import REGIME, Regime, train_regime
from experiments.tiny.statistics import statistics
from experiments.tiny.vocabulary import word_tokenizer
from jvidprune.files import write_table
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural

TEST = Procedural("test", clips=400, frames=REGIME.task.frames, side=REGIME.task.side)


def dry(regime: Regime) -> Regime:
    """Two steps of every stage, on two clips."""
    stages = tuple(dataclasses.replace(stage, steps=2, clips=2, asked=2, warmup=1) for stage in regime.stages)
    return dataclasses.replace(regime, stages=stages)


def publish(regime: Regime, run: Path, out: Path, network: Network, params: Any, test: Procedural) -> dict[str, Any]:
    """Writes checkpoint and record, with what was measured on the checkpoint's own files."""
    tokenizer = word_tokenizer(all_words())
    model, _ = network.merge(params)
    # Half of the clips had gaps and half had none: no rule of positions is declared.
    write_checkpoint(out, model, config_json(regime.sizes, tokenizer), tokenizer, test.frames)
    llm = VideoLLM.load(out)
    record: dict[str, Any] = {"recipe": dataclasses.asdict(regime) | {"task": regime.task.fingerprint()}}
    rows = []
    for given, blind in (("all tokens", False), ("text alone", True)):
        rows += [{"given": given} | row for row in accuracy_table(answers(llm, test, blind=blind))]
    record["statistics"] = statistics(llm, dataclasses.replace(test, clips=min(64, test.clips)))
    for stage in regime.stages:
        lines = (run / stage.name / "curve.jsonl").read_text(encoding="utf8").splitlines()
        record.setdefault("curves", {})[stage.name] = [json.loads(line) for line in lines]
    write_table(out / "accuracy.csv", rows)
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    return record


def main() -> None:
    """Runs or resumes the recipe, then writes checkpoint and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/regime"), help="checkpoints and learning curves")
    parser.add_argument("--out", type=Path, default=None, help="folder of the trained model, by default below it")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of forward passes")
    parser.add_argument("--batch", type=float, default=1.0, help="times as many clips a step, and as many fewer steps")
    parser.add_argument("--dry-run", action="store_true", help="two steps of every stage, and no measuring")
    choice = parser.parse_args()
    regime = dataclasses.replace(REGIME, precision=choice.precision).scaled(choice.batch)
    begin = time.time()

    def report(stage: str, line: dict[str, float]) -> None:
        values = " ".join(f"{name} {value:.3g}" for name, value in line.items())
        print(f"{time.time() - begin:7.0f} s {stage} {values}", flush=True)

    if choice.dry_run:
        regime = dry(regime)
    folder = choice.folder / "dry" if choice.dry_run else choice.folder
    network, params, _ = train_regime(
        regime, folder, every=choice.every, log=1 if choice.dry_run else 20, report=report
    )
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params[0] if isinstance(params, tuple) else params))
    print(f"{numbers:,} numbers, heads of the losses included: {2 * numbers / 2**20:.1f} MiB in two bytes each")
    if not choice.dry_run:
        record = publish(regime, choice.folder, choice.out or choice.folder / "model", network, params, TEST)
        print(json.dumps(record["statistics"], indent=1))


if __name__ == "__main__":
    main()
