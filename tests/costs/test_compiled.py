"""Plans compiled for a slice of TPUs: slices by name, messages counted, what does not fit, and real compilations."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jvidprune import reducers
from jvidprune.cli.plan_compiled import CompiledRow, compiled_rows, remedy
from jvidprune.cli.plan_rows import PlanChoice, planned
from jvidprune.costs import compiled, hlo, memory
from jvidprune.costs.chips import chip
from jvidprune.costs.compiled import CompiledPlan, CompiledStage, Slice, slice_named
from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families
from jvidprune.stts import Scorer, SiglipTower

GIB = 2**30
WISH = PlanChoice("llava-onevision-7b", frames="32", ratios="1", reducer="none", mesh=("tensor=1",), compile="v5e:2x4")

LOOP = """HloModule looped

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %shared = f32[8,4]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%i, %shared)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(24)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[16,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  %end = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %all = f32[16,4]{1,0} all-gather(%end), dimensions={0}, replica_groups={{0,1}}
}
"""


VIEWED = """HloModule viewed

%turned (p: s8[28,64,32]) -> s8[28,64,32] {
  %p = s8[28,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copied = s8[28,64,32]{2,1,0:T(8,128)(4,1)} copy(%p)
}

%product (w: s8[28,64,32], i: s32[], x: bf16[64]) -> bf16[32] {
  %w = s8[28,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[64]{0} parameter(2)
  %zero = s32[] constant(0)
  %view = s8[28,64,32]{2,1,0:T(8,128)(4,1)} fusion(%w), output_to_operand_aliasing={{}: (0, {})}, calls=%turned
  %one = s8[1,64,32]{2,1,0:T(8,128)(4,1)} dynamic-slice(%view, %i, %zero, %zero), dynamic_slice_sizes={1,64,32}
  %wide = bf16[1,64,32]{2,1,0} convert(%one)
  ROOT %y = bf16[32]{0} convolution(%x, %wide), dim_labels=bf_io->bf
}

ENTRY %main (w: s8[28,64,32], i: s32[], x: bf16[64]) -> bf16[32] {
  %w = s8[28,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[64]{0} parameter(2)
  ROOT %y = bf16[32]{0} fusion(%w, %i, %x), kind=kOutput, calls=%product
}
"""


def stage(name, *, temporaries=0, over=0):
    messages = (hlo.Message("all-reduce", "jit(f)/dot_general", 4, 2.0, 3e6, 3e6),)
    return CompiledStage(name, 0, 0, temporaries, 0, 1e9, messages, 1.0, over)


def plan_of(weights=4 * GIB, available=14 * GIB, **largest):
    """A plan whose prefill is as it is told."""
    stages = (stage("encode"), stage("reduce"), stage("prefill", **largest), stage("token"))
    return CompiledPlan("v5e:2x4", {"data": 8, "fsdp": 1, "tensor": 1}, weights, stages, available)


@pytest.fixture
def faked(monkeypatch):
    """A slice of eight v5e without libtpu, and a plan that does not fit it."""
    monkeypatch.setattr(compiled, "slice_named", lambda name: Slice(name, chip("v5e"), (None,) * 8))
    monkeypatch.setattr(
        compiled, "compile_answer", lambda *args, **options: plan_of(15 * GIB, temporaries=GIB, available=14 * GIB)
    )


@pytest.mark.parametrize("name", ["h100:2x4", "v5e", "v5e:", "v5e:2", "v5e:2x4x", "2x4", "v9:2x4", "v5e:axb"])
def test_a_slice_is_a_chip_and_its_sides(name):
    with pytest.raises(JvidpruneError, match="a slice is written as in v5e:2x4"):
        slice_named(name)


def test_what_compiles_is_named_where_it_is_missing(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("jvidprune.extras.importlib.import_module", missing)
    with pytest.raises(JvidpruneError, match=r"compiling for a TPU slice needs libtpu: pip install 'jvidprune\[tpu\]'"):
        slice_named("v5e:2x4")


def test_messages_in_loops_count_as_often_as_the_loops_run():
    array = 8 * 4 * 4
    assert hlo.collectives(LOOP) == {"all-reduce": (24.0, 24.0 * array), "all-gather": (1.0, float(array))}


def test_a_layer_that_is_cut_out_of_an_array_in_another_layout_is_all_that_is_read():
    assert hlo.traffic(VIEWED).main == 64 * 32 + 4 + 2 * 64 + 2 * 32
    # A fusion that writes what it copies reads all of it.
    written = VIEWED.replace(", output_to_operand_aliasing={{}: (0, {})}", "")
    assert hlo.traffic(written).main == 28 * 64 * 32 + 4 + 2 * 64 + 2 * 32


@pytest.mark.parametrize(
    ("groups", "among"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['a'=2,'b'=3,'c'=4], device_ids=([2,3,4]T(1,0)) {'b','c'}", 12),
        ("mesh['a'=2,'b'=3] {'a'}", 2),
        ("elsewhere", 0),
    ],
)
def test_messages_tell_their_origin_and_how_many_share_them(groups, among):
    text = LOOP.replace(
        "replica_groups={{0,1}}, to_apply=%add",
        f'replica_groups={groups}, to_apply=%add, metadata={{op_name="jit(f)/while/body/dot_general"}}',
    )
    reduced = next(message for message in hlo.messages(text) if message.kind == "all-reduce")
    assert reduced == ("all-reduce", "jit(f)/while/body/dot_general", among, 24.0, 24.0 * 128, 128.0)


def test_an_instruction_that_a_kernel_breaks_over_lines_is_one():
    array, call = 8 * 4 * 4, "  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1\n"
    assert LOOP.count(call) == 1
    kernel = LOOP.replace(
        call,
        call[:-1] + ', frontend_attributes={kernel_metadata={\n"metadata":"{}"\n}}, metadata={op_name="kernel"}\n',
        1,
    )
    assert (
        hlo.collectives(kernel)
        == hlo.collectives(LOOP)
        == {"all-reduce": (24.0, 24.0 * array), "all-gather": (1.0, array)}
    )
    assert hlo.traffic(kernel) == hlo.traffic(LOOP)


def test_the_largest_program_stands_beside_all_weights():
    plan = plan_of(weights=4 * GIB, temporaries=3 * GIB)
    assert (plan.peak, plan.fits) == (7 * GIB, True)
    assert not plan_of(weights=4 * GIB, temporaries=11 * GIB).fits
    # What the compiler refuses does not fit, whatever the sum says.
    assert not plan_of(weights=4 * GIB, over=1).fits


def test_a_mesh_fills_the_slice(faked):
    (row,) = compiled_rows(WISH)
    assert row.paper.mesh == {"data": 8, "fsdp": 1, "tensor": 1}
    (row,) = compiled_rows(dataclasses.replace(WISH, mesh=("tensor=4",)))
    assert row.paper.mesh == {"data": 2, "fsdp": 1, "tensor": 4}
    for mesh in ("tensor=16", "data=4,tensor=4", "fsdp=3"):
        with pytest.raises(JvidpruneError, match=rf"a mesh of {mesh} does not fill the 8 chips of the slice"):
            compiled_rows(dataclasses.replace(WISH, mesh=(mesh,)))


def test_what_does_not_fit_is_told_with_what_would_do(faked):
    (row,) = compiled_rows(WISH)
    said = remedy(row, WISH, 8)
    assert said.startswith(
        "llava-onevision-7b with 32 frames at ratio 1 does not fit v5e:2x4: prefill exceeds a chip by 2.0 GiB; "
    )
    # Weights alone are too many for one chip: fewer frames help nothing.
    assert said.endswith("; --mesh tensor=2 would do.")
    # Four chips of eight hold the weights, so that frames and ratio matter.
    wish = dataclasses.replace(WISH, reducer="random", mesh=("tensor=4",))
    _, sizes, paper = next(iter(planned(dataclasses.replace(wish, chip="v5e"), chips=8)))
    assert sizes["tensor"] == 4
    tight = CompiledRow(
        paper, plan_of(weights=paper.memory.parameters, temporaries=GIB, available=paper.memory.parameters + GIB // 2)
    )
    said = remedy(tight, wish, 8)
    # No axis of 8: it does not divide the 28 heads.
    assert said.endswith("exceeds a chip by 0.5 GiB; --frames 8 or --ratios 0.1 would do.")


def test_the_verb_shows_both_tables_and_ends_with_the_sentence(faked, run):
    words = ("plan", "--compile", "v5e:2x4", "--model", "llava-onevision-7b", "--frames", 32, "--ratios", "1,0.1")
    code, out, err = run(*words, "--reducer", "random")
    assert code == 2
    assert out.count("collectives") == 2
    assert "all-reduce" in out
    assert err.strip().endswith("--mesh tensor=2 would do.")
    code, out, _ = run(*words, "--reducer", "random", "--json")
    found = json.loads(out)
    assert [row["ratio"] for row in found] == [1.0, 0.1]
    assert found[0]["compiled"]["stages"][2]["collectives"] == {"all-reduce": [2.0, 3e6]}
    assert run(*words, "--reducer", "random", "--quiet")[1] == "does not fit\ndoes not fit\n"


def test_a_training_step_is_shown_alone_and_told_where_it_does_not_fit(faked, monkeypatch, run):
    asked = []

    def step(config, where, sizes, **options):
        asked.append(options)
        return CompiledPlan(where.name, sizes, 9 * GIB, (stage("step", temporaries=6 * GIB),), 14 * GIB)

    monkeypatch.setattr("jvidprune.costs.compiled_step.compile_step", step)
    words = ("plan", "--model", "llava-onevision-7b", "--frames", 32, "--ratios", "0.5", "--train", "--batch", 2)
    code, out, err = run(*words, "--compile", "v5e:2x4")
    assert (code, asked[0]["frames"], asked[0]["ratio"], asked[0]["batch"]) == (2, 32, 0.5, 2)
    assert "training step" in out
    assert "on paper" not in out
    assert err.strip().endswith(
        "a training step exceeds a chip by 1.0 GiB; a mesh with more of fsdp or tensor, fewer frames or a smaller "
        "ratio would need less."
    )
    assert run(*words)[2].strip().endswith("add --compile and a slice, as in v5e:2x4.")


def scorer_of(config):
    """The scorer of a LLaVA model, as shapes."""

    def made():
        tower = families.get(config.family).model(config, dtype=jnp.float32, rngs=nnx.Rngs(0)).vision
        return Scorer(SiglipTower(tower).sizes, rngs=nnx.Rngs(0))

    return nnx.eval_shape(made)


@pytest.mark.tpu_compile
def test_the_training_step_compiles_for_a_slice_with_its_kernels_divided():
    pytest.importorskip("libtpu")
    from jvidprune.costs.compiled_step import compile_step
    from jvidprune.models.checkpoint.published import published

    config = published("llava-onevision-0.5b")
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, layers=6),
        text=dataclasses.replace(config.text, layers=2),
    )
    plan = compile_step(
        config, slice_named("v5e:2x2"), {"data": 1, "fsdp": 2, "tensor": 2}, frames=4, ratio=0.5, text=64
    )
    (one,) = plan.stages
    assert plan.fits
    # Parameters and two moments in float32: the model's are cut in four, the scorer lies whole on every chip.
    whole = 12 * memory.parameter_count(config)
    scorer = 12 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(scorer_of(config))))
    assert whole / 4 < plan.weights - scorer < 0.27 * whole
    assert "all-gather" in one.collectives
    # No chip is told the maps of scores, or other chips' clips: what it sends is less than gradients and parameters.
    assert one.sent < 3 * plan.weights


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("model", "reducer"),
    [
        ("llava-onevision-0.5b", "flashvid"),
        pytest.param("qwen3-vl-2b", "random", marks=pytest.mark.long),
        pytest.param("molmo2-4b", "none", marks=pytest.mark.long),
        pytest.param("videollama3-2b", "random", marks=pytest.mark.long),
        pytest.param("internvl3_5-2b", "random", marks=pytest.mark.long),
    ],
)
def test_all_programs_of_an_answer_compile(model, reducer):
    """Two chips of tensor parallelism: messages of row-parallel products, and no weight matrix is put together."""
    pytest.importorskip("libtpu")
    wish = PlanChoice(model, frames="4", ratios="0.25", reducer=reducer, mesh=("tensor=2",), compile="v5e:2x2")
    (row,) = compiled_rows(wish)
    plan = row.compiled
    assert plan.fits
    assert 0.8 < row.off < 1.2
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["prefill"].collectives["all-reduce"][0] >= 2
    for found in plan.stages:
        count, size = found.collectives.get("all-gather", (0, 0.0))
        # Activations of a few tokens; the smallest matrix of a layer of these models is larger.
        assert count == 0 or size / count < 2.2e6
    assert by_name["reduce"].collectives == {}
    # A step of decoding reads the weights and the cache once.
    assert by_name["token"].moved < 1.3 * (by_name["token"].weights + by_name["token"].inputs)


@pytest.mark.tpu_compile
@pytest.mark.long
def test_experts_compile_for_a_slice_that_holds_an_eighth_of_them_a_chip():
    """The 30B-A3B on eight chips of 16 GB: two sums a layer in the prefill, and no expert travels."""
    pytest.importorskip("libtpu")
    wish = PlanChoice(
        "qwen3-vl-30b-a3b", frames="4", ratios="0.25", reducer="random", mesh=("tensor=8",), compile="v5e:2x4"
    )
    (row,) = compiled_rows(wish)
    plan = row.compiled
    assert plan.fits
    assert 0.8 < row.off < 1.2
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["prefill"].collectives["all-reduce"][0] == 2 * 48
    # The matrices of one layer's experts on a chip are 150 MB.
    assert by_name["prefill"].sent < 150e6
    assert by_name["prefill"].temporaries < 1.5 * GIB
    # A step reads no more than every weight of a chip and the cache once.
    assert by_name["token"].moved < 1.3 * (by_name["token"].weights + by_name["token"].inputs)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_step_of_a_quantised_model_reads_a_byte_for_each_weight(kind):
    """A 7B on one chip of 16 GB, which it does not fit in bfloat16; no matrix is written in a wider type."""
    pytest.importorskip("libtpu")
    wish = PlanChoice("llava-onevision-7b", chip="v5e", frames="4", ratios="0.25", reducer="random")
    ((_, _, whole),) = planned(wish)
    ((config, sizes, paper),) = planned(dataclasses.replace(wish, quantise=kind))
    assert (whole.memory.fits, paper.memory.fits) == (False, True)
    plan = compiled.compile_answer(
        config,
        slice_named("v5e:1x1"),
        sizes,
        shape=memory.video_shape(config, paper.frames, paper.layout),
        layout=paper.layout,
        reducer=reducers.get("random"),
        ratio=paper.ratio,
        visual=paper.kept + paper.newlines,
        prompt=paper.prompt,
        new_tokens=wish.new_tokens,
        only=("token",),
    )
    (token,) = plan.stages
    assert plan.weights == paper.memory.parameters
    matrices, head = 28 * (2 * 3584 * (3584 + 512) + 3 * 3584 * 18944), 2 * 3584 * 152064
    assert token.moved < 1.02 * (matrices + head) + token.inputs
    # Smaller than the smallest matrix of a layer would be in bfloat16.
    assert token.temporaries < 2 * 3584 * 512
