"""The performance suite: one command, one table, one JSON.

python -m experiments.perf [--cells quick|base|scaling|full] [--parts start reducers calls memory model stts]
                           [--methods flashvid ...] [--model llava-onevision-0.5b] [--json-file perf.json]
                           [--compare old.json]

Every time stands beside its floor: the larger of its FLOPs over the matmul rate and its bytes over the copy rate, both
measured in the same run. Rows are saved as they come; a rerun measures what is missing, with `--again` all rows of its
parts and methods. Runs unchanged on CPU and accelerators; only dtype, model and sizes have other defaults there.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

from jvidprune import reducers
from jvidprune.errors import JvidpruneError
from jvidprune.files import atomic_output

from . import call_cells, memory_cells, model_cells, reducer_cells, start_cells, stts_cells
from .measure import Rates, measure_rates
from .table import compare, in_short, tables

Part = Literal["start", "reducers", "calls", "memory", "model", "stts"]

UNTIMED = {"start", "calls", "memory"}
"""Parts whose rows stand beside no floor of this machine."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    cells: Literal["quick", "base", "scaling", "full"] = "scaling"
    parts: tuple[Part, ...] = ("start", "reducers", "calls", "memory", "model", "stts")
    methods: tuple[str, ...] = ()
    """Registry names; all by default."""
    model: str = ""
    """Published LLaVA for tower, prefill and decoding: 7B on accelerators, 0.5B on CPU."""
    frames: int = 0
    """Of the model's video: 32 on accelerators, 2 on CPU."""
    ratio: float = 0.1
    """Of the reducers before the prefill."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 on accelerators, float32 on CPU."""
    repeats: int = 5
    seconds: float = 20.0
    """No further run of a program begins after so many."""
    gigabytes: float = 0.0
    """Largest input of a cell: 2 on CPU, 16 on accelerators."""


def measured_rates(dtype: Any) -> dict[str, Any]:
    """The machine's rates and what it is."""
    return dataclasses.asdict(measure_rates(dtype)) | this_machine(dtype)


def this_machine(dtype: Any) -> dict[str, Any]:
    """What rows of one file share."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "dtype": dtype.__name__}


def resolved(config: Config) -> tuple[Config, Any]:
    """The config with this backend's defaults, and the dtype."""
    cpu = jax.default_backend() == "cpu"
    name = config.dtype if config.dtype != "auto" else ("float32" if cpu else "bfloat16")
    return dataclasses.replace(
        config,
        methods=config.methods or tuple(reducers.names()),
        model=config.model or ("llava-onevision-0.5b" if cpu else "llava-onevision-7b"),
        frames=config.frames or (2 if cpu else 32),
        gigabytes=config.gigabytes or (2.0 if cpu else 16.0),
        dtype=name,
    ), {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


class Store:
    """Rows on disk, by section and key."""

    def __init__(self, path: Path, machine: dict[str, Any], again: bool = False):
        self.path, self.content, self.again = path, {"machine": machine, "rows": {}}, again
        if path.exists():
            earlier = json.loads(path.read_text())
            same = all(earlier["machine"].get(k) == machine[k] for k in ("device", "jax", "dtype"))
            if not same:
                raise JvidpruneError(f"{path} holds rows of another machine, jax or dtype; name another --json-file.")
            self.content = {"machine": earlier["machine"] | machine, "rows": earlier["rows"]}

    def row(self, section: str, key: str, make: Any) -> dict[str, Any]:
        """The row, measured if it is not there yet or all are measured again."""
        rows = self.content["rows"].setdefault(section, {})
        if key not in rows or self.again:
            rows[key] = make()
            with atomic_output(self.path) as part:
                part.write_text(json.dumps(self.content, indent=1))
            print(f"{section}: {key}: {in_short(rows[key])}", flush=True)
            jax.clear_caches()
        return rows[key]


def measure_model(config: Config, dtype: Any, rates: Rates, store: Store) -> None:
    """Tower, decoding, and the prefill unpruned and behind every reducer."""
    model, described = model_cells.random_model(config.model, dtype)
    bench = model_cells.Bench(
        config.model, model, described, config.frames, dtype, rates, config.repeats, config.seconds
    )
    label = f"{config.model} frames={config.frames}"
    store.row("tower", label, lambda: model_cells.run_tower(bench))
    whole = bench.layout.total
    store.row("decode", f"{label} visual={whole}", lambda: model_cells.run_decode(bench, whole))
    for method in config.methods:
        try:
            visual, stages = model_cells.kept_tokens(bench, method, 1.0 if method == "none" else config.ratio)
        except JvidpruneError as error:
            store.row("prefill", f"{label} {method}", lambda error=error: {"refused": str(error)})
            continue
        key = f"{label} {method}" + ("" if method == "none" else f" ratio={config.ratio:g}")
        store.row("prefill", key, lambda v=visual, s=stages: model_cells.run_prefill(bench, v, s))


def main(
    config: Annotated[Config, tyro.conf.OmitArgPrefixes] = Config(),
    json_file: Path = Path("perf.json"),
    markdown: Path | None = None,
    compare_with: Annotated[Path | None, tyro.conf.arg(name="compare")] = None,
    again: bool = False,
) -> None:
    """Measures what the JSON does not hold yet and prints the tables.

    Args:
      config: what to measure.
      json_file: where rows are kept.
      markdown: also write the tables there.
      compare_with: an earlier JSON; prints what got slower or faster by more than a tenth.
      again: measure rows that are there once more.
    """
    config, dtype = resolved(config)
    # A file keeps the rates that its floors come from where no new row has one.
    machine = this_machine(dtype) if json_file.exists() and UNTIMED.issuperset(config.parts) else measured_rates(dtype)
    rates = Rates(machine.get("flops", 0.0), machine.get("bytes", 0.0))
    store = Store(json_file, machine, again)
    if "start" in config.parts:
        for name in start_cells.COMMANDS:
            store.row("start", name, lambda n=name: start_cells.run_cell(n, config.repeats))
    if "reducers" in config.parts:
        for cell in reducer_cells.cells(config.cells, config.methods, 1e9 * config.gigabytes):
            options: dict[str, Any] = {"repeats": config.repeats, "seconds": config.seconds}
            store.row("reducers", cell.key, lambda c=cell, o=options: reducer_cells.run_cell(c, rates, dtype, **o))
    if "calls" in config.parts:
        for cell in call_cells.cells(config.cells, config.methods):
            options = {"rounds": config.repeats, "seconds": config.seconds}
            store.row("calls", cell.key, lambda c=cell, o=options: call_cells.run_cell(c, **o))
    if "memory" in config.parts:
        for cell in memory_cells.cells(config.cells, config.methods):
            store.row("memory", cell.key, lambda c=cell: memory_cells.run_cell(c, dtype))
    if "model" in config.parts:
        measure_model(config, dtype, rates, store)
    if "stts" in config.parts:
        for cell in stts_cells.cells(config.cells):
            store.row("stts", cell.key, lambda c=cell: stts_cells.run_cell(c, rates, config.repeats, config.seconds))
    text = tables(store.content)
    print(text)
    if markdown is not None:
        with atomic_output(markdown) as part:
            part.write_text(text)
    if compare_with is not None:
        print(compare(json.loads(compare_with.read_text()), store.content))


if __name__ == "__main__":
    tyro.cli(main)
