"""Sizes and token ids of a VideoLLaMA3 checkpoint, read from the config.json of transformers' class."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError
from jvidprune.models.base import VideoConfig
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.layers import check_activation
from jvidprune.models.qwen.tower import Grid, QwenVisionConfig

_EVIDENCE = frozenset(
    {"attention_last", "attention_mean_query", "attention_shallow", "attention_deep", "keys", "frame_embedding"}
)

_THETA = 1e4
"""Base of the tower's rotary frequencies."""


@dataclasses.dataclass(frozen=True)
class VideoLlama3Config(VideoConfig):
    """Everything static about a model.

    Attributes:
      vision: the tower; of two frames side by side it knows nothing, a grid frame is one frame. Its `merge` is that of
        videos, which the processor holds and not config.json (pictures have 1).
      text: the language model.
      image_token, video_token: placeholder ids in prompts.
    """

    vision: QwenVisionConfig
    text: DecoderConfig
    image_token: int = 151655
    video_token: int = 151656

    family: ClassVar[str] = "video_llama_3"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "VideoLlama3Config":
        """Reads a config.json; keys that are missing take the defaults of transformers' classes.

        Raises:
          JvidpruneError: another language model than Qwen2, another rotary than the published tower's, heads that it
            cannot turn, or an option that this port does not have.
        """
        given = {key: value for key, value in (raw.get("text_config") or {}).items() if value is not None}
        if (kind := given.get("model_type", "qwen2")) != "qwen2":
            raise JvidpruneError(f"language model {kind!r} of VideoLLaMA3 is not supported; allowed: qwen2.")
        text = DecoderConfig.from_hf(given)
        sizes = {key: value for key, value in (raw.get("vision_config") or {}).items() if value is not None}
        rope = sizes.get("rope_parameters") or {}
        if rope.get("rope_type", "axial") != "axial" or rope.get("rope_theta", _THETA) != _THETA:
            raise JvidpruneError(f"rope_parameters {dict(rope)} of the tower are not supported; allowed: axial, 10000.")
        vision = QwenVisionConfig(
            width=sizes.get("hidden_size", 768),
            mlp=sizes.get("intermediate_size", 3072),
            layers=sizes.get("num_hidden_layers", 12),
            heads=sizes.get("num_attention_heads", 12),
            out=text.width,
            patch_size=sizes.get("patch_size", 16),
            rms=False,
            activation=check_activation(sizes.get("hidden_act", "gelu_pytorch_tanh")),
            merge=2,
            pair=1,
            channels=sizes.get("num_channels", 3),
            eps=sizes.get("layer_norm_eps", 1e-6),
        )
        if vision.width % (4 * vision.heads):
            raise JvidpruneError(
                f"a tower of width {vision.width} with {vision.heads} heads has no rotary on two axes: the width of a "
                "head must be a multiple of 4."
            )
        ids = {name: int(raw.get(f"{name}_id", getattr(cls, name))) for name in ("image_token", "video_token")}
        tied = bool(raw.get("tie_word_embeddings") or text.tied)
        return cls(vision, dataclasses.replace(text, tied=tied), **ids)

    @property
    def provides(self) -> frozenset[str]:
        """Evidence that a model of this config can attach."""
        return _EVIDENCE

    def token_grid(self, grid: Grid) -> Grid:
        """(T, h, w) tokens of a grid of patches."""
        return grid[0], grid[1] // self.vision.merge, grid[2] // self.vision.merge
