"""What SToP changes on each base, what AOT's quirks cost or bring, how much FlashVID's corrected options change.

    python experiments/sink_tokens.py --clips 80

Every row compares two settings on the same questions of the procedural test split with the embedded model; the change
of accuracy comes with a paired bootstrap interval over clips. Writes sink_tokens.csv and sink_tokens.md, without times.
"""

import argparse
import dataclasses
from pathlib import Path

from jvidprune.cli.console import Console
from jvidprune.cli.options import ModelChoice
from jvidprune.cli.reading import open_model
from jvidprune.evals.markdown import accuracy_table, difference_table
from jvidprune.evals.paired import paired_difference
from jvidprune.evals.plan import SweepPlan
from jvidprune.evals.results import make_table
from jvidprune.evals.runner import run_sweep
from jvidprune.evals.tasks import answerable_part
from jvidprune.files import write_table
from jvidprune.ops.transport import Sinkhorn, Transport

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--clips", type=int, default=80)
parser.add_argument("--model", default=None)
parser.add_argument("--out", type=Path, default=Path("experiments"))
parser.add_argument("--bases", default="visionzip,fastvid,flashvid,holitom")
args = parser.parse_args()

console = Console()
with console.working():
    llm = open_model(ModelChoice(args.model, dtype="float32"), console)
    methods, pairs = {}, []
    for base in args.bases.split(","):
        # The base with the settings of SToP's runs, then its two adjustments alone, then the released code.
        for name, settings in (("", "mu_s=0.0,mu_t=0.0,gated=True"), (" SToP clean", "gated=True"), (" SToP", "")):
            methods[base + name] = llm.reducer(f"stop:base={base}" + (f",{settings}" if settings else ""))
        pairs += [(base, f"{base} SToP clean"), (base, f"{base} SToP")]

    aot = llm.reducer("aot")
    solved = Transport(solver=Sinkhorn(threshold=1e-6, stop="each", max_iterations=200))
    methods |= {
        "aot": aot,
        "aot once": dataclasses.replace(aot, drop_original=True),
        "aot solved": dataclasses.replace(aot, intra_transport=solved, inter_transport=solved),
        "aot anchors only": dataclasses.replace(aot, anchors_only=True),
        "aot full rows": dataclasses.replace(aot, intra_transport=Transport(projection="row")),
    }
    pairs += [("aot", name) for name in methods if name.startswith("aot ")]

    flashvid = llm.reducer("flashvid")
    clean = {"tree_value": "mean", "distinct": True, "exclude_selected_single": True}
    methods["flashvid released"] = flashvid
    for option, value in clean.items():
        methods[f"flashvid {option}"] = dataclasses.replace(flashvid, **{option: value})
    methods["flashvid all three"] = dataclasses.replace(flashvid, **clean)
    pairs += [("flashvid released", f"flashvid {name}") for name in (*clean, "all three")]

    task = answerable_part(llm, "test", args.clips)
    found = run_sweep(llm, task, SweepPlan(methods))
table = make_table(found, task, {name: name for name in methods})
ratios = table.ratios


def changes(chosen: list[tuple[str, str]], category: str = "all") -> str:
    """A table of paired differences."""
    rows = [[paired_difference(found.samples, a, b, r, category=category) for r in ratios] for a, b in chosen]
    return difference_table([f"{a} → {b}" for a, b in chosen], rows)


sinks = [pair for pair in pairs if "SToP" in pair[1]]
parts = [
    "# Sinks, quirks and corrections\n",
    f"{table.clips} clips of the procedural test split; points of accuracy with paired 95 % bootstrap intervals over "
    "clips, bold where zero lies outside. Written by `experiments/sink_tokens.py`; "
    f"model files {found.identity['model']['files']}, "
    f"positions {llm.settings.declared_positions or 'of the references'}.\n",
    f"## SToP on each base\n\n{changes(sinks)}\n",
    f"## SToP on hallucination questions\n\n{changes(sinks, 'hallucination')}\n",
    f"## AOT: the reference against its clean variants\n\n{changes([p for p in pairs if p[0] == 'aot'])}\n",
    f"## FlashVID: the released code against its corrections\n\n"
    f"{changes([p for p in pairs if p[0] == 'flashvid released'])}\n",
    f"## Accuracies\n\n{accuracy_table(table)}",
]
args.out.mkdir(parents=True, exist_ok=True)
write_table(args.out / "sink_tokens.csv", [dataclasses.asdict(cell) for cell in table.cells.values()])
(args.out / "sink_tokens.md").write_text("\n".join(parts) + "\n", encoding="utf8")
print(args.out / "sink_tokens.md")
