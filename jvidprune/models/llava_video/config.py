"""Sizes and layout of a LLaVA-Video checkpoint, read from the flat config.json of lmms-lab."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig, flat_fields, newline_of, stored_pool
from jvidprune.ops.pool import PoolKind


@dataclasses.dataclass(frozen=True)
class LlavaVideoConfig(LlavaOnevisionConfig):
    """Everything static about a model.

    Attributes:
      pool: "average" as in the published evaluations, whatever the checkpoint stores; another one is asked for with
        `dataclasses.replace`.
      newline: where newline embeddings go: "grid" closes every row of every frame.
      stored_pool: what the checkpoint's config names (the release was trained with "bilinear").
      stored_frames: whether the config asks for a fixed number of frames (`force_sample`).
      time_instruction: whether the config puts the frame times before the question.
    """

    pool: PoolKind = "average"
    newline: str = "grid"
    stored_pool: PoolKind = "average"
    stored_frames: bool = True
    time_instruction: bool = False

    family: ClassVar[str] = "llava_video"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "LlavaVideoConfig":
        """Reads a flat config.json.

        `mm_spatial_pool_stride` is ignored, as the reference does on this path: pooling is 2 x 2.

        Raises:
          JvidpruneError: a tower without known sizes, or an option this port does not have.
        """
        if raw.get("add_faster_video"):
            raise JvidpruneError("add_faster_video is true, but the second, coarser stream is not supported.")
        return cls(
            **flat_fields(raw),
            newline=newline_of(raw, raw.get("mm_newline_position", "grid")),
            stored_pool=stored_pool(raw),
            stored_frames=bool(raw.get("force_sample", True)),
            time_instruction=bool(raw.get("add_time_instruction", False)),
        )
