"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464): a state of fixed size in place of keys and values.

Each head holds a matrix S of key by value channels. A token with key k, value v, decay exp(g) and strength beta makes
it S <- exp(g) S, then S <- S + k (beta (v - k^T S))^T, and reads q^T S. A token that is masked has beta = 0 and g = 0
and leaves the state as it is. Prompts are read in chunks: inside a chunk the updates are one triangular system, and
the states go from chunk to chunk; a single token takes the rule as it is written here.

In front of the rule stands a causal convolution over the last few tokens. It goes by the tokens that are there: what is
masked is left out, so that the tokens around it are neighbours.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.decoder_layer import FeedLayer
from jvidprune.models.layers import RMSNorm, linear
from jvidprune.ops.compact import compact as pack

CHUNK = 64
"""Tokens whose updates are solved as one system."""

TOGETHER = 64
"""Chunks whose systems are solved at once: bounds what a long prompt holds in float32."""

_EXACT = lax.Precision.HIGHEST


class Carried(NamedTuple):
    """What a layer carries from token to token, for B rows.

    Attributes:
      inputs: what the convolutions of queries, keys and values read of the tokens before, (B, taps - 1, C) each.
      state: (B, H, dk, dv) float32.
    """

    inputs: tuple[Float[Array, "B W C"], Float[Array, "B W C"], Float[Array, "B W C"]]
    state: Float[Array, "B H dk dv"]


def empty_carried(config: DecoderConfig, lead: tuple[int, ...], dtype: Any) -> Carried:
    """Shapes of what is carried before the first token, all zeros, with leading axes `lead`; nothing is allocated."""
    delta = config.delta
    assert delta is not None
    inputs = [jax.ShapeDtypeStruct((*lead, delta.taps - 1, channels), dtype) for channels in delta.channels]
    state = jax.ShapeDtypeStruct((*lead, delta.value_heads, delta.key_dim, delta.value_dim), jnp.float32)
    return Carried((inputs[0], inputs[1], inputs[2]), state)  # pyright: ignore[reportArgumentType]


def delta_rule(
    q: Float[Array, "B S H dk"],
    k: Float[Array, "B S H dk"],
    v: Float[Array, "B S H dv"],
    g: Float[Array, "B S H"],
    beta: Float[Array, "B S H"],
    state: Float[Array, "B H dk dv"],
) -> tuple[Float[Array, "B S H dv"], Float[Array, "B H dk dv"]]:
    """The rule over S tokens, all in float32.

    Args:
      q, k: of length 1 a head; q divided by the root of dk.
      v: values.
      g: logarithm of the decay, at most 0; 0 for a masked token.
      beta: strength in [0, 1]; 0 for a masked token.
      state: before the first token.

    Returns:
      What each token reads, and the state behind the last.
    """
    length = q.shape[1]
    if length == 1:
        return _one_token(q, k, v, g, beta, state)
    count = -(-length // CHUNK)
    rounds = -(-count // TOGETHER)
    each = -(-count // rounds)
    fill = rounds * each * CHUNK - length

    def chunks(x: Array) -> Array:
        # (B, S, H, ...) -> (rounds, chunks, B, H, CHUNK, ...); tokens that fill up are masked by their zeros.
        x = jnp.pad(x, ((0, 0), (0, fill), *((0, 0),) * (x.ndim - 2)))
        x = x.reshape(x.shape[0], rounds, each, CHUNK, *x.shape[2:])
        return jnp.moveaxis(x, (1, 2, 4), (0, 1, 3))

    parts = tuple(chunks(x) for x in (q, k, v, g, beta))
    if rounds == 1:
        state, out = _chunks(state, tuple(part[0] for part in parts))
        out = out[None]
    else:
        state, out = lax.scan(_chunks, state, parts)
    out = jnp.moveaxis(out, (0, 1, 3), (1, 2, 4))
    return out.reshape(out.shape[0], -1, *out.shape[4:])[:, :length], state


def _one_token(q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array) -> tuple[Array, Array]:
    q, k, v, g, beta = (x[:, 0] for x in (q, k, v, g, beta))
    state = state * jnp.exp(g)[..., None, None]
    held = jnp.sum(state * k[..., None], axis=-2)
    state = state + k[..., None] * ((v - held) * beta[..., None])[..., None, :]
    return jnp.sum(state * q[..., None], axis=-2)[:, None], state


def _chunks(state: Array, parts: tuple[Array, ...]) -> tuple[Array, Array]:
    """Chunks (N, B, H, C, ...) behind a state: their systems at once, then one after the other."""
    q, k, v, g, beta = parts
    total = jnp.cumsum(g, axis=-1)
    later = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))
    decay = jnp.exp(jnp.where(later, total[..., :, None] - total[..., None, :], -jnp.inf))
    strong = k * beta[..., None]
    system = jnp.einsum("...id,...jd->...ij", strong, k, precision=_EXACT) * decay
    wanted = jnp.concatenate([v * beta[..., None], strong * jnp.exp(total)[..., None]], axis=-1)
    solved = lax.linalg.triangular_solve(system, wanted, left_side=True, lower=True, unit_diagonal=True)
    values, reads = solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]
    inside = jnp.einsum("...id,...jd->...ij", q, k, precision=_EXACT) * decay
    queries = q * jnp.exp(total)[..., None]
    writes = k * jnp.exp(total[..., -1:] - total)[..., None]
    left = jnp.exp(total[..., -1])[..., None, None]

    def body(state: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        values, reads, inside, queries, writes, left = chunk
        fresh = values - jnp.matmul(reads, state, precision=_EXACT)
        out = jnp.matmul(queries, state, precision=_EXACT) + jnp.matmul(inside, fresh, precision=_EXACT)
        return state * left + jnp.einsum("...cd,...ce->...de", writes, fresh, precision=_EXACT), out

    return lax.scan(body, state, (values, reads, inside, queries, writes, left))


class Order(NamedTuple):
    """Where the tokens of each row stand that are there, for convolutions over them alone.

    Attributes:
      index: (B, S) slot of the r-th token, or None where the tokens are the first slots.
      rank: (B, S) r of each slot.
      count: (B,) tokens.
      valid: (B, S).
    """

    index: Any
    rank: Any
    count: Array
    valid: Bool[Array, "B S"]

    @classmethod
    def of(cls, valid: Bool[Array, "B S"], packed: bool) -> "Order":
        """From the slots in use; `packed` promises that they are the first of each row."""
        count = valid.sum(axis=1)
        if packed or valid.shape[1] == 1:
            return cls(None, None, count, valid)
        index, _, _ = jax.vmap(lambda mask: pack(mask, valid.shape[1]))(valid)
        rank = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        return cls(jnp.minimum(index, valid.shape[1] - 1), rank, count, valid)


def convolve(
    x: Float[Array, "B S C"], taps: Float[Array, "W C"], order: Order, before: Float[Array, "B V C"]
) -> tuple[Float[Array, "B S C"], Float[Array, "B V C"]]:
    """A causal convolution a channel over the tokens that are there, and SiLU.

    Args:
      x: inputs; those of masked slots are not read.
      taps: the last one is the token's own.
      order: of the tokens.
      before: inputs of the W - 1 tokens in front.

    Returns:
      Outputs (those of masked slots mean nothing), and the inputs of the last W - 1 tokens.
    """
    width, length = taps.shape[0] - 1, x.shape[1]
    if order.index is not None:
        x = jnp.take_along_axis(x, order.index[..., None], axis=1)
    row = jnp.concatenate([before.astype(x.dtype), x], axis=1)
    wide = sum(row[:, i : i + length].astype(jnp.float32) * taps[i].astype(jnp.float32) for i in range(width + 1))
    out = jax.nn.silu(jnp.asarray(wide).astype(x.dtype))
    if order.rank is not None:
        out = jnp.take_along_axis(out, order.rank[..., None], axis=1)
    last = order.count[:, None] + jnp.arange(width)
    return out, jnp.take_along_axis(row, last[..., None], axis=1)


class GatedDelta(nnx.Module):
    """Projections, convolutions, the rule, a gated norm and the output projection of one layer."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        delta = config.delta
        assert delta is not None
        self.delta = delta

        def made(n_in: int, n_out: int) -> nnx.Linear:
            return linear(n_in, n_out, bias=False, dtype=dtype, rngs=rngs)

        width, (key, _, value) = config.width, delta.channels
        self.q, self.k, self.v, self.z = made(width, key), made(width, key), made(width, value), made(width, value)
        self.a, self.b, self.o = made(width, delta.value_heads), made(width, delta.value_heads), made(value, width)
        bound = delta.taps**-0.5
        self.taps_q, self.taps_k, self.taps_v = (
            nnx.Param(jax.random.uniform(rngs.params(), (delta.taps, channels), dtype, -bound, bound))
            for channels in delta.channels
        )
        rate = jax.random.uniform(rngs.params(), (delta.value_heads,), jnp.float32, 0.01, 16.0)
        self.a_log = nnx.Param(jnp.log(rate).astype(dtype))
        self.dt_bias = nnx.Param(jnp.ones(delta.value_heads, dtype))
        self.norm = RMSNorm(delta.value_dim, config.eps, dtype=dtype)

    def __call__(
        self, x: Float[Array, "B S D"], order: Order, before: Carried
    ) -> tuple[Float[Array, "B S D"], Carried]:
        """Output of the layer's branch, and what is carried on.

        Args:
          x: normed states.
          order: which of them are there; the others leave what is carried as it is.
          before: from the tokens in front.
        """
        delta, valid = self.delta, order.valid[..., None]
        convolved = [
            convolve(project(x), taps[...], order, held)
            for project, taps, held in zip(
                (self.q, self.k, self.v), (self.taps_q, self.taps_k, self.taps_v), before.inputs, strict=True
            )
        ]
        q, k, v = (out.astype(jnp.float32) for out, _ in convolved)
        rows, shared = x.shape[:2], delta.value_heads // delta.key_heads
        q, k = (_unit(part.reshape(*rows, delta.key_heads, delta.key_dim)) for part in (q, k))
        q, k = (_repeated(part, shared) for part in (q * delta.key_dim**-0.5, k))
        beta = jax.nn.sigmoid(self.b(x)).astype(jnp.float32)
        rate = jax.nn.softplus(self.a(x).astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32))
        g = -jnp.exp(self.a_log[...].astype(jnp.float32)) * rate
        v = v.reshape(*rows, delta.value_heads, delta.value_dim)
        # A masked slot's values may be anything, infinity too.
        v = jnp.where(valid[..., None], v, 0.0)
        k = jnp.where(valid[..., None], k, 0.0)
        out, state = delta_rule(q, k, v, jnp.where(valid, g, 0.0), jnp.where(valid, beta, 0.0), before.state)
        gate = jax.nn.silu(self.z(x).astype(jnp.float32)).reshape(*rows, delta.value_heads, delta.value_dim)
        out = (self.norm(out.astype(x.dtype)).astype(jnp.float32) * gate).astype(x.dtype)
        (_, q_last), (_, k_last), (_, v_last) = convolved
        return self.o(out.reshape(*rows, -1)), Carried((q_last, k_last, v_last), state)


def _repeated(x: Array, times: int) -> Array:
    """Each head as often behind itself; on a mesh a device repeats its own."""
    wide = jnp.broadcast_to(x[:, :, :, None], (*x.shape[:3], times, x.shape[3]))
    return wide.reshape(*x.shape[:2], -1, x.shape[3])


def _unit(x: Array) -> Array:
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


class DeltaLayer(FeedLayer):
    """x += delta(norm1(x)); x += mlp(norm2(x))."""

    def add_mixer(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """The gated delta rule."""
        self.delta = GatedDelta(config, dtype=dtype, rngs=rngs)

    def mix(self, x: Float[Array, "B S D"], order: Order, before: Carried) -> tuple[Float[Array, "B S D"], Carried]:
        """The recurrent branch alone: the residual in front of the MLP, and what is carried on."""
        out, carried = self.delta(self.norm1(x), order, before)
        return x + out, carried
