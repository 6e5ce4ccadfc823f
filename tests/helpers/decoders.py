"""A small decoder with random weights, two prompts for it, and three steps of decoding behind a cut."""

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import (
    LastQueryTopK,
)
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.prefill import read_prompt
from jvidprune.models.rope import RopeConfig
from jvidprune.tokens import InnerStage, Kept

S, LAYERS, STEPS = 32, 4, 3
CONFIG = DecoderConfig(
    vocab=50, width=24, mlp=32, layers=LAYERS, heads=4, kv_heads=2, head_dim=6, rope=RopeConfig(), max_positions=128
)
SLOTS = np.arange(S)
# Row 0 fills its slots; row 1 is shorter, padded behind, and its video starts elsewhere.
VALID = np.stack([SLOTS < S, SLOTS < 27])
VISUAL = np.stack([(SLOTS >= 4) & (SLOTS < 24), (SLOTS >= 3) & (SLOTS < 20)])
BLOCK = np.where(VISUAL, SLOTS // 6, 0)
TOKENS = np.array([[7, 9], [11, 3], [20, 5]])


@jax.jit
def read_and_decode(decoder, embeds, inner, added=None):
    """Logits of the prompt and of three steps, caches, records: one compilation a kind of stage."""
    slots = jnp.broadcast_to(jnp.arange(S), (2, S))
    cache = decoder.empty_cache(2, inner.capacities(S, STEPS), inner.boundaries)
    read = read_prompt(decoder, embeds, slots, jnp.asarray(VALID), cache, inner=inner, deepstack=added)

    def step(cache, tokens):
        logits, cache = decoder.decode(tokens, cache)
        return cache, logits

    cache, logits = jax.lax.scan(step, read.cache, jnp.asarray(TOKENS))
    return jnp.concatenate([read.logits[None], logits]), cache, read.cuts


def create(*stages, compact=True, **options):
    return Inner.create(stages, VISUAL, VALID, layers=LAYERS, compact=compact, block=BLOCK, **options)


def top(layer=2, keep=0.3, **options):
    return InnerStage(layer, LastQueryTopK(**options), Kept(keep))
