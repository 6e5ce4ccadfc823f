"""Videos to the tokens that STTS leaves, for each kind of tower; everything behind the tower runs on kept tokens."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvidprune.models.llava_onevision import LlavaOnevision, LlavaOnevisionConfig
from jvidprune.ops.compact import compact
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.scorer import Scorer
from jvidprune.stts.select import Examples
from jvidprune.stts.siglip import SiglipTower
from jvidprune.stts.tower import Prefix, Scored, run_kept, run_prefix, run_tower
from jvidprune.stts.windows import Windows, pooled_windows


class PrunedTokens(NamedTuple):
    """The visual tokens that the language model reads, in raster order frame by frame.

    Attributes:
      tokens: (K, D), zeros on padding; K is static.
      index: (K,) int32 frame * L + token of each row, F * L on padding; L tokens of a frame unpruned.
      valid: (K,) bool, a prefix mask; all True where every budget is met exactly.
      loss: () float32 auxiliary loss with its coefficient, to be added to the language model's.
      scores: (F, P) float32 of the scorer, zeros for the baselines.
      keep: (F, P) windows that stay.
      levels: (K, S, D) DeepStack levels of the same tokens (Qwen3-VL), or None.
    """

    tokens: Float[Array, "K D"]
    index: Int[Array, "K"]
    valid: Bool[Array, "K"]
    loss: Float[Array, ""]
    scores: Float[Array, "F P"]
    keep: Bool[Array, "F P"]
    levels: Any = None


def llava_windows(config: LlavaOnevisionConfig, window: int = 1) -> Windows:
    """The windows of a LLaVA tower: those of its spatial pooling, `window` tokens on a side.

    Raises:
      JvidpruneError: windows that do not divide the grid of tokens.
    """
    return pooled_windows(config.vision.side, config.pool, window)


def encode_llava(
    model: LlavaOnevision,
    pixels: Float[Array, "F 3 S S"],
    examples: Examples,
    config: STTSConfig,
    *,
    kept: int,
    scorer: Scorer | None = None,
    key: Array | None = None,
) -> PrunedTokens:
    """Frames to pruned tokens; pure, and differentiable in model, scorer and pixels.

    Several videos go through in one call as examples on the flat axis; where each keeps the same number of windows,
    `tokens.reshape(videos, -1, D)` parts them again.

    Args:
      model: LLaVA-OneVision or LLaVA-Video.
      pixels: (F, 3, S, S) normalised frames of all examples.
      examples: `select.one_video` or `packed_examples`, with the windows to remove.
      config: settings.
      kept: static bound of the windows that stay, see `tower.run_tower`.
      scorer: for method "scorer".
      key: for method "random".

    Raises:
      JvidpruneError: pixels of the wrong size, or settings that do not fit the tower.
    """
    tower = SiglipTower(model.vision)
    windows = llava_windows(model.config, config.window)
    x = tower.embed(pixels)
    out = run_tower(tower, x, windows, examples, config, kept=kept, scorer=scorer, key=key)
    return connect_llava(model, windows, out, kept)


def connect_llava(model: LlavaOnevision, windows: Windows, out: Scored, kept: int) -> PrunedTokens:
    """Projector and pooling of the tokens of kept windows alone; equal to pooling everything and dropping the rest."""
    index, valid = kept_tokens(out.keep, windows, kept)
    frame, token = jnp.divmod(jnp.minimum(index, out.keep.shape[0] * windows.token_count - 1), windows.token_count)
    patches = jnp.asarray(windows.token_patches)[token] + (frame * windows.patch_count)[:, None]
    hidden = out.hidden.reshape(-1, out.hidden.shape[-1])[patches]
    projected = model.projector(hidden)
    pooled = projected.max(axis=1) if model.config.pool == "max" else windows.pool(projected, token)
    return PrunedTokens(jnp.where(valid[:, None], pooled, 0), index, valid, out.loss, out.scores, out.keep)


def kept_tokens(keep: Bool[Array, "F P"], windows: Windows, kept: int) -> tuple[Int[Array, "K"], Bool[Array, "K"]]:
    """(K,) frame * L + token of the tokens of kept windows, ascending, and which rows are in use."""
    capacity = min(kept, keep.size) * windows.tokens_each
    index, valid, _ = compact(keep[:, windows.of_token].reshape(-1), capacity)
    return index.astype(jnp.int32), valid


def llava_prefix(model: LlavaOnevision, pixels: Array, config: STTSConfig, scorer: Scorer | None) -> Prefix:
    """The part of `encode_llava` that does not depend on the budget."""
    tower = SiglipTower(model.vision)
    return run_prefix(tower, tower.embed(pixels), llava_windows(model.config, config.window), config, scorer=scorer)


def finish_llava(
    model: LlavaOnevision,
    prefix: Prefix,
    examples: Examples,
    config: STTSConfig,
    *,
    kept: int,
    key: Array | None = None,
) -> PrunedTokens:
    """The part of `encode_llava` behind the scores, vmappable over `examples.remove`."""
    windows = llava_windows(model.config, config.window)
    out = run_kept(SiglipTower(model.vision), prefix, windows, examples, config, kept=kept, key=key)
    return connect_llava(model, windows, out, kept)
