"""Which slots of a prompt take part in the stages inside the language model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jvidprune.inference.sequence import SlotMap, bucket_length
from jvidprune.models.inner import Inner
from jvidprune.ops.newline import NewlineKind
from jvidprune.tokens import InnerStage


def prompt_inner(
    stages: Sequence[InnerStage],
    slots: SlotMap,
    text: int,
    *,
    newline: NewlineKind,
    layers: int,
    block: np.ndarray | None = None,
) -> Inner | None:
    """The stages of one prompt, or None where they do nothing.

    Newline embeddings compete with the video tokens where the references put them into the range that is cut: those of
    "grid" and "frame" layouts, unless the stage protects them; the one behind a whole video only for a stage that says
    `all_newlines` (HoliTom); none where blocks of tokens are cut or the cache is read in part.

    Args:
      stages: of the reducer, from `reducers.base.inner_stages`.
      slots: the prompt.
      text: its text tokens, before and after the video.
      newline: layout of the newline embeddings.
      layers: decoder layers.
      block: (K,) group of each reduced row, for "text_in_blocks".
    """
    acting = [stage for stage in stages if stage.layer < layers]
    if not acting:
        return None
    settings: dict[str, Any] = {name: value for stage in acting for name, value in stage.settings}
    places = np.arange(len(slots.source))
    inside = (places >= slots.visual[0]) & (places < slots.visual[1])
    row = np.where(inside, slots.source - text - 1, -1)
    competing = newline != "one_token" or bool(settings.get("all_newlines", False))
    if settings.get("protect_newlines") or any(stage.rule in ("text_in_blocks", "dynamic_decode") for stage in acting):
        competing = False
    # Row -1 is the newline embedding; text between video blocks (Qwen3-VL's time stamps) has smaller ones.
    visual = inside & ((row >= 0) | ((row == -1) & competing))
    group = np.zeros(len(places), np.int32)
    if block is not None:
        group = np.where(row >= 0, np.maximum(block[np.maximum(row, 0)], 0), 0).astype(np.int32)
    return Inner.create(
        acting,
        visual[None],
        slots.valid[None],
        layers=layers,
        asking=((places >= slots.visual[1]) & slots.valid)[None],
        block=group[None],
        bucket=bucket_length,
    )
