"""The text tower of a SigLIP or CLIP checkpoint: questions into the space that it shares with its vision tower.

CDPruner (arXiv 2506.10967) compares each visual token with the question there. LLaVA checkpoints hold the vision tower
alone; the text tower comes from the folder of the original SigLIP, whose pooling head takes tokens into the space too.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError, reason
from jvidprune.models import family as families
from jvidprune.models.attention import Attend
from jvidprune.models.checkpoint.folder import Checkpoint, read_json
from jvidprune.models.checkpoint.formats import check_format
from jvidprune.models.checkpoint.hub import resolve_folder
from jvidprune.models.checkpoint.names import NameTable, Rule, affine, load_parameters, norm
from jvidprune.models.fused import AttentionKind
from jvidprune.models.layers import check_activation, layer_norm, linear, scan_layers, stack
from jvidprune.models.siglip import SiglipBlock
from jvidprune.models.tokenizer import Tokenizer, load_tokenizer, padding_id

TEXT_TOWER = "text_tower"
"""Folder inside of a checkpoint's that holds a text tower of its own."""

TextKind = Literal["siglip", "clip"]

_INSTRUCTION = "Answer the question using a single word or phrase."
"""What CDPruner's code takes out of a question before it is read."""

_OF_SIGLIP = {"activation": "gelu_pytorch_tanh", "eps": 1e-6, "positions": 64, "vocab": 32000, "width": 768}
_OF_CLIP = {"activation": "quick_gelu", "eps": 1e-5, "positions": 77, "vocab": 49408, "width": 512}
"""What a config.json means by leaving something out."""


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """Sizes of a text tower.

    Attributes:
      kind: "siglip": all places see each other, padding included, and the last one is read; "clip": a place sees those
        before it, padding is hidden, and the place of the largest id is read, the end of the text where there is one.
      width, mlp, layers, heads: of its blocks.
      vocab, positions: rows of the two embeddings; a segment has as many places.
      out: numbers of an embedding in the shared space.
      activation, eps: as in config.json.
    """

    kind: TextKind
    width: int
    mlp: int
    layers: int
    heads: int
    vocab: int
    positions: int
    out: int
    activation: str
    eps: float
    attention: AttentionKind = "plain"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "TextTowerConfig":
        """Reads the text part of a SigLIP or CLIP config.json, or one of a text tower alone.

        Raises:
          JvidpruneError: another architecture, or an activation that is not supported.
        """
        kind = str(raw.get("model_type", "")).removesuffix("_text_model").removesuffix("_model")
        # SigLIP 2 of a fixed resolution says that it is SigLIP; the others have the same text tower.
        known: dict[str, TextKind] = {"siglip": "siglip", "siglip2": "siglip", "clip": "clip"}
        if kind not in known:
            raise JvidpruneError(f"model_type {raw.get('model_type')!r} has no text tower; known: {', '.join(known)}.")
        text = raw.get("text_config") or raw
        usual = _OF_SIGLIP if known[kind] == "siglip" else _OF_CLIP
        width = text.get("hidden_size", usual["width"])
        out = text.get("projection_size", width) if known[kind] == "siglip" else raw.get("projection_dim", 512)
        return cls(
            kind=known[kind],
            width=width,
            mlp=text.get("intermediate_size", 4 * width),
            layers=text.get("num_hidden_layers", 12),
            heads=text.get("num_attention_heads", 12 if known[kind] == "siglip" else 8),
            vocab=text.get("vocab_size", usual["vocab"]),
            positions=text.get("max_position_embeddings", usual["positions"]),
            out=out,
            activation=check_activation(text.get("hidden_act", usual["activation"])),
            eps=text.get("layer_norm_eps", usual["eps"]),
        )


class TextEncoder(nnx.Module):
    """Embeddings, pre-norm blocks as those of the vision tower, a last norm, and the projection of one place."""

    def __init__(self, config: TextTowerConfig, *, dtype: Any, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        self.tokens = nnx.Param(jnp.zeros((config.vocab, config.width), dtype))
        self.positions = nnx.Param(jnp.zeros((config.positions, config.width), dtype))
        block: Any = config
        self.blocks = stack(lambda r: SiglipBlock(block, dtype=dtype, rngs=r), config.layers, rngs)
        self.norm = layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)
        self.project = linear(config.width, config.out, bias=config.kind == "siglip", dtype=dtype, rngs=rngs)

    def __call__(self, ids: Int[Array, "S P"], valid: Bool[Array, "S P"]) -> Float[Array, "S C"]:
        """The embedding of each segment, float32.

        Args:
          ids: of the segments, padded to their places.
          valid: False on padding; SigLIP's tower does not ask.
        """
        config = self.config
        attend = _causal(valid) if config.kind == "clip" else None

        def body(block: SiglipBlock, x: Array, _: None) -> tuple[Array, None]:
            return block(x, tap=False, attend=attend)[0], None

        x = self.tokens[...][ids] + self.positions[...]
        x, _ = scan_layers(self.blocks, 0, config.layers, config.layers, body, x)
        x = self.norm(x)
        place = jnp.argmax(ids, axis=1) if config.kind == "clip" else jnp.full(ids.shape[0], config.positions - 1)
        return self.project(x[jnp.arange(ids.shape[0]), place]).astype(jnp.float32)


def _causal(valid: Bool[Array, "S P"]) -> Attend:
    """Attention to the places before a place that are no padding, and to itself."""

    def attend(q: Array, k: Array, v: Array) -> Array:
        places = jnp.arange(valid.shape[1])
        seen = (places <= places[:, None]) & (valid[:, None, :] | (places == places[:, None]))
        scores = jnp.einsum("sqhd,skhd->shqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("shqk,skhd->sqhd", weights.astype(v.dtype), v)

    return attend


@dataclasses.dataclass(frozen=True, eq=False)
class TextTower:
    """A text tower with its tokenizer.

    Attributes:
      config, encoder: of the tower.
      tokenizer: of its folder.
      folder: where it came from.
      padding: id that fills a segment.
    """

    config: TextTowerConfig
    encoder: TextEncoder
    tokenizer: Tokenizer
    folder: Path
    padding: int

    def segments(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(S, P) int32 ids and (S, P) bool which are no padding: a text, cut where a segment is full.

        The tokenizer puts its beginning and end around the whole text once, as CDPruner's code has it; the instruction
        to answer with a single word is left out of it.
        """
        ids = self.tokenizer.whole(text.replace(_INSTRUCTION, "").strip())
        places = self.config.positions
        count = max(1, -(-len(ids) // places))
        rows = np.full(count * places, self.padding, np.int32)
        rows[: len(ids)] = ids
        return rows.reshape(count, places), (np.arange(count * places) < len(ids)).reshape(count, places)

    def embed(self, text: str) -> Float[Array, "S C"]:
        """The embedding of each segment of a text, float32."""
        ids, valid = self.segments(text)
        return _run(self.encoder, jnp.asarray(ids), jnp.asarray(valid))


@jax.jit
def _run(encoder: TextEncoder, ids: Array, valid: Array) -> Array:
    return encoder(ids, valid)


def load_text_tower(source: str | Path, *, dtype: Any = jnp.float32) -> TextTower:
    """The text tower of a SigLIP or CLIP checkpoint in the layout of transformers; its vision tower is not read.

    Args:
      source: folder or hub id, such as "google/siglip-so400m-patch14-384".
      dtype: of parameters and activations.

    Raises:
      JvidpruneError: no such folder, one without a text tower or tokenizer, or tensors that do not fit.
    """
    folder = resolve_folder(source, check=lambda folder: check_format(folder, source))
    config = _read(folder, source)
    checkpoint = Checkpoint(folder, _canonical)
    if not checkpoint.names:
        raise JvidpruneError(f"{source} holds no text tower: it has no tensor text_model.*.")
    build = functools.partial(TextEncoder, config, dtype=dtype)
    encoder = load_parameters(build, name_table(config), checkpoint, dtype=dtype, sharding=())
    # CDPruner's code fills CLIP's segments with id 0, whatever the tokenizer calls padding.
    tokenizer = load_tokenizer(folder)
    padding = 0 if config.kind == "clip" else padding_id(folder, tokenizer, 1)
    if not 0 <= padding < config.vocab:
        raise JvidpruneError(f"the padding id {padding} of {source} is outside of its {config.vocab} tokens.")
    return TextTower(config, encoder, tokenizer, folder, padding)


def check_shared(family: str, config: Any, source: str | Path) -> None:
    """Refuses a text tower next to a model whose vision tower has no space in common with it, before weights are read.

    Args:
      family, config: of the model.
      source: folder or hub id of the text tower.

    Raises:
      JvidpruneError: a family without a SigLIP tower that takes a pooling head, a CLIP, or a SigLIP of another width.
    """
    if families.get(family).head_tensors is None:
        raise JvidpruneError(
            f"{family} has no tower that shares a space with a text tower: cdpruner with relevance='text' compares its "
            "tokens with the question's own embeddings."
        )
    folder = resolve_folder(source, weights=False, check=lambda folder: check_format(folder, source))
    text = _read(folder, source)
    if text.kind != "siglip":
        raise JvidpruneError(
            f"{source} is a CLIP, and the tower of {family} is a SigLIP: name the one it was taken from."
        )
    if text.out != config.vision.width:
        raise JvidpruneError(
            f"the text tower of {source} has embeddings of {text.out} numbers and the tower of {family} of "
            f"{config.vision.width}: name the SigLIP that it was taken from."
        )


def _read(folder: Path, source: str | Path) -> TextTowerConfig:
    """The config of a text tower in a folder."""
    if not (folder / "config.json").exists():
        raise JvidpruneError(f"{source} has no config.json.")
    try:
        return TextTowerConfig.from_hf(read_json(folder / "config.json"))
    except JvidpruneError as error:
        raise JvidpruneError(f"{source} gives no text tower: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise JvidpruneError(f"config.json of {source} does not describe a text tower: {reason(error)}.") from error


def _canonical(name: str) -> str | None:
    """Names of the text tower as they are published; all else is left where it is."""
    return name if name.startswith(("text_model.", "text_projection.")) else None


def name_table(config: TextTowerConfig) -> NameTable:
    """The names of the tensors of a text tower."""
    block = "text_model.encoder.layers.{L}"
    rules = [
        Rule("text_model.embeddings.token_embedding.weight", "tokens"),
        Rule("text_model.embeddings.position_embedding.weight", "positions"),
        *norm("text_model.final_layer_norm", "norm", bias=True),
    ]
    for i in (1, 2):
        rules += norm(f"{block}.layer_norm{i}", f"blocks.norm{i}", bias=True)
        rules += affine(f"{block}.mlp.fc{i}", f"blocks.mlp.fc{i}")
    for part, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        rules += affine(f"{block}.self_attn.{name}", f"blocks.attn.{part}")
    head = "text_model.head" if config.kind == "siglip" else "text_projection"
    rules += affine(head, "project", bias=config.kind == "siglip")
    return NameTable((), (r"text_model\.embeddings\.position_ids",), tuple(rules))
