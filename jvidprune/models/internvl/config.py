"""Sizes and token ids of an InternVL checkpoint, read from the config.json of transformers' class."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.base import VideoConfig
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.internvl.tower import InternVitConfig
from jvidprune.models.layers import check_activation

_EVIDENCE = frozenset(
    {"attention_last", "attention_pooling_head", "attention_shallow", "attention_deep", "keys", "frame_embedding"}
)

_TEXTS = {"qwen2": False, "qwen3": True}
"""Language models, and whether they norm the heads of queries and keys."""

_NORMS = {"layer_norm": False, "rms_norm": True}


@dataclasses.dataclass(frozen=True)
class InternVLConfig(VideoConfig):
    """Everything static about a model.

    Attributes:
      vision: the tower.
      text: the language model.
      projector_activation: between the projector's two layers.
      video_token: placeholder id of a frame's tokens in prompts, the same as that of pictures.
    """

    vision: InternVitConfig
    text: DecoderConfig
    projector_activation: str = "gelu"
    video_token: int = 151667

    family: ClassVar[str] = "internvl"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "InternVLConfig":
        """Reads a config.json; keys that are missing take the defaults of transformers' classes.

        Raises:
          JvidpruneError: another language model than Qwen2 or Qwen3, another way to features than the last block's
            patches shuffled two by two, or an option that this port does not have.
        """
        given = _there(raw.get("text_config"))
        kind = given.get("model_type", "qwen2")
        if kind not in _TEXTS:
            raise JvidpruneError(
                f"language model {quoted(kind)} of InternVL is not supported; allowed: {', '.join(_TEXTS)}."
            )
        text = DecoderConfig.from_hf(_without_dynamic(given), qk_norm=_TEXTS[kind])
        for key, only in (
            ("downsample_ratio", 0.5),
            ("vision_feature_layer", -1),
            ("vision_feature_select_strategy", "default"),
        ):
            if (found := raw.get(key, only)) != only:
                raise JvidpruneError(f"{key} {quoted(found)} of InternVL is not supported; allowed: {only}.")
        return cls(
            vision=_vision(_there(raw.get("vision_config"))),
            text=dataclasses.replace(text, tied=bool(raw.get("tie_word_embeddings", True))),
            projector_activation=check_activation(raw.get("projector_hidden_act", "gelu")),
            video_token=raw.get("image_token_id", cls.video_token),
        )

    @property
    def provides(self) -> frozenset[str]:
        """Evidence that a model of this config can attach."""
        return _EVIDENCE

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens of a frame."""
        side = self.vision.side // self.vision.merge
        return side, side

    @property
    def unpooled_grid(self) -> None:
        """None: patches are joined before they are projected, so that no features of theirs exist."""
        return None


def _there(section: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (section or {}).items() if value is not None}


def _without_dynamic(text: dict[str, Any]) -> dict[str, Any]:
    """The text part without dynamic scaling of rotary frequencies.

    It changes them for sequences beyond `max_position_embeddings` alone, which `DecoderConfig.max_positions` refuses.
    """
    out = dict(text)
    for name in ("rope_scaling", "rope_parameters"):
        part = text.get(name)
        if isinstance(part, dict) and part.get("rope_type", part.get("type")) == "dynamic":
            out[name] = {key: value for key, value in part.items() if key == "rope_theta"}
    return out


def _vision(sizes: Mapping[str, Any]) -> InternVitConfig:
    """The tower's sizes.

    Raises:
      JvidpruneError: frames or patches that are no squares, a side that cannot be halved, no learned positions, or
        norms of another kind.
    """
    norm = sizes.get("norm_type", "layer_norm")
    if norm not in _NORMS:
        raise JvidpruneError(f"norm_type {quoted(norm)} is not supported; allowed: {', '.join(_NORMS)}.")
    if not sizes.get("use_absolute_position_embeddings", True):
        raise JvidpruneError("use_absolute_position_embeddings is false, but only learned positions are supported.")
    vision = InternVitConfig(
        width=sizes.get("hidden_size", 1024),
        mlp=sizes.get("intermediate_size", 4096),
        layers=sizes.get("num_hidden_layers", 24),
        heads=sizes.get("num_attention_heads", 16),
        image_size=_square("image_size", sizes.get("image_size", 448)),
        patch_size=_square("patch_size", sizes.get("patch_size", 14)),
        channels=sizes.get("num_channels", 3),
        activation=check_activation(sizes.get("hidden_act", "gelu")),
        eps=sizes.get("layer_norm_eps", 1e-6),
        rms=_NORMS[norm],
        qk_norm=sizes.get("use_qk_norm", False),
        qkv_bias=sizes.get("attention_bias", False),
        final_norm=not sizes.get("use_mean_pooling", True),
    )
    if vision.side % vision.merge:
        raise JvidpruneError(
            f"a tower of {vision.side} x {vision.side} patches cannot be halved: "
            "image_size over patch_size must be even."
        )
    return vision


def _square(name: str, value: Any) -> Any:
    """The side, from a number or from two equal ones."""
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    if isinstance(value, list | tuple):
        raise JvidpruneError(f"{name} {quoted(value)} of the tower is not supported; allowed: squares.")
    return value
