"""Several examples in one row read as if each stood alone, and rematerialised layers give the same gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jvidprune.models.attention import Segments
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.rope import RopeConfig

CONFIG = DecoderConfig(
    vocab=11, width=8, mlp=12, layers=2, heads=2, kv_heads=1, head_dim=4, rope=RopeConfig(10000.0), tied=True
)


@pytest.fixture(scope="module")
def decoder():
    return Decoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_examples_of_a_row_and_questions_of_an_example_do_not_see_each_other(decoder):
    # Two examples: a shared part of 3 and questions of 2 and 3 slots; a shared part of 2 and one question of 2.
    segment = np.array([[1] * 8 + [2] * 4 + [0]])
    branch = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 1, 1, 0]])
    position = np.array([[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3, 0]])
    ids = np.random.default_rng(0).integers(0, 11, segment.shape)

    @jax.jit
    def read(ids, position, segments):
        step = decoder.step(position, jnp.ones(ids.shape, bool), segments=segments)
        return decoder.run(decoder.embed_text(ids), step, 0, 2)[0]

    packed = read(ids, position, Segments(jnp.asarray(segment), jnp.asarray(branch)))[0]
    for slots in ([0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7], [8, 9, 10, 11]):
        step = decoder.step(jnp.arange(len(slots))[None], jnp.ones((1, len(slots)), bool))
        alone, _ = decoder.run(decoder.embed_text(ids[:, slots]), step, 0, 2)
        np.testing.assert_allclose(packed[np.array(slots)], alone[0], atol=2e-6)


def test_layers_computed_again_give_the_same_gradients(decoder):
    graph, params = nnx.split(decoder)
    again = nnx.merge(graph, params)
    again.config = dataclasses.replace(CONFIG, remat=True)

    def gradient(model, start):
        graph, params = nnx.split(model)

        def loss(params):
            model = nnx.merge(graph, params)
            step = model.step(jnp.arange(4)[None], jnp.ones((1, 4), bool))
            return (model.run(model.embed_text(jnp.arange(4)[None]), step, start, 2)[0] ** 2).sum()

        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == model.config.remat
        return jax.jit(jax.grad(loss))(params)

    for start in (0, 1):
        kept, found = gradient(decoder, start), gradient(again, start)
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(found), strict=True):
            # Computed again, sums are ordered otherwise: an entry is as exact as the largest of its array.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())
