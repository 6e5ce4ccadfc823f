"""One layer of a decoder: attention with rotary positions, and a gated MLP, as two halves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jvidprune.models.attention import Keys, Past, Segments, attend, probe
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.experts import Experts
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import CentredRMSNorm, GatedMlp, RMSNorm, linear, map_tokens
from jvidprune.models.rope import rotate


class Step(NamedTuple):
    """What all layers of a run share: rotary tables (B, S, d), validity of the fresh slots (B, S).

    With `yarn_layers` the tables are (2, B, S, d), plain and stretched, and a layer takes its own. `packed` (static)
    promises that the valid slots of each row are its first ones; `segments`, `bidirectional` and `bias` as in
    `attention.Keys`.
    """

    cos: Float[Array, "... B S d"]
    sin: Float[Array, "... B S d"]
    valid: Bool[Array, "B S"]
    packed: bool = False
    segments: Segments | None = None
    bidirectional: Any = None
    bias: Any = None


class LayerOutputs(NamedTuple):
    """What a run of layers [start, stop) leaves besides the hidden states, leading axis stop - start.

    Attributes:
      k: (L, B, S, K, d) keys after rotary.
      v: (L, B, S, K, d) values.
      hidden: (L, B, S, D) output of each layer before anything is added to it, or None.
      attention: (L, B, H, R, P) float32 weights of the probed rows, or None.
      state: what layers without keys and values carry on, leading axis their number, or None; k, v and attention then
        count the other layers alone.
    """

    k: Float[Array, "L B S K d"]
    v: Float[Array, "L B S K d"]
    hidden: Any = None
    attention: Any = None
    state: Any = None


def joined(parts: Sequence[LayerOutputs]) -> LayerOutputs:
    """What successive runs leave, as one; without the attention, of which each has its own rows."""
    parts = [part._replace(attention=None) for part in parts]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def decoder_norm(config: DecoderConfig, width: int, *, dtype: Any) -> RMSNorm | CentredRMSNorm:
    """A norm of the language model."""
    return (CentredRMSNorm if config.centred else RMSNorm)(width, config.eps, dtype=dtype)


class Attention(nnx.Module):
    """Projections of one decoder layer."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.kind: AttentionKind = config.attention
        self.gated = config.gated
        # With a gate each head's queries stand in front of its gate.
        asked = q_width * (2 if config.gated else 1)
        self.q = linear(config.width, asked, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(config.width, kv_width, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(config.width, kv_width, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.o = linear(q_width, config.width, bias=False, dtype=dtype, rngs=rngs)
        self.whole = config.qk_norm_whole
        q_norm, k_norm = (q_width, kv_width) if self.whole else (config.head_dim,) * 2
        self.q_norm = decoder_norm(config, q_norm, dtype=dtype) if config.qk_norm else None
        self.k_norm = decoder_norm(config, k_norm, dtype=dtype) if config.qk_norm else None

    def project(self, x: Array, step: Step) -> tuple[Array, Keys, Any]:
        """Queries (B, S, H, d) and fresh keys, both after rotary, and the output's gate (B, S, H * d) or None."""
        v = self.v(x).reshape(*x.shape[:2], -1, self.head_dim)
        q, gate = self._asked(x)
        return rotate(self._heads(q, self.q_norm), step.cos, step.sin), self._keys(x, v, step), gate

    def queries(self, x: Array, cos: Array, sin: Array) -> Array:
        """(B, S, H, d) after rotary."""
        return rotate(self._heads(self._asked(x)[0], self.q_norm), cos, sin)

    def _asked(self, x: Array) -> tuple[Array, Any]:
        """The query projection (B, S, H * d) and its gate."""
        q = self.q(x)
        if not self.gated:
            return q, None
        halves = jnp.split(q.reshape(*x.shape[:2], -1, 2 * self.head_dim), 2, axis=-1)
        queries, gate = (half.reshape(*x.shape[:2], -1) for half in halves)
        return queries, gate

    def keys(self, x: Array, step: Step) -> Keys:
        """Fresh keys after rotary, without values."""
        return self._keys(x, None, step)

    def _keys(self, x: Array, v: Any, step: Step) -> Keys:
        k = rotate(self._heads(self.k(x), self.k_norm), step.cos, step.sin)
        return Keys(k, v, step.valid, step.packed, step.segments, step.bidirectional, step.bias)

    def _heads(self, x: Array, norm: Any) -> Array:
        """(B, S, heads, d) of a projection, normed over all heads or over each."""
        if norm is not None and self.whole:
            x = norm(x)
        x = x.reshape(*x.shape[:2], -1, self.head_dim)
        return x if norm is None or self.whole else norm(x)


class FeedLayer(nnx.Module):
    """The half of a layer that all kinds share: x += mlp(norm2(x)); a subclass makes what stands in front of it."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.norm1 = decoder_norm(config, config.width, dtype=dtype)
        self.norm2 = decoder_norm(config, config.width, dtype=dtype)
        self.add_mixer(config, dtype=dtype, rngs=rngs)
        self.mlp: Any
        if config.experts:
            self.mlp = Experts(config.width, config.expert_mlp, config.experts, config.active, dtype=dtype, rngs=rngs)
        else:
            self.mlp = GatedMlp(config.width, config.mlp, "silu", dtype=dtype, rngs=rngs)
        self.norm_after = config.norm_after

    def add_mixer(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Makes the modules of the other half."""
        raise NotImplementedError

    def feed(self, x: Array, gate: Array | None = None) -> Array:
        """The MLP branch alone, each token's multiplied by its gate (B, S) where there is one."""

        def fed(x: Array) -> Array:
            return self.norm2(self.mlp(x)) if self.norm_after else self.mlp(self.norm2(x))

        if gate is None:
            return map_tokens(lambda run: run + fed(run), x)
        out = map_tokens(fed, x)
        return x + (gate[..., None] * out.astype(gate.dtype)).astype(x.dtype)


class DecoderLayer(FeedLayer):
    """x += o(attention(norm1(x))); x += mlp(norm2(x)); with `norm_after` x += norm1(o(attention(x))) and so on."""

    def add_mixer(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Attention."""
        self.attn = Attention(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Array, step: Step, past: Past | None, *, causal: bool, rows: Array | None
    ) -> tuple[Array, Keys, Any]:
        """The new residual, the fresh keys, and the attention weights of `rows` if given."""
        x, keys, weights = self.mix(x, step, past, causal=causal, rows=rows)
        return self.feed(x), keys, weights

    def mix(
        self, x: Array, step: Step, past: Past | None, *, causal: bool, rows: Array | None
    ) -> tuple[Array, Keys, Any]:
        """The attention branch alone: the residual in front of the MLP, the fresh keys, and the weights of `rows`."""
        q, keys, gate = self.attn.project(x if self.norm_after else self.norm1(x), step)
        weights = None if rows is None else probe(q, rows, keys, past, causal=causal)
        out = attend(q, keys, past, causal=causal, kind=self.attn.kind)
        out = out.reshape(*x.shape[:2], -1)
        out = self.attn.o(out if gate is None else out * jax.nn.sigmoid(gate))
        return x + (self.norm1(out) if self.norm_after else out), keys, weights
