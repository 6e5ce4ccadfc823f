"""What must not creep in, told from programs alone: callbacks, scalar loops of XLA:CPU, work repeated for every ratio,
temporaries that grow with the number of ratios. No clock is read."""

import importlib
import re

import jax
import numpy as np
import pytest
from helpers.places import REPOSITORY
from jax.extend import core as jex

from jvidprune import VideoTokens, reducers
from jvidprune.cuts.rules import HalvingMerge
from jvidprune.models.checkpoint.published import published
from jvidprune.ops.branch import using
from jvidprune.reducers.programs import run_budgets
from jvidprune.tokens import stack_budgets

FRAMES, GRID, UNPOOLED, DIM = 6, (4, 5), (8, 10), 16
RATIOS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
CALLBACKS = {"pure_callback", "io_callback", "debug_callback", "debug_print", "outside_call"}
ORDERS = {"sort", "top_k", "approx_top_k"}
SCALAR = {"argmax", "argmin"}
"""XLA:CPU runs these entry by entry; `ops.select.first_argmax` is the vectorised form."""


def video_for(needs, frames=FRAMES, grid=GRID, unpooled=UNPOOLED, dim=DIM):
    rng = np.random.default_rng(0)
    n, m = grid[0] * grid[1], unpooled[0] * unpooled[1]
    shapes = {
        "attention_shallow": (frames, m),
        "attention_deep": (frames, m),
        "features_unpooled": (frames, m, dim),
        "keys": (frames, n, 8),
        "frame_embedding": (frames, dim),
        "newline": (dim,),
        "text": (3, dim),
    }
    evidence = {name: rng.random(shapes.get(name, (frames, n)), np.float32) + 0.01 for name in needs}
    features = rng.standard_normal((frames, n, dim), np.float32)
    return VideoTokens.create(features, evidence, grid=grid, unpooled_grid=unpooled)


def inner_programs(equation):
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, jex.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, jex.Jaxpr):
                yield part


def equations(program):
    """All equations of a program, those of its loops and branches included."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from equations(inner)


def traced(method):
    """The program of a sweep, and that of its loop over ratios."""
    reducer = reducers.get(method)
    video = video_for(reducer.needs)
    layout = video.layout()
    capacity = max(reducer.capacity(layout, ratio) for ratio in RATIOS)
    budgets = stack_budgets([reducer.budget(layout, ratio) for ratio in RATIOS])
    own = run_budgets.__wrapped__
    program = jax.make_jaxpr(lambda v, b: own(reducer, v, b, capacity=capacity))(video, budgets).jaxpr
    loops = [e for e in equations(program) if e.primitive.name == "scan" and e.params["length"] == len(RATIOS)]
    return program, [inner for loop in loops for inner in inner_programs(loop)]


@pytest.mark.parametrize("method", reducers.names())
def test_programs_of_a_sweep(method):
    program, per_ratio = traced(method)
    names = {equation.primitive.name for equation in equations(program)}
    assert not names & CALLBACKS
    assert not names & SCALAR
    sizes = [var.aval.size for e in equations(program) for var in e.outvars if hasattr(var.aval, "size")]
    cells, unpooled = GRID[0] * GRID[1], UNPOOLED[0] * UNPOOLED[1]
    side = unpooled if method == "aot" else cells
    # Nothing, outputs included, as large as the similarities of all ratios together.
    assert max(sizes) < len(RATIOS) * FRAMES * side * side
    assert per_ratio
    if reducers.get(method).info.nested:
        repeated = {equation.primitive.name for inner in per_ratio for equation in equations(inner)}
        assert not repeated & ORDERS, "an order does not depend on the ratio"
        assert "dot_general" not in repeated, "similarities do not depend on the ratio"


@pytest.mark.parametrize(("method", "lines", "batches"), [("aot", 3300, 0), ("flashvid", 3000, 1)])
def test_programs_for_tpus_hold_a_product_once_for_all_ratios(method, lines, batches):
    """A TPU's compiler unrolls products of a batch: eight side by side took it two to three times as long.

    FlashVID's sums of a frame's children are no slower to compile for eight ratios than for one.
    """
    reducer = reducers.get(method)
    video = video_for(reducer.needs)
    layout = video.layout()
    capacity = max(reducer.capacity(layout, ratio) for ratio in RATIOS)
    budgets = stack_budgets([reducer.budget(layout, ratio) for ratio in RATIOS])
    with using("tpu"):
        ahead = run_budgets.trace(reducer, video, budgets, capacity=capacity)
    text = ahead.lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    found = [line for line in products if re.search(rf"batching_dims = .*\(tensor<{len(RATIOS)}x", line)]
    assert len(found) <= batches
    assert text.count("\n") <= lines, "instructions of the program"


def test_temporaries_of_aot_are_three_maps_of_cosines():
    reducer = reducers.get("aot")
    video = video_for(reducer.needs, frames=8, grid=(7, 7), unpooled=(14, 14), dim=32)
    layout = video.layout()
    capacity = max(reducer.capacity(layout, ratio) for ratio in RATIOS[:3])
    budgets = stack_budgets([reducer.budget(layout, ratio) for ratio in RATIOS[:3]])
    compiled = run_budgets.lower(reducer, video, budgets, capacity=capacity).compile()
    maps = 4 * 8 * 196 * 196
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * maps


@pytest.fixture
def suite(monkeypatch):
    """Modules of the performance suite by name."""
    monkeypatch.syspath_prepend(REPOSITORY)
    return lambda name: importlib.import_module(f"experiments.perf.{name}")


def test_prefills_are_measured_behind_the_settings_of_the_model(suite):
    cells = suite("model_cells")
    config = published("llava-onevision-0.5b")
    bench = cells.Bench("0.5b", None, config, 2, None, None, 1, 0.0)
    tokens, (merging,) = cells.kept_tokens(bench, "holitom", 0.1)
    assert (merging.layer, type(merging.rule), tokens) == (18, HalvingMerge, int(0.1 * 2 * 196 + 1.5 * 2))
    # B = ceil(196 * 0.1 * 24 / 21.2) tokens a frame: the cut before layer 20 of 24 makes up for no more.
    assert cells.kept_tokens(bench, "flashvid", 0.1)[0] == 2 * (23 + 1)


def test_memory_of_full_size_programs_is_told_without_running_them(suite):
    cells, table = suite("memory_cells"), suite("table")
    found = {frames: cells.run_cell(cells.MemoryCell("evs", frames, 0.25), np.dtype("bfloat16")) for frames in (4, 8)}
    assert found[8]["arguments"] - found[4]["arguments"] == 4 * (196 * 3584 * 2 + 1), "bf16 tokens and the frame mask"
    assert found[4]["outputs"] >= 196 * 3584 * 2
    refused = cells.run_cell(cells.MemoryCell("dycoke", 8, 0.1), np.dtype("float32"))
    content = {"rows": {"memory": {"evs": found[4], "dycoke": refused}}}
    content["machine"] = {"device": "x", "jax": "1", "dtype": "bfloat16", "flops": 1e9, "bytes": 1e9}
    assert f"| evs | {found[4]['arguments'] / 2**20:,.0f} |" in table.tables(content)
    assert "at least 0.25, got 0.1" in table.tables(content)
    grown = {"rows": {"memory": {"evs": found[4] | {"temporaries": 3 * found[4]["temporaries"]}}}}
    assert "3.00x  memory: evs" in table.compare(content, grown).partition("better:")[0]


@pytest.mark.slow
def test_calls_of_one_and_of_eight_ratios_stand_in_one_row(suite):
    cells, table = suite("call_cells"), suite("table")
    found = cells.cells("quick", {"divprune"})
    assert [cell.method for cell in found] == ["divprune", "divprune(scope='frame')"]
    row = cells.run_cell(found[1], rounds=1, seconds=0.0)
    assert row["original_s"] is None, "the originals were measured at full size"
    assert all(0 < row[name]["cpu_ms"] < float("inf") for name in ("plan", "plans", "reduce", "sweep"))
    amounts = {"plan": 10, "plans": 11, "reduce": 30, "sweep": 90, "written reduce": 10, "written sweep": 60}
    row = {name: {"cpu_ms": amount, "wall_ms": amount} for name, amount in amounts.items()} | {"original_s": 0.5}
    content = {"machine": {"device": "x", "jax": "1", "dtype": "float32", "flops": 1e9, "bytes": 1e9}}
    line = table.tables(content | {"rows": {"calls": {"one": row}}}).splitlines()[-1]
    # 11 / 10, 90 / 30, and without the writing (90 - 60) / (30 - 10).
    assert line == ("| one | 10.0 | 11.0 | 1.10 | 30.0 | 90.0 | 3.00 | 10.0 | 60.0 | 1.50 | 30.0 | 90.0 | 0.5 |")


@pytest.mark.parametrize("method", sorted(set(reducers.names()) - {"visionzip_qwen", "scissor"}))
def test_no_copy_of_the_features_is_made(method):
    """Decisions read the features frame by frame; `visionzip_qwen` and `scissor` average first."""
    reducer = reducers.get(method)
    video = video_for(reducer.needs, frames=12, dim=2048)
    budgets = stack_budgets([reducer.budget(video.layout(), 0.3)])
    capacity = reducer.capacity(video.layout(), 0.3)
    compiled = run_budgets.lower(reducer, video, budgets, capacity=capacity).compile()
    read = video.evidence["features_unpooled"] if method == "aot" else video.features
    assert compiled.memory_analysis().temp_size_in_bytes < read.nbytes / 2
