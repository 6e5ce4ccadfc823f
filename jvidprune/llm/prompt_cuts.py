"""Which slots of a prompt take part in the stages inside the language model."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jvidprune.cuts.cut import Cut
from jvidprune.cuts.inner import Inner
from jvidprune.cuts.reselection import Reselection
from jvidprune.cuts.routing import Route
from jvidprune.llm.prompts.slots import SlotMap, bucket_length
from jvidprune.ops.newline import NewlineKind
from jvidprune.tokens import InnerStage


def newlines_compete(stages: Sequence[InnerStage], newline: NewlineKind) -> bool:
    """Whether newline embeddings are cut like video tokens, which is where the references put them into the range.

    Those of "grid" and "frame" layouts are, unless a rule says "never" (blocks of tokens, a cache that is read in
    part); the one behind a whole video only for a rule that says "always" (HoliTom).
    """
    said = {stage.rule.newlines for stage in stages}
    return "never" not in said and (newline != "one_token" or "always" in said)


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

    Args:
      stages: of the reducer, from `reducers.protocol.inner_stages`.
      slots: the prompt.
      text: its text tokens, before and after the video.
      newline: layout of the newline embeddings.
      layers: decoder layers.
      block: (K,) group of each reduced row, for rules that count in blocks; or (2, K) frames, or places in a frame, of
        the rows and of the newlines that follow them, for rules that go by these.
    """
    acting = [stage for stage in stages if stage.boundary < layers]
    if not acting:
        return None
    places = np.arange(len(slots.source))
    inside = (places >= slots.visual[0]) & (places < slots.visual[1])
    row = np.where(inside, slots.source - text - 1, -1)
    competing = newlines_compete(acting, newline)
    # Row -1 is the newline embedding; text between video blocks (Qwen3-VL's time stamps) has smaller ones.
    visual = inside & ((row >= 0) | ((row == -1) & competing))
    group = np.zeros(len(places), np.int32)
    if block is not None and block.ndim == 2:
        before = np.maximum.accumulate(np.where(row >= 0, places, 0))
        told = block[np.where(row >= 0, 0, 1), np.maximum(row[before], 0)]
        group = np.where(visual, told, 0).astype(np.int32)
    elif block is not None:
        group = np.where(row >= 0, np.maximum(block[np.maximum(row, 0)], 0), 0).astype(np.int32)
    return Inner.create(
        acting,
        visual[None],
        slots.valid[None],
        layers=layers,
        text_queries=((places >= slots.visual[1]) & slots.valid)[None],
        block=group[None],
        bucket=bucket_length,
    )


def join_inner(rows: Sequence[Inner]) -> Inner:
    """The stages of a batch of prompts of one padded length; each prompt keeps its own counts, seeds and blocks.

    Args:
      rows: from `prompt_inner`, with the same layers, rules and settings; lengths behind the cuts become the largest.
    """
    cuts: list[Cut] = []
    for same in zip(*(row.cuts for row in rows), strict=True):
        tables = np.concatenate([np.atleast_2d(cut.table) for cut in same])
        seeds = np.stack([cut.seed for cut in same])
        lengths = [cut.capacity for cut in same if cut.capacity is not None]
        cuts.append(dataclasses.replace(same[0], table=tables, seed=seeds, capacity=max(lengths, default=None)))
    routes: list[Route] = []
    for same in zip(*(row.routes for row in rows), strict=True):
        tables = np.concatenate([np.atleast_2d(route.table) for route in same])
        seeds = np.stack([route.seed for route in same])
        lengths = [route.capacity for route in same if route.capacity is not None]
        routes.append(dataclasses.replace(same[0], table=tables, seed=seeds, capacity=max(lengths, default=None)))
    visual, text_queries, block = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("visual", "text_queries", "block")
    )
    policy, policies = rows[0].policy, [row.policy for row in rows]
    if policy is not None:
        names = ("visual", "keep") if isinstance(policy, Reselection) else ("video", "keep", "previous", "kept")
        arrays = {name: np.concatenate([getattr(one, name) for one in policies]) for name in names}
        policy = dataclasses.replace(policy, **arrays)
    most = max(row.query_rows for row in rows)
    return Inner(tuple(cuts), visual, text_queries, block, policy, most, tuple(routes), rows[0].layers)
