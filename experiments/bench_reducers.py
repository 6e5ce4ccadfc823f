"""How long every reducer takes, in units of one similarity product measured in the same run.

python experiments/bench_reducers.py [--methods flashvid fastvid ...] [--scenes 25 1 1 1 1 1 1 1] [--json-file out.json]

The product is all float32 inner products of the tokens inside each frame, (T, N, D) x (T, N, D) -> (T, N, N), of the
tokens that a reducer starts from (AOT: those before pooling). Two programs are measured apart: `plans` decides alone,
`tokens` also forms the output tokens, whose bytes no formulation can save. Both run for one ratio and for all in one
call. A round runs the product and all programs one after the other; the fastest of the rounds counts, in CPU time of
the process, which other work on the machine disturbs less than wall time. Every method's row is saved as soon as it is
known, and a rerun with the same settings measures only what is missing.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from jax import lax
from perf.decisions import possible, run_plans
from perf.inputs import video_tokens

from jvidprune import VideoTokens, reducers
from jvidprune.files import atomic_output
from jvidprune.ops.similarity import frame_gram
from jvidprune.reducers.aot.pooling import kept_slots, pooled_weights
from jvidprune.reducers.programs import run_budgets
from jvidprune.tokens import stack_budgets

SEPARATE_STAGES = {"aot": ("aot intra",)}
"""Rows for a stage of a method, measured right after the method."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    scenes: tuple[int, ...] = (6, 10, 4, 12)
    """Lengths of the video's scenes in frames; they sum to T."""
    grid: int = 14
    unpooled_grid: int = 27
    dim: int = 3584
    ratios: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    """The programs for one ratio take the middle one."""
    rounds: int = 6
    seconds: float = 30.0
    """CPU time of a method after which no further round begins."""


@partial(jax.jit, static_argnames=("reducer", "capacity"))
def run_intra(reducer: Any, video: VideoTokens, budgets: Any, *, capacity: int) -> Any:
    """AOT's stage inside frames: anchors, transport, and the weights of every token in every pooled slot."""
    shared = reducer.prepare(video, capacity=capacity)

    def one(budget: Any) -> Any:
        intra = reducer.intra(shared, budget)
        _, chosen = kept_slots(intra.anchors, shared.frame_mask, shared.geometry, shared.limit.slots)
        merge = reducer.merge(budget)
        return pooled_weights(intra, shared.selection, merge, chosen, shared.geometry, reducer.anchors_only)

    return lax.map(one, budgets)


plans = jax.jit(run_plans, static_argnames=("reducer", "capacity"))
product = jax.jit(frame_gram)


def fastest(calls: dict[str, Callable[[], Any]], config: Config) -> dict[str, dict[str, float]]:
    """Milliseconds of the fastest of some interleaved rounds, by CPU and by wall clock."""
    best = {name: {"cpu": float("inf"), "wall": float("inf")} for name in calls}
    began = time.process_time()
    for number in range(config.rounds):
        if number and time.process_time() - began > config.seconds:
            break
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            out = jax.block_until_ready(call())
            spent = {"cpu": 1e3 * (time.process_time() - cpu), "wall": 1e3 * (time.perf_counter() - wall)}
            del out
            best[name] = {clock: min(best[name][clock], spent[clock]) for clock in spent}
    return best


def measure(name: str, config: Config) -> dict[str, Any]:
    """One row of the table."""
    reducer = reducers.get(name.split()[0])
    sizes = {"grid": config.grid, "unpooled_grid": config.unpooled_grid, "dim": config.dim}
    video = video_tokens(reducer.needs, scenes=config.scenes, **sizes)
    layout = video.layout()
    many = possible(reducer, layout, config.ratios)
    capacity = max(reducer.capacity(layout, r) for r in many)
    start = "features_unpooled" if "features_unpooled" in video.evidence else None
    unit_input = video.features if start is None else video.evidence[start]
    programs = {"plans": plans, "tokens": run_budgets}
    if name == "aot intra":
        programs = {"plans": run_intra}
    calls: dict[str, Callable[[], Any]] = {"product": lambda: product(unit_input)}
    row: dict[str, Any] = {"method": name, "ratios": many}
    for kind, program in programs.items():
        for label, ratios in (("one", many[(len(many) - 1) // 2 :][:1]), ("all", many)):
            budgets = stack_budgets([reducer.budget(layout, r) for r in ratios])
            began = time.process_time()
            compiled = program.lower(reducer, video, budgets, capacity=capacity).compile()
            row[f"{kind} {label} compile s"] = time.process_time() - began
            memory = compiled.memory_analysis()
            if memory is not None:
                row[f"{kind} {label} temporaries MiB"] = memory.temp_size_in_bytes / 2**20
                row[f"{kind} {label} output MiB"] = memory.output_size_in_bytes / 2**20
            calls[f"{kind} {label}"] = partial(compiled, video, budgets)
    for call, clocks in fastest(calls, config).items():
        row[call] = clocks
    return row


def load(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Rows of an earlier run with the same settings, by method."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    return earlier["rows"] if earlier["setting"] == json.loads(json.dumps(setting)) else {}


def table(rows: dict[str, Any]) -> str:
    """Markdown: everything in similarity products but the last four columns and the quotients."""
    head = ["method", "ratios", "plan, one", "plans, all", "all / one", "tokens, one", "tokens, all", "all / one"]
    head += ["temporaries MiB", "compile s", "product ms", "all, wall ms"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows.values():
        unit = row["product"]["cpu"]
        cells = [row["method"], str(len(row["ratios"]))]
        for kind in ("plans", "tokens"):
            one, many = (row.get(f"{kind} {label}", {}).get("cpu") for label in ("one", "all"))
            cells += ["–"] * 3 if one is None else [f"{one / unit:.2f}", f"{many / unit:.2f}", f"{many / one:.2f}"]
        last = "tokens" if "tokens all" in row else "plans"
        cells += [f"{row.get(f'{last} all temporaries MiB', float('nan')):.0f}", f"{row[f'{last} all compile s']:.1f}"]
        cells += [f"{unit:.0f}", f"{row[f'{last} all']['wall']:.0f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    config: Annotated[Config, tyro.conf.OmitArgPrefixes] = Config(),
    methods: tuple[str, ...] = (),
    json_file: Path = Path("bench_reducers.json"),
    fresh: bool = False,
) -> None:
    """Measures what the file does not hold yet and prints the table of all of it.

    Args:
      config: what to measure.
      methods: registry names; all by default.
      json_file: where rows are kept.
      fresh: measure again.
    """
    setting = dataclasses.asdict(config) | {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    for patience in ("rounds", "seconds"):
        del setting[patience]
    rows = load(json_file, setting)
    for method in methods or reducers.names():
        for name in (method, *SEPARATE_STAGES.get(method, ())):
            if name in rows and not fresh:
                continue
            rows[name] = measure(name, config)
            with atomic_output(json_file) as part:
                part.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
            print(table({name: rows[name]}).splitlines()[-1], flush=True)
            jax.clear_caches()
    shape = f"T={sum(config.scenes)} N={config.grid**2} D={config.dim} float32, AOT from {config.unpooled_grid**2}"
    print(f"\n{shape}, {setting['device']}, jax {setting['jax']}\n\n{table(rows)}")


if __name__ == "__main__":
    jnp.zeros(1).block_until_ready()
    tyro.cli(main)
