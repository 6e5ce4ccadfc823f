"""What the models' comparisons share: golden keys with the port's values, of towers and language models."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.models.generate import generate
from jvidprune.models.prefill import PromptParts, prefill
from jvidprune.parity.core import Golden, Row
from jvidprune.parity.table import Check

VISION, ATTENTION, LOGITS = 5e-5, 1e-6, 1e-4
"""Absolute tolerances in float32: stages up to the prompt's embeddings and hidden states, attention, logits."""

LM_ATTENTION = 5e-6
"""Of the language model's attention, which starts from the tower's output: the noise of two float32 towers (1e-6 on
tokens) comes on top of the decoder's own, and either side is up to 2e-6 off a float64 computation."""


class ModelStage(NamedTuple):
    """What a golden array is compared with.

    Attributes:
      ours: makes the port's value.
      atol: absolute tolerance; exact where it is None.
      note: shown behind the row.
    """

    ours: Callable[[], Any]
    atol: float | None = None
    note: str = ""

    def row(self, key: str, golden: Golden) -> Row:
        """The row of a key."""
        return Check(key, lambda stage: stage.ours(), self.atol, note=self.note).row(self, golden)


Stages = dict[str, ModelStage]
"""Golden key -> what is compared with it."""


@jax.jit
def _tower(model: Any, pixels: Any) -> tuple[Any, Any]:
    embedded = (patches := model.vision.patches(pixels)) + model.vision.pos_embed[...]
    _, outputs = model.vision.run(embedded, 0, model.vision.config.layers, tap=True, hidden=True)
    return patches, outputs._replace(hidden=jnp.concatenate([embedded[None], outputs.hidden]))


@functools.partial(jax.jit, static_argnames="needs")
def encoded(model: Any, pixels: Any, needs: frozenset[str]) -> Any:
    return model.encode(pixels, needs)


@jax.jit
def _embedded(model: Any, ids: Any) -> Any:
    return model.embed_text(ids)


def embed_text(model: Any, ids: np.ndarray) -> np.ndarray:
    return np.asarray(_embedded(model, ids))


def prompt_embeds(model: Any, ids: np.ndarray, visual: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(1, L, D) embeddings of a prompt with visual tokens at its placeholders.

    Args:
      model: with `embed_text`.
      ids: (1, L) of the prompt.
      visual: (1, L) bool, where the placeholders are.
      tokens: (T, N, D) of the video.

    Raises:
      JvidpruneError: not as many placeholders as tokens.
    """
    tokens = tokens.reshape(-1, tokens.shape[-1])
    if visual.sum() != len(tokens):
        raise JvidpruneError(f"input_ids hold {visual.sum()} placeholders for {len(tokens)} video tokens.")
    rows = np.maximum(visual.cumsum(axis=1) - 1, 0)
    return np.where(visual[..., None], tokens[rows], embed_text(model, ids))


@jax.jit
def _forward(model: Any, embeds: Any, positions: Any, valid: Any, rows: Any, deepstack: Any, bidirectional: Any) -> Any:
    return model.lm.forward(
        embeds, positions, valid, rows=rows, hidden=True, deepstack=deepstack, bidirectional=bidirectional
    )


@jax.jit
def _decode(model: Any, token: Any, cache: Any) -> Any:
    return model.lm.decode(token, cache)


def cached_logits(model: Any, embeds: np.ndarray, positions: np.ndarray, golden: Golden, **parts: Any) -> np.ndarray:
    """(B, steps, V) logits of the golden answer, fed token by token through the cache.

    Args:
      model: with `lm`.
      embeds: (B, L, D) of the prompt.
      positions: (B, L) of the prompt.
      golden: with `greedy_ids`.
      parts: of `prefill`.
    """
    answer = golden["greedy_ids"]
    room, valid = embeds.shape[1] + answer.shape[1], np.ones(embeds.shape[:2], bool)
    logits, cache = prefill(model, embeds, positions, valid, capacity=room, **parts)
    found = [np.asarray(logits)]
    for token in answer.T[:-1]:
        logits, cache = _decode(model, jnp.asarray(token, jnp.int32), cache)
        found.append(np.asarray(logits))
    return np.stack(found, axis=1)


def tower_stages(model: Any, pixels: np.ndarray) -> Stages:
    """Comparisons of a SigLIP tower's stages; pixels are (frames, 3, S, S)."""
    run = functools.cache(lambda: jax.device_get(_tower(model, pixels)))
    return {
        "patch_embed": ModelStage(lambda: run()[0], VISION),
        "vit_hidden": ModelStage(lambda: run()[1].hidden, VISION),
        "vision_features": ModelStage(lambda: run()[1].hidden[-1], VISION),
        "vision_attention_received": ModelStage(lambda: run()[1].received.mean(axis=2), ATTENTION),
        "vision_attention_received_heads_last": ModelStage(lambda: run()[1].received[-1], ATTENTION),
        "saliency": ModelStage(lambda: run()[1].received[-1].mean(axis=1), ATTENTION),
    }


def lead(logits: np.ndarray) -> np.ndarray:
    """How far the best logit is ahead of the next, over the last axis."""
    best = np.sort(logits, axis=-1)[..., -2:]
    return best[..., 1] - best[..., 0]


def decoder_stages(
    model: Any,
    embeds: Callable[[], np.ndarray],
    positions: np.ndarray,
    golden: Golden,
    deepstack: Callable[[], np.ndarray] | None = None,
    *,
    bidirectional: np.ndarray | None = None,
) -> Stages:
    """Comparisons of the language model on a prompt (B, L, D) with explicit positions, pruned prompts included.

    The golden answer is appended to the prompt: causality leaves the prompt's own rows as they are, and the answer's
    rows check the cached decoding of `greedy_ids` independently. Pruned prompts are padded to the same length, so that
    one compilation serves all.

    Args:
      model: with `lm`, `prefill` and `decode`.
      embeds: makes the prompt's embeddings.
      positions: (B, L) or (3, B, L).
      golden: the reference's arrays.
      deepstack: makes what is added behind the first layers (S, B, L, D), if anything.
      bidirectional: (B, L) slots of the prompt that see each other in either direction.
    """
    answer = golden["greedy_ids"] if golden.has("greedy_ids") else np.zeros((len(golden["input_ids"]), 0), np.int32)
    length, total = positions.shape[-1], positions.shape[-1] + answer.shape[1]

    def forward(keep: Any, reindexed: bool, more: int) -> Any:
        x = np.concatenate([embeds()[:, keep], embed_text(model, answer[:, :more])], axis=1)
        where = positions[..., keep]
        where = np.broadcast_to(np.arange(len(keep)), where.shape) if reindexed else where
        # An answer goes on behind the largest id of all axes.
        top = positions.max(axis=(0, -1) if positions.ndim == 3 else -1)
        after = np.broadcast_to(top[:, None] + 1 + np.arange(more), (*where.shape[:-1], more))
        where = np.concatenate([where, after], axis=-1)
        pad = total - x.shape[1]
        x = np.pad(x, ((0, 0), (0, pad), (0, 0)))
        where = np.pad(where, [(0, 0)] * (where.ndim - 1) + [(0, pad)])
        valid = np.broadcast_to(np.arange(total) < total - pad, x.shape[:2])
        extra = (
            None if deepstack is None else np.pad(deepstack()[:, :, keep], ((0, 0), (0, 0), (0, more + pad), (0, 0)))
        )
        mutual = None if bidirectional is None else np.pad(bidirectional[:, keep], ((0, 0), (0, more + pad)))
        return jax.device_get(_forward(model, x, where, valid, np.full((len(x), 1), len(keep) - 1), extra, mutual))

    whole = functools.cache(lambda: forward(np.arange(length), False, answer.shape[1]))

    def pruned(reindexed: bool) -> np.ndarray:
        keep = golden["pruned_keep"]
        return forward(keep, reindexed, 0).logits[:, : len(keep)]

    def greedy() -> Any:
        valid = np.ones(embeds().shape[:2], bool)
        parts: PromptParts = {}
        if deepstack is not None:
            parts["deepstack"] = deepstack()
        if bidirectional is not None:
            parts["bidirectional"] = bidirectional
        return generate(model, embeds(), positions, valid, max_new_tokens=answer.shape[1], **parts)

    return {
        "inputs_embeds": ModelStage(embeds, VISION),
        "lm_hidden": ModelStage(lambda: whole().hidden[:, :, :length], LOGITS),
        "lm_last_query_attention": ModelStage(lambda: whole().attention[:, :, :, 0, :length], LM_ATTENTION),
        "logits": ModelStage(lambda: whole().logits[:, :length], LOGITS),
        "logits_tail": ModelStage(lambda: whole().logits[:, length - golden["logits_tail"].shape[1] : length], LOGITS),
        "greedy_ids": ModelStage(greedy),
        "greedy_margin": ModelStage(lambda: lead(whole().logits[:, length - 1 : -1]), 2 * LOGITS),
        "pruned_logits_reindexed": ModelStage(lambda: pruned(True), LOGITS),
        "pruned_logits_original_positions": ModelStage(lambda: pruned(False), LOGITS),
    }
