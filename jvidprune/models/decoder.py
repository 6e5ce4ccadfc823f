"""The language model of every family: a Qwen or OLMo decoder whose stacked layers run as scans over segments."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import Cache, CacheSegment, empty_cache
from jvidprune.cuts.decoding import Reselection
from jvidprune.errors import JvidpruneError
from jvidprune.models.attention import Keys, Past, Segments, attend, probe, row_weights
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import GatedMlp, RMSNorm, linear, scan_layers, stack
from jvidprune.models.rope import RopeConfig, rope_tables, rotate
from jvidprune.parallel import constrain


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a Qwen2, Qwen2.5, Qwen3 or OLMo 3 decoder.

    Attributes:
      vocab: ids that can be answered with, the rows of the head.
      width: residual width D.
      mlp: hidden width of the gated MLP.
      layers: number of layers.
      heads: query heads H.
      kv_heads: key/value heads K, a divisor of H.
      head_dim: d.
      rope: rotary kind.
      eps: of the RMSNorms.
      max_positions: longest sequence.
      qkv_bias: biases on q, k, v (Qwen2).
      qk_norm: RMSNorm on every q and k head before rotary (Qwen3).
      tied: the head is the transposed embedding.
      extra_vocab: further rows of the embedding, of ids that are only read (Molmo2's markers).
      qk_norm_whole: with `qk_norm`, over all heads of the projection at once (OLMo).
      norm_after: the norms act on what attention and MLP return instead of what they read (OLMo).
      yarn_layers: layers that turn by `rope`, the others by its plain frequencies; None where all do.
      attention: which code computes attention, see `fused.AttentionKind`.
      remat: in training, layers are computed again in the backward pass instead of kept.
    """

    vocab: int
    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig
    eps: float = 1e-6
    max_positions: int = 32768
    qkv_bias: bool = True
    qk_norm: bool = False
    tied: bool = False
    extra_vocab: int = 0
    qk_norm_whole: bool = False
    norm_after: bool = False
    yarn_layers: tuple[int, ...] | None = None
    attention: AttentionKind = "auto"
    remat: bool = False

    @classmethod
    def from_hf(
        cls, text: Mapping[str, Any], *, qk_norm: bool = False, rope: RopeConfig | None = None
    ) -> "DecoderConfig":
        """Reads the text part of a config.json; missing keys take the Qwen2 defaults.

        `tied` is a first guess only: the loader decides by whether the checkpoint holds a head, because published
        configs contradict themselves.

        Raises:
          JvidpruneError: an activation, rope type or sliding window that no supported model has.
        """
        if (act := text.get("hidden_act", "silu")) != "silu":
            raise JvidpruneError(f"activation {act!r} of the language model is not supported; allowed: silu.")
        if text.get("use_sliding_window"):
            raise JvidpruneError("use_sliding_window is true, but only full attention is supported.")
        width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
        kv_heads = text.get("num_key_value_heads", 32)
        return cls(
            vocab=text.get("vocab_size", 151936),
            width=width,
            mlp=text.get("intermediate_size", 22016),
            layers=text.get("num_hidden_layers", 32),
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=text.get("head_dim") or width // heads,
            rope=RopeConfig.from_hf(text) if rope is None else rope,
            eps=text.get("rms_norm_eps", 1e-6),
            max_positions=text.get("max_position_embeddings", 32768),
            qkv_bias=text.get("attention_bias", not qk_norm),
            qk_norm=qk_norm,
            tied=bool(text.get("tie_word_embeddings", False)),
        )

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of one layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.width * (2 * q + 2 * kv) + 3 * self.width * self.mlp


class Step(NamedTuple):
    """What all layers of a run share: rotary tables (B, S, d), validity of the fresh slots (B, S).

    With `yarn_layers` the tables are (2, B, S, d), plain and stretched, and a layer takes its own. `packed` (static)
    promises that the valid slots of each row are its first ones; `segments` and `bidirectional` as in `attention.Keys`.
    """

    cos: Float[Array, "... B S d"]
    sin: Float[Array, "... B S d"]
    valid: Bool[Array, "B S"]
    packed: bool = False
    segments: Segments | None = None
    bidirectional: Any = None


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


class Forward(NamedTuple):
    """Result of `Decoder.forward`.

    Attributes:
      logits: (B, S, V) float32.
      hidden: (layers + 1, B, S, D): the input, every layer's output, the last one after the final norm; or None.
      attention: (layers, B, H, R, S) weights of the probed rows, or None.
    """

    logits: Float[Array, "B S V"]
    hidden: Any
    attention: Any


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
        return Keys(k, v, step.valid, step.packed, step.segments, step.bidirectional)

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
        self.mlp = GatedMlp(config.width, config.mlp, "silu", dtype=dtype, rngs=rngs)
        self.norm_after = config.norm_after

    def __call__(
        self, x: Array, step: Step, past: Past | None, *, causal: bool, rows: Array | None
    ) -> tuple[Array, Keys, Any]:
        """The new residual, the fresh keys, and the attention weights of `rows` if given."""
        q, keys = self.attn.project(x if self.norm_after else self.norm1(x), step)
        weights = None if rows is None else probe(q, rows, keys, past, causal=causal)
        out = attend(q, keys, past, causal=causal, kind=self.attn.kind)
        out = self.attn.o(out.reshape(*x.shape[:2], -1))
        if self.norm_after:
            x = x + self.norm1(out)
            return x + self.norm2(self.mlp(x)), keys, weights
        x = x + out
        return x + self.mlp(self.norm2(x)), keys, weights


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm and head.

    Positions are always explicit, (B, S) or (3, B, S); causality is by slot and padding by `valid`, so prompts may be
    padded on either side, and pruned prompts may be compacted or masked.
    """

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(config.vocab + config.extra_vocab, config.width, param_dtype=dtype, rngs=rngs)
        self.layers = stack(lambda r: DecoderLayer(config, dtype=dtype, rngs=r), config.layers, rngs)
        self.norm = RMSNorm(config.width, config.eps, dtype=dtype)
        self.head = None if config.tied else linear(config.width, config.vocab, bias=False, dtype=dtype, rngs=rngs)

    @property
    def dtype(self) -> Any:
        """dtype of the parameters and of the residual stream."""
        return self.embed.embedding[...].dtype

    def embed_text(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Embeddings of token ids; ids outside the vocabulary (placeholders) are clipped, their rows mean nothing."""
        return self.embed.embedding[...][jnp.clip(ids, 0, self.config.vocab + self.config.extra_vocab - 1)]

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Final norm and head, float32 out."""
        x = self.norm(x)
        if self.head is None:
            rows = self.embed.embedding[...][: self.config.vocab]
            return jnp.einsum("...d,vd->...v", x, rows, preferred_element_type=jnp.float32)
        return jnp.einsum("...d,dv->...v", x, self.head.kernel[...], preferred_element_type=jnp.float32)

    def step(
        self,
        positions: Int[Array, "... B S"],
        valid: Bool[Array, "B S"],
        *,
        packed: bool = False,
        segments: Segments | None = None,
        bidirectional: Bool[Array, "B S"] | None = None,
    ) -> Step:
        """Rotary tables, validity, examples of a row and mutual sight, which every layer of a run reads."""
        rope, dim = self.config.rope, self.config.head_dim
        cos, sin = rope_tables(rope, dim, positions, self.dtype)
        if self.config.yarn_layers is not None:
            plain = rope_tables(rope.plain, dim, positions, self.dtype)
            cos, sin = jnp.stack([plain[0], cos]), jnp.stack([plain[1], sin])
        return Step(cos, sin, valid, packed, segments, bidirectional)

    def step_in(self, step: Step, layer: int) -> Step:
        """The step with the rotary tables (B, S, d) of one layer."""
        if self.config.yarn_layers is None:
            return step
        table = int(layer in self.config.yarn_layers)
        return step._replace(cos=step.cos[table], sin=step.sin[table])

    def run(
        self,
        x: Float[Array, "B S D"],
        step: Step,
        start: int,
        stop: int,
        *,
        past: CacheSegment | None = None,
        past_valid: Bool[Array, "B M"] | None = None,
        deepstack: Float[Array, "L B S D"] | None = None,
        rows: Int[Array, "B R"] | None = None,
        causal: bool = True,
        hidden: bool = False,
    ) -> tuple[Float[Array, "B S D"], LayerOutputs]:
        """Layers [start, stop) as one scan.

        Args:
          x: hidden states entering layer `start`.
          step: from `step`.
          start: first layer, static.
          stop: one past the last, static.
          past: cache segment that covers [start, stop), read only; None in a prefill.
          past_valid: which of its slots this run may read, by default `past.valid`.
          deepstack: added to the hidden states after each layer.
          rows: fresh slots whose attention weights are returned for every layer of the run.
          causal: False lets all fresh slots see each other (a probe layer of HoliTom).
          hidden: also return each layer's output.
        """
        xs: dict[str, Any] = {"deepstack": deepstack}
        if (stretched := self.config.yarn_layers) is not None:
            xs["table"] = jnp.asarray([int(layer in stretched) for layer in range(start, stop)])
        if past is not None:
            inside = slice(start - past.start, stop - past.start)
            whole = (start, stop) == (past.start, past.stop)
            xs |= {"k": past.k if whole else past.k[inside], "v": past.v if whole else past.v[inside]}
        seen = past.valid if past is not None and past_valid is None else past_valid

        def body(layer: DecoderLayer, x: Array, extra: dict[str, Any]) -> tuple[Array, LayerOutputs]:
            x = constrain(x, "batch", None, None)
            before = None if past is None or seen is None else Past(extra["k"], extra["v"], seen)
            own = step
            if stretched is not None:
                own = step._replace(cos=step.cos[extra["table"]], sin=step.sin[extra["table"]])
            x, keys, weights = layer(x, own, before, causal=causal, rows=rows)
            outputs = LayerOutputs(keys.k, keys.v, x if hidden else None, weights)
            return (x if deepstack is None else x + extra["deepstack"].astype(x.dtype)), outputs

        return scan_layers(self.layers, start, stop, self.config.layers, body, x, xs, remat=self.config.remat)

    def attention_ahead(
        self, x: Float[Array, "B S D"], step: Step, layer: int, rows: Int[Array, "B R"]
    ) -> Float[Array, "B H R S"]:
        """Attention weights, float32, that some rows would pay in a layer if it ran next; keys alone are computed.

        Args:
          x: hidden states entering the layer.
          step: from `step`.
          layer: static.
          rows: slots of the queries.
        """
        graph, state = nnx.split(self.layers)
        ahead = nnx.merge(graph, jax.tree.map(lambda p: lax.index_in_dim(p, layer, keepdims=False), state))
        step = self.step_in(step, layer)
        x = x if ahead.norm_after else ahead.norm1(x)
        asked, cos, sin = (jnp.take_along_axis(part, rows[..., None], axis=1) for part in (x, step.cos, step.sin))
        return row_weights(ahead.attn.queries(asked, cos, sin), rows, ahead.attn.keys(x, step))

    def forward(
        self,
        embeds: Float[Array, "B S D"],
        positions: Int[Array, "... B S"],
        valid: Bool[Array, "B S"],
        *,
        deepstack: Float[Array, "L B S D"] | None = None,
        rows: Int[Array, "B R"] | None = None,
        hidden: bool = False,
        bidirectional: Bool[Array, "B S"] | None = None,
    ) -> Forward:
        """Logits of every slot without a cache: for tests, losses and parity.

        `deepstack` and `bidirectional` are those of `prefill.PromptParts`.
        """
        self.check_length(embeds.shape[1])
        x = embeds = embeds.astype(self.dtype)
        step, outputs, at = self.step(positions, valid, bidirectional=bidirectional), [], 0
        for stop in sorted({0 if deepstack is None else deepstack.shape[0], self.config.layers} - {0}):
            extra = deepstack if at == 0 else None
            x, found = self.run(x, step, at, stop, deepstack=extra, rows=rows, hidden=hidden)
            outputs.append(found)
            at = stop
        states = attention = None
        if hidden:
            inner = jnp.concatenate([found.hidden for found in outputs])
            states = jnp.concatenate([embeds[None], inner[:-1], self.norm(x)[None]])
        if rows is not None:
            attention = jnp.concatenate([found.attention for found in outputs])
        return Forward(self.logits(x), states, attention)

    def empty_cache(
        self,
        batch: int,
        capacity: int | tuple[int, ...],
        boundaries: tuple[int, ...] = (),
        dtype: Any = None,
        mesh: Mesh | None = None,
    ) -> Cache:
        """A cache of this decoder's sizes, see `cache.empty_cache`; the parameters' dtype by default."""
        return empty_cache(
            batch=batch,
            layers=self.config.layers,
            kv_heads=self.config.kv_heads,
            head_dim=self.config.head_dim,
            capacity=capacity,
            boundaries=boundaries,
            dtype=self.dtype if dtype is None else dtype,
            mesh=mesh,
        )

    def decode(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """One decoding step: (B,) token ids in, (B, V) float32 logits of the next token and the longer cache out."""
        x = self.embed_text(tokens)[:, None]
        valid = jnp.ones((tokens.shape[0], 1), bool)
        segments, policy = [], cache.policy
        for segment, step in self._steps(cache, cache.position[:, None], valid):
            x, k, v, policy = self._decode_segment(x, step, segment, policy, cache.position)
            segments.append(segment.append(k, v, valid))
        return self.logits(x[:, 0]), Cache(tuple(segments), cache.position + 1, policy)

    def look_ahead(self, tokens: Int[Array, "B L"], cache: Cache) -> Float[Array, "B L D"]:
        """Hidden states, before the final norm, of tokens that follow what the cache holds, without writing them there.

        All tokens are read at once, so a cache whose policy renews what is read at every step does not serve; rows may
        be filled up behind their last token.
        """
        positions = cache.position[:, None] + jnp.arange(tokens.shape[1])
        x = self.embed_text(tokens)
        for segment, step in self._steps(cache, positions, jnp.ones(tokens.shape, bool)):
            x, _ = self.run(x, step, segment.start, segment.stop, past=segment)
        return x

    def _steps(self, cache: Cache, positions: Array, valid: Array) -> Iterator[tuple[CacheSegment, Step]]:
        """Each segment of a cache with what its layers read; tables are made again only where positions shift."""
        plain = None
        for segment in cache.segments:
            if segment.shift is not None:
                yield segment, self.step(positions - segment.shift[:, None], valid)
                continue
            plain = self.step(positions, valid) if plain is None else plain
            yield segment, plain

    def _decode_segment(
        self, x: Array, step: Step, segment: CacheSegment, policy: Any, position: Array
    ) -> tuple[Array, Array, Array, Any]:
        """The layers of one segment in a decoding step: hidden states, fresh keys and values, the policy's new state.

        With a policy the layers from `policy.layer` on read what it lets them, chosen by the layer before.
        """
        if policy is None:
            x, outputs = self.run(x, step, segment.start, segment.stop, past=segment)
            return x, outputs.k, outputs.v, None
        if segment.start == policy.layer and isinstance(policy, Reselection):
            return policy.run_deep(self, x, step, position, segment)
        found, read = [], None
        for start, stop in itertools.pairwise(sorted({0, policy.layer - 1, policy.layer, segment.stop})):
            rows = jnp.zeros((x.shape[0], 1), jnp.int32) if stop == policy.layer else None
            x, outputs = self.run(x, step, start, stop, past=segment, past_valid=read, rows=rows)
            found.append(outputs)
            if rows is not None:
                attention = outputs.attention[-1, :, :, 0, : segment.capacity]
                if isinstance(policy, Reselection):
                    policy = policy.step(attention, segment.valid)
                else:
                    policy, chosen = policy.step(attention)
                    read = segment.valid & chosen
        k, v = (jnp.concatenate([part[i] for part in found]) for i in (0, 1))
        return x, k, v, policy

    def check_length(self, length: int) -> None:
        """JvidpruneError when a sequence is longer than the model's positions."""
        if length > self.config.max_positions:
            raise JvidpruneError(
                f"the sequence has {length} tokens, but the model has {self.config.max_positions} positions."
            )
