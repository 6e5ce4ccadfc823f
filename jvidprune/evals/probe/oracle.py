"""The control that knows where objects are."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from jvidprune.ops.sink import SinkRule
from jvidprune.procedural.masks import Masks
from jvidprune.reducers.controls import RankedReducer, RankShared
from jvidprune.reducers.protocol import MethodInfo
from jvidprune.tokens import VideoTokens


@dataclasses.dataclass(frozen=True)
class Oracle(RankedReducer):
    """Keeps the tokens that hold most of an object (`Masks.worth`), which it is told as the evidence "relevance".

    It is no method: where objects are is known of generated clips alone, so the probe runs it and nothing else does.

    Attributes:
      scope: ranks over the `video`, or the same count in every `frame`.
    """

    scope: Literal["video", "frame"] = "video"

    needs = frozenset({"relevance"})

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> RankShared:
        """Ranks by relevance, equal ones by id."""
        return self._ranks(video.evidence["relevance"], video.frame_mask)

    info: ClassVar[MethodInfo] = MethodInfo(
        "oracle", "Object masks", "-", "Keeps the tokens that objects cover, rare ones first.", True, False, True
    )


def told(video: VideoTokens, found: Masks) -> VideoTokens:
    """The video as the oracle reads it."""
    worth = jnp.asarray(found.worth()).reshape(video.features.shape[:2])
    return dataclasses.replace(video, evidence=video.evidence | {"relevance": worth})
