"""The choice between plain and fused attention, and equal numbers whichever computes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jvidprune import JvidpruneError
from jvidprune.models.attention import Keys, Past, attend, attend_all
from jvidprune.models.base import VideoModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.fused import choose, fused_attention
from jvidprune.models.prefill import prefill
from jvidprune.models.rope import RopeConfig

GPU = {"platform": "gpu", "capability": 8.0, "dtype": jnp.bfloat16, "head_dim": 128, "simple": True}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("auto", {}, "cudnn"),
        ("auto", {"dtype": jnp.float16, "head_dim": 72}, "cudnn"),
        ("auto", {"dtype": jnp.float32}, "plain"),
        ("auto", {"head_dim": 36}, "plain"),
        ("auto", {"head_dim": 136}, "plain"),
        ("auto", {"head_dim": 136, "capability": 9.0}, "cudnn"),
        ("auto", {"capability": 7.5}, "plain"),
        ("auto", {"capability": None}, "plain"),
        ("auto", {"platform": "cpu", "capability": None}, "plain"),
        ("auto", {"platform": "tpu", "capability": None}, "splash"),
        ("auto", {"platform": "tpu", "capability": None, "dtype": jnp.float32, "head_dim": 72}, "splash"),
        ("auto", {"platform": "tpu", "capability": None, "slots": 127}, "plain"),
        ("auto", {"platform": "tpu", "capability": None, "simple": False}, "plain"),
        ("splash", {"platform": "cpu", "capability": None, "slots": 8}, "splash"),
        ("splash", {"simple": False}, "plain"),
        ("auto", {"simple": False}, "plain"),
        ("plain", {}, "plain"),
        ("xla", {"platform": "cpu", "dtype": jnp.float32}, "xla"),
        ("xla", {"simple": False}, "plain"),
        ("cudnn", {}, "cudnn"),
        ("cudnn", {"simple": False, "dtype": jnp.float32}, "plain"),
    ],
)
def test_the_fused_kernel_is_chosen_where_it_serves(kind, changes, expected):
    assert choose(kind, **GPU | changes) == expected


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("cudnn", {"platform": "cpu", "capability": None}, r"no NVIDIA GPU of compute capability 8.0 or later \(cpu\)"),
        ("cudnn", {"dtype": jnp.float32}, "float32 is neither bfloat16 nor float16"),
        ("cudnn", {"head_dim": 300, "capability": 9.0}, "head dimension 300 is no multiple of 8 up to 256"),
        ("flash", {}, "unknown attention 'flash'; known: auto, plain, by_head, xla, cudnn, splash"),
    ],
)
def test_what_cannot_run_is_refused_when_asked_for_by_name(kind, changes, sentence):
    with pytest.raises(JvidpruneError, match=sentence):
        choose(kind, **GPU | changes)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(len(shape) + shape[1]).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("fused", ["xla", "splash"])
@pytest.mark.parametrize("causal", [True, False])
def test_prompts_padded_behind_their_end_get_equal_numbers(causal, fused):
    q, k, v = draw(2, 12, 4, 8), draw(2, 12, 2, 8), draw(2, 12, 2, 8) + 1
    valid = jnp.arange(12) < jnp.asarray([[12], [7]])
    found = [
        np.asarray(attend(q, Keys(k, v, valid, packed=True), causal=causal, kind=kind)) for kind in (fused, "plain")
    ]
    for row, count in enumerate((12, 7)):
        np.testing.assert_allclose(found[0][row, :count], found[1][row, :count], atol=2e-6)


def test_holes_and_caches_keep_the_plain_code():
    q, k, v = draw(1, 6, 2, 8), draw(1, 6, 2, 8), draw(1, 6, 2, 8) + 1
    holes = Keys(k, v, jnp.asarray([[True, False, True, True, False, True]]))
    plain = [attend(q, holes, kind=kind) for kind in ("xla", "plain")]
    np.testing.assert_array_equal(*plain)
    past, fresh = Past(k, v, jnp.ones((1, 6), bool)), Keys(k, v, jnp.ones((1, 6), bool), packed=True)
    cached = [attend(q, fresh, past, kind=kind) for kind in ("xla", "plain")]
    np.testing.assert_array_equal(*cached)
    assert np.abs(np.asarray(cached[0]) - np.asarray(plain[0])).max() > 1e-3


@pytest.mark.parametrize("fused", ["xla", "splash"])
def test_frames_get_equal_numbers_and_evidence_keeps_the_plain_code(fused):
    q, k, v = (draw(3, 10, 2, 8) + i for i in range(3))
    found = [attend_all(q, k, v, kind=kind) for kind in (fused, "plain")]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=2e-6)
    received = [attend_all(q, k, v, received=True, kind=kind)[1] for kind in (fused, "plain")]
    np.testing.assert_array_equal(*received)


def test_the_tpu_kernel_is_differentiable_over_several_tiles():
    """Keys shared by two query heads, more slots than a tile of 128 holds, and an end that fills no tile."""
    q, k, v, weight = draw(1, 150, 2, 8), draw(1, 150, 1, 8), draw(1, 150, 1, 8) + 1, draw(1, 150, 2, 8)
    valid = jnp.ones((1, 150), bool)

    def value(kind, q, k, v):
        return (weight * attend(q, Keys(k, v, valid, packed=True), kind=kind)).sum()

    for splash, plain in zip(
        *(jax.grad(functools.partial(value, kind), argnums=(0, 1, 2))(q, k, v) for kind in ("splash", "plain")),
        strict=True,
    ):
        np.testing.assert_allclose(splash, plain, atol=2e-5)


@pytest.mark.slow
def test_a_decoder_reads_prompts_alike_with_either(monkeypatch):
    """Prompts padded behind their ends reach the fused code, those padded before must not: both give equal numbers."""
    calls = []

    def spy(*parts, **options):
        calls.append(options["which"])
        return fused_attention(*parts, **options)

    monkeypatch.setattr("jvidprune.models.attention.fused_attention", spy)
    sizes = {"vocab": 11, "width": 16, "mlp": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
    embeds, behind = draw(2, 6, 16), np.arange(6) < np.asarray([[6], [4]])
    logits, fused = {}, {}
    for kind in ("xla", "plain"):
        config = DecoderConfig(**sizes, rope=RopeConfig(), attention=kind)
        model = VideoModel()
        model.lm = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        for side, valid in (("behind", behind), ("before", behind[:, ::-1])):
            calls.clear()
            positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
            logits[kind, side], _ = prefill(model, embeds, positions, valid, capacity=6)
            fused[kind, side] = set(calls)
    assert fused == {key: {"xla"} if key == ("xla", "behind") else set() for key in logits}
    for side in ("behind", "before"):
        np.testing.assert_allclose(logits["xla", side], logits["plain", side], atol=1e-5)
