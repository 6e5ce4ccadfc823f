"""What one device of a mesh holds when a question about a video is answered, from configs alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jvidprune import parallel
from jvidprune.costs import memory
from jvidprune.costs.chips import Chip
from jvidprune.costs.memory import Need, TowerShape
from jvidprune.errors import JvidpruneError
from jvidprune.llm.prompts.slots import bucket_length
from jvidprune.models import family as families
from jvidprune.models.fused import choose
from jvidprune.tokens import InnerStage

USABLE = 0.92
"""Share of a chip's memory that arrays can have; the rest is the runtime's, its programs' and lost between arrays."""

Sizes = Mapping[str, int]
"""Mesh axis -> size."""


class Weights(NamedTuple):
    """Numbers of a model that one device holds.

    Attributes:
      tower: of the vision tower with its mergers or projector.
      layers: of the decoder's layers.
      words: embedding and head.
      quantised: of `layers`, those that take one byte each.
    """

    tower: int
    layers: int
    words: int
    quantised: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.tower + self.layers + self.words

    def layer_bytes(self, size: int) -> int:
        """Bytes of the layers, of whose other numbers each takes `size`."""
        return (self.layers - self.quantised) * size + self.quantised

    def bytes(self, size: int) -> int:
        """Bytes of all."""
        return (self.tower + self.words) * size + self.layer_bytes(size)


@dataclasses.dataclass(frozen=True)
class Footprint(Need):
    """Bytes on one device.

    Attributes:
      parameters: its share of the model, and with "fsdp" the layer that is put together.
      features: the encoded videos; every device holds them whole.
      encode: what the tower takes besides.
      prompt: what reading the prompts takes besides: embeddings, keys and values, one layer, logits.
      cache: of `prompt`, keys and values.
      available: of the chip, see `USABLE`.
    """

    cache: int
    available: int

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.peak <= self.available


_LAYERS = ("lm.layers.", "lm.linear.", "lm.norm.")


def weights(config: Any, sizes: Sizes) -> Weights:
    """Numbers that one device of a mesh holds, by the family's sharding table."""
    found = {"tower": 0, "layers": 0, "words": 0, "quantised": 0}
    for held in memory.parameter_arrays(config):
        count, path = held.numbers(config, sizes), held.path
        part = "layers" if path.startswith(_LAYERS) else "words" if path.startswith("lm.") else "tower"
        found[part] += count
        found["quantised"] += count if held.byte else 0
    return Weights(**found)


def on_chip(config: Any, chip: Chip, dtype: Any) -> Any:
    """The config with the attention that "auto" takes on a chip."""

    def kind(head_dim: int, *, simple: bool = True) -> str:
        # "xla" stands for any code that holds no scores, whatever this machine is.
        kind = choose(
            "auto", head_dim=head_dim, simple=simple, platform=chip.kind, capability=chip.capability, dtype=dtype
        )
        return "plain" if kind == "plain" else "xla"

    vision = dataclasses.replace(config.vision, attention=kind(config.vision.width // config.vision.heads))
    text = dataclasses.replace(config.text, attention=kind(config.text.head_dim, simple=not mutual(config)))
    return dataclasses.replace(config, vision=vision, text=text)


def mutual(config: Any) -> bool:
    """Whether visual tokens see each other (Molmo2), for which no fused kernel serves."""
    return families.get(config.family).bidirectional


def divided(config: Any, sizes: Sizes) -> Any:
    """The config of what one device computes of a layer: heads, hidden widths and vocabulary over "tensor".

    Raises:
      JvidpruneError: see `parallel.check_mesh`.
    """
    parallel.check_sizes(config.family, config.units, sizes)
    tensor = sizes.get("tensor", 1)

    def cut(part: Any, *names: str) -> Any:
        whole = {name: getattr(part, name) for name in names}
        return dataclasses.replace(part, **{n: v // tensor if v % tensor == 0 else v for n, v in whole.items()})

    text = cut(config.text, "heads", "kv_heads", "mlp", "vocab")
    if text.delta is not None:
        text = dataclasses.replace(text, delta=cut(text.delta, "key_heads", "value_heads"))
    return dataclasses.replace(config, vision=cut(config.vision, "heads", "mlp"), text=text)


def footprint(
    config: Any,
    chip: Chip,
    sizes: Sizes,
    *,
    shape: TowerShape,
    prompt: int,
    visual: int,
    new_tokens: int,
    batch: int = 1,
    dtype: Any = jnp.bfloat16,
    stages: Sequence[InnerStage] = (),
) -> Footprint:
    """What one device holds.

    Args:
      config: of a family.
      chip: of the table.
      sizes: of the mesh.
      shape: of a video in the tower.
      prompt: tokens of a prompt.
      visual: of those, the visual ones, newline embeddings included.
      new_tokens: longest answer.
      batch: prompts read together, each with a video of its own.
      dtype: of parameters and activations.
      stages: of the method inside the language model, see `memory.inside_bytes`.

    Raises:
      JvidpruneError: a mesh that cuts heads, or a batch below 1.
    """
    if batch < 1:
        raise JvidpruneError(f"a batch has at least 1 prompt, got {batch}.")
    size = jnp.dtype(dtype).itemsize
    part = divided(on_chip(config, chip, dtype), sizes)
    rows = pieces(batch, sizes)
    frames = -(-shape.frames // pieces(shape.frames, sizes))
    mine = shape._replace(frames=frames, chunk=min(shape.chunk, frames))
    held = weights(config, sizes).bytes(size)
    if sizes.get("fsdp", 1) > 1:
        # Two layers: while one is computed, the next one is put together.
        held += 2 * part.text.layer_size * size
    slots, room = bucket_length(prompt), new_tokens - 1
    cached = memory.cache_bytes(part.text, -(-batch // rows), slots + room, dtype)
    read = memory.prefill_bytes(part.text, -(-batch // rows), slots, room, dtype, levels=shape.levels)
    read += memory.inside_bytes(config.text, stages, -(-batch // rows), slots, room, dtype)
    read += -(-batch // rows) * visual * (1 + shape.levels) * config.text.width * size
    features = batch * memory.feature_bytes(config, shape, dtype)
    encode = memory.encode_bytes(part, mine, dtype)
    return Footprint(held, features, encode, read, cached, int(USABLE * chip.memory))


def pieces(count: int, sizes: Sizes) -> int:
    """Into how many pieces the mesh divides rows or frames: fewer than it could where there are too few."""
    return min(count, sizes.get("data", 1) * sizes.get("fsdp", 1))
