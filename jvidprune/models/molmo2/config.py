"""Sizes and token ids of a Molmo2 checkpoint, read from the released config.json or that of transformers' own class."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError
from jvidprune.models.base import VideoConfig
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.layers import check_activation
from jvidprune.models.molmo2.windows import pooled_side
from jvidprune.models.rope import RopeConfig
from jvidprune.models.siglip import SiglipConfig

_EVIDENCE = frozenset({"attention_last", "attention_shallow", "attention_deep", "keys", "frame_embedding"})

_TOKENS: dict[str, tuple[str, int]] = {
    "image_start": ("image_start_token_id", 0),
    "image_end": ("image_end_token_id", 1),
    "image_patch": ("image_patch_id", 2),
    "image_column": ("image_col_id", 3),
    "low_res_start": ("low_res_image_start_token_id", 4),
    "low": ("image_low_res_id", 6),
    "frame_start": ("frame_start_token_id", 7),
    "frame_end": ("frame_end_token_id", 8),
}
"""Field -> key of config.json, and its place behind the base vocabulary where the key is absent."""


TILES = 1
"""`ConnectorConfig.pool` of pictures, whose windows reach over tiles and are pooled behind the tower."""


@dataclasses.dataclass(frozen=True)
class VisualTokens:
    """Ids behind the base vocabulary that see each other in a prompt, all others are read causally.

    Attributes:
      image_patch: the placeholder to whose embedding a visual token is added.
      image_start, image_end, image_column, low_res_start, low: around and inside images.
      frame_start, frame_end: around the placeholders of a frame.
    """

    image_start: int
    image_end: int
    image_patch: int
    image_column: int
    low_res_start: int
    low: int
    frame_start: int
    frame_end: int

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them."""
        return dataclasses.astuple(self)


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """How windows of patches become tokens.

    Attributes:
      blocks: tower blocks, 0-based, whose outputs are joined on the channel axis, in this order.
      width: of the pooling attention.
      heads: of the pooling attention.
      mlp: hidden width of the projector.
      pool: side of a window of a video frame in patches, `TILES` where patches leave as they are.
      masked: whether places of a window outside the frame are hidden; if not they count as zero vectors.
      activation: of the projector's gate, by its name in config.json.
    """

    blocks: tuple[int, ...]
    width: int
    heads: int
    mlp: int
    pool: int = 3
    masked: bool = True
    activation: str = "silu"


@dataclasses.dataclass(frozen=True)
class Molmo2Config(VideoConfig):
    """Everything static about a model.

    Attributes:
      vision: the tower, as deep as the connector reads.
      text: the language model.
      connector: pooling and projector.
      tokens: ids of the visual tokens.
      stored_blocks: tower blocks that config.json declares; released weights end with the deepest one that is read.
    """

    vision: SiglipConfig
    text: DecoderConfig
    connector: ConnectorConfig
    tokens: VisualTokens
    stored_blocks: int

    family: ClassVar[str] = "molmo2"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Molmo2Config":
        """Reads a config.json: released (`vit_config`, `vit_layers`) or of transformers' class (`vision_config`).

        Keys that are missing take the sizes of Molmo2-8B, as in transformers.

        Raises:
          JvidpruneError: an option that this port does not have.
        """
        vision, stored = _vision(raw.get("vision_config") or raw.get("vit_config") or {})
        adapter, text = raw.get("adapter_config") or {}, _text(raw.get("text_config") or {})
        read = _first(adapter, ("vit_layers", "vision_feature_layer"), (24, 18))
        blocks = tuple(_block(layer, stored) for layer in read)
        if not blocks:
            raise JvidpruneError("adapter_config names no tower block whose output is read.")
        connector = ConnectorConfig(
            blocks=blocks,
            width=adapter.get("hidden_size", 1152),
            heads=adapter.get("num_attention_heads", 16),
            mlp=adapter.get("intermediate_size", 18944),
            masked=bool(adapter.get("pooling_attention_mask", True)),
            activation=check_activation(adapter.get("hidden_act", "silu")),
        )
        _check_heads("adapter_config", adapter, connector.width, connector.heads)
        width = adapter.get("text_hidden_size", text.width)
        if width != text.width:
            raise JvidpruneError(f"the adapter makes tokens of width {width}, but the language model has {text.width}.")
        if adapter.get("mlp_bias") or not adapter.get("attention_bias", True):
            raise JvidpruneError("an adapter with mlp_bias or without attention_bias is not supported.")
        ids = {name: int(raw.get(key, text.vocab + place)) for name, (key, place) in _TOKENS.items()}
        if outside := [name for name, i in ids.items() if not 0 <= i < text.vocab + text.extra_vocab]:
            rows = text.vocab + text.extra_vocab
            raise JvidpruneError(f"the id of {outside[0]}, {ids[outside[0]]}, is outside the {rows} embeddings.")
        used = max(blocks) + 1
        return cls(dataclasses.replace(vision, layers=used), text, connector, VisualTokens(**ids), stored)

    @property
    def placeholder(self) -> int:
        """Id to whose embedding a visual token is added in a prompt."""
        return self.tokens.image_patch

    @property
    def provides(self) -> frozenset[str]:
        """Evidence that a model of this config can attach."""
        return _EVIDENCE

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens of a frame."""
        side = pooled_side(self.vision.side, self.connector.pool)
        return side, side

    @property
    def unpooled_grid(self) -> None:
        """None: patches are pooled before they are projected, so that no features of theirs exist."""
        return None


def _first(raw: Mapping[str, Any], keys: tuple[str, ...], default: Any) -> Any:
    """The value of the first key that is there and not null."""
    return next((raw[key] for key in keys if raw.get(key) is not None), default)


def _check_heads(part: str, raw: Mapping[str, Any], width: int, heads: int) -> None:
    if raw.get("num_key_value_heads", heads) != heads:
        raise JvidpruneError(f"{part} has {raw['num_key_value_heads']} key heads for {heads} heads; only as many work.")
    if raw.get("head_dim", width // heads) * heads != width:
        raise JvidpruneError(f"{part} has {heads} heads of {raw['head_dim']}, which do not make up its width {width}.")


def _block(layer: Any, stored: int) -> int:
    """A block by its number from the front or, negative, from the end of the declared tower."""
    if not isinstance(layer, int) or not -stored <= layer < stored:
        raise JvidpruneError(f"the connector reads tower block {layer!r}, but the tower has {stored} blocks.")
    return layer % stored


def _vision(raw: Mapping[str, Any]) -> tuple[SiglipConfig, int]:
    """The tower with all declared blocks, and how many those are."""
    sides = _first(raw, ("image_default_input_size", "image_size"), (378, 378))
    sides = (sides, sides) if isinstance(sides, int) else tuple(sides)
    patch = _first(raw, ("image_patch_size", "patch_size"), 14)
    if len(sides) != 2 or sides[0] != sides[1] or sides[0] % patch:
        raise JvidpruneError(f"the tower's image of {sides} pixels is no square of whole patches of {patch} pixels.")
    config = SiglipConfig(
        width=raw.get("hidden_size", 1152),
        mlp=raw.get("intermediate_size", 4304),
        layers=raw.get("num_hidden_layers", 25),
        heads=raw.get("num_attention_heads", 16),
        image_size=sides[0],
        patch_size=patch,
        activation=check_activation(raw.get("hidden_act", "gelu_pytorch_tanh")),
        eps=raw.get("layer_norm_eps", 1e-6),
        channels_last=True,
    )
    _check_heads("vision_config", raw, config.width, config.heads)
    count = _first(raw, ("image_num_pos", "num_position_embeddings"), config.tokens)
    if count != config.tokens:
        raise JvidpruneError(f"the tower has {count} positions for {config.tokens} patches; only one each works.")
    return config, config.layers


def _text(raw: Mapping[str, Any]) -> DecoderConfig:
    """The language model; `qk_norm_type` and `norm_after` tell Qwen3 and OLMo 3 apart."""
    kind = raw.get("qk_norm_type", "qwen3")
    if kind not in ("qwen3", "olmo"):
        raise JvidpruneError(f"qk_norm_type {kind!r} is not supported; allowed: qwen3, olmo.")
    named = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_hidden_layers": 36,
        "intermediate_size": 12288,
        "max_position_embeddings": 36864,
        "rms_norm_eps": _first(raw, ("layer_norm_eps", "rms_norm_eps"), 1e-6),
        "attention_bias": bool(_first(raw, ("qkv_bias", "attention_bias"), False)),
    }
    given = {key: value for key, value in raw.items() if value is not None}
    rope = RopeConfig.from_hf(given)
    text = DecoderConfig.from_hf(named | given | {"attention_bias": named["attention_bias"]}, qk_norm=True, rope=rope)
    layers = given.get("rope_scaling_layers")
    if layers is not None and (odd := [i for i in layers if not 0 <= i < text.layers]):
        raise JvidpruneError(f"rope_scaling_layers names layer {odd[0]}, but the model has {text.layers} layers.")
    return dataclasses.replace(
        text,
        eps=named["rms_norm_eps"],
        qk_norm=bool(given.get("use_qk_norm", True)),
        extra_vocab=given.get("additional_vocab_size", 128),
        qk_norm_whole=kind == "olmo",
        norm_after=bool(given.get("norm_after", False)),
        yarn_layers=tuple(layers) if layers is not None and rope.yarn is not None else None,
    )
