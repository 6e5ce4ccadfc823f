"""One layer of a decoder: attention with rotary positions, and a gated MLP, as two halves."""

from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Bool, Float

from jvidprune.models.attention import Keys, Past, Segments, attend, probe
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.experts import Experts
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import GatedMlp, RMSNorm, linear, map_tokens
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
    """

    k: Float[Array, "L B S K d"]
    v: Float[Array, "L B S K d"]
    hidden: Any = None
    attention: Any = None


class Attention(nnx.Module):
    """Projections of one decoder layer."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.kind: AttentionKind = config.attention
        self.q = linear(config.width, q_width, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(config.width, kv_width, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(config.width, kv_width, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.o = linear(q_width, config.width, bias=False, dtype=dtype, rngs=rngs)
        self.whole = config.qk_norm_whole
        q_norm, k_norm = (q_width, kv_width) if self.whole else (config.head_dim,) * 2
        self.q_norm = RMSNorm(q_norm, config.eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(k_norm, config.eps, dtype=dtype) if config.qk_norm else None

    def project(self, x: Array, step: Step) -> tuple[Array, Keys]:
        """Queries (B, S, H, d) and fresh keys, both after rotary."""
        v = self.v(x).reshape(*x.shape[:2], -1, self.head_dim)
        return self.queries(x, step.cos, step.sin), self._keys(x, v, step)

    def queries(self, x: Array, cos: Array, sin: Array) -> Array:
        """(B, S, H, d) after rotary."""
        return rotate(self._heads(self.q(x), self.q_norm), cos, sin)

    def keys(self, x: Array, step: Step) -> Keys:
        """Fresh keys after rotary, without values."""
        return self._keys(x, None, step)

    def _keys(self, x: Array, v: Any, step: Step) -> Keys:
        k = rotate(self._heads(self.k(x), self.k_norm), step.cos, step.sin)
        return Keys(k, v, step.valid, step.packed, step.segments, step.bidirectional, step.bias)

    def _heads(self, x: Array, norm: RMSNorm | None) -> Array:
        """(B, S, heads, d) of a projection, normed over all heads or over each."""
        if norm is not None and self.whole:
            x = norm(x)
        x = x.reshape(*x.shape[:2], -1, self.head_dim)
        return x if norm is None or self.whole else norm(x)


class DecoderLayer(nnx.Module):
    """x += o(attention(norm1(x))); x += mlp(norm2(x)); with `norm_after` x += norm1(o(attention(x))) and so on."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.width, config.eps, dtype=dtype)
        self.norm2 = RMSNorm(config.width, config.eps, dtype=dtype)
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.mlp: Any
        if config.experts:
            self.mlp = Experts(config.width, config.expert_mlp, config.experts, config.active, dtype=dtype, rngs=rngs)
        else:
            self.mlp = GatedMlp(config.width, config.mlp, "silu", dtype=dtype, rngs=rngs)
        self.norm_after = config.norm_after

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
        q, keys = self.attn.project(x if self.norm_after else self.norm1(x), step)
        weights = None if rows is None else probe(q, rows, keys, past, causal=causal)
        out = attend(q, keys, past, causal=causal, kind=self.attn.kind)
        out = self.attn.o(out.reshape(*x.shape[:2], -1))
        return x + (self.norm1(out) if self.norm_after else out), keys, weights

    def feed(self, x: Array, gate: Array | None = None) -> Array:
        """The MLP branch alone, each token's multiplied by its gate (B, S) where there is one."""

        def fed(x: Array) -> Array:
            return self.norm2(self.mlp(x)) if self.norm_after else self.mlp(self.norm2(x))

        if gate is None:
            return map_tokens(lambda run: run + fed(run), x)
        out = map_tokens(fed, x)
        return x + (gate[..., None] * out.astype(gate.dtype)).astype(x.dtype)
