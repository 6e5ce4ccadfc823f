"""Plans on paper against numbers worked out by hand from the published sizes, and against the memory model."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import pytest

from jvidprune import cli
from jvidprune.cli.plan_rows import PlanChoice, rows
from jvidprune.costs import memory
from jvidprune.costs.chips import CHIPS, chip
from jvidprune.costs.footprint import footprint, weights
from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.published import published

WISH = PlanChoice("llava-onevision-7b", frames="32", ratios="1", reducer="none")

LAYER = 3584 * (3584 + 512 + 512 + 3584) + 3 * 3584 * 18944
"""Weights of the matrices of one of the 28 layers of a Qwen2 of 7B: 28 heads and 4 key heads of 128."""
HEAD = 3584 * 152128
PROMPT = 32 * 196 + 1 + 57


def plan(**changes):
    (row,) = rows(dataclasses.replace(WISH, **changes))
    return row


def stage(row, name):
    return next(found for found in row.stages if found.name == name)


def test_a_prefill_takes_its_flops_at_half_of_the_peak():
    row = plan()
    found = stage(row, "prefill")
    assert row.prompt == PROMPT == 6330
    causal = 28 * 2 * 3584 * PROMPT**2
    flops = 2 * 28 * LAYER * PROMPT + causal + 2 * HEAD
    assert LAYER == 233_046_016
    assert found.flops == pytest.approx(flops)
    assert flops == pytest.approx(90.65e12, rel=1e-3)
    assert found.seconds == pytest.approx(flops / (0.5 * 989.4e12))
    assert (found.bound, found.sent) == ("FLOPs", 0)
    # Half the tokens are less than half the work: attention falls by the square.
    half = stage(plan(ratios="0.5", reducer="uniform"), "prefill")
    assert half.flops < found.flops / 2


def test_a_decoding_step_reads_weights_and_cache_once():
    row = plan()
    found = stage(row, "token")
    norms_and_biases = 28 * (2 * 3584 + 3584 + 2 * 512) + 3584
    read = 2 * (28 * LAYER + norms_and_biases + HEAD + 2 * 28 * PROMPT * 512)
    assert found.bytes == pytest.approx(read)
    assert found.bound == "HBM"
    assert found.seconds == pytest.approx(read / (0.75 * 3.35e12))
    # Sixteen prompts share the weights.
    many = stage(plan(batch=16), "token")
    assert many.bytes == pytest.approx(read + 15 * 2 * 2 * 28 * PROMPT * 512)


def test_devices_of_a_tensor_axis_share_arithmetic_and_send_two_sums_a_layer():
    one, four = stage(plan(), "prefill"), stage(plan(mesh=("tensor=4",)), "prefill")
    assert four.flops == pytest.approx(one.flops / 4)
    sent = 28 * 2 * 2 * 3 / 4 * PROMPT * 3584 * 2
    assert four.sent == pytest.approx(sent)
    assert four.link == pytest.approx(sent / (0.75 * 450e9))
    assert four.seconds == pytest.approx(max(four.compute, four.memory) + four.link)
    # Slices of the layers are put together once a pass, on top.
    both = stage(plan(mesh=("fsdp=2,tensor=4",)), "prefill")
    assert both.sent - sent == pytest.approx(28 * LAYER / 4 / 2 * 2, rel=1e-3)
    assert both.flops == four.flops
    # Frames are divided over fsdp and data; a single prompt is not.
    spread = plan(mesh=("data=4",))
    assert stage(spread, "encode").flops == pytest.approx(stage(plan(), "encode").flops / 4)
    assert stage(spread, "prefill").flops == one.flops
    assert stage(plan(mesh=("data=4",), batch=4), "prefill").flops == one.flops


def test_a_device_holds_its_share_of_the_weights():
    config = published("llava-onevision-7b")
    whole = weights(config, {})
    assert whole.total == memory.parameter_count(config) == pytest.approx(8.0308e9, rel=1e-4)
    assert whole.words == 2 * HEAD
    share = weights(config, {"fsdp": 2, "tensor": 4})
    assert share.words == whole.words / 8
    assert whole.layers / 8 <= share.layers < whole.layers / 8 * 1.001
    # 4304 hidden units of the tower and its 16 heads divide by 4.
    assert whole.tower / 8 < share.tower < whole.tower / 8 * 1.1
    # Seven devices share the 28 heads, but neither 4 key heads nor 18,944 hidden units.
    queries = 28 * (2 * 3584 * 3584 + 3584)
    assert weights(config, {"tensor": 7}).layers == whole.layers - queries * 6 / 7
    seven, one = (stage(plan(mesh=(f"tensor={size}",)), "prefill") for size in (7, 1))
    saved = 2 * 28 * 2 * 3584 * 3584 * PROMPT + 28 * 2 * 3584 * PROMPT**2
    assert one.flops - seven.flops == pytest.approx(saved * 6 / 7, rel=1e-3)


def test_one_device_needs_what_the_memory_model_says():
    config = published("llava-onevision-7b")
    shape = memory.tower_shape(config, 32)
    sizes = {"kept": 628, "text": 57, "max_new_tokens": 64, "dtype": jnp.float32}
    need = memory.ask_need(config, shape, **sizes)
    # No fused kernel takes float32 there, so that scores are held as they are on this machine.
    where = chip("a100-80g")
    found = footprint(config, where, {}, shape=shape, prompt=685, visual=628, new_tokens=64, dtype=jnp.float32)
    assert (found.parameters, found.features, found.encode, found.prompt, found.peak) == (
        *(need.parameters, need.features, need.encode, need.prompt),
        need.peak,
    )
    assert found.available == int(0.92 * 80e9)


def test_what_fits_where():
    sizes = {"mesh": ("tensor=1", "tensor=2", "tensor=4"), "chip": "v5e,a100-40g", "frames": "16,256"}
    found = rows(dataclasses.replace(WISH, model="qwen2.5-vl-7b", ratios="1,0.1", reducer="uniform", **sizes))
    assert len(found) == 24
    fits = {(row.chip.name, row.mesh["tensor"], row.frames, row.ratio): row.memory.fits for row in found}
    # 16.6 GB of weights: never on one chip of 16 GB, always on a pair of them with few frames, and on 40 GB.
    assert not any(fits["v5e", 1, frames, ratio] for frames in (16, 256) for ratio in (1.0, 0.1))
    assert all(fits["v5e", 2, 16, ratio] and fits["a100-40g", 1, 16, ratio] for ratio in (1.0, 0.1))
    time = {(row.chip.name, row.mesh["tensor"], row.frames, row.ratio): row.first_token for row in found}
    assert all(time[c, t, f, 0.1] < time[c, t, f, 1.0] for c, t, f, _ in time)
    assert all(time["a100-40g", t, f, r] < time["v5e", t, f, r] for _, t, f, r in time)
    long = next(
        row for row in found if (row.chip.name, row.mesh["tensor"], row.frames, row.ratio) == ("v5e", 4, 256, 1)
    )
    # The TPU's kernel holds no scores: three times four bytes for each of 28 / 4 heads and pair would be far more.
    assert stage(long, "prefill").bytes < 28 * 12 * 7 * long.prompt**2 / 10
    assert long.bound == "prefill: FLOPs"
    # All but 4 of the tower's 32 blocks see windows of 64 patches, not frames of 1,024.
    patches, scores = 128 * 32 * 32, 12 * 16 / 4
    attention = scores * patches * (4 * 1024 + 28 * 64)
    assert attention < stage(long, "encode").bytes < attention + 32 * 2 * patches * 1280 * 20


def test_chips_order_as_their_makers_say():
    assert CHIPS.keys() == {"h100", "h200", "a100-40g", "a100-80g", "v4", "v5e", "v5p", "v6e"}
    # Operations a byte at which a program turns from traffic to arithmetic.
    ridge = {name: one.flops / one.bandwidth for name, one in CHIPS.items()}
    assert {name: round(value) for name, value in ridge.items()} == {
        "h100": 295, "h200": 206, "a100-40g": 201, "a100-80g": 153, "v4": 229, "v5e": 241, "v5p": 166, "v6e": 560,
    }  # fmt: skip


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["jvidprune", "plan", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_verb_prints_a_table_and_records(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    words = ["--model", "llava-onevision-0.5b", "--frames", "8", "--ratios", "0.1", "--mesh", "data=2,tensor=2"]
    code, out, _ = run(*words)
    assert code == 0
    for word in ("h100", "data=2,tensor=2", "yes", "encode", "reduce", "prefill", "one token more", "NVIDIA H100"):
        assert word in out
    code, out, _ = run(*words, "--json")
    (record,) = json.loads(out)
    assert record["memory"]["fits"] is True
    assert record["first_token"] == pytest.approx(sum(s["seconds"] for s in record["stages"][:3]))
    assert run(*words, "--quiet")[1] == "fits\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--chip", "tpu9"], "unknown chip 'tpu9'; known: h100, h200"),
        (["--mesh", "tensor=8"], "tensor=8 does not divide the 28 heads of this qwen2_5_vl; allowed: 1, 2, 4, 7"),
        (["--mesh", "fsdp=4,tensor=4"], "tensor=4 x fsdp=4 are more chips than the 8 that the links of a h100 join"),
        (["--mesh", "model=2"], "a mesh is written as in data=2,fsdp=2,tensor=2"),
        (["--frames", "many"], "frames are whole numbers separated by commas, got 'many'"),
        (["--ratios", "2"], "ratio"),
        (["--batch", "0"], "batch must lie in [1, 10000000], got 0"),
        (["--mesh", "data=0"], "every axis of a mesh must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(run, words, sentence):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_errors_are_of_the_packages_kind():
    with pytest.raises(JvidpruneError):
        chip("x")


def test_a_plan_takes_a_methods_settings_at_the_models_depth():
    # The cut of Qwen3-VL's preset lies behind the 28 layers of its smallest model: ceil(196 * 0.1) tokens a frame,
    # 16 frames of pairs, where the 36 layers of a larger one take 1.25 times as many before it.
    small, large = (plan(model=f"qwen3-vl-{size}", reducer="flashvid", ratios="0.1") for size in ("2b", "8b"))
    assert (small.kept, large.kept) == (16 * (20 + 1), 16 * (25 + 1))
