"""Golden files of methods inside the language model: a tiny decoder read and answered with, cut by cut."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.cache import Cache
from jvidprune.cuts.inner import Inner
from jvidprune.models.decoder import Decoder
from jvidprune.models.prefill import Read, read_prompt
from jvidprune.parity.core import Golden
from jvidprune.parity.decoders import decoder_of
from jvidprune.tokens import InnerStage


class GoldenAnswer(NamedTuple):
    """A prompt that was read and answered greedily.

    Attributes:
      read: the prompt.
      logits: (steps, V) of the prompt's end and of every given token but the last.
      positions: (steps - 1, layers) rotary position of each of these in each layer.
      lengths: (layers,) slots in use at the end.
    """

    read: Read
    logits: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray


def decoder_from(golden: Golden) -> Decoder:
    """The decoder whose weights stand in the file as `w.<name>`; what is not there is zero."""
    c = golden.config
    weights = {key.removeprefix("w."): golden[key] for key in golden.arrays if key.startswith("w.")}
    width = len(weights["layers.0.input_layernorm.weight"])
    key_width, hidden = len(weights["layers.0.self_attn.k_proj.weight"]), 8
    if "layers.0.mlp.up_proj.weight" in weights:
        hidden = len(weights["layers.0.mlp.up_proj.weight"])
    queries, layers = len(weights["layers.0.self_attn.q_proj.weight"]), c.get("layers", 1)
    shapes = {
        "norm": (width,),
        "layers.0.post_attention_layernorm": (width,),
        "layers.0.self_attn.v_proj": (key_width, width),
        "layers.0.self_attn.o_proj": (width, queries),
        "layers.0.mlp.gate_proj": (hidden, width),
        "layers.0.mlp.up_proj": (hidden, width),
        "layers.0.mlp.down_proj": (width, hidden),
    }
    for name, shape in shapes.items():
        weights.setdefault(f"{name}.weight", np.zeros(shape, np.float32))
    text = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv_heads"],
        "head_dim": queries // c["heads"],
        "rope_theta": c["rope_theta"],
        "rms_norm_eps": c["rms_eps"],
        "attention_bias": "layers.0.self_attn.q_proj.bias" in weights,
    }
    if c.get("sections"):
        text["rope_scaling"] = {"type": "mrope", "mrope_section": c["sections"]}
    return decoder_of(weights, text)


def answer(
    decoder: Decoder,
    embeds: np.ndarray,
    inner: Inner,
    tokens: Sequence[int] | np.ndarray = (),
    *,
    positions: np.ndarray | None = None,
    next_position: int | None = None,
) -> GoldenAnswer:
    """Reads one prompt and gives it tokens.

    Args:
      decoder: float32.
      embeds: (S, D).
      inner: for this one prompt.
      tokens: what is generated; the last is not read.
      positions: (S,) or (3, S), by default 0, 1, 2, ...
      next_position: of the first generated token.
    """
    length, steps = len(embeds), max(len(tokens), 1)
    where = np.arange(length) if positions is None else positions
    cache = decoder.empty_cache(1, inner.capacities(length, steps), inner.boundaries)
    following = None if next_position is None else np.asarray([next_position])
    valid = np.ones((1, length), bool)
    with jax.default_matmul_precision("highest"):
        read = jax.jit(read_prompt)(
            decoder, embeds[None], where[..., None, :], valid, cache, inner=inner, next_position=following
        )
        cache, step, at, logits = read.cache, jax.jit(Decoder.decode), [], [read.logits[0]]
        for token in tokens[:-1]:
            at.append(layer_positions(cache))
            found, cache = step(decoder, jnp.asarray([token]), cache)
            logits.append(found[0])
    lengths = [int(part.valid.sum()) for part in cache.segments for _ in range(part.start, part.stop)]
    return GoldenAnswer(read, np.stack(logits), np.asarray(at), np.asarray(lengths))


class Batch(NamedTuple):
    """Prompts of several lengths, padded behind their ends."""

    embeds: np.ndarray
    slots: np.ndarray
    valid: np.ndarray
    visual: np.ndarray

    @classmethod
    def of(cls, golden: Golden) -> "Batch":
        """The prompts `embeds0`, `embeds1`, ... of a file, whose visual tokens stand at `starts` and are `counts`."""
        starts, counts = (np.asarray(golden.config[key])[:, None] for key in ("starts", "counts"))
        prompts = [golden[f"embeds{b}"] for b in range(len(counts))]
        lengths = np.asarray([len(prompt) for prompt in prompts])[:, None]
        slots = np.broadcast_to(np.arange(lengths.max()), (len(prompts), lengths.max()))
        embeds = np.stack([np.pad(one, ((0, lengths.max() - len(one)), (0, 0))) for one in prompts])
        return cls(embeds, slots, slots < lengths, (slots >= starts) & (slots < starts + counts))

    def read(self, decoder: Decoder, stages: Sequence[InnerStage], layers: int) -> Read:
        """The prompts read with these stages."""
        inner = Inner.create(stages, self.visual, self.valid, layers=layers)
        return read_exactly(decoder, self.embeds, self.slots, self.valid, inner)


def read_exactly(decoder: Decoder, embeds: np.ndarray, slots: np.ndarray, valid: np.ndarray, inner: Inner) -> Read:
    """Prompts read in float32 throughout, without room for an answer."""
    cache = decoder.empty_cache(len(embeds), inner.capacities(slots.shape[1], 0), inner.boundaries)
    with jax.default_matmul_precision("highest"):
        return jax.jit(read_prompt)(decoder, embeds, slots, valid, cache, inner=inner)


def layer_positions(cache: Cache) -> list[int]:
    """Position of the next token of the first prompt in every layer."""
    found = []
    for part in cache.segments:
        shift = 0 if part.shift is None else int(part.shift[0])
        found += [int(cache.position[0]) - shift] * (part.stop - part.start)
    return found


def one_prompt(stages: Sequence[InnerStage], length: int, start: int, count: int, layers: int, **options: Any) -> Inner:
    """The stages of one prompt without padding, whose slots start..start + count are visual."""
    slots = np.arange(length)[None]
    visual = (slots >= start) & (slots < start + count)
    return Inner.create(stages, visual, np.ones((1, length), bool), layers=layers, **options)
