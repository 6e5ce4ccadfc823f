"""Sizes and token ids of a LLaVA-OneVision checkpoint, read from any layout of its config.json."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, get_args

from jvidprune.errors import JvidpruneError
from jvidprune.models.base import VideoConfig
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.layers import check_activation
from jvidprune.models.siglip import SiglipConfig
from jvidprune.ops.newline import KINDS
from jvidprune.ops.pool import PoolKind, pooled_side

TOWERS: dict[str, dict[str, int]] = {
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,  # the 27th block of the original is deleted before it ever runs
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
"""Vision sizes by the tower's hub id: lmms-lab configs name the tower and hold no sizes."""

_DEFAULT_TOWER = TOWERS["google/siglip-so400m-patch14-384"]

TOWER_EVIDENCE = frozenset(
    {"attention_last", "attention_shallow", "attention_deep", "keys", "features_unpooled", "newline"}
)
"""What every checkpoint gives."""

HEAD_EVIDENCE = frozenset({"attention_pooling_head", "frame_embedding", "joint_image"})
"""What SigLIP's own pooling head gives, which LLaVA checkpoints lack (`load_model(pooling_head=...)`)."""


@dataclasses.dataclass(frozen=True)
class LlavaOnevisionConfig(VideoConfig):
    """Everything static about a model.

    Attributes:
      vision: the tower.
      text: the language model.
      stored_blocks: vision blocks in the checkpoint; those beyond `vision.layers` are never run and not loaded.
      projector_activation: between the projector's two layers.
      pool: spatial pooling of the video path.
      newline: where the newline embedding goes ("one_token": once, after the last frame; "no_token": nowhere).
      image_token: placeholder id of an image in prompts.
      video_token: placeholder id of a video; -200 in the lmms-lab format.
      aspect: how pictures are cut into tiles, "anyres_max_9".
      pinpoints: heights and widths in pixels that pictures are resized into, as the text of a list or in LLaVA-NeXT's
        own form; empty for up to 6 x 6 tiles.
    """

    vision: SiglipConfig
    text: DecoderConfig
    stored_blocks: int
    projector_activation: str = "gelu"
    pool: PoolKind = "bilinear"
    newline: str = "one_token"
    image_token: int = 151646
    video_token: int = 151647
    aspect: str = "anyres_max_9"
    pinpoints: str = ""

    family: ClassVar[str] = "llava_onevision"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "LlavaOnevisionConfig":
        """Reads a config.json: nested (llava-hf, both rope layouts) or flat (lmms-lab).

        A flat one says how videos are pooled (`mm_spatial_pool_mode`) and whether a newline follows them
        (`mm_patch_merge_type`); published ones say "bilinear" and "spatial_unpad".

        Raises:
          JvidpruneError: a tower without known sizes, or an option this port does not have.
        """
        if "mm_vision_tower" in raw or "text_config" not in raw:
            position, pool = raw.get("mm_newline_position", "one_token"), stored_pool(raw)
            check_stride(raw)
            return cls(**flat_fields(raw), newline=newline_of(raw, position), pool=pool)
        sizes = raw.get("vision_config")
        vision = SiglipConfig.from_hf(_DEFAULT_TOWER if sizes is None else sizes)
        if (strategy := raw.get("vision_feature_select_strategy", "full")) != "full":
            raise JvidpruneError(f"vision_feature_select_strategy {strategy!r} is not supported; allowed: full.")
        return cls(
            vision=dataclasses.replace(vision, layers=_used_blocks(vision.layers, raw.get("vision_feature_layer", -1))),
            text=DecoderConfig.from_hf(raw["text_config"]),
            stored_blocks=vision.layers,
            projector_activation=check_activation(raw.get("projector_hidden_act", "gelu")),
            image_token=raw.get("image_token_index", raw.get("image_token_id", 151646)),
            video_token=raw.get("video_token_index", raw.get("video_token_id", 151647)),
            **picture_fields(raw, "vision_aspect_ratio"),
        )

    def with_tensors(self, names: Collection[str]) -> "LlavaOnevisionConfig":
        """The config that fits the tensors at hand: the presence of a head or of a pooling head decides, not flags."""
        head = any(name.startswith("vision_tower.vision_model.head.") for name in names)
        return dataclasses.replace(
            self,
            vision=dataclasses.replace(self.vision, pooling_head=head),
            text=dataclasses.replace(self.text, tied="language_model.lm_head.weight" not in names),
        )

    @property
    def provides(self) -> frozenset[str]:
        """Evidence that a model of this config can attach."""
        return TOWER_EVIDENCE | (HEAD_EVIDENCE if self.vision.pooling_head else frozenset())

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens of a frame after pooling."""
        side = pooled_side(self.vision.side, self.pool)
        return side, side

    @property
    def unpooled_grid(self) -> tuple[int, int]:
        """(h, w) of the tower's patches."""
        return self.vision.side, self.vision.side


def flat_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both LLaVA families of lmms-lab read from their flat config.json.

    `mm_vision_select_layer` is -2 there and must be ignored: the 27th block is deleted and the last of the 26 is used.

    Raises:
      JvidpruneError: another tower, projector or resampler than those that are ported.
    """
    tower = raw.get("mm_vision_tower", "google/siglip-so400m-patch14-384")
    sizes = raw.get("vision_config_override") or TOWERS.get(tower)
    if sizes is None:
        raise JvidpruneError(f"vision tower {tower!r} is not supported; known: {', '.join(TOWERS)}.")
    if (kind := raw.get("mm_projector_type", "mlp2x_gelu")) != "mlp2x_gelu":
        raise JvidpruneError(f"projector {kind!r} is not supported; allowed: mlp2x_gelu.")
    if (resampler := raw.get("mm_resampler_type")) is not None:
        raise JvidpruneError(f"mm_resampler_type {resampler!r} is not supported; allowed: null.")
    vision, text = SiglipConfig.from_hf(sizes), DecoderConfig.from_hf(raw)
    limit = min(text.max_positions, raw.get("tokenizer_model_max_length") or text.max_positions)
    return {
        "vision": vision,
        "text": dataclasses.replace(text, max_positions=limit),
        "stored_blocks": vision.layers,
        "image_token": -200,
        "video_token": -200,
        **picture_fields(raw, "image_aspect_ratio"),
    }


def picture_fields(raw: Mapping[str, Any], aspect: str) -> dict[str, Any]:
    """What a config.json says about pictures, read no further before there is one.

    Args:
      raw: config.json.
      aspect: its key for the way that they are cut.
    """
    found = raw.get("image_grid_pinpoints") or ""
    text = found if isinstance(found, str) else json.dumps(found)
    return {"aspect": str(raw.get(aspect) or LlavaOnevisionConfig.aspect), "pinpoints": text}


def stored_pool(raw: Mapping[str, Any]) -> PoolKind:
    """How the video path pools, as a flat config.json names it.

    Raises:
      JvidpruneError: a mode that the reference does not have.
    """
    found = raw.get("mm_spatial_pool_mode")
    kinds = [kind for kind in get_args(PoolKind) if kind != "none"]
    if found is not None and found not in kinds:
        raise JvidpruneError(f"mm_spatial_pool_mode {found!r} is not supported; allowed: {', '.join(kinds)}.")
    return "bilinear" if found is None else found


def check_stride(raw: Mapping[str, Any]) -> None:
    """Refuses another pooling than 2 x 2.

    Raises:
      JvidpruneError: a stride that the reference's video path does not pool with.
    """
    stride = raw.get("mm_spatial_pool_stride")
    if stride is not None and stride != 2:
        raise JvidpruneError(f"mm_spatial_pool_stride {stride!r} is not supported; allowed: 2.")


def newline_of(raw: Mapping[str, Any], position: str) -> str:
    """Where newline embeddings go, as a flat config.json names position and merge type: "flat" has none at all, and the
    one behind a video belongs to the merge types with "unpad".

    Raises:
      JvidpruneError: a position or a merge type that the reference does not have.
    """
    if position not in KINDS:
        raise JvidpruneError(f"mm_newline_position {position!r} is not supported; allowed: {', '.join(KINDS)}.")
    merge = raw.get("mm_patch_merge_type", "spatial_unpad")
    if not isinstance(merge, str) or not (merge == "flat" or merge.startswith("spatial")):
        raise JvidpruneError(f"mm_patch_merge_type {merge!r} is not supported; allowed: flat, spatial, spatial_unpad.")
    if merge == "flat" or (position == "one_token" and "unpad" not in merge):
        return "no_token"
    return position


def _used_blocks(stored: int, layer: Any) -> int:
    """Blocks that run when hidden state `layer` is the feature: -1 is the output of the last, 0 the embeddings."""
    if not isinstance(layer, int) or not -stored <= layer <= stored or layer == 0:
        raise JvidpruneError(f"vision_feature_layer {layer!r} is not supported; the tower has {stored} blocks.")
    return layer if layer > 0 else stored + 1 + layer
