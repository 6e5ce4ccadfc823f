"""What keeps the memory of a long prompt small: MLPs over runs of tokens, and keys written where they stay."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jvidprune.models import layers
from jvidprune.models.base import VideoModel
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.prefill import prefill
from jvidprune.models.rope import RopeConfig


@pytest.mark.parametrize("tokens", [4, 6, 7, 9])
def test_runs_of_tokens_give_what_all_at_once_give(monkeypatch, tokens):
    """Runs that divide the tokens (6 = 2 x 3), and such that fill the last one up (7, 9)."""
    monkeypatch.setattr(layers, "LONGEST_RUN", 4)
    monkeypatch.setattr(layers, "_TILE", 1)
    seen = []

    def act(x):
        seen.append(x.shape)
        return jnp.concatenate([2 * x, x**2], axis=-1)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, tokens, 3)), jnp.float32)
    np.testing.assert_array_equal(layers.map_tokens(act, x), jnp.concatenate([2 * x, x**2], axis=-1))
    assert set(seen) == {(2, {4: 4, 6: 3, 7: 4, 9: 3}[tokens], 3)}


def test_a_prompt_in_runs_is_read_as_a_whole_one_and_fills_the_first_slots_of_the_cache(monkeypatch):
    config = DecoderConfig(vocab=11, width=16, mlp=16, layers=2, heads=4, kv_heads=2, head_dim=8, rope=RopeConfig())
    model = VideoModel()
    model.lm = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    embeds = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
    valid = np.arange(6) < np.asarray([[6], [4]])
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    logits, cache = prefill(model, embeds, positions, valid, capacity=9)
    (segment,) = cache.segments
    assert segment.k.shape == (2, 2, 9, 2, 8)
    assert not np.asarray(segment.k[:, :, 6:]).any()
    assert np.asarray(segment.k[:, :, :6]).any(axis=(0, 3, 4)).all()
    assert int(segment.length) == 6
    np.testing.assert_array_equal(segment.valid, np.arange(9) < np.asarray([[6], [4]]))
    monkeypatch.setattr(layers, "LONGEST_RUN", 4)
    monkeypatch.setattr(layers, "_TILE", 1)
    # Another number of slots: another program, traced with the short runs.
    in_runs, shorter = prefill(model, embeds, positions, valid, capacity=6)
    np.testing.assert_allclose(in_runs, logits, atol=1e-5)
    np.testing.assert_allclose(shorter.segments[0].k, segment.k[:, :, :6], atol=1e-5)
