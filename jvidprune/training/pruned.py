"""Clips through a tower with STTS: a reader whose scorer learns with the model."""

from typing import Any

import jax
from jaxtyping import Array, Float

from jvidprune.errors import JvidpruneError
from jvidprune.stts import STTSConfig, encode_llava, llava_windows, one_video, windows_kept
from jvidprune.training.video_loss import ClipTokens


class Pruned:
    """A reader that prunes in the tower of a LLaVA model; see `video_loss.Reader`.

    Clips are computed side by side, each with its own budget, so that a mesh divides them.

    Args:
      model: config of the model.
      config: settings of STTS.
      frames: of a clip.
      budget: windows that stay of a clip; None for those that `config.removed` leaves.

    Raises:
      JvidpruneError: settings that do not fit the tower, or a budget beyond the windows of a clip.
    """

    def __init__(self, model: Any, config: STTSConfig, frames: int, budget: int | None = None):
        config.check_layers(model.vision.layers)
        windows = llava_windows(model, config.window)
        self.config, self.frames = config, frames
        if budget is None:
            budget = windows_kept(frames, windows.count, config.removed, config.prune_from_frame)
        if not 0 < budget <= frames * windows.count:
            raise JvidpruneError(f"{budget} windows cannot stay of {frames} frames with {windows.count} each.")
        self.budget = budget
        self._remove = frames * windows.count - budget
        self.kept = budget * windows.tokens_each
        self.whole = frames * windows.token_count

    def __call__(self, parts: Any, pixels: Float[Array, "B T 3 s s"], key: Array) -> ClipTokens:
        """Kept tokens and the auxiliary loss of each clip; the modules are "model" and, where one learns, "scorer"."""
        model, scorer = parts["model"], parts.get("scorer")
        examples = one_video(self.frames, self._remove)

        def one(clip: Array, key: Array) -> ClipTokens:
            options: dict[str, Any] = {"kept": self.budget, "scorer": scorer, "key": key}
            found = encode_llava(model, clip.astype(model.lm.dtype), examples, self.config, **options)
            return ClipTokens(found.tokens, found.loss, found.index if self.config.keep_positions else None)

        return jax.vmap(one)(pixels, jax.random.split(key, len(pixels)))
