"""What models do before and behind a tower: check the evidence asked for, and put it beside the tokens."""

from collections.abc import Set
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jvidprune.errors import JvidpruneError
from jvidprune.tokens import EVIDENCE, QUESTION, VideoTokens

NO_QUESTION = (
    "the evidence text is the question, and none was passed: give it as question= where the video is encoded or "
    "reduced, or ask about the video."
)


NO_TEXT_TOWER = (
    "the evidence joint_text comes from the text tower of the original SigLIP, and none was loaded: name it with "
    "text_tower= or --text-tower, or take the relevance from the question's embeddings (relevance='text' of cdpruner)."
)


def check_evidence(family: str, needs: Set[str], provides: Set[str], text: Any) -> None:
    """JvidpruneError that names evidence this model cannot attach, or says that no question was passed for "text"."""
    if unknown := sorted(needs - EVIDENCE.keys()):
        raise JvidpruneError(f"unknown evidence {', '.join(unknown)}; known: {', '.join(EVIDENCE)}.")
    if lacking := sorted(needs - provides - QUESTION):
        if lacking == ["joint_image"]:
            raise JvidpruneError(
                f"{family} cannot give evidence joint_image with this checkpoint: the LLaVA families can with the "
                "original SigLIP (text_tower= or --text-tower), and cdpruner with relevance='text' needs none."
            )
        raise JvidpruneError(
            f"{family} cannot give evidence {', '.join(lacking)} with this checkpoint; "
            f"it gives: {', '.join(sorted({*provides, 'text'}))}."
        )
    if "text" in needs and text is None:
        raise JvidpruneError(NO_QUESTION)


def evidence_blocks(vision: Any) -> dict[str, int]:
    """Blocks of a tower that evidence comes from, by the name of the evidence."""
    last = vision.layers - 1
    shallow, deep = vision.shallow_block, vision.deep_block
    return {"attention_last": last, "keys": last, "attention_shallow": shallow, "attention_deep": deep}


def video_tokens(
    arrays: dict[str, Array],
    grid: tuple[int, int],
    *,
    text: Array | None,
    frame_mask: Array | None,
    unpooled_grid: tuple[int, int] | None = None,
) -> VideoTokens:
    """The tokens of a video from what a tower gave.

    Args:
      arrays: "features" (T, N, D) and evidence by name.
      grid: (h, w) of the tokens of a frame, static.
      text: (L, D) embeddings of the question where evidence "text" is asked for, else None.
      frame_mask: (T,) bool, False on padding frames; None for all True.
      unpooled_grid: (h, w) of `features_unpooled`, static.
    """
    evidence = {name: value for name, value in arrays.items() if name != "features"}
    if text is not None:
        evidence["text"] = text
    features = arrays["features"]
    mask = jnp.ones(features.shape[0], bool) if frame_mask is None else frame_mask
    return VideoTokens(features, evidence, mask, grid, unpooled_grid)
