"""Trains an embedded model in the regime of real ones: 1,024 visual tokens, a tower taught by language, no oracle.

    python experiments/train_regime.py --dry-run                # two steps of every stage
    python experiments/train_regime.py --pace                   # what a step of every stage costs, and the whole recipe
    python experiments/train_regime.py --folder runs/regime     # all of it; kill it at any time and start it again
    python experiments/train_regime.py --folder runs/regime --gates     # which gates the trained model passes
    python experiments/train_regime.py --folder runs/regime --precision bfloat16 --batch 8      # on a GPU

Writes a checkpoint in the published layout with record.json beside it: the recipe, its learning curves, held-out
accuracies with and without the video, and what attention and norms do with objects. `train_regime.md` has the budget,
a pilot, and what comes after.
"""

import os

# One thread a matrix product: sums never depend on the number of cores, and the other core makes batches.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from experiments.tiny.gates import gates, measure
from experiments.tiny.measure import accuracy_table, answers
from experiments.tiny.network import Network
from experiments.tiny.pace import pace
from experiments.tiny.publish import write_checkpoint
from experiments.tiny.recipe import all_words, config_json
from experiments.tiny.regime import PILOT, REGIME, Regime, RegimeStage, train_regime
from experiments.tiny.statistics import statistics
from experiments.tiny.vocabulary import word_tokenizer
from jvidprune.files import write_table
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.procedural.benchmark import Procedural, detailed
from jvidprune.training.loop import read_curve


def dry(regime: Regime) -> Regime:
    """Two steps of every stage, on two clips."""
    stages = tuple(dataclasses.replace(stage, steps=2, clips=2, asked=2, warmup=1) for stage in regime.stages)
    return dataclasses.replace(regime, stages=stages, pool=8, held=4)


def write_model(regime: Regime, out: Path, network: Network, params: Any) -> VideoLLM:
    """Writes the checkpoint and reads it."""
    tokenizer = word_tokenizer(all_words(detail=True))
    model, _ = network.merge(params)
    # Half of the clips had gaps and half had none: no rule of positions is declared.
    raw = config_json(regime.sizes, tokenizer)
    write_checkpoint(out, model, raw, tokenizer, regime.task.frames, benchmark="detailed")
    return VideoLLM.load(out)


def look_at(regime: Regime, folder: Path, network: Network, params: Any, clips: int = 24) -> None:
    """Writes a stage's checkpoint and what its attention and norms do, unless they are there; prints the latter."""
    path = folder / "statistics.json"
    if not path.exists():
        llm = write_model(regime, folder / "model", network, params)
        found = statistics(llm, dataclasses.replace(regime.task, split="validation", clips=clips))
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    print(folder.name, json.dumps(json.loads(path.read_text(encoding="utf8"))), flush=True)


def publish(regime: Regime, run: Path, out: Path, network: Network, params: Any, test: Procedural) -> None:
    """Writes checkpoint and record, with what was measured on the checkpoint's own files."""
    llm = write_model(regime, out, network, params)
    recipe = dataclasses.asdict(regime) | {"task": regime.task.fingerprint()}
    record: dict[str, Any] = {"recipe": recipe, "measured_on": test.fingerprint()}
    rows = []
    for given, blind in (("all tokens", False), ("text alone", True)):
        rows += [{"given": given} | row for row in accuracy_table(answers(llm, test, blind=blind))]
    record["statistics"] = statistics(llm, dataclasses.replace(test, clips=min(64, test.clips)))
    record["curves"] = {stage.name: read_curve(run / stage.name) for stage in regime.stages}
    write_table(out / "accuracy.csv", rows)
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    print(json.dumps(record["statistics"], indent=1))


def show_gates(out: Path, test: Procedural) -> bool:
    """Prints which gates a model passes and writes gates.json beside it; returns whether all are passed."""
    found = measure(out, test)
    (out / "gates.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    for gate in gates(found):
        print(f"{'pass' if gate.passed else 'FAIL'}  {gate.name}: {gate.found}")
    print(f"kept: {', '.join(found['kept']) or 'none'}; norms {found['norms']}; masks {found['masks']}")
    return all(gate.passed for gate in gates(found))


def main() -> None:
    """Runs or resumes the recipe, then writes checkpoint and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/regime"), help="checkpoints and learning curves")
    parser.add_argument("--out", type=Path, default=None, help="folder of the trained model, by default below it")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of forward passes")
    parser.add_argument("--batch", type=float, default=1.0, help="times as many clips a step, and as many fewer steps")
    parser.add_argument("--cores", type=int, default=1, help="CPU devices that share the clips of a step")
    parser.add_argument("--pilot", action="store_true", help="a tenth of the recipe, without its last stage")
    parser.add_argument("--stages", type=int, default=None, help="run the first so many alone")
    parser.add_argument("--after", default=None, help="begin behind this stage, from --weights")
    parser.add_argument("--weights", type=Path, default=None, help="model to begin from, as an earlier stage wrote it")
    parser.add_argument("--clips", type=int, default=400, help="held-out clips that are asked at the end")
    parser.add_argument("--dry-run", action="store_true", help="two steps of every stage; no model is published")
    parser.add_argument("--pace", action="store_true", help="time a few steps of every stage")
    parser.add_argument("--gates", action="store_true", help="measure what the trained model passes")
    choice = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", choice.cores)
    regime = dataclasses.replace(PILOT if choice.pilot else REGIME, precision=choice.precision).scaled(choice.batch)
    names = [stage.name for stage in regime.stages]
    if (choice.after is None) != (choice.weights is None) or choice.after not in (None, *names):
        parser.error(f"--after and --weights belong together; stages are {', '.join(names)}.")
    begin = 0 if choice.after is None else names.index(choice.after) + 1
    regime = dataclasses.replace(regime, stages=regime.stages[begin : choice.stages])
    out = choice.out or choice.folder / "model"
    test = detailed("test", choice.clips)
    clock = time.time()

    def report(stage: str, line: dict[str, float]) -> None:
        values = " ".join(f"{name} {value:.3g}" for name, value in line.items())
        print(f"{time.time() - clock:7.0f} s {time.process_time():7.0f} CPU s {stage} {values}", flush=True)

    if choice.gates:
        sys.exit(not show_gates(out, test))
    if choice.pace:
        rows = pace(regime, choice.folder / "pace", lambda row: print(*row.values(), flush=True))
        print(f"{sum(row['cpu_min'] for row in rows):.0f} CPU minutes, {sum(row['min'] for row in rows):.0f} minutes")
        return
    if choice.dry_run:
        regime = dry(regime)
    folder = choice.folder / "dry" if choice.dry_run else choice.folder
    log = 1 if choice.dry_run else 10

    def after(stage: RegimeStage, network: Network, params: Any) -> None:
        if stage.tower:
            look_at(regime, folder / stage.name, network, params, clips=2 if choice.dry_run else 24)

    network, params, _ = train_regime(
        regime, folder, every=choice.every, log=log, report=report, after=after, weights=choice.weights
    )
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params[0] if isinstance(params, tuple) else params))
    print(f"{numbers:,} numbers, heads of the losses included: {2 * numbers / 2**20:.1f} MiB in two bytes each")
    if not choice.dry_run:
        publish(regime, choice.folder, out, network, params, test)


if __name__ == "__main__":
    main()
