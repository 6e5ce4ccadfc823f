"""One small decoder for all tests of cuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.decoders import (
    CONFIG,
    S,
    create,
    read_and_decode,
)

from jvidprune.models.decoder import Decoder


@pytest.fixture(scope="module")
def decoder():
    return Decoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def embeds(decoder):
    return 3 * jax.random.normal(jax.random.key(1), (2, S, CONFIG.width))


@pytest.fixture(scope="module")
def plain(decoder, embeds):
    return np.asarray(read_and_decode(decoder, embeds, create())[0])
