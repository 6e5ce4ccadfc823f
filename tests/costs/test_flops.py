"""FLOP accounting against XLA's own count, against costs worked out by hand, and against the papers' tables."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jvidprune import JvidpruneError, VideoTokens, reducers
from jvidprune.cli.flops import FlopsChoice, of_config
from jvidprune.costs import flops_model
from jvidprune.costs.flops import count_ratio
from jvidprune.costs.flops_papers import paper_prefill
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import LastQueryTopK, RandomDraw, TextInBlocks
from jvidprune.models.checkpoint.published import PUBLISHED, config_of, published
from jvidprune.models.decoder import Decoder
from jvidprune.models.internvl import Model as InternVL
from jvidprune.models.llava_onevision import LlavaOnevisionConfig
from jvidprune.models.llava_onevision import Model as Llava
from jvidprune.models.molmo2 import Model as Molmo2
from jvidprune.models.prefill import read_prompt
from jvidprune.models.qwen.model import QwenVL
from jvidprune.models.qwen3_5 import Model as Qwen35
from jvidprune.models.video_llama_3 import Model as VideoLlama3
from jvidprune.ops import compact
from jvidprune.reducers import registry
from jvidprune.reducers.counting import TokenWidth
from jvidprune.reducers.programs import run_budgets
from jvidprune.reducers.protocol import with_defaults
from jvidprune.tokens import InnerStage, Kept, Layout, stack_budgets
from jvidprune.video.preprocess import Patches

OV = Layout(32, (14, 14), (27, 27))
ELEMENTWISE = 0.10
"""XLA also counts norms, activations, rotary and softmax: up to a tenth of the matrix products at these sizes."""


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def xla(fn, *args):
    """FLOPs of the compiled program, nothing runs. A scan's body counts once: loops here have one turn."""
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def close(counted, expected):
    return expected <= counted <= (1 + ELEMENTWISE) * expected


@pytest.fixture(scope="module")
def text():
    return dataclasses.replace(
        published("llava-onevision-7b").text, width=512, mlp=1024, layers=2, heads=8, kv_heads=2, head_dim=64, vocab=640
    )


def test_prefill_between_cuts_and_decoding_agree_with_xla(text):
    """Two layers with a cut between them: every stretch is one layer, so that XLA's count is whole."""
    decoder = nnx.eval_shape(lambda: Decoder(text, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    slots = np.arange(192)[None]
    stages = (InnerStage(1, RandomDraw(), Kept(0.25, "round")),)
    inner = Inner.create(stages, (slots >= 16) & (slots < 176), np.ones((1, 192), bool), layers=2)
    parts = flops_model.segments(stages, 2, tokens=192, visual=160)
    assert [(p.start, p.stop, p.tokens, p.visual) for p in parts] == [(0, 1, 192, 160), (1, 2, 72, 40)]

    def prefill(decoder, embeds):
        cache = decoder.empty_cache(1, inner.capacities(192, 1), boundaries=inner.boundaries)
        return read_prompt(decoder, embeds, slots, np.ones((1, 192), bool), cache, inner=inner)[:2]

    counted = xla(prefill, decoder, shape(1, 192, 512))
    assert close(counted, sum(sum(t.values()) for t in flops_model.prefill(text, parts, causal=False)))

    cache = jax.eval_shape(prefill, decoder, shape(1, 192, 512))[1]
    counted = xla(lambda d, token, cache: d.decode(token, cache)[0], decoder, shape(1, dtype=jnp.int32), cache)
    # One step over caches with one free slot, which a plain implementation reads too.
    roomy = tuple(part._replace(cached=part.cached + 1) for part in parts)
    assert close(counted, sum(flops_model.decode(text, roomy, 2).values()))


def test_llavas_tower_and_projector_agree_with_xla(text):
    vision = dataclasses.replace(
        published("llava-onevision-7b").vision, width=256, mlp=512, layers=1, heads=4, image_size=112
    )
    config = LlavaOnevisionConfig(vision, text, 1, pool="average")
    model = nnx.eval_shape(lambda: Llava(config, dtype=jnp.float32))
    terms = flops_model.vision_terms(config, Layout(2, config.grid, config.unpooled_grid))
    assert close(
        xla(lambda m, x: m.encode(x).features, model, shape(2, 3, 112, 112)), sum(sum(t.values()) for t in terms)
    )


@pytest.mark.parametrize("kind", ["qwen2.5-vl-7b windows", "qwen2.5-vl-7b frames", "qwen3-vl-8b"])
def test_qwens_towers_and_mergers_agree_with_xla(text, kind):
    name, _, scope = kind.partition(" ")
    config = published(name)
    vision = dataclasses.replace(
        config.vision,
        width=256,
        mlp=512,
        layers=1,
        heads=4,
        out=512,
        full_blocks=() if scope == "windows" else (0,),
        taps=(0,) if name.startswith("qwen3") else (),
    )
    config = dataclasses.replace(config, vision=vision, text=dataclasses.replace(text, rope=config.text.rope))
    grid = (2, 16, 16)
    model = nnx.eval_shape(lambda: QwenVL(config, dtype=jnp.float32))
    tower, after = flops_model.vision_terms(config, Layout(2, (8, 8)))
    assert ("attention in windows" in tower) == (scope == "windows")
    assert ("DeepStack" in after) == name.startswith("qwen3")
    counted = xla(lambda m, x: m.encode(Patches(x, grid)), model, shape(512, vision.patch_values))
    assert close(counted, sum(tower.values()) + sum(after.values()))


def test_video_llama_3s_tower_and_projector_agree_with_xla(text):
    config = published("videollama3-7b")
    vision = dataclasses.replace(config.vision, width=256, mlp=512, layers=1, heads=4, out=512)
    config = dataclasses.replace(config, vision=vision, text=text)
    model = nnx.eval_shape(lambda: VideoLlama3(config, dtype=jnp.float32))
    tower, after = flops_model.vision_terms(config, Layout(2, (8, 8)))
    grid = (2, 16, 16)
    counted = xla(lambda m, x: m.encode(Patches(x, grid)), model, shape(512, vision.patch_values))
    assert close(counted, sum(tower.values()) + sum(after.values()))


def test_internvls_tower_and_projector_agree_with_xla(text):
    config = published("internvl3_5-8b")
    vision = dataclasses.replace(config.vision, width=256, mlp=512, layers=1, heads=4, image_size=224)
    config = dataclasses.replace(config, vision=vision, text=text)
    model = nnx.eval_shape(lambda: InternVL(config, dtype=jnp.float32))
    tower, after = flops_model.vision_terms(config, Layout(2, config.grid))
    counted = xla(lambda m, x: m.encode(x).features, model, shape(2, 3, 224, 224))
    assert close(counted, sum(tower.values()) + sum(after.values()))


def test_molmo2s_tower_and_connector_agree_with_xla(text):
    config = published("molmo2-8b")
    vision = dataclasses.replace(config.vision, width=256, mlp=512, layers=1, heads=4, image_size=126)
    connector = dataclasses.replace(config.connector, blocks=(0, 0), width=256, heads=4, mlp=1024)
    config = dataclasses.replace(config, vision=vision, connector=connector, text=text)
    model = nnx.eval_shape(lambda: Molmo2(config, dtype=jnp.float32))
    tower, after = flops_model.vision_terms(config, Layout(2, config.grid))
    counted = xla(lambda m, x: m.encode(x).features, model, shape(2, 3, 126, 126))
    assert close(counted, sum(tower.values()) + sum(after.values()))
    # Visual tokens see each other: their half above the diagonal comes on top.
    parts = flops_model.segments((), 2, tokens=100, visual=80)
    plain, mutual = (flops_model.prefill(text, parts, mutual=mutual)[0]["attention"] for mutual in (False, True))
    assert mutual / plain == pytest.approx(1 + 80**2 / 100**2)


# Terms whose loop XLA counts once, and its turns; the others are unrolled or batched.
FRAMES = 6
LOOPS = {
    "flashvid": {"distances of merged tokens (at most)": FRAMES - 1},
    "holitom": {"window distances (at most)": FRAMES // 2},
    "ottvid": {"coverage steps": np.inf, "transport iterations": np.inf},
    "aot": {
        "anchor cosines": FRAMES,
        "transport iterations (at most)": np.inf,
        "clip similarities and sums": FRAMES,
        "weighted sums": FRAMES,
    },
}


@pytest.mark.parametrize("name", ["evs", "vidcom2", "holov", "flashvid", "fastvid", "holitom", "ottvid", "aot"])
@pytest.mark.slow
def test_reducers_terms_agree_with_xla(monkeypatch, name):
    """Within a tenth and three passes over the features, on the batched form, whose loops over frames are unrolled."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # Of the loop over blocks of rows XLA would count one round, and in it a product with mostly zeros.
    monkeypatch.setattr(compact, "_blocked_sums", compact._scattered_sums)
    tokens, wide, width = 49, 196, 2048
    sizes = {
        "attention_shallow": (wide,),
        "attention_deep": (wide,),
        "features_unpooled": (wide, width),
        "frame_embedding": (64,),
    }
    reducer, layout = reducers.get(name, "llava_onevision"), Layout(FRAMES, (7, 7), (14, 14))
    evidence = {need: shape(FRAMES, *sizes.get(need, (tokens,))) for need in reducer.needs}
    mask = shape(FRAMES, dtype=jnp.bool_)
    video = VideoTokens(shape(FRAMES, tokens, width), evidence, mask, layout.grid, layout.unpooled_grid)
    budgets = stack_budgets([reducer.budget(layout, 0.3)])
    lowered = run_budgets.lower(reducer, video, budgets, capacity=reducer.capacity(layout, 0.3))
    counted = lowered.cost_analysis()["flops"]
    terms = reducer.flops(layout, width, 0.3)
    expected = sum(flops / LOOPS.get(name, {}).get(term, 1) for term, flops in terms.items())
    assert abs(counted - expected) <= 0.1 * expected + 3 * layout.total * width


PARAMETERS = {
    "llava-onevision-0.5b": 0.8937,
    "llava-onevision-7b": 8.0308,
    "llava-video-7b": 8.03,
    "qwen2.5-vl-3b": 3.7546,
    "qwen2.5-vl-7b": 8.2922,
    "qwen3-vl-2b": 2.1275,
    "qwen3-vl-4b": 4.4378,
    "qwen3-vl-8b": 8.7671,
    # By hand: the language model's published number, 128 extra embeddings, 25 blocks of the tower, the connector; the
    # 4B's head is a copy of its own.
    "molmo2-4b": 4.0225 + 0.3890 + 0.0003 + 0.3825 + 0.0566,
    "molmo2-8b": 8.1907 + 0.0005 + 0.3825 + 0.0879,
    "molmo2-o-7b": 7.2980 + 0.0005 + 0.3825 + 0.0798,
    # By hand: the language model, 27 blocks of the tower, the projector.
    "videollama3-2b": 1.5437 + 0.4122 + 0.0041,
    "videollama3-7b": 7.6156 + 0.4122 + 0.0170,
    # By hand: the published number of the language model (Qwen2.5 with 151,674 embeddings and a head of its own), the
    # tower of 300M or 6B, the projector.
    "internvl3-1b": 0.6297 + 0.3040 + 0.00448,
    "internvl3-2b": 1.7763 + 0.3040 + 0.0087,
    "internvl3-8b": 7.6128 + 0.3040 + 0.0275,
    "internvl3-14b": 14.7660 + 0.3040 + 0.0472,
    "internvl3-38b": 32.7599 + 5.5365 + 0.0918,
    "internvl3_5-1b": 0.59605 + 0.3040 + 0.0053,
    "internvl3_5-2b": 1.7206 + 0.3040 + 0.0126,
    "internvl3_5-4b": 4.0225 + 0.3040 + 0.0171,
    "internvl3_5-8b": 8.1907 + 0.3040 + 0.0336,
    "internvl3_5-14b": 14.7683 + 0.3040 + 0.0472,
    "internvl3_5-38b": 32.7621 + 5.5365 + 0.0918,
    # The language model's published number, and Qwen3-VL's tower with mergers of its width.
    "qwen3-vl-30b-a3b": 30.5321 + 0.5386,
    "qwen3-vl-235b-a22b": 235.0936 + 0.5764,
    # Worked out by hand: embedding and head, of four layers three recurrent ones and one with a gate, their MLPs and
    # norms; Qwen3-VL's tower with one merger.
    "qwen3.5-0.8b": 0.7524 + 0.1006,
    "qwen3.5-2b": 1.8818 + 0.3314,
    "qwen3.5-4b": 4.2058 + 0.3335,
    "qwen3.5-9b": 8.9538 + 0.4560,
    "qwen3.5-27b": 26.8960 + 0.4607,
}


def test_published_configs_have_the_published_number_of_parameters():
    assert PARAMETERS.keys() == PUBLISHED.keys()
    for name, billions in PARAMETERS.items():
        config = published(name)
        model = {"llava": Llava, "molmo": Molmo2, "video": VideoLlama3, "inter": InternVL}.get(name[:5], QwenVL)
        model = Qwen35 if name.startswith("qwen3.5") else model
        state = nnx.state(nnx.eval_shape(lambda model=model, config=config: model(config, dtype=jnp.bfloat16)))
        assert sum(leaf.size for leaf in jax.tree.leaves(state)) / 1e9 == pytest.approx(billions, rel=2e-4), name


def test_numbers_of_the_published_models():
    """Costs that were worked out by hand for the models' papers' settings, in TFLOP."""
    report = count_ratio(published("llava-onevision-7b"), OV, reducer=reducers.get("none"), ratio=1.0)
    assert report.prompt == 6330
    assert report.of("tower") / 1e12 == pytest.approx(20.5, abs=0.05)
    lm = report.stages[3].terms
    assert lm["matrices"] / 1e12 == pytest.approx(82.6, abs=0.05)
    assert lm["attention"] / 1e12 == pytest.approx(8.0, abs=0.05)
    video = Layout(64, (13, 13), (27, 27))
    report = count_ratio(published("llava-video-7b"), video, reducer=reducers.get("none"), ratio=1.0, text=502)
    assert report.prompt == 12150
    assert report.of("tower") / 1e12 == pytest.approx(41, abs=0.5)
    lm = report.stages[3].terms
    assert (lm["matrices"] / 1e12, lm["attention"] / 1e12) == pytest.approx((159, 30), abs=0.5)
    tower, _ = flops_model.vision_terms(published("qwen2.5-vl-7b"), Layout(1, (16, 16)))
    assert tower["matrices"] / 1e12 == pytest.approx(1.29, abs=0.005)
    assert tower["attention"] / 1e12 == pytest.approx(0.021, abs=0.0005)
    assert tower["attention in windows"] / 1e12 == pytest.approx(0.009, abs=0.0005)


@pytest.mark.parametrize(
    ("visual", "stage", "convention", "published_tera"),
    [
        (6272, None, "fastv", 40.8),  # HoliTom and AOT: LLaVA-OneVision-7B, all tokens
        (10816, None, "fastv", 80.2),  # AOT: LLaVA-Video-7B, all tokens
        (1568, None, "fastv", 8.7),  # 25 %
        (627, None, "fastv", 3.4),
        (6272, (2, 0.2), "fastv", 9.3),  # FastV
        (1568, (18, 0.5), "fastv", 7.1),  # HoliTom with its merging inside the model
        (627, (18, 0.5), "fastv", 2.8),
        (6272, None, "fastvid", 48.8),  # FastVID
        (608, None, "fastvid", 4.0),
        (6272, (2, 0.1), "fastvid", 7.4),
    ],
)
def test_the_papers_column_reproduces_their_tables(visual, stage, convention, published_tera):
    """HoliTom's rows at 20 and 15 % (7.0, 5.2) are left out: the formula gives 6.9 and 5.1 at those shares of 6272."""
    text = published("llava-onevision-7b").text
    stages = () if stage is None else (InnerStage(stage[0], LastQueryTopK(), Kept(stage[1], "round")),)
    parts = flops_model.segments(stages, text.layers, tokens=visual, visual=visual)
    assert round(sum(paper_prefill(text, parts, convention)) / 1e12, 1) == published_tera


def test_a_report_sums_prints_and_goes_to_json(capsys):
    from rich.console import Console

    reducer = reducers.get("flashvid", "llava_onevision")
    report = count_ratio(published("llava-onevision-7b"), OV, reducer=reducer, ratio=0.1, new_tokens=5)
    record = json.loads(json.dumps(report.record()))
    assert record["total"] == pytest.approx(sum(stage["flops"] for stage in record["stages"]))
    assert [stage["part"].split(",")[0] for stage in record["stages"] if stage["name"] == "prefill"] == [
        "layers 0-19",
        "layers 20-27",
    ]
    assert report.timed("encode") == report.of("tower", "projector")
    assert report.timed("decode") is None
    Console(width=120).print(report)
    shown = capsys.readouterr().out
    assert "at most" in shown
    assert "as fastvid" in shown
    whole = count_ratio(published("llava-onevision-7b"), OV, reducer=reducers.get("none"), ratio=1.0)
    assert report.paper() < 0.15 * whole.paper() == pytest.approx(0.15 * 40.8e12, rel=1e-2)


def test_a_stage_that_trims_earlier_caches_makes_decoding_cheaper():
    text = published("llava-onevision-7b").text
    stage = InnerStage(11, TextInBlocks(trims=True), Kept(0.4, "floor"))
    parts = flops_model.segments((stage,), text.layers, tokens=1100, visual=1000)
    assert [(p.stop, p.tokens, p.cached) for p in parts] == [(11, 1100, 500), (28, 500, 500)]


class Priced:
    needs = frozenset()

    def budget(self, layout, ratio):
        return np.int32(1)

    def capacity(self, layout, ratio):
        return 1

    def flops(self, layout, width, ratio):
        return {"everything": 7.0 * layout.total * width}


def test_a_reducer_of_ones_own_counts_for_itself():
    assert with_defaults(Priced()).flops(OV, 10, 0.5) == {"everything": 7.0 * OV.total * 10}


def test_a_chain_costs_what_its_stages_cost_on_what_they_are_given():
    chain = registry.from_text("visionzip+flashvid", "llava_onevision")
    width = TokenWidth(896, keys=72)
    terms = chain.flops(OV, width, 0.1)
    first = chain.first.flops(OV, width, 0.25)
    assert {name: terms[f"first: {name}"] for name in first} == first
    # VisionZip's table leaves 50 of 196 tokens at a quarter; the second stage sees those of a frame as one row.
    left = OV._replace(grid=(1, 50), unpooled_grid=None)
    second = chain.second.flops(left, width, 0.1 * 196 / 50)
    assert {name: terms[f"second: {name}"] for name in second} == pytest.approx(second)
    assert len(terms) == len(first) + len(second) > 2


def test_configs_and_sizes_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(JvidpruneError, match="unknown published model 'gpt'"):
        published("gpt")
    words = {"reducer": "none", "ratio": 1.0, "frames": 4, "kept": None, "text": 9, "new_tokens": 1}
    with pytest.raises(JvidpruneError, match="written HEIGHTxWIDTH"):
        of_config(FlopsChoice("qwen3-vl-8b", size="big", **words))
    with pytest.raises(JvidpruneError, match="neither a folder"):
        of_config(FlopsChoice(str(tmp_path), **words))
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["qwen3-vl-8b"]))
    report = of_config(FlopsChoice(str(tmp_path), **words))
    named = of_config(FlopsChoice("qwen3-vl-8b", **words))
    assert report.stages == named.stages
    assert report.visual == 2 * 14 * 14
    assert config_of(PUBLISHED["qwen3-vl-8b"]) == published("QWEN3-VL-8B")
    with pytest.raises(JvidpruneError, match=r"kept must lie in \[0, 392\]"):
        of_config(FlopsChoice("qwen3-vl-8b", **(words | {"kept": 393})))


@pytest.mark.parametrize("name", ["pyramiddrop", "dart"])
def test_what_a_cut_reads_ahead_is_counted_where_it_is_read(name):
    """One key projection of all tokens in front of each cut, one query of them all; nothing for keys that are there."""
    config = published("llava-onevision-7b")
    text = config.text
    reducer = reducers.get(name, "llava_onevision", text.layers)
    report = count_ratio(config, OV, reducer=reducer, ratio=0.5)
    found = [stage.terms.get("look-ahead", 0.0) for stage in report.stages if stage.name == "prefill"]
    if name == "dart":
        assert found == [0.0, 0.0]
        return
    parts = flops_model.segments(reducer.inner(0.5), text.layers, tokens=report.prompt, visual=6272)
    lengths = [part.tokens for part in parts]
    q, kv = text.heads * text.head_dim, text.kv_heads * text.head_dim
    expected = [2 * n * text.width * kv + 2 * text.width * q + 2 * n * q for n in lengths[:3]]
    assert found == [0.0, *map(pytest.approx, expected)]
    # A projection of keys alone is a small part of a layer.
    assert found[1] < 0.02 * 2 * text.layer_weights * lengths[0]
