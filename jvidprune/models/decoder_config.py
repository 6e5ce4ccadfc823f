"""Sizes of the language models of all families."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jvidprune.errors import JvidpruneError
from jvidprune.models.fused import AttentionKind
from jvidprune.models.quantised import Quantise
from jvidprune.models.rope import RopeConfig


@dataclasses.dataclass(frozen=True)
class DeltaConfig:
    """Layers with a recurrent state in place of keys and values (Gated DeltaNet, arXiv 2412.06464).

    Attributes:
      attending: layers with attention, ascending; all others carry a state.
      key_heads: heads of queries and keys, a divisor of `value_heads`.
      value_heads: heads of values, each with a state of its own.
      key_dim, value_dim: of a head.
      taps: tokens that the convolution in front of the recurrence reads, the token's own included.
    """

    attending: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int

    @property
    def channels(self) -> tuple[int, int, int]:
        """Widths of queries, keys and values."""
        key = self.key_heads * self.key_dim
        return key, key, self.value_heads * self.value_dim

    def matrices(self, width: int) -> int:
        """Numbers in the matrices of one such layer, without its MLP's."""
        q, k, v = self.channels
        return width * (q + k + 3 * v + 2 * self.value_heads)

    @property
    def state_size(self) -> int:
        """Numbers of one layer's float32 state for one row."""
        return self.value_heads * self.key_dim * self.value_dim


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a Qwen2, Qwen2.5, Qwen3, Qwen3.5 or OLMo 3 decoder.

    Attributes:
      vocab: ids that can be answered with, the rows of the head.
      width: residual width D.
      mlp: hidden width of the gated MLP; with experts, of all that one token passes together.
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
      experts: gated MLPs of which a router picks some for each token; 0 for one MLP without a router.
      active: experts that a token passes.
      attention: which code computes attention, see `fused.AttentionKind`.
      quantise: how the matrices of the layers are held, see `quantised.Quantise`; None for the model's type.
      remat: in training, layers are computed again in the backward pass instead of kept.
      gated: attention's output is multiplied by the sigmoid of a gate, which the query projection gives (Qwen3.5).
      centred: weights of the RMSNorms are what is added to 1 (Qwen3.5).
      delta: layers without attention, or None where all have it.
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
    experts: int = 0
    active: int = 0
    attention: AttentionKind = "auto"
    quantise: Quantise | None = None
    remat: bool = False
    gated: bool = False
    centred: bool = False
    delta: DeltaConfig | None = None

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
        rope, longest = RopeConfig.from_hf(text) if rope is None else rope, text.get("max_position_embeddings", 32768)
        if rope.yarn is not None:
            # Published settings for long prompts leave the length of the pre-training where it was.
            longest = max(longest, int(rope.yarn.factor * rope.yarn.original))
        return cls(
            vocab=text.get("vocab_size", 151936),
            width=width,
            mlp=text.get("intermediate_size", 22016),
            layers=text.get("num_hidden_layers", 32),
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=text.get("head_dim") or width // heads,
            rope=rope,
            eps=text.get("rms_norm_eps", 1e-6),
            max_positions=longest,
            qkv_bias=text.get("attention_bias", not qk_norm),
            qk_norm=qk_norm,
            tied=bool(text.get("tie_word_embeddings", False)),
        )

    @property
    def attending(self) -> tuple[int, ...]:
        """Layers with attention, keys and values, ascending."""
        return tuple(range(self.layers)) if self.delta is None else self.delta.attending

    def attending_in(self, start: int, stop: int) -> int:
        """How many of the layers [start, stop) have attention."""
        return sum(start <= layer < stop for layer in self.attending)

    def weights_in(self, start: int, stop: int) -> int:
        """Numbers in the matrices of the layers [start, stop) that a token passes; a router's are among them."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        mixer = self.width * ((3 if self.gated else 2) * q + 2 * kv + self.experts)
        attending = self.attending_in(start, stop)
        total = attending * mixer + 3 * (stop - start) * self.width * self.mlp
        if self.delta is not None:
            total += (stop - start - attending) * self.delta.matrices(self.width)
        return total

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of one layer that a token passes, of the largest kind of layer."""
        return max(self.weights_in(layer, layer + 1) for layer in range(self.layers))

    @property
    def layer_size(self) -> int:
        """Numbers in all matrices of one layer, of the largest kind."""
        return self.layer_weights + 3 * self.width * (self.experts - self.active) * self.expert_mlp

    @property
    def expert_mlp(self) -> int:
        """Hidden width of one expert; 0 without any."""
        return self.mlp // self.active if self.active else 0
