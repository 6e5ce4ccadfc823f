"""A model with a scorer attached: it encodes as before, gives the tower's state at the scores, and goes on from it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Int

from jvidprune.errors import JvidpruneError
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.encode import Encoder, connect_kept, encoder_of
from jvidprune.stts.saved import RELEASED, released_scorer
from jvidprune.stts.scorer import Scorer, ScorerSizes
from jvidprune.stts.select import one_video
from jvidprune.stts.tower import Prefix, run_kept, run_prefix
from jvidprune.tokens import Reduced, VideoTokens
from jvidprune.video.preprocess import Patches

EVIDENCE = frozenset({"tower_state", "tower_scores", "tower_input"})
"""What a model with a scorer gives besides its own evidence."""


class ScoredModel(nnx.Module):
    """A model of any family and a scorer; stands in for the model wherever one is asked.

    Attributes:
      base: the model.
      scorer: of its tower.
      stts: settings.
    """

    def __init__(self, base: Any, scorer: Scorer, stts: STTSConfig):
        vision = base.config.vision
        stts.check_layers(vision.layers)
        fitting = ScorerSizes(vision.width, vision.heads, scorer.sizes.hidden)
        if scorer.sizes != fitting:
            raise JvidpruneError(
                f"the scorer is for towers of width {scorer.sizes.width} with {scorer.sizes.heads} heads, "
                f"this one has width {fitting.width} and {fitting.heads}."
            )
        self.base, self.scorer, self.stts = base, scorer, stts

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's own."""
        if name.startswith("_") or name in ("base", "scorer", "stts"):
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def layers(self) -> int:
        """Blocks of the tower."""
        return self.base.config.vision.layers

    @property
    def provides(self) -> frozenset[str]:
        """Evidence that `encode` can attach."""
        return self.base.provides | EVIDENCE

    def encode(self, pixels: Any, needs: frozenset[str] = frozenset(), **options: Any) -> VideoTokens:
        """The model's own `encode`, dense, and where asked for the tower's state at the scores.

        The dense tokens are what other methods read. Where nothing else is asked, `encode.encode` makes STTS's tokens
        without them, which is what saves time.
        """
        video = self.base.encode(pixels, needs - EVIDENCE, **options)
        asked = needs & EVIDENCE
        if not asked:
            return video
        values, grid = (pixels.values, pixels.grid) if isinstance(pixels, Patches) else (pixels, None)
        encoder = encoder_of(self.base, self.stts.window, grid)
        at = run_prefix(encoder.tower, encoder.embed(values), encoder.windows, self.stts, scorer=self.scorer)
        found = {"tower_state": at.x, "tower_scores": at.scores, "tower_input": at.entered}
        return dataclasses.replace(video, evidence=video.evidence | {name: found[name] for name in asked})

    def finish(
        self, video: VideoTokens, remove: Int[Array, "R"], config: STTSConfig, *, capacity: int, seed: int = 0
    ) -> Reduced:
        """Kept tokens for every budget, leading axis R, from a video that carries the tower's state.

        Args:
          video: encoded with the evidence "tower_state" and "tower_scores".
          remove: windows to remove.
          config: settings; where the tower is scored is fixed by the encoding.
          capacity: static number of tokens of each.
          seed: for method "random".
        """
        return _finish(self.base, video, remove, jax.random.key(seed), config=config, capacity=capacity)


def attach(llm: Any, config: STTSConfig, scorer: Scorer) -> Any:
    """A `VideoLLM` whose model carries a scorer: `llm.reducer("stts")` is a method like any other from there on.

    Args:
      llm: the `llm.video_llm.VideoLLM`.
      config: settings.
      scorer: of the width of its tower.

    Raises:
      JvidpruneError: a scorer or settings that do not fit the tower.
    """
    base = llm.loaded.model.base
    encoder_of(base, config.window, (1, 2, 2))
    loaded = dataclasses.replace(llm.loaded, model=ScoredModel(base, scorer, config))
    return dataclasses.replace(llm, loaded=loaded)


def attach_released(llm: Any) -> Any:
    """The same `VideoLLM`, with the scorer that its checkpoint holds attached if there is one.

    Raises:
      JvidpruneError: tensors of a scorer that do not fit.
    """
    scorer = released_scorer(llm.loaded.folder, llm.loaded.config.vision.heads)
    return llm if scorer is None else attach(llm, RELEASED, scorer)


@functools.partial(jax.jit, static_argnames=("config", "capacity"))
def _finish(base: Any, video: VideoTokens, remove: Array, key: Array, *, config: STTSConfig, capacity: int) -> Reduced:
    merge = getattr(base.config.vision, "merge", 1)
    frames, (height, width) = video.features.shape[0], video.grid
    encoder = encoder_of(base, config.window, (frames, height * merge, width * merge))
    state = video.evidence["tower_state"]
    prefix = Prefix(state, video.evidence.get("tower_input", state), video.evidence["tower_scores"])

    def one(n: Array) -> Reduced:
        return _reduced(encoder, prefix, video, n, key, config, capacity)

    if jax.default_backend() == "cpu":
        return lax.map(one, remove)
    return jax.vmap(one)(remove)


def _reduced(
    encoder: Encoder, prefix: Prefix, video: VideoTokens, remove: Array, key: Array, config: STTSConfig, capacity: int
) -> Reduced:
    windows, total = encoder.windows, video.features.shape[0] * video.features.shape[1]
    examples = one_video(video.features.shape[0], remove, video.frame_mask)
    kept = -(-capacity // windows.tokens_each)
    early = [block for block in encoder.record if block <= config.prune_at]
    if early and "features_deepstack" not in video.evidence:
        raise JvidpruneError(f"the connector reads block {early[0]}, which lies before the scores.")
    recorded = dict.fromkeys(early, prefix.x)
    out = run_kept(
        encoder.tower, prefix, windows, examples, config, kept=kept, key=key, record=encoder.record, recorded=recorded
    )
    pruned = connect_kept(encoder, out, kept)
    rows = jnp.arange(pruned.index.shape[0], dtype=jnp.int32)
    slot = jnp.full(total, -1, jnp.int32).at[pruned.index].set(rows, mode="drop")
    shown = {}
    if pruned.deepstack is not None:
        deepstack = pruned.deepstack
        for number, block in enumerate(encoder.record):
            if block in early:
                # Levels from before the scores are those of the dense tower, which the video carries.
                dense = video.evidence["features_deepstack"][:, :, number].reshape(total, -1)
                deepstack = deepstack.at[:, number].set(dense.at[pruned.index].get(mode="fill", fill_value=0))
        shown["features_deepstack"] = deepstack
    mass = pruned.valid.astype(jnp.int32)
    return Reduced(pruned.tokens, pruned.index, pruned.valid, mass, slot, shown)
