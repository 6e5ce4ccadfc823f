"""The language model of every family: a Qwen or OLMo decoder whose stacked layers run as scans over segments."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import Cache, CacheSegment, empty_cache
from jvidprune.cuts.reselection import Reselection
from jvidprune.errors import JvidpruneError
from jvidprune.models.attention import Past, Segments, row_weights
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.decoder_layer import DecoderLayer, LayerOutputs, Step, decoder_norm, joined
from jvidprune.models.layers import linear, scan_layers, stack
from jvidprune.models.quantised import quantise_layers
from jvidprune.models.rope import rope_tables
from jvidprune.parallel import constrain


class Forward(NamedTuple):
    """Result of `Decoder.forward`.

    Attributes:
      logits: (B, S, V) float32.
      hidden: (layers + 1, B, S, D): the input, every layer's output, the last one after the final norm; or None.
      attention: (layers that have any, B, H, R, S) weights of the probed rows, or None.
    """

    logits: Float[Array, "B S V"]
    hidden: Any
    attention: Any


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm and head.

    Positions are always explicit, (B, S) or (3, B, S); causality is by slot and padding by `valid`, so prompts may be
    padded on either side, and pruned prompts may be compacted or masked.
    """

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(config.vocab + config.extra_vocab, config.width, param_dtype=dtype, rngs=rngs)
        self.layers = stack(lambda r: DecoderLayer(config, dtype=dtype, rngs=r), len(config.attending), rngs)
        if config.quantise is not None:
            quantise_layers(self.layers, config.quantise)
        self.norm = decoder_norm(config, config.width, dtype=dtype)
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
        bias: Float[Array, "B S"] | None = None,
    ) -> Step:
        """Rotary tables, validity, examples of a row, mutual sight and bias of keys, read by every layer of a run."""
        rope, dim = self.config.rope, self.config.head_dim
        cos, sin = rope_tables(rope, dim, positions, self.dtype)
        if self.config.yarn_layers is not None:
            plain = rope_tables(rope.plain, dim, positions, self.dtype)
            cos, sin = jnp.stack([plain[0], cos]), jnp.stack([plain[1], sin])
        return Step(cos, sin, valid, packed, segments, bidirectional, bias)

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
        past_valid: Bool[Array, "B *S M"] | None = None,
        deepstack: Float[Array, "L B S D"] | None = None,
        rows: Int[Array, "B R"] | None = None,
        causal: bool = True,
        hidden: bool = False,
        room: int = 0,
    ) -> tuple[Float[Array, "B S D"], LayerOutputs]:
        """Layers [start, stop) as one scan.

        Args:
          x: hidden states entering layer `start`.
          step: from `step`.
          start: first layer, static.
          stop: one past the last, static.
          past: cache segment that covers [start, stop), read only; None in a prefill.
          past_valid: which of its slots this run may read, or each of its fresh slots, by default `past.valid`.
          deepstack: added to the hidden states after each layer.
          rows: fresh slots whose attention weights are returned for every layer of the run.
          causal: False lets all fresh slots see each other (a probe layer of HoliTom).
          hidden: also return each layer's output.
          room: slots of the keys and values returned, of which those behind S are zeros: they are then the buffers of
            a cache with as many, and nothing is copied; 0 returns S.
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
            before = None if past is None or seen is None else Past(extra["k"], extra["v"], seen, past.bias)
            own = step
            if stretched is not None:
                own = step._replace(cos=step.cos[extra["table"]], sin=step.sin[extra["table"]])
            x, keys, weights = layer(x, own, before, causal=causal, rows=rows)
            k, v = (widened(part, room) for part in (keys.k, keys.v))
            outputs = LayerOutputs(k, v, x if hidden else None, weights)
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
        ahead = self._layer(layer)
        step = self.step_in(step, layer)
        x = self.entering(x, layer)
        asked, cos, sin = (jnp.take_along_axis(part, rows[..., None], axis=1) for part in (x, step.cos, step.sin))
        return row_weights(ahead.attn.queries(asked, cos, sin), rows, ahead.attn.keys(x, step))

    def entering(self, x: Float[Array, "B S D"], layer: int) -> Float[Array, "B S D"]:
        """What the attention of one layer, static, reads: the states under its norm, or as they are (OLMo)."""
        return x if self.config.norm_after else self._layer(layer).norm1(x)

    def mix(
        self,
        x: Float[Array, "B S D"],
        step: Step,
        layer: int,
        rows: Int[Array, "B R"] | None = None,
        past: CacheSegment | None = None,
    ) -> tuple[Float[Array, "B S D"], LayerOutputs]:
        """The attention branch of one layer: the residual in front of its MLP, and what `run` leaves of a layer.

        Args:
          x: hidden states entering the layer.
          step: from `step`.
          layer: static.
          rows: slots whose attention weights are returned.
          past: cache segment that covers the layer, read only; None in a prefill.
        """
        step, before = self.step_in(step, layer), None
        if past is not None:
            before = Past(past.k[layer - past.start], past.v[layer - past.start], past.valid, past.bias)
        x, keys, weights = self._layer(layer).mix(x, step, before, causal=True, rows=rows)
        return x, LayerOutputs(keys.k[None], keys.v[None], None, None if weights is None else weights[None])

    def feed(
        self, x: Float[Array, "B S D"], layer: int, gate: Float[Array, "B S"] | None = None
    ) -> Float[Array, "B S D"]:
        """The MLP branch of one layer, static; each token's is multiplied by its gate where there is one."""
        return self._layer(layer).feed(x, gate)

    def _layer(self, layer: int) -> Any:
        graph, state = nnx.split(self.layers)
        return nnx.merge(graph, jax.tree.map(lambda p: lax.index_in_dim(p, layer, keepdims=False), state))

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
            held=self.held,
            kv_heads=self.config.kv_heads,
            head_dim=self.config.head_dim,
            capacity=capacity,
            boundaries=boundaries,
            dtype=self.dtype if dtype is None else dtype,
            mesh=mesh,
        )

    def held(self, start: int, stop: int, dtype: Any) -> tuple[int, Any]:
        """Layers with keys and values among [start, stop), and the shapes of what one row of the others carries."""
        return stop - start, None

    def decode(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """One decoding step: (B,) token ids in, (B, V) float32 logits of the next token and the longer cache out."""
        x = self.embed_text(tokens)[:, None]
        valid = jnp.ones((tokens.shape[0], 1), bool)
        segments, policy = [], cache.policy
        for segment, step in self._steps(cache, cache.position[:, None], valid):
            if segment.route is not None:
                x, outputs, ran = segment.route.read_on(self, x, cache.position[:, None], segment)
                segments.append(segment.append(outputs.k, outputs.v, ran, outputs.state))
                continue
            x, outputs, policy, segment = self._decode_segment(x, step, segment, policy, cache.position)
            segments.append(segment.append(outputs.k, outputs.v, valid, outputs.state))
        return self.logits(x[:, 0]), Cache(tuple(segments), cache.position + 1, policy)

    def look_ahead(self, tokens: Int[Array, "B L"], cache: Cache) -> Float[Array, "B L D"]:
        """Hidden states, before the final norm, of tokens that follow what the cache holds, without writing them there.

        All tokens are read at once, so a cache whose policy renews what is read at every step does not serve; rows may
        be filled up behind their last token.
        """
        positions = cache.position[:, None] + jnp.arange(tokens.shape[1])
        x = self.embed_text(tokens)
        for segment, step in self._steps(cache, positions, jnp.ones(tokens.shape, bool)):
            if segment.route is not None:
                x, *_ = segment.route.read_on(self, x, positions, segment)
                continue
            x, _ = self.run(x, step, segment.start, segment.stop, past=segment)
        return x

    def read_on(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"], cache: Cache
    ) -> tuple[Float[Array, "B L D"], Cache]:
        """Hidden states, before the final norm, of tokens that follow what the cache holds, and the longer cache.

        Args:
          tokens: ids, padded behind.
          valid: the first slots of each row; at least one.
          cache: with L free slots; neither read in part nor routed, both of which go token by token.
        """
        positions = cache.position[:, None] + jnp.arange(tokens.shape[1])
        x, segments = self.embed_text(tokens), []
        for segment, step in self._steps(cache, positions, valid):
            x, outputs = self.run(x, step, segment.start, segment.stop, past=segment)
            segments.append(segment.append(outputs.k, outputs.v, valid, outputs.state))
        return x, Cache(tuple(segments), cache.position + valid.sum(axis=1, dtype=jnp.int32))

    def _steps(self, cache: Cache, positions: Array, valid: Array) -> Iterator[tuple[CacheSegment, Step]]:
        """Each segment of a cache with what its layers read; tables are made again only where positions shift.

        Rows are filled up behind their tokens alone.
        """
        plain = None
        for segment in cache.segments:
            if segment.shift is not None:
                yield segment, self.step(positions - segment.shift[:, None], valid, packed=True)
                continue
            plain = self.step(positions, valid, packed=True) if plain is None else plain
            yield segment, plain

    def _decode_segment(
        self, x: Array, step: Step, segment: CacheSegment, policy: Any, position: Array
    ) -> tuple[Array, LayerOutputs, Any, CacheSegment]:
        """The layers of one segment in a decoding step: hidden states, what they leave, the policy's new state.

        The segment comes back with what the policy changed in it, without the fresh keys and values.

        With a policy the layers from `policy.layer` on read what it lets them, chosen by the layer before.
        """
        if policy is None:
            x, outputs = self.run(x, step, segment.start, segment.stop, past=segment)
            return x, outputs, None, segment
        if segment.start == policy.layer and isinstance(policy, Reselection):
            x, k, v, policy, segment = policy.run_deep(self, x, step, position, segment)
            return x, LayerOutputs(k, v), policy, segment
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
        return x, joined(found), policy, segment

    def check_length(self, length: int) -> None:
        """JvidpruneError when a sequence is longer than the model's positions."""
        if length > self.config.max_positions:
            raise JvidpruneError(
                f"the sequence has {length} tokens, but the model has {self.config.max_positions} positions."
            )


def widened(part: Float[Array, "B S K d"], room: int) -> Float[Array, "B M K d"]:
    """Keys or values with as many slots as `room`, those behind S zeros; as they are where there are more."""
    more = room - part.shape[1]
    return jnp.pad(part, ((0, 0), (0, more), (0, 0), (0, 0))) if more > 0 else part
